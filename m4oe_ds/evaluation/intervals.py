"""Percentile bootstrap that resamples patients: their exams and breasts are not independent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Interval(NamedTuple):
    """Bounds of a statistic; None where no resample defined it. ``undefined`` counts the resamples that did not."""

    low: float | None
    high: float | None
    undefined: int


@dataclass(frozen=True)
class Estimate:
    """A value with its patient-clustered percentile interval.

    Attributes:
        value: None where undefined; ``reason`` then says why.
        low: lower bound; None without resamples or where no resample defined the value.
        high: upper bound, likewise.
        n: rows it rests on.
        n_groups: patients it rests on.
        undefined_resamples: resamples that could not define it (they are left out of the interval).
        reason: why the value is undefined.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int
    n_groups: int
    undefined_resamples: int = 0
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Fields by name, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Bootstrap:
    """How patients are resampled (Efron and Tibshirani 1993, ch. 13); the same settings draw the same patients.

    Attributes:
        resamples: number of resamples; 0 = no intervals.
        seed: seed of the draws.
        level: confidence level of the intervals, e.g. 0.95.
    """

    resamples: int = 1000
    seed: int = 0
    level: float = 0.95

    def draws(self, groups: np.ndarray) -> list[np.ndarray]:
        """Row indices of each resample; none without rows.

        Args:
            groups: ``[N]`` patient of each row.
        """
        return resampled_indices(groups, self.resamples, self.seed) if self.resamples and len(groups) else []

    def interval(self, values: list[float]) -> Interval:
        """Percentile interval of the values of the resamples."""
        return percentile(values, self.level)

    def estimates(
        self,
        statistics: Callable[[np.ndarray], Mapping[str, float]],
        groups: np.ndarray,
        reasons: Mapping[str, str] | None = None,
    ) -> dict[str, Estimate]:
        """Several values from the same resampled patients.

        Args:
            statistics: function from row indices to values by name; NaN where undefined, also for no rows.
            groups: ``[N]`` patient of each row.
            reasons: why a value is undefined, by name.
        """
        count, patients = len(groups), len(np.unique(groups))
        values = statistics(np.arange(count))
        some_defined = any(map(math.isfinite, values.values()))
        drawn = [statistics(index) for index in self.draws(groups)] if some_defined else []
        result = {}
        for name, value in values.items():
            if not count or not math.isfinite(value):
                why = (reasons or {}).get(name, "undefined on these cases") if count else "no labelled cases"
                result[name] = Estimate(None, None, None, count, patients, reason=why)
            else:
                interval = self.interval([one[name] for one in drawn])
                result[name] = Estimate(float(value), interval.low, interval.high, count, patients, interval.undefined)
        return result

    def estimate(
        self, statistic: Callable[[np.ndarray], float], groups: np.ndarray, reason: str = "undefined on these cases"
    ) -> Estimate:
        """One value as :meth:`estimates`; ``statistic`` never sees an empty set of rows."""

        def statistics(index: np.ndarray) -> dict[str, float]:
            return {"value": statistic(index) if len(index) else math.nan}

        return self.estimates(statistics, groups, {"value": reason})["value"]


DEFAULT = Bootstrap()


def metric_entry(value: float | None, low: float | None, high: float | None) -> dict[str, float | None]:
    """A metric as ``metrics.json`` has it; an undefined value is None."""
    return {"value": float(value) if value is not None and math.isfinite(value) else None, "low": low, "high": high}


def owners(groups: ArrayLike | None, count: int) -> np.ndarray:
    """Patient of each of ``count`` rows; without ``groups`` every row is a patient of its own."""
    return np.arange(count) if groups is None else np.asarray(groups)


def resampled_indices(groups: np.ndarray, resamples: int, seed: int) -> list[np.ndarray]:
    """Row indices of each resample: patients drawn with replacement, all rows of each."""
    _, inverse = np.unique(groups, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    rows = np.split(order, np.cumsum(np.bincount(inverse))[:-1])
    random = np.random.default_rng(seed)
    return [np.concatenate([rows[g] for g in random.integers(len(rows), size=len(rows))]) for _ in range(resamples)]


def percentile(values: list[float], level: float = 0.95) -> Interval:
    """Interval of bootstrap values, NaN left out and counted."""
    array = np.asarray(values, dtype=float)
    defined = array[np.isfinite(array)]
    if not len(defined):
        return Interval(None, None, len(array))
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), len(array) - len(defined))
