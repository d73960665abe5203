"""Paired bootstrap against independent bootstraps, DeLong and simulations."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn import metrics as sk

from m4oe_ds.errors import DataError
from m4oe_ds.evaluation import paired
from m4oe_ds.evaluation.delong import compare_aurocs
from m4oe_ds.evaluation.intervals import Bootstrap, resampled_indices


def drawn(seed: int, count: int = 200, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and P(y = 1) of two systems with a common part, the second with more noise of its own."""
    random = np.random.default_rng(seed)
    labels = random.integers(2, size=count)
    common = random.normal(size=count) + labels
    odds = [common + random.normal(size=count) * scale for scale in (0.3, noise)]
    return labels, *(1 / (1 + np.exp(-x)) for x in odds)


@pytest.mark.parametrize("metric", ["auroc", "auprc", "accuracy", "balanced_accuracy", "macro_f1", "brier"])
def test_values_equal_scikit_learn(metric: str) -> None:
    labels, a, b = drawn(0)
    found = paired.paired_difference(labels, a, b, np.arange(200), metric, bootstrap=Bootstrap(0))
    functions = {
        "auroc": lambda p: sk.roc_auc_score(labels, p),
        "auprc": lambda p: sk.average_precision_score(labels, p),
        "accuracy": lambda p: sk.accuracy_score(labels, p > 0.5),
        "balanced_accuracy": lambda p: sk.balanced_accuracy_score(labels, p > 0.5),
        "macro_f1": lambda p: sk.f1_score(labels, p > 0.5, average="macro"),
        "brier": lambda p: sk.brier_score_loss(labels, p),
    }
    assert found.first == pytest.approx(functions[metric](a))
    assert found.second == pytest.approx(functions[metric](b))
    assert found.difference == pytest.approx(functions[metric](a) - functions[metric](b))
    assert (found.delong is None) == (metric != "auroc")


def test_bootstrap_agrees_with_delong_on_independent_rows() -> None:
    labels, a, b = drawn(1, 600)
    found = paired.paired_difference(labels, a, b, np.arange(600), bootstrap=Bootstrap(800))
    test = compare_aurocs(labels, a, b)
    assert found.delong is not None
    assert found.delong["p"] == test.p
    assert found.delong["note"] == ""
    assert found.difference == pytest.approx(test.difference)
    assert found.high is not None
    assert found.low is not None
    assert test.variance is not None
    assert (found.high - found.low) / (2 * 1.96 * np.sqrt(test.variance)) == pytest.approx(1, abs=0.12)


def test_pairing_narrows_the_interval() -> None:
    """The same two systems resampled apart have a wider difference."""
    labels, a, b = drawn(2, 300, noise=0.4)
    found = paired.paired_difference(labels, a, b, np.arange(300), bootstrap=Bootstrap(300))
    random = np.random.default_rng(0)
    apart = []
    for _ in range(300):
        i, j = random.integers(300, size=300), random.integers(300, size=300)
        apart.append(sk.roc_auc_score(labels[i], a[i]) - sk.roc_auc_score(labels[j], b[j]))
    assert found.high is not None
    assert found.low is not None
    assert found.high - found.low < 0.7 * np.ptp(np.quantile(apart, [0.025, 0.975]))


def test_patients_are_resampled_not_rows() -> None:
    """Copies of rows add no information: same interval and p, while DeLong is fooled and says so."""
    labels, a, b = drawn(3, 80)
    one = paired.paired_difference(labels, a, b, np.arange(80), bootstrap=Bootstrap(200))
    many = [np.repeat(x, 6) for x in (labels, a, b, np.arange(80))]
    six = paired.paired_difference(*many, bootstrap=Bootstrap(200))
    assert (six.low, six.high, six.p) == pytest.approx((one.low, one.high, one.p))
    assert (six.n, six.n_groups) == (480, 80)
    assert six.delong is not None
    assert one.delong is not None
    assert six.delong["p"] < one.delong["p"]
    assert "rely on the bootstrap" in six.delong["note"]


def test_level_of_the_bootstrap_test() -> None:
    random = np.random.default_rng(4)
    rejected = 0
    for seed in range(120):
        labels, _, _ = drawn(seed, 120)
        common = random.normal(size=120) + labels
        systems = [1 / (1 + np.exp(-common - random.normal(size=120))) for _ in range(2)]
        p = paired.paired_difference(labels, *systems, np.arange(120), "brier", bootstrap=Bootstrap(120, seed=seed)).p
        assert p is not None
        rejected += p < 0.05
    assert rejected <= 14  # 6 expected; P(X > 14) < 0.001


