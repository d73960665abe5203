"""Decisions made from scores: thresholds, sensitivity and specificity, graded agreement, overlap of masks.

A case is called positive when its score is at or above the threshold. A threshold belongs to validation data
(:func:`threshold_for`); :func:`at_target` reports the optimum of the evaluated data itself, which is optimistic.
Every number comes as an :class:`Estimate`: None with a reason where it is undefined, never NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import cohen_kappa_score

from m4oe_ds.data.schema import MISSING
from m4oe_ds.errors import DataError
from m4oe_ds.evaluation.intervals import percentile, resampled_indices

TARGETS = ("specificity", "sensitivity")
RowStatistic = Callable[[np.ndarray], float]  # row indices [R] -> value, NaN if undefined there


@dataclass(frozen=True)
class Estimate:
    """A value with its patient-clustered percentile interval.

    Attributes:
        value: None where undefined; ``reason`` then says why.
        low, high: bounds; None without resamples or where no resample defined the value.
        n, n_groups: rows and patients it rests on.
        undefined_resamples: resamples that could not define it (they are left out of the interval).
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
class OperatingPoint:
    """What one threshold does on one set of cases.

    Attributes:
        threshold: positive means ``score >= threshold``; None where no threshold could be chosen.
        counts: ``tp, fp, tn, fn``.
        sensitivity, specificity, ppv, npv: rates TP/(TP+FN), TN/(TN+FP), TP/(TP+FP), TN/(TN+FN).
        chosen_on: where the threshold came from, e.g. ``given`` or ``evaluated data``.
        reason: why there is no threshold.
    """

    threshold: float | None
    counts: dict[str, int]
    sensitivity: Estimate
    specificity: Estimate
    ppv: Estimate
    npv: Estimate
    chosen_on: str
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Fields by name, ready for JSON."""
        return asdict(self)


def labelled_binary(
    labels: ArrayLike, *columns: ArrayLike, groups: ArrayLike | None = None
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Rows with a known binary label.

    Args:
        labels: ``[N]``, 0, 1 or -1 for missing. columns: ``[N, ...]`` scores, made float64.
        groups: ``[N]`` patients; None = every row its own.

    Returns:
        ``is positive [K]``, the columns ``[K, ...]`` and groups ``[K]``.

    Raises:
        DataError: for unequal lengths, other labels, or a score that is not finite.
    """
    known = np.asarray(labels)
    if known.ndim != 1 or not np.isin(known, (MISSING, 0, 1)).all():
        raise DataError("labels must be a vector of 0, 1 and -1 (missing)", fix="pass one binary task")
    owner = np.arange(len(known)) if groups is None else np.asarray(groups)
    arrays = [np.asarray(column, dtype=float) for column in columns]
    for array in (owner, *arrays):
        if len(array) != len(known):
            raise DataError(f"{len(array)} scores or groups for {len(known)} labels", fix="pass one row per label")
    keep = known != MISSING
    arrays = [array[keep] for array in arrays]
    if not all(np.isfinite(array).all() for array in arrays):
        raise DataError("a score of a labelled case is not finite", fix="look for a diverged model")
    return known[keep] == 1, arrays, owner[keep]


def clustered_estimates(
    statistics: Callable[[np.ndarray], Mapping[str, float]],
    groups: np.ndarray,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    reasons: Mapping[str, str] | None = None,
) -> dict[str, Estimate]:
    """Several values from the same resampled patients, with percentile intervals (Efron and Tibshirani 1993, ch. 13).

    Args:
        statistics: of row indices, values by name; NaN where undefined, also for no rows. groups: ``[N]`` patient of
            each row. resamples: 0 = no interval. level: e.g. 0.95. reasons: by name, why a value is undefined.
    """
    count, patients = len(groups), len(np.unique(groups))
    values = statistics(np.arange(count))
    draws = resampled_indices(groups, resamples, seed) if resamples and count else []
    drawn = [statistics(index) for index in draws] if any(map(math.isfinite, values.values())) else []
    result = {}
    for name, value in values.items():
        if not count or not math.isfinite(value):
            why = (reasons or {}).get(name, "undefined on these cases") if count else "no labelled cases"
            result[name] = Estimate(None, None, None, count, patients, reason=why)
        else:
            interval = percentile([one[name] for one in drawn], level)
            result[name] = Estimate(float(value), interval.low, interval.high, count, patients, interval.undefined)
    return result


