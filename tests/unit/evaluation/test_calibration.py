"""Calibration against scikit-learn, hand counts and models whose miscalibration is known."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import ArrayLike
from scipy.special import expit, logit
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss

from m4oe_ds.errors import DataError
from m4oe_ds.evaluation import calibration as cal
from m4oe_ds.evaluation.calibration_error import STRATEGIES, expected_calibration_error
from m4oe_ds.evaluation.intervals import Bootstrap


def drawn(seed: int, count: int = 400, centre: float = -1.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels drawn from the probabilities."""
    random = np.random.default_rng(seed)
    probability = expit(random.normal(centre, 1.2, size=count))
    return (random.random(count) < probability).astype(int), probability


def reliability(labels: ArrayLike, probability: ArrayLike, bins: int = 15, strategy: str = "quantile") -> list[cal.Bin]:
    return cal.calibration_report(labels, probability, None, bins, strategy, Bootstrap(0)).bins


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_bins_equal_scikit_learn(seed: int, strategy: str) -> None:
    labels, probability = drawn(seed)
    found = reliability(labels, probability, 10, strategy)
    assert sum(one.n for one in found) == len(labels)
    filled = [one for one in found if one.n]
    observed, predicted = calibration_curve(labels, probability, n_bins=10, strategy=strategy)
    if strategy == "uniform":  # its quantiles are interpolated, ours are values: a case may change the bin
        assert [one.observed for one in filled] == pytest.approx(observed)
        assert [one.mean_predicted for one in filled] == pytest.approx(predicted)
    else:
        assert [one.n for one in found] == [40] * 10
        assert [one.observed for one in filled] == pytest.approx(observed, abs=0.03)


def test_bins_by_hand() -> None:
    labels, probability = [0, 1, 1, 0, -1], [0.1, 0.2, 0.9, 0.8, 0.5]
    low, high = reliability(labels, probability, 2)
    assert (low.low, low.high, high.low, high.high) == (0.1, 0.2, 0.2, 0.9)
    assert (low.n, low.mean_predicted, low.observed) == (2, pytest.approx(0.15), 0.5)
    assert (high.n, high.mean_predicted, high.observed) == (2, pytest.approx(0.85), 0.5)
    assert cal.calibration_report(labels, probability, bins=2, bootstrap=Bootstrap(0)).ece_apparent == pytest.approx(
        0.35
    )
    empty = reliability(labels, probability, 5, "uniform")[2]
    assert (empty.n, empty.observed) == (0, None)


def test_a_few_tied_values_keep_bins_of_their_own() -> None:
    """Two predicted values, wrong in opposite directions, must not cancel in one bin."""
    labels, probability = [1] * 10 + [0] * 10, [0.1] * 10 + [0.9] * 10
    found = cal.calibration_report(labels, probability, bootstrap=Bootstrap(0))
    assert [one.n for one in found.bins] == [10, 10]
    assert found.ece_apparent == pytest.approx(0.9)
    assert len(reliability([0, 1, 1], [0.5, 0.5, 0.5])) == 1


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_ece_equals_the_sum_over_bins(strategy: str) -> None:
    labels, probability = drawn(1)
    bins = reliability(labels, probability, 15, strategy)
    want = sum(b.n * abs((b.observed or 0) - (b.mean_predicted or 0)) for b in bins) / len(labels)
    assert expected_calibration_error(labels == 1, probability, 15, strategy) == pytest.approx(want)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("centre", [-4.0, 0.0])  # rare and common positives
def test_slope_equals_scikit_learn(seed: int, centre: float) -> None:
    labels, probability = drawn(seed, 1500, centre)
    odds = logit(probability)
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(odds[:, None], labels)
    slope, intercept = cal.calibration_slope(labels == 1, odds)
    assert slope == pytest.approx(model.coef_[0, 0], abs=1e-4)
    assert intercept == pytest.approx(model.intercept_[0], abs=1e-4)


def test_intercept_solves_its_equation() -> None:
    """At the maximum of the likelihood the corrected probabilities sum to the number of positives."""
    labels, probability = drawn(2)
    a = cal.calibration_intercept(labels == 1, logit(probability) - 0.7)
    assert expit(logit(probability) - 0.7 + a).sum() == pytest.approx(labels.sum(), abs=1e-5)


