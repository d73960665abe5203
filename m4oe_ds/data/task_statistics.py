"""What the training labels say of each task: class counts, centre and spread of numbers, risks without any model.

A run keeps them (:class:`m4oe_ds.runs.training_data.TrainingData`): without centre and spread the answers of a
model to a question for a number have no unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.errors import DataError


@dataclass(frozen=True)
class TaskStatistics:
    """The training labels of one task.

    Attributes:
        known: samples with a label.
        counts: labels per class; of tasks with classes.
        centre: mean of a number, in its unit; 0 without labels.
        spread: standard deviation of a number, in its unit; 1 where all labels are equal.
        median: of a number; what always the same answer would best be.
        risks: of a survival: Kaplan-Meier estimate of the event within each horizon (Kaplan and Meier 1958).
        events: of a survival: samples whose event was seen.
    """

    known: int
    counts: tuple[int, ...] = ()
    centre: float = 0.0
    spread: float = 1.0
    median: float = 0.0
    risks: tuple[float, ...] = ()
    events: int = 0


def statistics_of(manifest: Manifest, tasks: Sequence[TaskSpec]) -> dict[str, TaskStatistics]:
    """Statistics of each task by name.

    Args:
        manifest: the training split.
        tasks: the tasks; one that the split lacks has no labels.
    """
    return {task.name: _statistics(manifest, task) for task in tasks}


def _statistics(manifest: Manifest, task: TaskSpec) -> TaskStatistics:
    known = manifest.sample_known(task.name)
    count = int(known.sum())
    if task.coded:
        labels = manifest.sample_labels(task.name)
        counts = np.bincount(labels[labels >= 0], minlength=task.num_classes)
        return TaskStatistics(count, tuple(counts.tolist()))
    if not count or task.dense:
        return TaskStatistics(count)
    values = manifest.sample_values(task.name)[known]
    if task.kind == "survival":
        time, event = values[:, 0], values[:, 1] > 0
        return TaskStatistics(count, risks=event_shares(time, event, task.horizons), events=int(event.sum()))
    spread = float(values.std())
    # the sum of equal numbers need not be a multiple of one of them: a spread of rounding alone is none
    if spread <= 1e-12 * float(np.abs(values).max()):
        spread = 1.0
    return TaskStatistics(count, centre=float(values.mean()), spread=spread, median=float(np.median(values)))


def event_shares(time: np.ndarray, event: np.ndarray, horizons: Sequence[float]) -> tuple[float, ...]:
    """Kaplan-Meier estimate of P(event within each horizon); beyond the longest follow-up the last value stays.

    Args:
        time: ``[N]`` time to the event or to the end of follow-up.
        event: ``[N]`` bool; at equal times events come before censorings.
        horizons: times, in the unit of ``time``.
    """
    times, events = np.unique(time[event], return_counts=True)
    reaching = len(time) - np.searchsorted(np.sort(time), times, side="left")
    free = np.concatenate([[1.0], np.cumprod(1.0 - events / np.maximum(reaching, 1))])
    return tuple(float(1.0 - free[np.searchsorted(times, horizon, side="right")]) for horizon in horizons)


def to_json(statistics: Mapping[str, TaskStatistics]) -> dict[str, Any]:
    """Statistics ready for JSON."""
    return {name: asdict(one) for name, one in statistics.items()}


def from_json(content: Any, tasks: Sequence[TaskSpec], where: str) -> dict[str, TaskStatistics]:
    """Statistics from JSON.

    Args:
        content: what :func:`to_json` gave.
        tasks: tasks that must be there.
        where: file it came from, for the message.

    Raises:
        DataError: a task is missing, or its entry is damaged.
    """
    found = {}
    for task in tasks:
        try:
            entry = content[task.name]
            values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in entry.items()}
            one = TaskStatistics(**values)
            sound = math.isfinite(one.centre) and math.isfinite(one.median) and 0 < one.spread < math.inf
            lengths = (len(one.counts) == (task.num_classes if task.coded else 0)) and (
                not one.risks or len(one.risks) == task.num_classes
            )
        except (KeyError, TypeError, AttributeError):
            sound = lengths = False
        if not (sound and lengths):
            raise DataError(f"says nothing usable of task {task.name}", where, "restore it from the run")
        found[task.name] = one
    return found
