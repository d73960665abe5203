"""The run folder: its file names are written in one place."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import m4oe_ds
from m4oe_ds.runs.folder import RunFolder

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
}


def literals(source: str) -> Iterator[tuple[int, str]]:
    """Line and value of the string constants that are file names of a run folder; a docstring never equals one."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in NAMES:
            yield node.lineno, node.value


def test_no_other_module_names_files_of_the_run_folder() -> None:
    modules = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "runs" / "folder.py"]
    assert len(modules) > 100
    found = [
        f"{path.relative_to(PACKAGE)}:{line}: {name}"
        for path in modules
        for line, name in literals(path.read_text(encoding="utf-8"))
    ]
    assert not found, f"take these from RunFolder: {found}"


def test_every_name_is_one_of_the_run_folder() -> None:
    named = {name for _, name in literals((PACKAGE / "runs" / "folder.py").read_text(encoding="utf-8"))}
    assert named == NAMES


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('path = folder / "metrics.json"', [(1, "metrics.json")]),
        ("print(f\"{folder / 'metrics.json'}\")", [(1, "metrics.json")]),
        ('"""Writes ``metrics.json``."""', []),
    ],
)
def test_what_counts_as_a_literal(source: str, expected: list[tuple[int, str]]) -> None:
    assert list(literals(source)) == expected


def test_files_of_a_split() -> None:
    files = RunFolder(Path("runs/one"))
    assert files.predictions("val") == Path("runs/one/predictions/val.npz")
    assert files.examples.parent == files.predictions_folder
