"""Correlations against scipy and by hand; a planted truth is recovered, a mere count of images not rewarded."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from m4oe_ds.analysis.interpretability import (
    correlations,
    excess,
    normalised,
    read_truth,
    score,
    verify,
    within_samples,
)
from m4oe_ds.data.planted import find_truth
from m4oe_ds.errors import DataError

TASKS = ("density", "risk1")


def planted(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random shares ``[N, 2, 4]`` of the modalities present, and which are: two or four."""
    rng = np.random.default_rng(seed)
    present = np.ones((count, 4), dtype=bool)
    present[::3, 2:] = False
    value = rng.gamma(0.7, size=(count, 2, 4)) * present[:, None]
    return np.where(present[:, None], value / value.sum(2, keepdims=True), np.nan), present


def test_correlations_are_those_of_scipy() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=50).round(1)
    y = (x + rng.normal(size=50)).round(1)
    x[3], y[7] = np.nan, np.nan
    keep = np.isfinite(x) & np.isfinite(y)
    found = correlations(x, y)
    assert found["n"] == 48
    assert found["pearson"] == pytest.approx(stats.pearsonr(x[keep], y[keep]).statistic)
    assert found["spearman"] == pytest.approx(stats.spearmanr(x[keep], y[keep]).statistic)
    assert found["kendall"] == pytest.approx(stats.kendalltau(x[keep], y[keep]).statistic)
    assert correlations(x[:2], y[:2])["pearson"] is None
    assert correlations(np.ones(9) + 1e-8 * np.arange(9), np.arange(9.0))["spearman"] is None


def test_excess_removes_what_the_number_of_images_says() -> None:
    share = np.array([[0.25, 0.25, 0.25, 0.25], [0.7, 0.3, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]])
    present = np.array([[True] * 4, [True, True, False, False], [True, False, False, False]])
    found = excess(share, present)
    np.testing.assert_allclose(found[0], 0.0)
    np.testing.assert_allclose(found[1, :2], [0.2, -0.2])
    assert np.isnan(found[1, 2:]).all()
    assert np.isnan(found[2]).all()


def test_effects_become_shares_of_the_modalities_present() -> None:
    found = normalised(np.array([[3.0, 1.0, np.nan], [0.0, 0.0, 0.0]]), np.array([[True, True, False], [True] * 3]))
    np.testing.assert_allclose(found[0, :2], [0.75, 0.25])
    assert np.isnan(found[0, 2])
    assert np.isnan(found[1]).all()


def test_within_a_sample_the_ranks_of_its_modalities_count() -> None:
    truth = np.array([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], [0.6, 0.4, np.nan, np.nan], [0.25] * 4])
    told = np.array([[0.0, 0.1, 0.2, 0.7], [0.1, 0.2, 0.3, 0.4], [0.6, 0.4, np.nan, np.nan], [0.1, 0.2, 0.3, 0.4]])
    found = within_samples(told, truth, np.isfinite(truth))
    assert found["n"] == 2  # two images are too few, equal shares have no ranks
    assert found["spearman"] == pytest.approx((1.0 - 1.0) / 2)
    assert found["kendall"] == pytest.approx(0.0)


def test_within_is_the_mean_of_scipys_coefficients() -> None:
    rng = np.random.default_rng(5)
    told, truth = rng.random((30, 4)).round(1), rng.random((30, 4)).round(1)
    told[4] = 0.25
    truth[5, 2] = np.nan
    present = np.ones((30, 4), dtype=bool)
    present[::4, 1] = False
    present[7, :2] = False
    expected = {"pearson": [], "spearman": [], "kendall": []}
    for row in range(30):
        a, b = told[row][present[row]], truth[row][present[row]]
        if row not in (4, 5) and len(a) >= 3 and np.ptp(a) > 0 and np.ptp(b) > 0:
            expected["pearson"].append(stats.pearsonr(a, b).statistic)
            expected["spearman"].append(stats.spearmanr(a, b).statistic)
            expected["kendall"].append(stats.kendalltau(a, b).statistic)
    found = within_samples(told, truth, present)
    assert found["n"] == len(expected["pearson"]) > 20
    for name, values in expected.items():
        assert found[name] == pytest.approx(np.mean(values))  # type: ignore[literal-required]


