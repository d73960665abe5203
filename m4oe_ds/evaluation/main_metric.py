"""The figures by which answers of every kind of task are judged in one line, with what knowing nothing would give."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from m4oe_ds.data.schema import MISSING, TaskSpec
from m4oe_ds.evaluation.intervals import Bootstrap
from m4oe_ds.evaluation.metrics import STATISTICS
from m4oe_ds.evaluation.survival import FollowUp, harrell_c

CODED = ("balanced_accuracy", "auroc")


@dataclass(frozen=True)
class Measure:
    """One figure of a task over any rows of a split.

    Attributes:
        name: e.g. ``balanced_accuracy``.
        known: ``[N]`` bool: rows whose answer is known.
        value: of an array of row numbers, all known; NaN where undefined.
        trivial: the same of the best answer that does not look at the sample; NaN where there is none to compare with.
        classes: ``[N]`` codes of a task with classes, -1 missing; None of others.
    """

    name: str
    known: np.ndarray
    value: Callable[[np.ndarray], float]
    trivial: Callable[[np.ndarray], float]
    classes: np.ndarray | None = None


def main_metric(task: TaskSpec, arrays: Mapping[str, np.ndarray]) -> list[Measure]:
    """The figures of a task, the first being the one that stands for it; empty if the arrays lack its answers.

    Args:
        task: the question.
        arrays: the arrays of ``predictions/<split>.npz``.
    """
    needed = {"number": "value", "survival": "risk", "mask": "dice"}.get(task.kind, "prob")
    if f"{needed}_{task.name}" not in arrays:
        return []
    answer = arrays[f"{needed}_{task.name}"].astype(float)
    if task.coded:
        return _coded(arrays[f"label_{task.name}"], answer)
    if task.dense:
        return [_dice(answer)]
    label = arrays[f"label_{task.name}"].astype(float)
    return [_number(label, answer) if task.kind == "number" else _survival(label, answer)]


def _coded(labels: np.ndarray, probability: np.ndarray) -> list[Measure]:
    """Balanced accuracy, next to which the most frequent class gives 1 / classes, and AUROC, 0.5 by chance."""

    def chance(rows: np.ndarray) -> float:
        return 1.0 / len(np.unique(labels[rows])) if len(rows) else math.nan

    def measure(name: str, trivial: Callable[[np.ndarray], float]) -> Measure:
        fast = STATISTICS[name][1]
        return Measure(
            name,
            labels != MISSING,
            lambda rows: fast(labels[rows], probability[rows]) if len(rows) else math.nan,
            trivial,
            labels,
        )

    return [measure("balanced_accuracy", chance), measure("auroc", lambda rows: 0.5)]


def _dice(dice: np.ndarray) -> Measure:
    """Mean Dice coefficient, of several classes their mean; an empty mask has none to compare with."""
    of_sample = dice if dice.ndim == 1 else dice.mean(1)
    return Measure("dice", np.isfinite(of_sample), lambda rows: _mean(of_sample[rows]), lambda rows: math.nan)


def _number(label: np.ndarray, value: np.ndarray) -> Measure:
    """Mean absolute error in the unit of the number; the trivial answer is the median of the rows."""
    error = np.abs(value - label)
    return Measure(
        "mae",
        np.isfinite(label),
        lambda rows: _mean(error[rows]),
        lambda rows: _mean(np.abs(label[rows] - np.median(label[rows]))) if len(rows) else math.nan,
    )


def _survival(label: np.ndarray, risk: np.ndarray) -> Measure:
    """Harrell's concordance of the risk at the last horizon; 0.5 by chance."""

    def concordance(rows: np.ndarray) -> float:
        if not len(rows):
            return math.nan
        followed = FollowUp(label[rows, 0], label[rows, 1] > 0)
        found = harrell_c(followed, risk[rows, -1], bootstrap=Bootstrap(0)).value
        return math.nan if found is None else found

    return Measure("c_index", np.isfinite(label).all(1), concordance, lambda rows: 0.5)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan
