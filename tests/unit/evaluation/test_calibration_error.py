"""The corrected calibration error and its interval on models whose calibration is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, ndtr

from m4oe_ds.evaluation.calibration_error import (
    _resampled,
    bin_edges,
    corrected_calibration_error,
    expected_calibration_error,
    membership,
)
from m4oe_ds.evaluation.intervals import Bootstrap, Estimate

MODELS = {  # centre and spread of the true log odds; what the model adds to them and multiplies them by
    "calibrated": (-1.0, 1.2, 0.0, 1.0),
    "calibrated, rare": (-4.5, 1.0, 0.0, 1.0),
    "shifted": (-1.0, 1.2, 1.0, 1.0),
    "shifted, rare": (-4.5, 1.0, 1.0, 1.0),
    "too extreme": (-1.0, 1.2, 0.0, 2.0),
}


def sample(model: str, count: int, seed: int, rows: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities and patients; ``rows`` cases of a patient, whose labels correlate."""
    centre, spread, shift, scale = MODELS[model]
    random = np.random.default_rng(seed)
    odds = random.normal(centre, spread, count)
    shared = np.repeat(random.normal(size=count // rows), rows)
    latent = random.normal(size=count) if rows == 1 else np.sqrt(0.5) * (shared + random.normal(size=count))
    return ndtr(latent) < expit(odds), expit(scale * odds + shift), np.arange(count) // rows


def true_error(model: str, edges: np.ndarray) -> float:
    """Error over a population, in the bins of a sample."""
    positive, predicted, _ = sample(model, 300_000, 99)
    gap = np.bincount(membership(predicted, edges), weights=positive - predicted, minlength=len(edges) - 1)
    return float(np.abs(gap).sum() / len(predicted))


def estimate(positive: np.ndarray, predicted: np.ndarray, groups: np.ndarray, resamples: int = 150) -> Estimate:
    return corrected_calibration_error(positive, predicted, groups, 15, "quantile", Bootstrap(resamples))


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("model", MODELS)
def test_intervals_hold_their_value_and_the_truth(model: str, rows: int) -> None:
    values, apparent, covered = [], [], []
    truth = true_error(model, bin_edges(sample(model, 300, 0)[1], 15, "quantile"))
    for seed in range(60):
        data = sample(model, 300, seed, rows)
        found, shown = estimate(*data), expected_calibration_error(*data[:2])
        assert found.value is not None
        assert found.low is not None
        assert found.high is not None
        assert 0 <= found.low <= found.value <= found.high <= 1
        assert found.low <= shown <= found.high
        values.append(found.value)
        apparent.append(shown)
        covered.append(found.low <= truth <= found.high)
    assert np.mean(covered) >= 0.83, np.mean(covered)  # 0.95 asked for; patients' rows in normal noise cost a little
    assert abs(np.median(values) - truth) <= abs(np.median(apparent) - truth) + 0.015
    if model.startswith("calibrated"):
        assert np.median(values) < 0.35 * np.median(apparent)


@pytest.mark.parametrize("model", ["calibrated, rare", "shifted, rare"])
def test_hardly_any_positive_case_gives_no_false_certainty(model: str) -> None:
    """60 cases with none to two positives: the interval stays as wide as what is seen."""
    truth = true_error(model, bin_edges(sample(model, 60, 0)[1], 15, "quantile"))
    found = [estimate(*sample(model, 60, seed)) for seed in range(60)]
    assert np.mean([(one.low or 0) <= truth <= (one.high or 0) for one in found]) >= 0.9


def test_more_cases_narrow_the_interval_around_the_truth() -> None:
    widths = []
    for count in (200, 2000, 20000):
        data = sample("shifted", count, 5)
        found = estimate(*data)
        assert found.low is not None
        assert found.high is not None
        widths.append(found.high - found.low)
    assert widths[0] > 2 * widths[1] > 4 * widths[2]
    truth = true_error("shifted", bin_edges(data[1], 15, "quantile"))
    assert found.value == pytest.approx(truth, abs=0.01)


def test_rows_of_one_patient_count_as_one() -> None:
    positive, predicted, _ = sample("shifted", 300, 3)
    single = estimate(positive, predicted, np.arange(300))
    together = estimate(np.repeat(positive, 4), np.repeat(predicted, 4), np.repeat(np.arange(300), 4))
    assert (together.n, together.n_groups) == (1200, 300)
    assert together.low == pytest.approx(single.low, abs=0.02)
    assert together.high == pytest.approx(single.high, abs=0.02)


def test_the_value_needs_no_resamples_and_no_cases_have_none() -> None:
    positive, predicted, groups = sample("too extreme", 300, 1)
    without, with_interval = estimate(positive, predicted, groups, 0), estimate(positive, predicted, groups, 200)
    assert without.value == with_interval.value
    assert without.low is without.high is None
    nothing = estimate(np.zeros(0, dtype=bool), np.zeros(0), np.zeros(0))
    assert (nothing.value, nothing.reason) == (None, "no labelled cases")


def test_the_resampled_patients_are_those_of_every_other_statistic() -> None:
    positive, predicted, groups = sample("shifted", 40, 2, 4)
    bootstrap = Bootstrap(200)
    edges = bin_edges(predicted, 15, "quantile")
    member, width = membership(predicted, edges), len(edges) - 1
    sums = np.zeros((10, width))
    np.add.at(sums, (groups, member), positive - predicted)
    found = _resampled(sums, np.bincount(groups), bootstrap)
    for gaps, index in zip(found, bootstrap.draws(groups), strict=True):
        by_rows = np.bincount(member[index], weights=(positive - predicted)[index], minlength=width) / len(index)
        assert gaps == pytest.approx(by_rows)