def test_the_truth_scores_one_its_opposite_less_and_noise_about_zero() -> None:
    truth, present = planted(300)
    groups = np.array([f"p{i // 2}" for i in range(300)])
    noise, _ = planted(300, seed=1)
    opposite = normalised(1 - np.nan_to_num(truth[:, 0]), present)[:, None].repeat(2, 1)
    uniform = np.where(present, 1 / present.sum(1, keepdims=True), np.nan)[:, None].repeat(2, 1)
    told = {"right": truth, "noise": noise, "opposite": opposite, "uniform": uniform}
    found = verify(told, {"truth": truth}, present, TASKS, groups, resamples=100)["truth"]
    for level in ("sample", "within"):
        assert found["right"][level]["all"]["spearman"] == pytest.approx(1.0)
        assert abs(found["noise"][level]["all"]["spearman"]) < 0.1
        assert found["opposite"][level]["density"]["spearman"] < -0.95
        assert found["uniform"][level]["all"]["spearman"] is None
    noise_scores = found["noise"]
    for entry in (noise_scores["sample"]["all"], noise_scores["within"]["all"], noise_scores["population"]):
        assert entry["low"] <= entry["spearman"] <= entry["high"]
    for entry in (noise_scores["sample"]["all"], noise_scores["within"]["all"]):
        assert entry["low"] < 0 < entry["high"]
    assert found["right"]["within"]["all"]["low"] == pytest.approx(1.0)
    assert found["right"]["population"]["pearson"] == pytest.approx(1.0)
    assert found["right"]["samples"] == 300
    means = np.array(found["right"]["means"]["reference"], dtype=float)
    np.testing.assert_allclose(means[1, 3], np.nanmean(truth[:, 1, 3]))
    # without subtracting uniform weights, saying nothing but "present or not" would correlate
    naive = stats.spearmanr(np.nan_to_num(uniform[:, 0]).ravel(), np.nan_to_num(truth[:, 0]).ravel()).statistic
    assert naive > 0.3


def test_intervals_follow_patients() -> None:
    truth, present = planted(40)
    rng = np.random.default_rng(3)
    told = normalised(np.nan_to_num(truth[:, 0]) + 0.5 * rng.random((40, 4)), present)[:, None].repeat(2, 1)
    alone = np.array([f"p{i}" for i in range(40)])
    copies = [np.tile(array, (8, *[1] * (array.ndim - 1))) for array in (told, truth, present)]
    one = score(told, truth, present, TASKS, alone, resamples=300)["sample"]["all"]
    same = score(*copies, TASKS, np.tile(alone, 8), resamples=300)["sample"]["all"]
    split = score(*copies, TASKS, np.arange(320).astype(str), resamples=300)["sample"]["all"]
    assert same["spearman"] == pytest.approx(one["spearman"], abs=1e-6)
    assert same["high"] - same["low"] == pytest.approx(one["high"] - one["low"], rel=1e-3)
    assert split["high"] - split["low"] < 0.6 * (one["high"] - one["low"])


@pytest.fixture
def archive(tmp_path: Path) -> tuple[Path, Path]:
    """A truth of two samples and the mapping of their keys, in the converter's columns."""
    information = {"density": {"a": 0.2, "b": 0.3, "c": 0.5}, "risk1": {"a": 0.0, "b": 1.0, "c": 0.0}}
    samples = [
        {"patient": "p1", "exam": "e1", "side": "l", "information": information},
        {"patient": "p1", "exam": "e1", "side": "r", "information": {"density": {"a": 0.5, "b": 0.5}}},
    ]
    (tmp_path / "demo-archive").mkdir()
    truth = tmp_path / "demo-archive" / "truth.json"
    truth.write_text(json.dumps({"synthetic": True, "samples": samples}))
    mapping = tmp_path / "demo.mapping.csv"
    with mapping.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(("key", "patient", "exam", "side", "split"))
        writer.writerows([("k1", "p1", "e1", "l", "test"), ("k2", "p1", "e1", "r", "test")])
    return truth, mapping


def test_truth_is_joined_by_key_and_rescaled_to_what_is_there(archive: tuple[Path, Path]) -> None:
    keys = np.array(["k2", "k1", "stranger", "k1"])
    present = np.array([[True, True, False], [True, True, False], [True] * 3, [True] * 3])
    found = read_truth(*archive, keys, TASKS, ("a", "b", "c"), present)
    np.testing.assert_allclose(found[0, 0], [0.5, 0.5, np.nan])
    np.testing.assert_allclose(found[1, 0], [0.4, 0.6, np.nan])  # c was lost in the conversion
    np.testing.assert_allclose(found[3, 0], [0.2, 0.3, 0.5])
    np.testing.assert_allclose(found[3, 1], [0.0, 1.0, 0.0])
    assert np.isnan(found[2]).all()
    assert np.isnan(found[0, 1]).all()


def test_errors_say_what_is_missing(archive: tuple[Path, Path], tmp_path: Path) -> None:
    truth, mapping = archive
    present = np.ones((1, 3), dtype=bool)
    with pytest.raises(DataError, match="none of 1 samples"):
        read_truth(truth, mapping, np.array(["x"]), TASKS, ("a", "b", "c"), present)
    with pytest.raises(DataError, match="no such file"):
        read_truth(truth, tmp_path / "absent.csv", np.array(["k1"]), TASKS, ("a", "b", "c"), present)
    assert find_truth(str(tmp_path / "demo")) == truth
    assert find_truth(str(tmp_path / "other")) is None
