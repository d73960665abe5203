"""Two systems on the same cases: difference of a metric with patient-level resampling, and DeLong's test for AUROC."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from m4oe_ds.data.schema import MISSING
from m4oe_ds.errors import DataError
from m4oe_ds.evaluation.cases import class_probabilities
from m4oe_ds.evaluation.delong import compare_aurocs
from m4oe_ds.evaluation.intervals import Bootstrap
from m4oe_ds.evaluation.metrics import Statistic, named_statistic

DEFAULT = Bootstrap(resamples=2000)  # p-values want more of them than intervals


@dataclass(frozen=True)
class PairedDifference:
    """Metric of two systems on the same cases and the difference first - second; None with ``reason`` if undefined.

    Attributes:
        low: lower bound of the percentile interval of the difference.
        high: upper bound.
        p: two-sided bootstrap value.
        n: number of rows.
        n_groups: number of patients.
        undefined_resamples: left out of interval and p.
        delong: fields of :class:`m4oe_ds.evaluation.delong.AurocComparison` for the AUROC of a binary task, with a
            ``note`` where patients have several rows; None for other metrics.
    """

    metric: str
    first: float | None
    second: float | None
    difference: float | None
    low: float | None
    high: float | None
    p: float | None
    n: int
    n_groups: int
    undefined_resamples: int = 0
    delong: dict[str, Any] | None = None
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Fields by name, ready for JSON."""
        return asdict(self)


def two_sided_p(differences: ArrayLike) -> float:
    """Bootstrap p of "no difference": twice the smaller tail beyond 0, (1 + count) / (1 + B), at most 1.

    Achieved significance level by inverting the percentile interval (Efron and Tibshirani 1993, sec. 15.4 and 16),
    with the + 1 of Davison and Hinkley 1997, eq. 4.11: never 0.

    Args:
        differences: ``[B]`` of the resamples, all finite.
    """
    values = np.asarray(differences, dtype=float)
    smaller = min(np.count_nonzero(values <= 0), np.count_nonzero(values >= 0))
    return float(min(1.0, 2 * (1 + smaller) / (1 + len(values))))


def paired_difference(
    labels: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    groups: ArrayLike,
    metric: str | Statistic = "auroc",
    bootstrap: Bootstrap = DEFAULT,
) -> PairedDifference:
    """Difference of a metric between two systems; the same resampled patients for both (Efron and Tibshirani 1993).

    Args:
        labels: ``[N]`` classes, -1 missing.
        first: ``[N, C]`` probabilities of one system, or ``[N]`` P(y = 1).
        second: the same of the other.
        groups: ``[N]`` patients.
        metric: a name of :data:`m4oe_ds.evaluation.metrics.STATISTICS` or a function of labels and probabilities.
    """
    known, a = class_probabilities(labels, first)
    _, b = class_probabilities(labels, second)
    owner = np.asarray(groups)
    if a.shape != b.shape or owner.shape != known.shape:
        raise DataError(f"systems {a.shape}, {b.shape} and groups {owner.shape} differ", fix="compare the same cases")
    keep = known != MISSING
    known, a, b, owner = known[keep], a[keep], b[keep], owner[keep]
    name, statistic = named_statistic(metric)

    def values(index: np.ndarray) -> tuple[float, float]:
        return statistic(known[index], a[index]), statistic(known[index], b[index])

    result = paired_statistic(values, owner, name, bootstrap)
    if metric != "auroc" or a.shape[1] != 2:
        return result
    test = compare_aurocs(known, a[:, 1], b[:, 1], bootstrap.level).as_dict()
    rows = len(known) - result.n_groups
    test["note"] = "patients with several rows: the variance is too small, rely on the bootstrap" if rows else ""
    return PairedDifference(**{**asdict(result), "delong": test})


def paired_statistic(
    values: Callable[[np.ndarray], tuple[float, float]], groups: np.ndarray, name: str, bootstrap: Bootstrap = DEFAULT
) -> PairedDifference:
    """Difference of two values computed from the same resampled rows.

    Args:
        values: function from row indices to the value of each system, NaN where undefined.
        groups: ``[N]`` patients.
        name: what the value is called.
        bootstrap: how patients are resampled.
    """
    count, patients = len(groups), len(np.unique(groups))
    first, second = values(np.arange(count)) if count else (math.nan, math.nan)
    if not (math.isfinite(first) and math.isfinite(second)):
        why = "the metric is undefined on these cases" if count else "no labelled cases"
        defined = [float(v) if math.isfinite(v) else None for v in (first, second)]
        return PairedDifference(name, defined[0], defined[1], None, None, None, None, count, patients, reason=why)
    pairs = np.array([values(index) for index in bootstrap.draws(groups)], dtype=float).reshape(-1, 2)
    found = pairs[:, 0] - pairs[:, 1]
    interval = bootstrap.interval(found.tolist())
    found = found[np.isfinite(found)]
    p = two_sided_p(found) if len(found) else None
    bounds = (interval.low, interval.high, p)
    return PairedDifference(
        name, float(first), float(second), float(first - second), *bounds, count, patients, interval.undefined
    )


def paired_mean_difference(
    first: ArrayLike,
    second: ArrayLike,
    groups: ArrayLike,
    name: str = "mean",
    bootstrap: Bootstrap = DEFAULT,
) -> PairedDifference:
    """Difference of the mean of a value per sample, such as Dice (Efron and Tibshirani 1993).

    Args:
        first: ``[N]`` of one system, NaN where missing (in both).
        second: ``[N]`` of the other, likewise.
        groups: ``[N]`` patients.

    Raises:
        DataError: unequal lengths, or a value that only one system has.
    """
    a, b, owner = np.asarray(first, dtype=float), np.asarray(second, dtype=float), np.asarray(groups)
    if a.ndim != 1 or a.shape != b.shape or owner.shape != a.shape:
        raise DataError(f"systems {a.shape}, {b.shape} and groups {owner.shape} differ", fix="compare the same cases")
    if not np.array_equal(np.isnan(a), np.isnan(b)):
        raise DataError("a value is missing in one of the two systems", fix="compare the same cases")
    keep = ~np.isnan(a)
    a, b, owner = a[keep], b[keep], owner[keep]
    return paired_statistic(lambda index: (float(a[index].mean()), float(b[index].mean())), owner, name, bootstrap)
