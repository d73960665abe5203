"""Variance, interval and paired test of the area under the ROC curve without resampling.

DeLong, DeLong and Clarke-Pearson 1988 (Biometrics 44:837), with the mid-ranks of Sun and Xu 2014 (IEEE Signal Process.
Lett. 21:1389) in O(N log N). The rows are taken as independent: with several exams or breasts of a patient the
variance is too small, and :mod:`m4oe_ds.evaluation.paired` resamples patients instead.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm

from m4oe_ds.evaluation.cases import labelled_binary

_ZERO = 1e-30  # rounding of a constant gives up to 1e-32; one changed rank among a million cases 1e-25


@dataclass(frozen=True)
class AurocEstimate:
    """AUROC of one system; None with ``reason`` where undefined.

    Attributes:
        value: the area.
        variance: variance of the area.
        low: lower bound of the Wald interval, cut at 0.
        high: upper bound, cut at 1.
        positives: positive cases it rests on.
        negatives: negative cases it rests on.
    """

    value: float | None
    variance: float | None
    low: float | None
    high: float | None
    positives: int
    negatives: int
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Fields by name, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class AurocComparison:
    """Paired test of two AUROCs on the same cases; None with ``reason`` where undefined.

    Attributes:
        first: AUROC of one system.
        second: AUROC of the other system.
        difference: first - second.
        variance: variance of the difference.
        low: lower bound of the Wald interval of the difference.
        high: upper bound.
        z: difference / standard error.
        p: two-sided p-value by the normal distribution.
    """

    first: AurocEstimate
    second: AurocEstimate
    difference: float | None
    variance: float | None
    low: float | None
    high: float | None
    z: float | None
    p: float | None
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Fields by name, ready for JSON."""
        return asdict(self)


def mid_ranks(values: np.ndarray) -> np.ndarray:
    """Ranks 1..N of ``values [N]``; equal values share the mean of their ranks (Sun and Xu 2014, algorithm 1)."""
    _, inverse, ties = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(ties) - (ties - 1) / 2.0)[inverse]


def placements(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Structural components of the AUROC (DeLong 1988, eqs. 4 and 5), from mid-ranks (Sun and Xu 2014, eqs. 18 and 19).

    Args:
        positive: ``[N]`` bool, both classes present.
        scores: ``[N]``.

    Returns:
        V10 ``[m]``: share of negatives below each positive; V01 ``[n]``: share of positives above each negative (ties
        count one half). The mean of either is the AUROC.
    """
    pooled = mid_ranks(scores)
    above, below = scores[positive], scores[~positive]
    of_positive = (pooled[positive] - mid_ranks(above)) / len(below)
    of_negative = 1.0 - (pooled[~positive] - mid_ranks(below)) / len(above)
    return of_positive, of_negative


def auroc_covariance(positive: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """AUROCs ``[K]`` and their covariance S10/m + S01/n ``[K, K]`` (DeLong 1988, eq. 7), unbiased covariances.

    Args:
        positive: ``[N]`` bool with at least two of each class.
        scores: ``[K, N]`` of K systems.
    """
    parts = [placements(positive, row) for row in scores]
    of_positive, of_negative = np.stack([p for p, _ in parts]), np.stack([n for _, n in parts])
    count = len(parts)
    covariance = np.cov(of_positive).reshape(count, count) / of_positive.shape[1]
    covariance += np.cov(of_negative).reshape(count, count) / of_negative.shape[1]
    return of_positive.mean(1), covariance


def auroc_interval(labels: ArrayLike, scores: ArrayLike, level: float = 0.95) -> AurocEstimate:
    """AUROC with DeLong's variance and Wald interval (DeLong 1988).

    Args:
        labels: ``[N]`` 0, 1, -1 missing.
        scores: ``[N]``, higher = more positive.
        level: confidence level of the interval.

    Raises:
        DataError: other labels, unequal lengths or scores that are not finite.
    """
    positive, (score,), _ = labelled_binary(labels, scores)
    return _one(positive, score, level)


def _one(positive: np.ndarray, score: np.ndarray, level: float) -> AurocEstimate:
    hits, misses = int(positive.sum()), int((~positive).sum())
    if not hits or not misses:
        why = "one class only" if hits or misses else "no labelled cases"
        return AurocEstimate(None, None, None, None, hits, misses, why)
    if min(hits, misses) < 2:
        value = float(placements(positive, score)[0].mean())
        return AurocEstimate(value, None, None, None, hits, misses, "one case of a class: variance undefined")
    (value,), ((variance,),) = auroc_covariance(positive, score[None])
    if variance < _ZERO:
        why = "the estimated variance is zero (all scores equal, or the classes fully separated)"
        return AurocEstimate(float(value), 0.0, None, None, hits, misses, why)
    half = float(norm.ppf(0.5 + level / 2)) * math.sqrt(variance)
    low, high = max(0.0, value - half), min(1.0, value + half)
    return AurocEstimate(float(value), float(variance), float(low), float(high), hits, misses)


def compare_aurocs(labels: ArrayLike, first: ArrayLike, second: ArrayLike, level: float = 0.95) -> AurocComparison:
    """Paired two-sided test of AUROC(first) = AUROC(second): z = L / sqrt(S11 + S22 - 2 S12) (DeLong 1988, eq. 8).

    Args:
        labels: ``[N]`` 0, 1, -1 missing.
        first: ``[N]`` scores of one system.
        second: ``[N]`` scores of the other on the same cases.

    Raises:
        DataError: other labels, unequal lengths or scores that are not finite.
    """
    positive, (a, b), _ = labelled_binary(labels, first, second)
    one, two = _one(positive, a, level), _one(positive, b, level)
    if one.value is None or two.value is None:
        return AurocComparison(one, two, None, None, None, None, None, None, one.reason)
    difference = one.value - two.value
    if min(one.positives, one.negatives) < 2:
        return AurocComparison(one, two, difference, None, None, None, None, None, one.reason)
    # variance of the component differences: equal to S11 + S22 - 2 S12, and exactly 0 for systems that rank alike
    (a10, a01), (b10, b01) = placements(positive, a), placements(positive, b)
    variance = float(np.var(a10 - b10, ddof=1) / len(a10) + np.var(a01 - b01, ddof=1) / len(a01))
    if variance < _ZERO:
        why = "the variance of the difference is zero: the systems rank the cases alike"
        return AurocComparison(one, two, difference, 0.0, None, None, None, None, why)
    error = math.sqrt(variance)
    half = float(norm.ppf(0.5 + level / 2)) * error
    z = difference / error
    p = float(2 * norm.sf(abs(z)))
    return AurocComparison(one, two, difference, variance, difference - half, difference + half, z, p)
