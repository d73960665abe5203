"""Percentile bootstrap that resamples patients: their exams and breasts are not independent."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """Bounds of a statistic; None where no resample defined it. ``undefined`` counts the resamples that did not."""

    low: float | None
    high: float | None
    undefined: int


def resampled_indices(groups: np.ndarray, resamples: int, seed: int) -> list[np.ndarray]:
    """Row indices of each resample: patients drawn with replacement, all rows of each."""
    _, inverse = np.unique(groups, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    rows = np.split(order, np.cumsum(np.bincount(inverse))[:-1])
    random = np.random.default_rng(seed)
    return [np.concatenate([rows[g] for g in random.integers(len(rows), size=len(rows))]) for _ in range(resamples)]


def clustered_bootstrap(
    statistic: Callable[[np.ndarray], float],
    groups: np.ndarray,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of ``statistic(row_indices)`` over resampled patients.

    Args:
        statistic: may return NaN where it is undefined (one class only). groups: ``[N]`` patient of each row.
    """
    return percentile([statistic(index) for index in resampled_indices(groups, resamples, seed)], level)


def percentile(values: list[float], level: float = 0.95) -> Interval:
    """Interval of bootstrap values, NaN left out and counted."""
    array = np.asarray(values, dtype=float)
    defined = array[np.isfinite(array)]
    if not len(defined):
        return Interval(None, None, len(array))
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), len(array) - len(defined))
