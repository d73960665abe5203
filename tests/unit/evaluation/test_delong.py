"""DeLong against the definition by double loops, a published-style worked example and a simulation."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from m4oe_ds.errors import DataError
from m4oe_ds.evaluation.delong import auroc_interval, compare_aurocs, mid_ranks

Y = [0, 0, 1, 1, 0, 1, 0, 0, 1, 1, 0, 1]
FIRST = [0.1, 0.35, 0.24, 0.8, 0.2, 0.85, 0.13, 0.85, 0.74, 0.58, 0.71, 0.25]
SECOND = [0.2, 0.3, 0.5, 0.6, 0.1, 0.9, 0.4, 0.55, 0.35, 0.8, 0.45, 0.7]


def by_definition(labels: np.ndarray, scores: list[np.ndarray]) -> tuple[list[float], np.ndarray]:
    """AUROCs and covariance from psi(x, y) = 1, 1/2, 0 pair by pair."""
    components = []
    for score in scores:
        above = [s for s, y in zip(score, labels, strict=True) if y == 1]
        below = [s for s, y in zip(score, labels, strict=True) if y == 0]
        psi = [[1.0 if x > y else 0.5 if x == y else 0.0 for y in below] for x in above]
        v10 = [sum(row) / len(below) for row in psi]
        v01 = [sum(row[j] for row in psi) / len(above) for j in range(len(below))]
        components.append((v10, v01))

    def covariance(a: list[float], b: list[float]) -> float:
        ma, mb = sum(a) / len(a), sum(b) / len(b)
        return sum((x - ma) * (y - mb) for x, y in zip(a, b, strict=True)) / (len(a) - 1)

    table = [
        [covariance(r[0], s[0]) / len(r[0]) + covariance(r[1], s[1]) / len(r[1]) for s in components]
        for r in components
    ]
    return [sum(v10) / len(v10) for v10, _ in components], np.array(table)


def test_worked_example() -> None:
    found = compare_aurocs(Y, FIRST, SECOND)
    assert found.first.value == pytest.approx(0.7083333, abs=1e-7)
    assert found.second.value == pytest.approx(0.8888889, abs=1e-7)
    assert found.first.variance == pytest.approx(0.02847222, abs=1e-8)
    assert found.second.variance == pytest.approx(0.00987654, abs=1e-8)
    assert found.variance == pytest.approx(0.02847222 + 0.00987654 - 2 * 0.00555556, abs=3e-8)
    assert found.z == pytest.approx(-1.0940219, abs=1e-7)
    assert found.p == pytest.approx(0.2739454, abs=1e-7)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("digits", [1, 6])  # one digit: many ties
def test_equals_the_definition(seed: int, digits: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(2, size=60)
    scores = [np.round(random.random(60) + 0.3 * labels * k, digits) for k in (1, 2)]
    areas, covariance = by_definition(labels, scores)
    found = compare_aurocs(labels, *scores)
    assert [found.first.value, found.second.value] == pytest.approx(areas, abs=1e-12)
    assert [found.first.variance, found.second.variance] == pytest.approx(np.diag(covariance).tolist(), abs=1e-12)
    assert found.variance == pytest.approx(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1], abs=1e-12)
    assert found.first.value == pytest.approx(roc_auc_score(labels, scores[0]))


def test_mid_ranks() -> None:
    values = np.random.default_rng(0).integers(8, size=50).astype(float)
    np.testing.assert_array_equal(mid_ranks(values), rankdata(values))


def test_the_interval_covers_the_truth() -> None:
    """X ~ N(1, 1) against Y ~ N(0, 1): AUROC = Phi(1 / sqrt 2) = 0.76025."""
    random = np.random.default_rng(1)
    labels = np.repeat([0, 1], [120, 40])
    hits = 0
    for _ in range(400):
        found = auroc_interval(labels, random.normal(size=160) + labels)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0.760250 <= found.high
    assert 0.91 <= hits / 400 <= 0.98


def test_the_test_holds_its_level() -> None:
    random = np.random.default_rng(2)
    labels = np.repeat([0, 1], [80, 40])
    rejected = 0
    for _ in range(400):
        common = random.normal(size=120) + labels
        p = compare_aurocs(labels, common + random.normal(size=120), common + random.normal(size=120)).p
        assert p is not None
        rejected += p < 0.05
    assert 0.02 <= rejected / 400 <= 0.085


def test_the_interval_is_that_of_the_level() -> None:
    found = compare_aurocs(Y, FIRST, SECOND, level=0.8)
    assert found.low is not None
    assert found.high is not None
    assert found.variance is not None
    assert (found.high - found.low) / 2 == pytest.approx(1.2815516 * found.variance**0.5)
    assert found.second.low == pytest.approx(0.8888889 - 1.2815516 * 0.00987654**0.5, abs=1e-6)


def test_missing_labels_are_left_out() -> None:
    padded = compare_aurocs([*Y, -1, -1], [*FIRST, 9.0, float("nan")], [*SECOND, -9.0, 0.0])
    assert padded == compare_aurocs(Y, FIRST, SECOND)


def test_order_of_the_systems_and_monotone_maps() -> None:
    there, back = compare_aurocs(Y, FIRST, SECOND), compare_aurocs(Y, SECOND, np.exp(FIRST))
    assert there.z is not None
    assert back.z == pytest.approx(-there.z)
    assert back.p == pytest.approx(there.p)


@pytest.mark.parametrize(
    ("labels", "scores", "reason"),
    [
        ([1, 1, 1], [0.1, 0.2, 0.3], "one class"),
        ([-1, -1], [0.1, 0.2], "no labelled"),
        ([0, 0, 1], [0.1, 0.2, 0.15], "one case of a class"),
        ([0, 0, 1, 1], [0.1, 0.2, 0.3, 0.4], "variance is zero"),
        ([0, 0, 1, 1], [0.3, 0.3, 0.3, 0.3], "variance is zero"),
    ],
)
def test_undefined_is_none_with_a_reason(labels: list[int], scores: list[float], reason: str) -> None:
    found = auroc_interval(labels, scores)
    assert found.low is None
    assert found.high is None
    assert reason in found.reason
    assert (found.value is None) == (len(set(labels)) == 1)
    compared = compare_aurocs(labels, scores, [-s for s in scores])
    assert compared.p is None
    assert compared.reason
    json.dumps(compared.as_dict(), allow_nan=False)


def test_systems_that_rank_alike() -> None:
    found = compare_aurocs(Y, FIRST, np.log(FIRST))
    assert found.difference == 0
    assert found.p is None
    assert "rank the cases alike" in found.reason


def test_one_changed_pair_is_no_zero_variance() -> None:
    count = 3000
    labels = np.repeat([0, 1], count)
    scores = np.arange(2.0 * count)
    other = scores.copy()
    other[[count - 1, count]] = other[[count, count - 1]]
    found = compare_aurocs(labels, scores, other)
    assert found.difference == pytest.approx(1 / count**2)
    assert found.p is not None


@pytest.mark.parametrize(
    ("labels", "scores"),
    [([0, 2, 1], [0.1, 0.2, 0.3]), ([0, 1], [0.1, float("nan")]), ([0, 1], [0.1]), ([[0, 1]], [0.1])],
)
def test_bad_input(labels: list, scores: list[float]) -> None:
    with pytest.raises(DataError):
        auroc_interval(labels, scores)
