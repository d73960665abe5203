"""The table of mistakes: one line about each, with what is wrong, where and what to do, before torch is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.unit import mistakes

DRIVER = """
import contextlib, io, json, sys
from m4oe_ds.cli import main
found = {}
for name, line in json.load(sys.stdin).items():
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            status = main(line)
        except SystemExit as ended:
            status = ended.code
        except BaseException as error:
            status = f"{type(error).__name__}: {error}"
    found[name] = (status, err.getvalue(), [one for one in ("torch", "deepspeed", "timm") if one in sys.modules])
    if found[name][2]:
        break
json.dump(found, sys.stdout)
"""


@dataclass(frozen=True)
class Said:
    """What a command line ended with.

    Attributes:
        status: its exit status; a text = it ended in an exception.
        text: what it wrote to standard error.
        heavy: libraries that it imported and that take seconds.
    """

    status: object
    text: str
    heavy: tuple[str, ...]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Said]]:
    """All lines, one after the other in one process that never imports torch."""
    root = mistakes.folder(tmp_path_factory.mktemp("mistakes"))
    lines = {name: [word.format(w=root) for word in line.split()] for name, (line, _) in mistakes.TABLE.items()}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER], input=json.dumps(lines), capture_output=True, text=True, check=True, cwd=root
    )
    found = json.loads(done.stdout)
    return root, {name: Said(status, text, tuple(heavy)) for name, (status, text, heavy) in found.items()}


@pytest.mark.parametrize("name", mistakes.TABLE)
def test_a_mistake_is_one_line(name: str, said: tuple[Path, dict[str, Said]]) -> None:
    root, found = said
    one = found[name]
    assert one.heavy == (), "torch was imported before this was found"
    assert isinstance(one.status, int), one.status
    assert one.status > 0
    errors = [line for line in one.text.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, one.text
    assert "Traceback" not in one.text
    for words in mistakes.TABLE[name][1]:
        assert words.format(w=root) in errors[0]


def test_every_command_is_in_the_table() -> None:
    from m4oe_ds.cli import parser

    commands = next(action.choices for action in parser()._actions if action.dest == "command")
    tried = {line.split()[0] for line, _ in mistakes.TABLE.values() if line}
    without = {"doctor"}  # whose refusals are tested with them
    assert set(commands or ()) - without <= tried