def test_a_clear_difference_is_found_and_signed() -> None:
    labels, a, b = drawn(5, 300, noise=4.0)
    found = paired.paired_difference(labels, a, b, np.arange(300), bootstrap=Bootstrap(199))
    back = paired.paired_difference(labels, b, a, np.arange(300), bootstrap=Bootstrap(199))
    assert found.p == pytest.approx(2 / 200)
    assert found.difference is not None
    assert found.difference > 0.1
    assert found.low is not None
    assert back.high == pytest.approx(-found.low)


def test_two_sided_p_by_hand() -> None:
    assert paired.two_sided_p([1.0] * 99) == pytest.approx(0.02)
    assert paired.two_sided_p([-1.0] * 9 + [1.0] * 90) == pytest.approx(0.2)
    assert paired.two_sided_p([0.0] * 9) == 1.0


def test_identical_systems() -> None:
    labels, a, _ = drawn(6)
    found = paired.paired_difference(labels, a, a, np.arange(200), bootstrap=Bootstrap(50))
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)
    assert found.delong is not None
    assert found.delong["p"] is None
    assert found.delong["reason"]


def test_undefined_is_none_with_a_reason() -> None:
    one_class = paired.paired_difference([1, 1, -1], [0.1, 0.2, 0.3], [0.2, 0.1, 0.3], [0, 1, 2])
    assert one_class.difference is one_class.p is None
    assert "undefined" in one_class.reason
    nothing = paired.paired_difference([-1], [0.1], [0.2], [0])
    assert nothing.reason == "no labelled cases"
    rare = paired.paired_difference(
        [1, 0, 0, 0], [0.9, 0.1, 0.2, 0.3], [0.2, 0.1, 0.3, 0.4], range(4), bootstrap=Bootstrap(200)
    )
    assert 40 <= rare.undefined_resamples <= 95  # only one class: (3/4)^4 + (1/4)^4 = 0.32
    draws = [index for index in resampled_indices(np.arange(4), 200, 0) if 0 < (index == 0).sum() < 4]
    labels, first, second = np.array([1, 0, 0, 0]), np.array([0.9, 0.1, 0.2, 0.3]), np.array([0.2, 0.1, 0.3, 0.4])
    differences = [sk.roc_auc_score(labels[i], first[i]) - sk.roc_auc_score(labels[i], second[i]) for i in draws]
    assert rare.undefined_resamples == 200 - len(draws)
    assert rare.p == pytest.approx(min(1, 2 * (1 + sum(d <= 0 for d in differences)) / (1 + len(draws))))
    json.dumps([one_class.as_dict(), nothing.as_dict(), rare.as_dict()], allow_nan=False)


def test_difference_of_means() -> None:
    random = np.random.default_rng(0)
    missing = random.random(40) < 0.3
    first, second = (np.where(missing, np.nan, random.random(40)) for _ in range(2))
    found = paired.paired_mean_difference(first, second, np.arange(40) // 2, "dice", Bootstrap(60))
    assert (found.metric, found.n) == ("dice", (~missing).sum())
    assert found.first == pytest.approx(np.nanmean(first))
    assert found.second == pytest.approx(np.nanmean(second))
    assert found.difference == pytest.approx(np.nanmean(first) - np.nanmean(second))
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.difference < found.high
    assert found.n_groups <= 20
    assert found.delong is None
    json.dumps(found.as_dict(), allow_nan=False)
    assert paired.paired_mean_difference(first, first, np.arange(40), bootstrap=Bootstrap(5)).difference == 0


def test_bad_input() -> None:
    labels, a, b = drawn(7)
    for call in (
        lambda: paired.paired_difference(labels, a, b, np.arange(200), "f2"),
        lambda: paired.paired_difference(labels, a[:-1], b, np.arange(200)),
        lambda: paired.paired_difference(labels, a, b, np.arange(199)),
        lambda: paired.paired_difference(labels + 1, a, b, np.arange(200)),
        lambda: paired.paired_difference(labels, np.where(a > 0.9, np.nan, a), b, np.arange(200)),
        lambda: paired.paired_mean_difference([0.1, np.nan], [0.1, 0.2], [0, 1]),
    ):
        with pytest.raises(DataError):
            call()
