"""A damaged file of a run folder is one line about that file, and leaves the report of before as it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m4oe_ds.cli import main
from tests.unit.report.test_html import fill

Damage = Callable[[Path], Any]


def cut(path: Path) -> None:
    """Half of the file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def text(content: str) -> Damage:
    return lambda path: path.write_text(content)


def without(*names: str) -> Damage:
    """Arrays less some."""

    def leave(path: Path) -> None:
        with np.load(path) as stored:
            kept = {name: stored[name] for name in stored.files if name not in names}
        np.savez(path, **kept)

    return leave


def shorter(path: Path) -> None:
    """Labels of fewer samples than there are answers."""
    with np.load(path) as stored:
        np.savez(path, **{k: stored[k][:3] if k.startswith("label_") else stored[k] for k in stored.files})


def task(content: Any) -> Damage:
    return text(json.dumps({"test": {"n": 1, "n_groups": 1, "tasks": {"risk1": content}}}))


DAMAGE: dict[str, tuple[str, Damage]] = {
    "environment, cut": ("environment.json", cut),
    "environment, a list": ("environment.json", text("[]")),
    "environment, other kinds": ("environment.json", text('{"num_parameters": "many", "git": [1]}')),
    "engine, cut": ("ds_config.json", text('{"a": ')),
    "engine, other kinds": ("ds_config.json", text('{"optimizer": [1]}')),
    "configuration, a word": ("config.yaml", text("a")),
    "configuration, a value": ("config.yaml", text("data: 3")),
    "configuration, no YAML": ("config.yaml", text("data: {root: ")),
    "configuration, other letters": ("config.yaml", lambda path: path.write_bytes(b"run: {name: \xff}")),
    "configuration, other kinds": ("config.yaml", text("loss: {alpha: [a]}")),
    "metrics, cut": ("metrics.json", cut),
    "metrics, empty": ("metrics.json", text('{"test": {"tasks": {}}}')),
    "metrics, a list": ("metrics.json", text('{"test": {"n": 1, "n_groups": 1, "tasks": []}}')),
    "metrics, no kind": ("metrics.json", task({"n": 1})),
    "metrics, a word": ("metrics.json", task("a")),
    "metrics, no figures": ("metrics.json", task({"n": 1, "kind": "classification"})),
    "metrics, no number": ("metrics.json", task({"n": 1, "kind": "number", "metrics": {}})),
    "log, destroyed": ("log.jsonl", text("destroyed")),
    "log, in the middle": ("log.jsonl", text('{"step": 1, "loss": 1}\n{"ste\n{"step": 3, "loss": 1}\n')),
    "log, no loss": ("log.jsonl", text('{"step": 1}\n')),
    "predictions, cut": ("predictions/test.npz", cut),
    "predictions, no keys": ("predictions/test.npz", without("keys")),
    "predictions, shorter": ("predictions/test.npz", shorter),
    "examples, cut": ("predictions/examples.npz", cut),
    "examples, no views": ("predictions/examples.npz", without("views")),
    "clinical, cut": ("clinical.json", text('{"tasks"')),
    "clinical, another": ("clinical.json", text("{}")),
    "clinical, other kinds": ("clinical.json", text('{"tasks": {"risk1": [1]}}')),
    "analysis, cut": ("analysis.json", text('{"a')),
    "analysis, other kinds": ("analysis.json", text('{"missing": {"cohort": 1}}')),
    "gallery, cut": ("analysis/gallery.npz", text("PK")),
    "planted, cut": ("predictions/planted.json", text('{"keys": ')),
    "planted, another": ("predictions/planted.json", text('{"a": 1}')),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fill(tmp_path / "run")
    file, damage = DAMAGE[name]
    (folder / file).parent.mkdir(exist_ok=True)
    damage(folder / file)
    (folder / "report.html").write_text("the one before")
    assert main(["report", str(folder)]) > 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert file in line
    assert (folder / "report.html").read_text() == "the one before"


def test_a_log_without_a_step_is_named_as_missing(tmp_path: Path) -> None:
    folder = fill(tmp_path / "run")
    (folder / "log.jsonl").write_text("")
    assert main(["report", str(folder)]) == 0
    assert "steps in log.jsonl" in (folder / "report.html").read_text()
