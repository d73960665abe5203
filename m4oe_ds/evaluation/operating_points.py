"""Decisions made from scores: thresholds, sensitivity and specificity, predictive values.

A case is called positive when its score is at or above the threshold. A threshold belongs to validation data
(:func:`threshold_for`); :func:`at_target` reports the optimum of the evaluated data itself, which is optimistic.
Every rate comes as an :class:`~m4oe_ds.evaluation.intervals.Estimate`: None with a reason where it is undefined, never
NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from m4oe_ds.errors import DataError
from m4oe_ds.evaluation.cases import labelled_binary
from m4oe_ds.evaluation.intervals import DEFAULT, Bootstrap, Estimate

TARGETS = ("specificity", "sensitivity")


@dataclass(frozen=True)
class OperatingPoint:
    """What one threshold does on one set of cases.

    Attributes:
        threshold: positive means ``score >= threshold``; None where no threshold could be chosen.
        counts: ``tp, fp, tn, fn``.
        sensitivity: TP/(TP+FN).
        specificity: TN/(TN+FP).
        ppv: TP/(TP+FP).
        npv: TN/(TN+FN).
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


def threshold_for(labels: ArrayLike, scores: ArrayLike, target: str, rate: float) -> float | None:
    """Threshold with the given specificity or sensitivity and the best other rate (Fawcett 2006, sec. 5).

    Args:
        labels: ``[N]`` 0, 1, -1 missing.
        scores: ``[N]``.
        target: ``specificity`` or ``sensitivity``, which must be at least ``rate`` in (0, 1].

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
    bootstrap: Bootstrap = DEFAULT,
    chosen_on: str = "given",
) -> OperatingPoint:
    """Sensitivity, specificity and predictive values at a fixed threshold (Altman and Bland 1994, BMJ 308:1552,
    309:102).

    Args:
        labels: ``[N]`` 0, 1, -1 missing.
        scores: ``[N]``.
        threshold: a value from other data, e.g. :func:`threshold_for` of the validation split; None gives undefined
            rates.
        groups: ``[N]`` patients.
    """
    positive, (score,), owner = labelled_binary(labels, scores, groups=groups)

    def called(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return positive[index], score[index] >= (math.inf if threshold is None else threshold)

    return _point(called, owner, threshold, chosen_on, bootstrap)


def at_target(
    labels: ArrayLike,
    scores: ArrayLike,
    target: str,
    rate: float,
    groups: ArrayLike | None = None,
    bootstrap: Bootstrap = DEFAULT,
) -> OperatingPoint:
    """The best point of this data with a fixed specificity or sensitivity (Fawcett 2006, sec. 5): optimistic.

    The threshold is chosen again in every resample, so that the interval includes the choice.

    Args:
        labels: see :func:`threshold_for`.
        scores: see :func:`threshold_for`.
        target: see :func:`threshold_for`.
        rate: see :func:`threshold_for`.
        groups: ``[N]`` patients.
    """
    positive, (score,), owner = labelled_binary(labels, scores, groups=groups)
    threshold = _threshold(positive, score, target, rate)

    def called(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        truth, drawn = positive[index], score[index]
        chosen = _threshold(truth, drawn, target, rate)
        # without the defining class no rate is defined: an empty selection says so
        return (truth[:0], truth[:0]) if chosen is None else (truth, drawn >= chosen)

    return _point(called, owner, threshold, "evaluated data", bootstrap)


def _point(
    called: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]],
    groups: np.ndarray,
    threshold: float | None,
    chosen_on: str,
    bootstrap: Bootstrap,
) -> OperatingPoint:
    """Rates of ``called(rows) -> (is positive, called positive)`` with intervals from one set of resamples."""
    count, patients = len(groups), len(np.unique(groups))
    truth, said = called(np.arange(count))
    if threshold is None:
        why = "no threshold: the class that defines the target rate is absent" if count else "no labelled cases"
        none = Estimate(None, None, None, count, patients, reason=why)
        return OperatingPoint(None, _counts(truth[:0], said[:0]), none, none, none, none, chosen_on, why)
    rates = bootstrap.estimates(lambda index: _rates(*called(index)), groups, _UNDEFINED)
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
