"""The last lines of a run: a row per split, and what to type next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from m4oe_ds.training.checkpoint import Position
from m4oe_ds.training.closing import closing_lines
from m4oe_ds.training.loop import Outcome

RUN = Path("runs/a b")
ENDED = Outcome(Position(40, 4, 0, 1280), 0, "step-00000030", 75.0)


def classes(auroc: float | None) -> dict[str, Any]:
    return {"kind": "classification", "n": 9, "metrics": {"auroc": {"value": auroc, "low": 0.1, "high": 0.9}}}


def split(loss: float, **tasks: Any) -> dict[str, Any]:
    return {"loss": loss, "tasks": tasks}


def test_one_figure_for_all_tasks_is_named_once() -> None:
    metrics = {"val": split(1.25, a=classes(0.5), b=classes(None)), "test": split(1.5, a=classes(0.75), b=classes(1.0))}
    assert closing_lines(metrics, ENDED, RUN, "runs/a b/report.html", True) == [
        "AUROC (synthetic data)  loss   a      b",
        "val                     1.250  0.500  -",
        "test                    1.500  0.750  1.000",
        "next: m4oe analyze 'runs/a b' && m4oe report 'runs/a b'",
        "      m4oe evaluate 'runs/a b' --split test; m4oe export 'runs/a b'; m4oe predict 'runs/a b' --help",
        "trained 40 steps in 0:01:15; best: step-00000030; report: runs/a b/report.html",
    ]


def test_tasks_of_several_kinds_name_their_figures() -> None:
    number = {"kind": "number", "n": 9, "metrics": {"mae": {"value": 2.5}}}
    mask = {"kind": "segmentation", "n": 9, "metrics": {"dice": {"value": 0.8}}}
    empty = {"kind": "survival", "n": 0, "metrics": {}}
    lines = closing_lines({"test": split(1.0, a=number, b=mask, c=empty)}, ENDED, RUN, "r", False)
    assert lines[:2] == ["split  loss   a MAE  b Dice  c Uno's C", "test   1.000  2.500  0.800   -"]


def test_columns_that_do_not_fit_are_counted() -> None:
    metrics = {"test": split(1.0, **{f"a_long_name_{k}": classes(0.5) for k in range(20)})}
    head, row = closing_lines(metrics, ENDED, RUN, "r", False)[:2]
    assert head.endswith("(and 13 more)")
    assert len(head) <= 120 + len("  (and 13 more)")
    assert row.count("0.500") == 7


def test_early_stopping_is_said_first_and_a_run_without_evaluation_closes_too() -> None:
    early = Outcome(Position(4, 1, 0, 128), 0, None, 1.0, "stopped early after epoch 1 of 2: ...")
    lines = closing_lines({}, early, RUN, "r", False)
    assert lines[0] == early.early
    assert lines[-1] == "trained 4 steps in 0:00:01; best: None; report: r"
