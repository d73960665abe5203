"""The run folder: its file names are written in one place."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import m4oe_ds
from m4oe_ds.runs.folder import CheckpointFolder, RunFolder, checkpoint_tag, checkpoint_tags

PACKAGE = Path(m4oe_ds.__file__).parent
NAMES = {
    "config.yaml",
    "metrics.json",
    "log.jsonl",
    "analysis.json",
    "clinical.json",
    "environment.json",
    "ds_config.json",
    "model.safetensors",
    "report.html",
    "manifest.json",
    "LATEST",
    "BEST",
    "step-",  # how an f-string of the tag begins
    "state-",
}
# their manifest.json is that of shards
SHARD_MANIFEST = {"data/manifest.py", "data/planted.py", "predict/job.py", "scaling/point.py", "runs/request.py"}


def literals(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of the string constants that name files of a run folder; a docstring never does only that.

    A constant may be a name, or a pattern of names such as ``step-*/manifest.json``.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            parts = re.split(r"[*/]", node.value) if "*" in node.value else [node.value.strip("/")]
            yield from ((node.lineno, part) for part in parts if part in NAMES)


def test_no_other_module_names_files_of_the_run_folder() -> None:
    modules = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "runs" / "folder.py"]
    assert len(modules) > 100
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {name}"
        for path in modules
        for line, name in literals(path.read_text(encoding="utf-8"))
        if not (name == "manifest.json" and path.relative_to(PACKAGE).as_posix() in SHARD_MANIFEST)
    ]
    assert not found, f"take these from runs/folder.py: {found}"


def test_every_name_is_one_of_the_run_folder() -> None:
    named = {name for _, name in literals((PACKAGE / "runs" / "folder.py").read_text(encoding="utf-8"))}
    assert named == NAMES


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('path = folder / "metrics.json"', [(1, "metrics.json")]),
        ("print(f\"{folder / 'metrics.json'}\")", [(1, "metrics.json")]),
        ('"""Writes ``metrics.json``."""', []),
        ('f"step-{step:08d}"', [(1, "step-")]),
        ('folder.glob("state-*.safetensors")', [(1, "state-")]),
        ('f"{folder}/LATEST"', [(1, "LATEST")]),
        ('folder.glob("*/manifest.json")', [(1, "manifest.json")]),
        ('help = "one of its step-* checkpoints"', []),
    ],
)
def test_what_counts_as_a_literal(source: str, expected: list[tuple[int, str]]) -> None:
    assert list(literals(source)) == expected


def test_files_of_a_split() -> None:
    files = RunFolder(Path("runs/one"))
    assert files.predictions("val") == Path("runs/one/predictions/val.npz")
    assert files.examples.parent == files.predictions_folder


def test_checkpoints_are_complete_with_a_manifest_and_sort_by_step(tmp_path: Path) -> None:
    for step in (120, 12, 7):
        files = CheckpointFolder(tmp_path / checkpoint_tag(step))
        files.path.mkdir()
        files.state(0).touch()
        if step != 7:
            files.manifest.touch()
    (tmp_path / ".writing-step-00000009").mkdir()
    assert checkpoint_tags(tmp_path) == ["step-00000012", "step-00000120"]