def clustered_estimate(
    statistic: RowStatistic,
    groups: np.ndarray,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    reason: str = "undefined on these cases",
) -> Estimate:
    """One value as :func:`clustered_estimates`; ``statistic`` never sees an empty set of rows."""
    found = clustered_estimates(
        lambda index: {"value": statistic(index) if len(index) else math.nan},
        groups, resamples, seed, level, {"value": reason},
    )  # fmt: skip
    return found["value"]


def threshold_for(labels: ArrayLike, scores: ArrayLike, target: str, rate: float) -> float | None:
    """Threshold with the given specificity or sensitivity and the best other rate (Fawcett 2006, sec. 5).

    Args:
        labels: ``[N]`` 0, 1, -1 missing. scores: ``[N]``. target: ``specificity`` or ``sensitivity``, which must be at
            least ``rate`` in (0, 1].

    Returns:
        The score of a positive (no other threshold is better in one rate and as good in the other); the next number
        above the highest score if no positive is left to call; None if the class that defines the rate is absent.
    """
    positive, (score,), _ = labelled_binary(labels, scores)
    return _threshold(positive, score, target, rate)


def _threshold(positive: np.ndarray, score: np.ndarray, target: str, rate: float) -> float | None:
    if target not in TARGETS or not 0.0 < rate <= 1.0:
        raise DataError(f"target {target!r} at {rate}", fix="use specificity or sensitivity at a rate in (0, 1]")
    defining = np.sort(score[positive] if target == "sensitivity" else score[~positive])
    if not len(defining):
        return None
    needed = max(1, math.ceil(rate * len(defining) - 1e-9))  # 0.9 * 10 must need 9, whatever the rounding of 0.9
    if target == "sensitivity":
        lowest = defining[len(defining) - needed]  # `needed` positives are at or above it
        below = score[~positive & (score < lowest)]
        bound = below.max() if len(below) else -math.inf  # positives above it cost no further false positive
    else:
        bound = defining[needed - 1]  # `needed` negatives are at or below it
    candidates = score[positive & (score > bound)]
    return float(candidates.min() if len(candidates) else np.nextafter(score.max(), math.inf))


