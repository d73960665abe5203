"""How good the answers are when modalities are missing: as they are in a split, and taken away on purpose.

What samples lack by themselves is confounded: those with few modalities may be other patients. Taking modalities from
the same samples is not, but says only what the model makes of what is left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.evaluation.intervals import Bootstrap
from m4oe_ds.evaluation.main_metric import Measure, main_metric
from m4oe_ds.evaluation.subgroups import too_small

MIN_PATIENTS, MIN_POSITIVES = 20, 5
Row = dict[str, Any]


def observed(
    tasks: Sequence[TaskSpec], arrays: Mapping[str, np.ndarray], present: np.ndarray, bootstrap: Bootstrap
) -> list[Row]:
    """Figures by the number of modalities that samples have; of small groups counts only.

    Args:
        tasks: what to evaluate.
        arrays: the arrays of ``predictions/<split>.npz``.
        present: ``[N, m]`` bool, which modalities each row has.
        bootstrap: how patients are resampled.

    Returns:
        Rows of ``task``, ``metric``, ``present`` (modalities), ``n``, ``n_groups``, ``value``, ``low``, ``high``,
        ``trivial`` and ``reason``.
    """
    groups, number = np.asarray(arrays["groups"]), present.sum(1)
    found = []
    for task in tasks:
        for measure in main_metric(task, arrays):
            for count in np.unique(number).tolist():
                rows = np.flatnonzero(measure.known & (number == count))
                entry = {"task": task.name, "metric": measure.name, "present": count}
                patients = len(np.unique(groups[rows]))
                reason = too_small(_counts(task, measure, rows), patients, MIN_PATIENTS, MIN_POSITIVES)
                if reason:
                    nothing = dict.fromkeys(("value", "low", "high", "trivial"))
                    found.append({**entry, "n": len(rows), "n_groups": patients, **nothing, "reason": reason})
                else:
                    found.append(entry | _estimated([measure], rows, groups, bootstrap))
    return found


def format_observed(rows: Sequence[Row]) -> str:
    """Aligned text of the rows of :func:`observed`."""
    table = [("task", "figure", "modalities", "n", "value", "baseline")]
    for row in rows:
        value = row["reason"] if row["value"] is None else f"{row['value']:.3f}"
        if row["low"] is not None:
            value += f" [{row['low']:.3f}, {row['high']:.3f}]"
        baseline = "" if row["trivial"] is None else f"{row['trivial']:.3f}"
        table.append((row["task"], row["metric"], str(row["present"]), str(row["n"]), value, baseline))
    widths = [max(len(line[i]) for line in table) for i in range(len(table[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table
    )


def removed(
    tasks: Sequence[TaskSpec],
    passes: Mapping[int, Sequence[Mapping[str, np.ndarray]]],
    cohort: np.ndarray,
    bootstrap: Bootstrap,
) -> list[Row]:
    """Figures of the same samples by the number of modalities taken from each; the mean over the draws of a number.

    Args:
        tasks: what to evaluate.
        passes: for each number of modalities taken, the arrays of every draw, with equal rows throughout.
        cohort: row numbers of the samples that have more modalities than are ever taken.
        bootstrap: how patients are resampled; all draws of a sample go with its patient.

    Returns:
        Rows as of :func:`observed`, with ``removed`` in place of ``present``, and ``draws``.
    """
    found = []
    for task in tasks:
        for count, draws in passes.items():
            by_draw = [main_metric(task, arrays) for arrays in draws]
            groups = np.asarray(draws[0]["groups"])
            for measures in zip(*by_draw, strict=True):
                entry = {"task": task.name, "metric": measures[0].name, "removed": count, "draws": len(draws)}
                found.append(entry | _estimated(measures, cohort, groups, bootstrap))
    return found


def cohort_size(number: np.ndarray) -> int:
    """How many modalities the samples of a cohort have at least: the most that half of them have, or else 2.

    Args:
        number: ``[N]`` modalities that each sample has.
    """
    ranked = np.sort(number)[::-1]
    return max(2, int(ranked[(len(ranked) - 1) // 2])) if len(ranked) else 2


def _estimated(measures: Sequence[Measure], rows: np.ndarray, groups: np.ndarray, bootstrap: Bootstrap) -> Row:
    """The mean of a figure over draws, with its interval; the answers known in a draw may differ (masks)."""
    rows = rows[np.any([measure.known[rows] for measure in measures], axis=0)]

    def mean(index: np.ndarray) -> float:
        return _mean([one.value(rows[index][one.known[rows[index]]]) for one in measures])

    found = bootstrap.estimate(mean, groups[rows])
    trivial = _mean([one.trivial(rows[one.known[rows]]) for one in measures])
    return {
        "n": found.n,
        "n_groups": found.n_groups,
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "trivial": trivial if math.isfinite(trivial) else None,
        "reason": found.reason,
    }


def _mean(values: list[float]) -> float:
    """Mean of the values that are defined; NaN if none is."""
    defined = [value for value in values if math.isfinite(value)]
    return float(np.mean(defined)) if defined else math.nan


def _counts(task: TaskSpec, measure: Measure, rows: np.ndarray) -> list[int]:
    """Rows of each class of a binary task; nothing of others, whose classes have no least number."""
    if measure.classes is None or task.num_classes != 2:
        return []
    counts: list[int] = np.bincount(measure.classes[rows], minlength=2).tolist()
    return counts
