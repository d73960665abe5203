"""Thresholds against exhaustive search, rates against hand counts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from m4oe_ds.errors import DataError
from m4oe_ds.evaluation import operating_points as points
from m4oe_ds.evaluation.cases import labelled_binary
from m4oe_ds.evaluation.intervals import Bootstrap

LABELS = [0, 0, 0, 0, 0, 1, 1, 1, 1, -1]
SCORES = [0.1, 0.2, 0.3, 0.4, 0.8, 0.3, 0.5, 0.6, 0.9, 0.99]


def drawn(seed: int, count: int = 80) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(2, size=count)
    return labels, np.round(random.random(count) + 0.3 * labels, 2)


def best_by_search(labels: np.ndarray, scores: np.ndarray, target: str, rate: float) -> tuple[float, float]:
    """(sensitivity, specificity) of the best of all thresholds."""
    found = []
    for threshold in [*np.unique(scores), np.inf]:
        tn, fp, fn, tp = confusion_matrix(labels, scores >= threshold, labels=[0, 1]).ravel()
        found.append((tp / (tp + fn), tn / (tn + fp)))
    fixed = 1 if target == "specificity" else 0
    return max((pair for pair in found if pair[fixed] >= rate - 1e-12), key=lambda pair: (pair[1 - fixed], pair[fixed]))


@pytest.mark.parametrize("target", points.TARGETS)
@pytest.mark.parametrize("rate", [0.5, 0.8, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_point_equals_exhaustive_search(target: str, rate: float, seed: int) -> None:
    labels, scores = drawn(seed)
    found = points.at_target(labels, scores, target, rate, bootstrap=Bootstrap(0))
    assert (found.sensitivity.value, found.specificity.value) == pytest.approx(
        best_by_search(labels, scores, target, rate)
    )


def test_by_hand() -> None:
    found = points.at_target(LABELS, SCORES, "specificity", 0.8, bootstrap=Bootstrap(0))
    assert found.threshold == 0.5
    assert found.counts == {"tp": 3, "fp": 1, "tn": 4, "fn": 1}
    rates = (found.sensitivity, found.specificity, found.ppv, found.npv)
    assert [rate.value for rate in rates] == [0.75, 0.8, 0.75, 0.8]
    assert points.threshold_for(LABELS, SCORES, "sensitivity", 1.0) == 0.3
    assert points.threshold_for(LABELS, SCORES, "specificity", 1.0) == 0.9


def test_rounding_of_the_rate_costs_no_case() -> None:
    assert 0.55 * 100 > 55
    labels, scores = [0] * 100 + [1] * 100, [*np.arange(100), *np.arange(100) + 0.5]
    assert points.at_target(labels, scores, "specificity", 0.55, bootstrap=Bootstrap(0)).counts["tn"] == 55
    assert points.at_target(labels, scores, "sensitivity", 0.55, bootstrap=Bootstrap(0)).counts["tp"] == 55
    assert points.at_target(labels, scores, "sensitivity", 1e-12, bootstrap=Bootstrap(0)).counts["tp"] == 1


def test_the_threshold_is_chosen_anew_in_every_resample() -> None:
    labels, scores = drawn(7)
    found = points.at_target(labels, scores, "specificity", 0.9, bootstrap=Bootstrap(100))
    assert found.specificity.low is not None
    assert found.specificity.low >= 0.9
    kept = points.at_threshold(labels, scores, found.threshold, bootstrap=Bootstrap(100))
    assert kept.specificity.low is not None
    assert kept.specificity.low < 0.9


def test_a_negative_with_the_highest_score() -> None:
    found = points.at_target([0, 1], [0.9, 0.5], "specificity", 1.0, bootstrap=Bootstrap(0))
    assert found.threshold is not None
    assert found.threshold > 0.9
    assert found.counts["fp"] == 0
    assert found.sensitivity.value == 0
    assert found.ppv.value is None
    assert found.ppv.reason == "nothing called positive"
    json.dumps(found.as_dict(), allow_nan=False)


def test_threshold_of_other_data() -> None:
    chosen = points.threshold_for(*drawn(1), "specificity", 0.9)
    labels, scores = drawn(2)
    found = points.at_threshold(labels, scores, chosen, bootstrap=Bootstrap(0), chosen_on="validation split")
    tn, fp, fn, tp = confusion_matrix(labels, scores >= chosen).ravel()
    assert found.counts == {"tp": tp, "fp": fp, "tn": tn, "fn": fn}
    assert found.sensitivity.value == pytest.approx(tp / (tp + fn))
    assert found.npv.value == pytest.approx(tn / (tn + fn))
    assert found.chosen_on == "validation split"


def test_interval_of_a_rate_is_near_the_binomial_one() -> None:
    """Independent rows: standard error sqrt(p (1 - p) / n)."""
    random = np.random.default_rng(3)
    labels, scores = np.ones(400, dtype=int), random.random(400)
    found = points.at_threshold(labels, scores, 0.3, bootstrap=Bootstrap(600)).sensitivity
    assert found.value is not None
    assert found.low is not None
    assert found.high is not None
    error = np.sqrt(found.value * (1 - found.value) / 400)
    assert (found.high - found.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.12)


def test_clustering_widens_the_interval() -> None:
    labels, scores = drawn(4, 60)
    copies = {"labels": np.repeat(labels, 8), "scores": np.repeat(scores, 8)}
    apart = points.at_threshold(**copies, threshold=0.6, bootstrap=Bootstrap(200)).sensitivity
    together = points.at_threshold(
        **copies, threshold=0.6, groups=np.repeat(np.arange(60), 8), bootstrap=Bootstrap(200)
    )
    wide = together.sensitivity
    assert (wide.n, wide.n_groups) == (480, 60)
    assert apart.value == wide.value
    assert wide.high is not None
    assert wide.low is not None
    assert apart.high is not None
    assert apart.low is not None
    assert wide.high - wide.low > 2 * (apart.high - apart.low)


def test_resamples_without_a_class_are_counted() -> None:
    found = points.at_target([1, 0, 0, 0], [0.9, 0.1, 0.2, 0.3], "specificity", 0.9, bootstrap=Bootstrap(200))
    # the only positive is absent from a resample with probability (3/4)^4 = 0.316
    assert 40 <= found.sensitivity.undefined_resamples <= 90


def test_undefined_is_none_with_a_reason() -> None:
    for target, labels in (("specificity", [1, 1]), ("sensitivity", [0, 0])):
        found = points.at_target(labels, [0.1, 0.2], target, 0.9)
        assert found.threshold is None
        assert "absent" in found.reason
        assert found.sensitivity.value is found.specificity.value is None
    found = points.at_threshold([0, 0], [0.1, 0.2], 0.15)
    assert found.sensitivity.reason == "no positive cases"
    assert found.specificity.value == 0.5
    empty = points.at_threshold([-1, -1], [0.1, 0.2], 0.15)
    assert empty.specificity.reason == "no labelled cases"
    json.dumps([found.as_dict(), empty.as_dict()], allow_nan=False)


def test_bad_input() -> None:
    with pytest.raises(DataError):
        points.threshold_for(LABELS, SCORES, "accuracy", 0.9)
    with pytest.raises(DataError):
        points.threshold_for(LABELS, SCORES, "specificity", 90)
    with pytest.raises(DataError):
        labelled_binary([0, 1], [0.1, np.inf])
    with pytest.raises(DataError):
        labelled_binary([0, 1], [0.1, 0.2], groups=["a"])
    _, (score,), _ = labelled_binary([0, -1], [0.1, np.nan])  # a missing answer may have any score
    assert score.tolist() == [0.1]
