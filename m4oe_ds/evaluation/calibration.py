"""Do predicted probabilities mean what they say: reliability, calibration error, intercept and slope.

At a prevalence of one percent bins of equal width are nearly all empty: bins of equal counts are the default. Binary
tasks are judged by P(y = 1), tasks of more classes by the confidence in the class predicted.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize
from scipy.special import expit, logit

from m4oe_ds.data.schema import MISSING
from m4oe_ds.errors import DataError
from m4oe_ds.evaluation.calibration_error import (
    bin_edges,
    corrected_calibration_error,
    expected_calibration_error,
    membership,
)
from m4oe_ds.evaluation.cases import labelled_binary
from m4oe_ds.evaluation.intervals import DEFAULT, Bootstrap, Estimate

_EDGE = 1e-7  # float32 probabilities of 0 and 1 have no logit: they are moved here and counted


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram (Murphy and Winkler 1977; Niculescu-Mizil and Caruana 2005).

    Attributes:
        low: lower end of the probabilities; only the first bin includes it.
        high: upper end; every bin includes it.
        n: number of cases.
        mean_predicted: mean probability; None in an empty bin.
        observed: share of positives; None in an empty bin.
    """

    low: float
    high: float
    n: int
    mean_predicted: float | None
    observed: float | None


@dataclass(frozen=True)
class Calibration:
    """Calibration of the probabilities of one task.

    Attributes:
        bins: bins of the reliability diagram.
        strategy: how they were cut.
        ece: expected calibration error corrected for chance, see :func:`corrected_calibration_error`.
        ece_apparent: the same as the sample shows it, which is too high; None without cases.
        brier: mean squared error of P(y = 1).
        expected_observed: sum of the probabilities / number of positives.
        intercept: calibration in the large, 0 is right: logit P(y) = a + logit p.
        slope: b of logit P(y) = a + b logit p, 1 is right, below 1 too extreme.
        slope_intercept: the a that goes with b.
        clipped: probabilities of 0 or 1 moved to 1e-7 from it for the logit.
    """

    bins: list[Bin]
    strategy: str
    ece: Estimate
    ece_apparent: float | None
    brier: Estimate
    expected_observed: Estimate
    intercept: Estimate
    slope: Estimate
    slope_intercept: Estimate
    clipped: int

    def as_dict(self) -> dict[str, Any]:
        """Fields by name, ready for JSON."""
        return asdict(self)


def _bins(positive: np.ndarray, predicted: np.ndarray, bins: int, strategy: str) -> list[Bin]:
    """Mean prediction and share of positives per bin (Murphy and Winkler 1977, Appl. Stat. 26:41)."""
    if not len(predicted):
        return []
    edges = bin_edges(predicted, bins, strategy)
    member = membership(predicted, edges)
    out = []
    for k, (low, high) in enumerate(itertools.pairwise(edges)):
        inside = member == k
        count = int(inside.sum())
        mean = float(predicted[inside].mean()) if count else None
        share = float(positive[inside].mean()) if count else None
        out.append(Bin(float(low), float(high), count, mean, share))
    return out


def calibration_intercept(positive: np.ndarray, log_odds: np.ndarray) -> float:
    """Calibration in the large: a of logit P(y) = a + logit p (Cox 1958, Biometrika 45:562; Van Calster et al. 2019).

    Args:
        positive: ``[N]`` bool.
        log_odds: ``[N]`` logit of the predictions.

    Returns:
        The maximum-likelihood a; NaN with one class.
    """
    if positive.all() or not positive.any():
        return math.nan
    return _logistic(np.ones((len(positive), 1)), positive, log_odds)[0]


def calibration_slope(positive: np.ndarray, log_odds: np.ndarray) -> tuple[float, float]:
    """Slope and intercept (b, a) of logit P(y) = a + b logit p (Cox 1958; Van Calster et al. 2019, BMC Med. 17:230).

    Returns:
        The maximum-likelihood values; NaN where there are none: one class, equal predictions, or classes separated by
        the predictions.
    """
    if positive.all() or not positive.any() or np.ptp(log_odds) == 0:
        return math.nan, math.nan
    yes, no = log_odds[positive], log_odds[~positive]
    if yes.min() >= no.max() or no.min() >= yes.max():
        return math.nan, math.nan  # Albert and Anderson 1984: no finite maximum under (quasi-)separation
    centre, spread = log_odds.mean(), log_odds.std()
    design = np.stack([np.ones(len(log_odds)), (log_odds - centre) / spread], axis=1)
    a, b = _logistic(design, positive, np.zeros(len(positive)))
    return b / spread, a - b * centre / spread


