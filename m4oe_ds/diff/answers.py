"""The answers of two runs to the same samples: differences of the main metrics, patients resampled together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.diff.sides import Side
from m4oe_ds.evaluation.intervals import Bootstrap
from m4oe_ds.evaluation.main_metric import Measure, main_metric
from m4oe_ds.evaluation.paired import PairedDifference, paired_statistic
from m4oe_ds.progress import track

Arrays = Mapping[str, np.ndarray]
_OF_A_SAMPLE = ("keys", "groups", "label_", "prob_", "value_", "risk_", "dice_")  # arrays with a row per sample


@dataclass(frozen=True)
class Answers:
    """What was compared.

    Attributes:
        split: name of the split.
        samples: number of samples that both predicted.
        groups: patients of them.
        only_first: samples that the first run alone predicted.
        only_second: samples that the second run alone predicted.
        rows: ``(task, second minus first)``, several metrics of a task.
        left_out: why a task, or everything, was not compared; by what was left out.
        first: arrays of the first run, of the shared samples.
        second: arrays of the second run, in the same order.
    """

    split: str
    samples: int = 0
    groups: int = 0
    only_first: int = 0
    only_second: int = 0
    rows: list[tuple[str, PairedDifference]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    first: Arrays = field(default_factory=dict)
    second: Arrays = field(default_factory=dict)


def compare(first: Side, second: Side, split: str, resamples: int) -> Answers:
    """Differences of every task that both runs answer, on the samples that both predicted.

    Args:
        first: one run.
        second: the other; a positive difference is in its favour where more is better.
        split: name of the split.
        resamples: of patients, for intervals and p.

    Raises:
        DataError: one of them has no predictions of the split.
    """
    if first.card.name != second.card.name:
        names = f"{first.path} is of {first.card.name}, {second.path} of {second.card.name}"
        return Answers(split, left_out={"all answers": f"different data sets: {names}"})
    one, other = first.answers(split), second.answers(split)
    keys, left, right = np.intersect1d(one["keys"], other["keys"], return_indices=True)
    found = Answers(
        split,
        len(keys),
        len(np.unique(one["groups"][left])),
        len(one["keys"]) - len(keys),
        len(other["keys"]) - len(keys),
        first=_at(one, left),
        second=_at(other, right),
    )
    if not len(keys):
        found.left_out["all answers"] = "no sample was predicted by both: they were evaluated on other shards"
        return found
    for name in dict.fromkeys([*first.tasks, *second.tasks]):
        if reason := _unequal(name, first, second, found):
            found.left_out[name] = reason
    shared = [task for name, task in first.tasks.items() if name not in found.left_out]
    for task in track(shared, "comparing answers", "tasks", len(shared)):
        found.rows.extend((task.name, row) for row in _differences(task, found, Bootstrap(resamples)))
    return found


def _at(arrays: Arrays, rows: np.ndarray) -> dict[str, np.ndarray]:
    """What the arrays say of some samples."""
    return {name: array[rows] for name, array in arrays.items() if name.startswith(_OF_A_SAMPLE)}


def _unequal(name: str, first: Side, second: Side, found: Answers) -> str:
    """Why a task cannot be compared; empty if it can."""
    for side, other in ((first, second), (second, first)):
        if name not in side.tasks:
            return f"only {other.path} answers it"
    a, b = first.tasks[name], second.tasks[name]
    if (a.kind, a.num_classes, a.class_names) != (b.kind, b.num_classes, b.class_names):
        return "its kind or its classes differ"
    if not (main_metric(a, found.first) and main_metric(b, found.second)):
        return "a run has no answers to it in its predictions"
    label = f"label_{name}"
    if label in found.first and label in found.second:
        x, y = found.first[label], found.second[label]
        if x.shape != y.shape:
            return "its labels have another form"
        equal = np.isclose(x.astype(float), y.astype(float), equal_nan=True).reshape(len(x), -1).all(1)
        if not equal.all():
            return f"its labels differ in {int((~equal).sum())} samples: the shards were converted otherwise"
    return ""


def _differences(task: TaskSpec, found: Answers, bootstrap: Bootstrap) -> list[PairedDifference]:
    pairs = zip(main_metric(task, found.first), main_metric(task, found.second), strict=True)
    return [_difference(one, other, found.first["groups"], bootstrap) for one, other in pairs]


def _difference(one: Measure, other: Measure, groups: np.ndarray, bootstrap: Bootstrap) -> PairedDifference:
    rows = np.flatnonzero(one.known & other.known)

    def values(index: np.ndarray) -> tuple[float, float]:
        chosen = rows[index]
        return (other.value(chosen), one.value(chosen)) if len(chosen) else (math.nan, math.nan)

    return paired_statistic(values, groups[rows], one.name, bootstrap)