def at_threshold(
    labels: ArrayLike,
    scores: ArrayLike,
    threshold: float | None,
    groups: ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    chosen_on: str = "given",
) -> OperatingPoint:
    """Sensitivity, specificity and predictive values at a fixed threshold (Altman and Bland 1994, BMJ 308:1552, 309:102).

    Args:
        labels: ``[N]`` 0, 1, -1 missing. scores: ``[N]``. threshold: from other data, e.g. :func:`threshold_for` of the
            validation split; None gives undefined rates. groups: ``[N]`` patients.
    """
    positive, (score,), owner = labelled_binary(labels, scores, groups=groups)

    def called(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return positive[index], score[index] >= (math.inf if threshold is None else threshold)

    return _point(called, owner, threshold, resamples, seed, level, chosen_on)


def at_target(
    labels: ArrayLike,
    scores: ArrayLike,
    target: str,
    rate: float,
    groups: ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> OperatingPoint:
    """The best point of this data with a fixed specificity or sensitivity (Fawcett 2006, sec. 5): optimistic.

    The threshold is chosen anew in every resample, so that the interval includes the choice.

    Args:
        labels, scores, target, rate: as :func:`threshold_for`. groups: ``[N]`` patients.
    """
    positive, (score,), owner = labelled_binary(labels, scores, groups=groups)
    threshold = _threshold(positive, score, target, rate)

    def called(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        truth, drawn = positive[index], score[index]
        chosen = _threshold(truth, drawn, target, rate)
        # without the defining class no rate is defined: an empty selection says so
        return (truth[:0], truth[:0]) if chosen is None else (truth, drawn >= chosen)

    return _point(called, owner, threshold, resamples, seed, level, "evaluated data")


def _point(
    called: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    groups: np.ndarray,
    threshold: float | None,
    resamples: int,
    seed: int,
    level: float,
    chosen_on: str,
) -> OperatingPoint:
    """Rates of ``called(rows) -> (is positive, called positive)`` with intervals from one set of resamples."""
    count, patients = len(groups), len(np.unique(groups))
    truth, said = called(np.arange(count))
    if threshold is None:
        why = "no threshold: the class that defines the target rate is absent" if count else "no labelled cases"
        none = Estimate(None, None, None, count, patients, reason=why)
        return OperatingPoint(None, _counts(truth[:0], said[:0]), none, none, none, none, chosen_on, why)
    rates = clustered_estimates(lambda index: _rates(*called(index)), groups, resamples, seed, level, _UNDEFINED)
    return OperatingPoint(
        threshold=threshold,
        counts=_counts(truth, said),
        sensitivity=rates["sensitivity"],
        specificity=rates["specificity"],
        ppv=rates["ppv"],
        npv=rates["npv"],
        chosen_on=chosen_on,
    )


_UNDEFINED = {
    "sensitivity": "no positive cases",
    "specificity": "no negative cases",
    "ppv": "nothing called positive",
    "npv": "nothing called negative",
}


def _counts(truth: np.ndarray, said: np.ndarray) -> dict[str, int]:
    pairs = {"tp": truth & said, "fp": ~truth & said, "tn": ~truth & ~said, "fn": truth & ~said}
    return {name: int(cases.sum()) for name, cases in pairs.items()}


def _rates(truth: np.ndarray, said: np.ndarray) -> dict[str, float]:
    c = _counts(truth, said)
    parts = {"sensitivity": ("tp", "fn"), "specificity": ("tn", "fp"), "ppv": ("tp", "fp"), "npv": ("tn", "fn")}
    return {
        name: c[right] / (c[right] + c[wrong]) if c[right] + c[wrong] else math.nan
        for name, (right, wrong) in parts.items()
    }


def quadratic_kappa(
    labels: ArrayLike,
    predicted: ArrayLike,
    num_classes: int,
    groups: ArrayLike | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Estimate:
    """Cohen's kappa with quadratic weights (Cohen 1968, Psychol. Bull. 70:213) of ordinal grades, by scikit-learn.

    Args:
        labels: ``[N]`` grades 0..num_classes-1, -1 missing. predicted: ``[N]`` grades. groups: ``[N]`` patients.

    Raises:
        DataError: for a grade outside the range or unequal lengths.
    """
    known, said = np.asarray(labels), np.asarray(predicted)
    if known.shape != said.shape or known.ndim != 1:
        raise DataError(f"{said.shape} predicted grades for {known.shape} labels", fix="pass one grade per label")
    keep = known != MISSING
    owner = (np.arange(len(known)) if groups is None else np.asarray(groups))[keep]
    known, said = known[keep], said[keep]
    grades = list(range(num_classes))
    if not (np.isin(known, grades).all() and np.isin(said, grades).all()):
        raise DataError(f"a grade outside 0..{num_classes - 1}", fix="check the number of classes")

    def statistic(index: np.ndarray) -> float:
        first, second = known[index], said[index]
        if len(np.unique(np.concatenate([first, second]))) < 2:
            return math.nan  # both constant and equal: chance agreement is perfect, kappa is 0/0
        return float(cohen_kappa_score(first, second, labels=grades, weights="quadratic"))

    why = "one grade only: agreement by chance is perfect"
    return clustered_estimate(statistic, owner, resamples, seed, level, why)


def mask_overlap(predicted: ArrayLike, truth: ArrayLike) -> dict[str, np.ndarray]:
    """Dice (Dice 1945) and intersection over union (Jaccard 1912) of each sample; two empty masks agree: 1.

    Args:
        predicted, truth: ``[N, ...]`` masks, bool or 0 and 1.

    Returns:
        ``dice`` and ``iou``, each ``[N]`` float64.

    Raises:
        DataError: for unequal shapes or values other than 0 and 1.
    """
    first, second = np.asarray(predicted), np.asarray(truth)
    if first.shape != second.shape or first.ndim < 2:
        raise DataError(f"masks of shapes {first.shape} and {second.shape}", fix="pass equal shapes [N, ...]")
    for mask in (first, second):
        if not ((mask == 0) | (mask == 1)).all():
            raise DataError("a mask has values other than 0 and 1", fix="apply the threshold first")
    axes = tuple(range(1, first.ndim))
    first, second = first.astype(bool), second.astype(bool)
    overlap = (first & second).sum(axis=axes, dtype=np.int64)
    size = first.sum(axis=axes, dtype=np.int64) + second.sum(axis=axes, dtype=np.int64)
    dice = np.where(size > 0, 2 * overlap / np.maximum(size, 1), 1.0)
    return {"dice": dice, "iou": iou_of_dice(dice)}


def iou_of_dice(dice: Sequence[float] | np.ndarray) -> np.ndarray:
    """Intersection over union D / (2 - D) of each sample from its Dice coefficient D ``[N]`` (NaN = missing stays)."""
    value = np.asarray(dice, dtype=float)
    return value / (2.0 - value)