def _logistic(design: np.ndarray, positive: np.ndarray, offset: np.ndarray) -> list[float]:
    """Maximum-likelihood coefficients of a logistic regression with an offset; NaN if the search fails."""

    def loss(beta: np.ndarray) -> float:
        eta = offset + design @ beta
        return float(np.mean(np.logaddexp(0.0, eta) - positive * eta))

    def gradient(beta: np.ndarray) -> np.ndarray:
        return design.T @ (expit(offset + design @ beta) - positive) / len(positive)

    def hessian(beta: np.ndarray) -> np.ndarray:
        p = expit(offset + design @ beta)
        return (design * (p * (1 - p))[:, None]).T @ design / len(positive)

    start = np.zeros(design.shape[1])
    options = {"gtol": 1e-9, "maxiter": 200}
    found = minimize(loss, start, jac=gradient, hess=hessian, method="trust-exact", options=options)
    if not np.abs(found.jac).max() < 1e-6:
        return [math.nan] * len(start)
    return [float(value) for value in found.x]


def _check_probability(values: np.ndarray) -> None:
    if ((values < 0) | (values > 1)).any():
        raise DataError("a probability lies outside [0, 1]", fix="pass probabilities, not logits")


def calibration_report(
    labels: ArrayLike,
    probability: ArrayLike,
    groups: ArrayLike | None = None,
    bins: int = 15,
    strategy: str = "quantile",
    bootstrap: Bootstrap = DEFAULT,
) -> Calibration:
    """Calibration of a binary task with patient-clustered intervals (Van Calster et al. 2019; Brier 1950).

    Args:
        labels: ``[N]`` 0, 1, -1 missing.
        probability: ``[N]`` P(y = 1).
        groups: ``[N]`` patients.
        bins: see :func:`bin_edges`.
        strategy: see :func:`bin_edges`.

    Raises:
        DataError: other labels, or values that are not probabilities.
    """
    positive, (predicted,), owner = labelled_binary(labels, probability, groups=groups)
    _check_probability(predicted)
    clipped = np.clip(predicted, _EDGE, 1 - _EDGE)
    log_odds = logit(clipped)

    def statistics(index: np.ndarray) -> dict[str, float]:
        truth, mean, odds = positive[index], predicted[index], log_odds[index]
        found = int(truth.sum())
        slope, slope_intercept = calibration_slope(truth, odds)
        return {
            "brier": float(((mean - truth) ** 2).mean()) if len(index) else math.nan,
            "expected_observed": float(mean.sum() / found) if found else math.nan,
            "intercept": calibration_intercept(truth, odds),
            "slope": slope,
            "slope_intercept": slope_intercept,
        }

    fit = "no maximum likelihood: one class, equal predictions, or classes separated by the predictions"
    reasons = {"expected_observed": "no positive cases", "intercept": "one class only"}
    reasons |= {"slope": fit, "slope_intercept": fit}
    return Calibration(
        bins=_bins(positive, predicted, bins, strategy),
        strategy=strategy,
        clipped=int((clipped != predicted).sum()),
        ece=corrected_calibration_error(positive, predicted, owner, bins, strategy, bootstrap),
        ece_apparent=_apparent(positive, predicted, bins, strategy),
        **bootstrap.estimates(statistics, owner, reasons),
    )


def confidence_calibration(
    labels: ArrayLike,
    probability: ArrayLike,
    groups: ArrayLike | None = None,
    bins: int = 15,
    strategy: str = "quantile",
    bootstrap: Bootstrap = DEFAULT,
) -> dict[str, Any]:
    """Reliability bins and ECE of the class predicted, for tasks of more than two classes (Guo et al. 2017, ICML).

    Args:
        labels: ``[N]`` classes, -1 missing.
        probability: ``[N, C]``.
        groups: ``[N]`` patients.

    Returns:
        ``bins`` (observed = share predicted correctly), ``strategy``, ``ece`` (corrected for chance) and
        ``ece_apparent`` (as the sample shows it), ready for JSON.
    """
    known, table = np.asarray(labels), np.asarray(probability, dtype=float)
    if table.ndim != 2 or known.shape != table.shape[:1] or ((known != MISSING) & (known < 0)).any():
        raise DataError(f"probabilities {table.shape} for labels {known.shape}", fix="pass [N, C] and [N]")
    if (known >= table.shape[1]).any():
        raise DataError("a label lies outside the classes of the probabilities", fix="check the number of classes")
    correct = np.where(known == MISSING, MISSING, table.argmax(1) == known)
    right, (confidence,), owner = labelled_binary(correct, table.max(1), groups=groups)
    _check_probability(confidence)
    ece = corrected_calibration_error(right, confidence, owner, bins, strategy, bootstrap)
    return {
        "bins": [asdict(one) for one in _bins(right, confidence, bins, strategy)],
        "strategy": strategy,
        "ece": ece.as_dict(),
        "ece_apparent": _apparent(right, confidence, bins, strategy),
    }


def _apparent(positive: np.ndarray, predicted: np.ndarray, bins: int, strategy: str) -> float | None:
    return expected_calibration_error(positive, predicted, bins, strategy) if len(predicted) else None