def test_known_miscalibration_is_found() -> None:
    labels, probability = drawn(3, 20000)
    right = cal.calibration_report(labels, probability, bootstrap=Bootstrap(0))
    assert right.slope.value == pytest.approx(1, abs=0.05)
    assert right.intercept.value == pytest.approx(0, abs=0.05)
    assert right.expected_observed.value == pytest.approx(1, abs=0.03)
    assert right.ece.value is not None
    assert right.ece.value < 0.02
    assert right.brier.value == pytest.approx(brier_score_loss(labels, probability))
    extreme = cal.calibration_report(labels, expit(2 * logit(probability) + 1), bootstrap=Bootstrap(0))
    assert right.slope.value is not None
    assert extreme.slope.value == pytest.approx(right.slope.value / 2, abs=1e-4)
    assert extreme.ece.value is not None
    assert extreme.ece.value > 0.05
    shifted = cal.calibration_report(labels, expit(logit(probability) + 1), bootstrap=Bootstrap(0))
    assert right.intercept.value is not None
    assert shifted.intercept.value == pytest.approx(right.intercept.value - 1, abs=1e-5)
    assert shifted.expected_observed.value is not None
    assert shifted.expected_observed.value > 1.3


def test_intervals_hold_the_truth_and_follow_patients() -> None:
    labels, probability = drawn(4, 300)
    groups = np.repeat(np.arange(75), 4)
    found = cal.calibration_report(labels, probability, groups, bootstrap=Bootstrap(100))
    for estimate, truth in ((found.slope, 1), (found.intercept, 0), (found.expected_observed, 1)):
        assert estimate.low is not None
        assert estimate.high is not None
        assert estimate.low < truth < estimate.high
        assert (estimate.n, estimate.n_groups) == (300, 75)
    tied = cal.calibration_report(
        np.repeat(labels, 5), np.repeat(probability, 5), np.repeat(groups, 5), bootstrap=Bootstrap(100)
    )
    assert tied.slope.low == pytest.approx(found.slope.low, abs=1e-6)
    assert tied.brier.high == pytest.approx(found.brier.high)


def test_probabilities_of_zero_and_one_are_counted() -> None:
    found = cal.calibration_report([0, 1, 0, 1, 1], [0.0, 1.0, 1.0, 0.4, 0.7], bootstrap=Bootstrap(0))
    assert found.clipped == 3
    assert found.slope.value is not None


@pytest.mark.parametrize(
    ("labels", "probability", "undefined"),
    [
        ([0, 0, 0], [0.1, 0.2, 0.3], {"slope", "slope_intercept", "intercept", "expected_observed"}),
        ([1, 1, 1], [0.1, 0.2, 0.3], {"slope", "slope_intercept", "intercept"}),
        ([0, 1, 0], [0.2, 0.2, 0.2], {"slope", "slope_intercept"}),
        ([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], {"slope", "slope_intercept"}),
        ([1, 1, 0, 0], [0.1, 0.2, 0.2, 0.4], {"slope", "slope_intercept"}),
        ([-1], [0.5], {"slope", "slope_intercept", "intercept", "expected_observed", "ece", "brier"}),
    ],
)
def test_undefined_is_none_with_a_reason(labels: list[int], probability: list[float], undefined: set[str]) -> None:
    found = cal.calibration_report(labels, probability, bootstrap=Bootstrap(20)).as_dict()
    names = ("slope", "slope_intercept", "intercept", "expected_observed", "ece", "brier")
    assert {name for name in names if found[name]["value"] is None} == undefined
    assert all(found[name]["reason"] for name in undefined)
    json.dumps(found, allow_nan=False)


def test_confidence_of_several_classes() -> None:
    labels, probability = [0, 1, 2, -1], [[0.8, 0.1, 0.1], [0.6, 0.2, 0.2], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4]]
    found = cal.confidence_calibration(labels, probability, bins=3, bootstrap=Bootstrap(10))
    assert [one["n"] for one in found["bins"]] == [1, 2]
    assert [one["observed"] for one in found["bins"]] == [0, 1]
    assert found["ece_apparent"] == pytest.approx((0.6 + 2 * 0.2) / 3)  # 0.6 wrong; 0.8 twice right
    json.dumps(found, allow_nan=False)


def test_bad_input() -> None:
    with pytest.raises(DataError):
        cal.calibration_report([0, 1], [0.5, 1.5])
    with pytest.raises(DataError):
        reliability([0, 1], [0.5, 0.6], 0)
    with pytest.raises(DataError):
        reliability([0, 1], [0.5, 0.6], 5, "kmeans")
    with pytest.raises(DataError):
        cal.confidence_calibration([0, 3], [[0.5, 0.5], [0.5, 0.5]])
    with pytest.raises(DataError):
        cal.confidence_calibration([0, 1], [0.5, 0.5])
