"""The last lines of a run: the figures of its last split with their baseline, and what to type next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from m4oe_ds.training.checkpoint import Position
from m4oe_ds.training.closing import closing_lines
from m4oe_ds.training.loop import Outcome

RUN = Path("runs/a b")
ENDED = Outcome(Position(40, 4, 0, 1280), 0, "step-00000030", 75.0)


def classes(auroc: float) -> dict[str, Any]:
    interval = {"value": auroc, "low": 0.1, "high": 0.9}
    values = dict.fromkeys(("accuracy", "balanced_accuracy", "auroc", "auprc"), interval)
    return {"kind": "classification", "n": 9, "prior": 0.5, "auprc_chance": 0.25, "metrics": values}


def split(loss: float, **tasks: Any) -> dict[str, Any]:
    return {"loss": loss, "tasks": tasks}


def test_the_last_split_is_shown_with_its_baseline_and_what_to_type_next() -> None:
    metrics = {"val": split(1.25, a=classes(0.5)), "test": split(1.5, a=classes(0.75))}
    lines = closing_lines(metrics, ENDED, RUN, "runs/a b/report.html", True)
    assert lines[0] == "test split (synthetic data)"
    assert lines[1].split()[:3] == ["task", "n", "majority"]
    assert lines[2].split()[:4] == ["a", "9", "0.500", "0.750"]
    assert lines[3:] == [
        "",
        "next: m4oe analyze 'runs/a b' && m4oe report 'runs/a b'",
        "      m4oe evaluate 'runs/a b' --split test; m4oe export 'runs/a b'; m4oe predict 'runs/a b' --help",
        "trained 40 steps in 0:01:15; best: step-00000030; report: runs/a b/report.html",
    ]


def test_early_stopping_is_said_first_and_a_run_without_evaluation_closes_too() -> None:
    early = Outcome(Position(4, 1, 0, 128), 0, None, 1.0, "stopped early after epoch 1 of 2: ...")
    lines = closing_lines({}, early, RUN, "r", False)
    assert lines[0] == early.early
    assert lines[-1] == "trained 4 steps in 0:00:01; best: None; report: r"
