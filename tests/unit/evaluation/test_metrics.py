"""Metrics against scikit-learn and hand-made cases; patient clustering."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn import metrics as sk

from m4oe_ds.data.cards import find_card
from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.evaluation import metrics
from m4oe_ds.evaluation.intervals import Bootstrap, resampled_indices
from m4oe_ds.evaluation.metrics_text import format_table

DENSITY, RISK = find_card("embed").task("density"), find_card("embed").task("risk1")


def drawn(classes: int, count: int = 120, seed: int = 0, ties: bool = False) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = random.integers(classes, size=count)
    scores = random.random((count, classes)) + 0.8 * np.eye(classes)[labels]
    if ties:
        scores = np.round(scores, 1)
    return labels, scores / scores.sum(1, keepdims=True)


def predictions(task: TaskSpec, labels: np.ndarray, probability: np.ndarray, groups: np.ndarray | None = None) -> dict:
    keys = np.array([f"k{i}" for i in range(len(labels))])
    return {
        "keys": keys,
        "groups": keys if groups is None else groups,
        f"label_{task.name}": labels,
        f"prob_{task.name}": probability,
    }


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("task", [DENSITY, RISK], ids=["density", "risk1"])
def test_values_equal_scikit_learn(task: TaskSpec, ties: bool) -> None:
    labels, probability = drawn(task.num_classes, ties=ties)
    found = metrics.evaluate_split(predictions(task, labels, probability), [task], resamples=0)["tasks"][task.name]
    said = probability.argmax(1)
    values = {name: entry["value"] for name, entry in found["metrics"].items()}
    assert values["accuracy"] == pytest.approx(sk.accuracy_score(labels, said))
    assert values["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, said))
    assert values["macro_f1"] == pytest.approx(sk.f1_score(labels, said, average="macro"))
    if task.num_classes == 2:
        assert values["auroc"] == pytest.approx(sk.roc_auc_score(labels, probability[:, 1]))
        assert values["auprc"] == pytest.approx(sk.average_precision_score(labels, probability[:, 1]))
        assert values["brier"] == pytest.approx(sk.brier_score_loss(labels, probability[:, 1]))
        assert "kappa" not in values
    else:
        assert values["auroc"] == pytest.approx(sk.roc_auc_score(labels, probability, multi_class="ovr"))
        assert values["kappa"] == pytest.approx(sk.cohen_kappa_score(labels, said, weights="quadratic"))
    assert found["confusion"] == sk.confusion_matrix(labels, said).tolist()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("classes", [2, 4])
def test_bootstrap_formulas_equal_the_library(classes: int, seed: int) -> None:
    labels, probability = drawn(classes, 60, seed, ties=seed % 2 == 1)
    for name, (value_of, fast) in metrics.STATISTICS.items():
        assert fast(labels, probability) == pytest.approx(value_of(labels, probability), abs=1e-12), name


def test_kappa_by_its_definition() -> None:
    random = np.random.default_rng(5)
    labels = random.integers(4, size=100)
    said = np.clip(labels + random.integers(-1, 2, size=100), 0, 3)
    observed = np.mean((labels - said) ** 2.0)
    expected = np.mean((labels[:, None] - said[None]) ** 2.0)
    known = predictions(DENSITY, np.append(labels, -1), np.eye(4)[np.append(said, 0)])
    found = metrics.evaluate_split(known, [DENSITY], resamples=100)["tasks"]["density"]["metrics"]["kappa"]
    assert found["value"] == pytest.approx(1 - observed / expected)
    assert found["low"] < found["value"] < found["high"]
    constant = predictions(DENSITY, np.array([2, 2, -1]), np.eye(4)[[2, 2, 0]])
    found = metrics.evaluate_split(constant, [DENSITY], resamples=0)["tasks"]["density"]["metrics"]["kappa"]
    assert found["value"] is None  # one grade only: agreement by chance is perfect


def test_majority_baseline_missing_labels_and_chance() -> None:
    labels = np.array([0, 0, 0, 1, -1, -1])
    probability = np.tile([0.9, 0.1], (6, 1))
    found = metrics.evaluate_split(predictions(RISK, labels, probability), [RISK], resamples=200)["tasks"]["risk1"]
    assert found["n"] == 4
    assert found["class_counts"] == [3, 1]
    assert found["prior"] == found["metrics"]["accuracy"]["value"] == 0.75
    assert found["auprc_chance"] == 0.25
    assert not found["beats_chance"]
    assert found["undefined_resamples"] > 0  # some resamples hold a single class


def test_single_class_and_no_labels_give_none_not_a_number() -> None:
    labels, probability = np.zeros(5, dtype=int), np.tile([0.6, 0.4], (5, 1))
    result = metrics.evaluate_split(predictions(RISK, labels, probability), [RISK], resamples=20)
    entry = result["tasks"]["risk1"]
    assert entry["metrics"]["auroc"] == {"value": None, "low": None, "high": None}
    assert "one class" in entry["note"]
    empty = metrics.evaluate_split(predictions(RISK, labels - 1, probability), [RISK], resamples=20)["tasks"]["risk1"]
    assert empty["n"] == 0
    assert empty["note"] == "no labelled samples"
    json.dumps(result, allow_nan=False)
    assert "risk1" in format_table(result)


def test_a_clear_signal_beats_chance_and_noise_does_not() -> None:
    random = np.random.default_rng(1)
    labels = random.integers(2, size=200)
    for strength, expected in ((2.0, True), (0.0, False)):
        score = 1 / (1 + np.exp(-(random.standard_normal(200) + strength * (labels - 0.5))))
        probability = np.stack([1 - score, score], 1)
        found = metrics.evaluate_split(predictions(RISK, labels, probability), [RISK], resamples=300)["tasks"]["risk1"]
        assert found["beats_chance"] is expected


def test_copies_within_a_patient_do_not_narrow_the_interval() -> None:
    random = np.random.default_rng(0)
    values = random.standard_normal(40)
    patients = np.array([f"p{i}" for i in range(40)])
    once = Bootstrap(2000).estimate(lambda index: float(values[index].mean()), patients)
    many = np.repeat(values, 10)
    clustered = Bootstrap(2000).estimate(lambda index: float(many[index].mean()), np.repeat(patients, 10))
    naive = Bootstrap(2000).estimate(lambda index: float(many[index].mean()), np.arange(400).astype(str))
    assert clustered.high - clustered.low == pytest.approx(once.high - once.low, rel=0.1)
    assert naive.high - naive.low < 0.5 * (once.high - once.low)


def test_interval_equals_scipy_on_independent_rows() -> None:
    from scipy.stats import bootstrap

    values = np.random.default_rng(3).exponential(size=80)
    ours = Bootstrap(4000).estimate(lambda index: float(values[index].mean()), np.arange(80).astype(str))
    theirs = bootstrap((values,), np.mean, n_resamples=4000, method="percentile", random_state=0).confidence_interval
    assert ours.low == pytest.approx(theirs.low, abs=0.02)
    assert ours.high == pytest.approx(theirs.high, abs=0.02)


def test_resamples_keep_patients_whole() -> None:
    groups = np.array(["a", "b", "a", "c", "b"])
    for index in resampled_indices(groups, 50, 0):
        counts = np.bincount(index, minlength=5)
        assert counts[0] == counts[2]
        assert counts[1] == counts[4]


def test_risk_monotonicity_violations() -> None:
    arrays = {"keys": np.array(["a", "b"]), "groups": np.array(["a", "b"])}
    for k, risk in enumerate(([0.1, 0.5], [0.2, 0.4]), start=1):
        arrays[f"prob_risk{k}"] = np.stack([1 - np.array(risk), risk], 1)
        arrays[f"label_risk{k}"] = np.array([0, 1])
    tasks = [find_card("embed").task(name) for name in ("risk2", "risk1")]
    assert metrics.evaluate_split(arrays, tasks, resamples=0)["risk_monotonicity_violations"] == 0.5


def test_dice() -> None:
    cup = find_card("gamma").task("cup")
    arrays = {
        "keys": np.array(["a", "b", "c"]),
        "groups": np.array(["a", "b", "c"]),
        "dice_cup": np.array([0.5, 1.0, np.nan]),
    }
    entry = metrics.evaluate_split(arrays, [cup], resamples=100)["tasks"]["cup"]
    assert entry["n"] == 2
    assert entry["metrics"]["dice"]["value"] == 0.75
