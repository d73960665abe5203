"""Expected calibration error: as a sample shows it, and corrected for the chance that makes every sample show some.

The apparent error is a sum of absolute values, so chance only ever adds to it: 300 cases of a perfectly calibrated
model show 0.07 in 15 bins (Broecker 2012, Clim. Dyn. 39:655; Kumar et al. 2019, NeurIPS; Roelofs et al. 2022, AISTATS).
A resample holds that chance twice, so that a percentile interval lies above the error it was made for. Here the
question is turned round: of how much miscalibration would samples like this one show what this one shows?
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from m4oe_ds.errors import DataError
from m4oe_ds.evaluation.intervals import Bootstrap, Estimate

STRATEGIES = ("quantile", "uniform")
_LEAST_DRAWS = 200  # for the corrected value where fewer resamples, or none, are asked for
_HALVINGS = 40
_LARGEST = 64.0  # times the apparent gaps: beyond any interval


def bin_edges(probability: np.ndarray, bins: int, strategy: str) -> np.ndarray:
    """Edges ``[B + 1]`` of bins of equal counts (``quantile``, B <= ``bins`` where values tie) or width (``uniform``).

    Raises:
        DataError: another strategy, or fewer than one bin.
    """
    if strategy not in STRATEGIES or bins < 1:
        raise DataError(f"{bins} bins by {strategy!r}", fix=f"use one or more bins by {' or '.join(STRATEGIES)}")
    if strategy == "uniform":
        return np.linspace(0.0, 1.0, bins + 1)
    upper = np.quantile(probability, np.arange(1, bins + 1) / bins, method="inverted_cdf")
    return np.concatenate([[probability.min()], np.unique(upper)])  # many ties at the minimum keep a bin of their own


def membership(probability: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Bin ``[N]`` of each probability: (low, high], the first with its lower edge."""
    return np.clip(np.searchsorted(edges, probability, side="left") - 1, 0, len(edges) - 2)


def expected_calibration_error(
    positive: np.ndarray, predicted: np.ndarray, bins: int = 15, strategy: str = "quantile"
) -> float:
    """Apparent error: mean over cases of |share of positives - mean prediction| of their bin (Naeini et al. 2015,
    AAAI; Guo et al. 2017, ICML).

    Args:
        positive: ``[N]`` bool.
        predicted: ``[N]`` P(y = 1), or for more classes: correct or not and the confidence.

    Returns:
        The error in [0, 1]; NaN without cases.
    """
    if not len(predicted):
        return math.nan
    edges = bin_edges(predicted, bins, strategy)
    member = membership(predicted, edges)
    gap = np.bincount(member, weights=positive.astype(float) - predicted, minlength=len(edges) - 1)
    return float(np.abs(gap).sum() / len(predicted))


def corrected_calibration_error(
    positive: np.ndarray,
    predicted: np.ndarray,
    groups: np.ndarray,
    bins: int,
    strategy: str,
    bootstrap: Bootstrap,
) -> Estimate:
    """Median-unbiased error with an interval, by inverting a bootstrap test (Carpenter 1999, J. R. Stat. Soc. B 61:159;
    Davison and Hinkley 1997, sec. 5.5).

    The observed gaps of the bins, times a factor c, stand for models less (c < 1) or more (c > 1) miscalibrated in the
    same way; c = 0 is perfect calibration. Each resample of patients adds its deviation from the sample to them. The
    value is c times the apparent error for the c under which half of the resamples show less than the sample did; the
    ends of the interval are those under which (1 - level) / 2 show more, or less. So the interval holds its value by
    construction; its upper end is never below the apparent error, so that it holds that as well. Bins with few
    positives vary less among resamples than they would among samples; normal noise fills up the variance to that of
    labels drawn from the probabilities, scaled to the number of positives found.

    Args:
        positive: ``[N]`` bool.
        predicted: ``[N]`` P(y = 1), or the confidence.
        groups: ``[N]`` patients.
        bins: see :func:`bin_edges`; the bins are those of the sample, in every resample.
        strategy: see :func:`bin_edges`.
        bootstrap: how patients are resampled; without resamples there is a value and no interval.
    """
    count, patients = len(predicted), len(np.unique(groups))
    if not count:
        return Estimate(None, None, None, 0, 0, reason="no labelled cases")
    edges = bin_edges(predicted, bins, strategy)
    member, width = membership(predicted, edges), len(edges) - 1
    residual = positive.astype(float) - predicted

    _, patient = np.unique(groups, return_inverse=True)
    sums = np.bincount(patient * width + member, weights=residual, minlength=patients * width).reshape(patients, width)
    gap = sums.sum(axis=0) / count  # [B], weighted by the share of cases
    noise = _resampled(sums, np.bincount(patient), bootstrap) - gap  # [R, B]
    likely = np.clip(predicted * (positive.sum() + 0.5) / (predicted.sum() + 0.5), 0.0, 1.0)  # 0.5: none may be found
    drawn = np.bincount(member, weights=likely * (1 - likely), minlength=width) / count**2
    missing = np.sqrt(np.maximum(0.0, drawn - noise.var(axis=0)))
    noise += missing * np.random.default_rng(bootstrap.seed).normal(size=noise.shape)
    apparent = expected_calibration_error(positive, predicted, bins, strategy)

    def error_at(share: float) -> float:
        """Error of the model of whose samples this share shows no more than the sample did."""
        factor = _root(lambda c: float(np.quantile(np.abs(c * gap + noise).sum(axis=1), share)) - apparent)
        return min(factor * apparent, 1.0)

    tail = (1 - bootstrap.level) / 2
    value = min(error_at(0.5), apparent)  # chance only ever adds
    if not bootstrap.resamples:
        return Estimate(value, None, None, count, patients)
    return Estimate(value, error_at(1 - tail), max(error_at(tail), apparent), count, patients)


def _resampled(sums: np.ndarray, rows: np.ndarray, bootstrap: Bootstrap) -> np.ndarray:
    """Gaps ``[R, B]`` of the resamples that ``bootstrap`` draws: the same patients as for every other statistic.

    Args:
        sums: ``[P, B]`` residuals of each patient.
        rows: ``[P]`` cases of each patient.
    """
    random, patients = np.random.default_rng(bootstrap.seed), len(rows)
    found = []
    for _ in range(max(bootstrap.resamples, _LEAST_DRAWS)):
        times = np.bincount(random.integers(patients, size=patients), minlength=patients)
        found.append(times @ sums / (times @ rows))
    return np.stack(found)


def _root(rising: Callable[[float], float]) -> float:
    """The c >= 0 at which a rising function passes zero; 0 where it is positive from the start."""
    if rising(0.0) >= 0:
        return 0.0
    low, high = 0.0, 1.0
    while rising(high) < 0 and high < _LARGEST:
        low, high = high, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return high
