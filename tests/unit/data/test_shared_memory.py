"""What is known of shared memory stands in one place: the readers, the stream and the doctor say and use the same."""

from __future__ import annotations

import ast
import signal
from pathlib import Path

from m4oe_ds.data import shared_memory
from m4oe_ds.data.readers import _told

PACKAGE = Path(__file__).parents[3] / "m4oe_ds"


def test_the_advice_and_the_folder_are_written_once() -> None:
    for text in ("--shm-size", "/dev/shm"):
        holders = [
            path.relative_to(PACKAGE).as_posix()
            for path in PACKAGE.rglob("*.py")
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and text in node.value
            if "\n" not in node.value and "``" not in node.value  # no docstring
        ]
        assert holders == ["data/shared_memory.py"], text
    assert _told(-signal.SIGBUS)[2] == shared_memory.FIX


def test_the_stream_keeps_as_many_batches_ahead_as_the_need_is_counted_for() -> None:
    tree = ast.parse((PACKAGE / "data" / "stream.py").read_text(encoding="utf-8"))
    keywords = [node for node in ast.walk(tree) if isinstance(node, ast.keyword)]
    (given,) = [keyword.value for keyword in keywords if keyword.arg == "prefetch_factor"]
    assert isinstance(given, ast.IfExp)
    assert ast.unparse(given.body) == "AHEAD"
