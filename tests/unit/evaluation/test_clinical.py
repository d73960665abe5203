"""The report of a split holds every figure once, with thresholds from validation, and says what it cannot say."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from m4oe_ds.data.cards import find_card
from m4oe_ds.evaluation.clinical import attributes_of, clinical_report
from m4oe_ds.evaluation.intervals import Bootstrap
from m4oe_ds.evaluation.operating_points import threshold_for
from m4oe_ds.evaluation.survival import from_horizon_labels, uno_c

TASKS = find_card("embed").tasks


def predictions(count: int, seed: int) -> dict[str, np.ndarray]:
    """Risks that rise with the horizon and with a hidden hazard; follow-up of 2 to 6 years."""
    random = np.random.default_rng(seed)
    hazard = random.normal(size=count)
    to_cancer = np.where(random.random(count) < 0.5, random.exponential(3 * np.exp(-2 * hazard)), 99.0)
    followed = random.integers(2, 7, count)
    followed = np.where(to_cancer < 6, np.maximum(followed, np.ceil(to_cancer)), followed)  # a known cancer was seen
    arrays: dict[str, np.ndarray] = {"groups": np.arange(count) // 2, "keys": np.arange(count)}
    for task in TASKS:
        if task.name.startswith("risk"):
            year = int(task.name[4:])
            label = np.where(to_cancer < year, 1, np.where(followed >= year, 0, -1))
            positive = 1 / (1 + np.exp(-(hazard + 0.3 * year - 1.5)))
            arrays[f"prob_{task.name}"] = np.stack([1 - positive, positive], 1)
        else:
            label = random.integers(-1, task.num_classes, count)
            arrays[f"prob_{task.name}"] = random.dirichlet(np.ones(task.num_classes), count)
        arrays[f"label_{task.name}"] = label
    return arrays


@pytest.fixture(scope="module")
def report() -> tuple[dict, dict, dict]:
    test, validation = predictions(160, 0), predictions(120, 1)
    side = np.where(np.arange(160) % 2 == 0, "l", "r")
    return clinical_report(test, TASKS, validation, None, {"side": side}, resamples=40), test, validation


def test_it_is_json_without_nan_and_complete(report: tuple[dict, dict, dict]) -> None:
    found, _, _ = report
    json.dumps(found, allow_nan=False)
    assert set(found["tasks"]) == {task.name for task in TASKS}
    for task in TASKS:
        entry = found["tasks"][task.name]
        binary = task.num_classes == 2
        assert ("delong" in entry) == ("operating_points" in entry) == binary
        assert 0 <= entry["calibration"]["ece"]["value"] <= 1
        assert [row["group"] for row in entry["subgroups"]["rows"]] == ["all", "l", "r"]


def test_aurocs_agree(report: tuple[dict, dict, dict]) -> None:
    found, test, _ = report
    known = test["label_risk3"] >= 0
    expected = roc_auc_score(test["label_risk3"][known], test["prob_risk3"][known, 1])
    entry = found["tasks"]["risk3"]
    assert entry["delong"]["value"] == pytest.approx(expected)
    assert entry["subgroups"]["rows"][0]["estimate"]["value"] == pytest.approx(expected)
    assert expected > 0.6


def test_thresholds_come_from_validation_and_from_the_data_itself(report: tuple[dict, dict, dict]) -> None:
    found, _, validation = report
    points = found["tasks"]["risk4"]["operating_points"]
    assert [(p["target"], p["chosen_on"]) for p in points] == [
        ("specificity", "validation split"),
        ("specificity", "evaluated data"),
        ("sensitivity", "validation split"),
        ("sensitivity", "evaluated data"),
    ]
    expected = threshold_for(validation["label_risk4"], validation["prob_risk4"][:, 1], "specificity", 0.9)
    assert points[0]["threshold"] == expected
    assert points[1]["specificity"]["value"] >= 0.9
    assert points[3]["sensitivity"]["value"] >= 0.9


def test_follow_up_figures(report: tuple[dict, dict, dict]) -> None:
    risk = report[0]["risk"]
    assert risk["censoring_from"] == "this split"
    assert 0.6 < risk["uno_c"]["value"] < 1
    assert [entry["horizon"] for entry in risk["horizons"]] == [1, 2, 3, 4, 5]


def test_censoring_is_that_of_the_training_split_where_it_is_known() -> None:
    test, train = predictions(160, 0), predictions(400, 3)
    found = clinical_report(test, TASKS, train=train, resamples=0)["risk"]
    assert found["censoring_from"] == "training split"
    labels = {
        name: np.stack([part[f"label_risk{k}"] for k in range(1, 6)], 1)
        for name, part in (("test", test), ("train", train))
    }
    data, kept = from_horizon_labels(labels["test"])
    expected = uno_c(
        data, test["prob_risk5"][kept, 1], 5, from_horizon_labels(labels["train"])[0], bootstrap=Bootstrap(0)
    )
    assert found["uno_c"]["value"] == pytest.approx(expected.value)
    own = clinical_report(test, TASKS, resamples=0)["risk"]["uno_c"]["value"]
    assert found["uno_c"]["value"] != pytest.approx(own, abs=1e-9)


def test_what_cannot_be_said_is_said() -> None:
    test = predictions(40, 2)
    test["label_density"][:] = -1
    test["label_risk1"], test["label_risk2"] = np.full(40, -1), np.ones(40, dtype=int)  # year 1 unknown, year 2 known
    found = clinical_report(test, TASKS, resamples=5)
    assert found["tasks"]["density"] == {"note": "no labelled samples"}
    assert "missing before a known one" in found["risk"]["note"]
    assert "subgroups" not in found["tasks"]["birads"]
    only = [task for task in TASKS if task.name == "birads"]
    assert clinical_report({k: v for k, v in test.items() if "risk" not in k}, only, resamples=5)["risk"] is None


def test_subgroups_are_what_the_card_and_the_samples_say() -> None:
    arrays = {"keys": np.array(["a-l", "b-r", "c-r"]), "label_density": np.array([3, -1, 0])}
    noted = {"a-l": {"vendor": "ge", "age": "40"}, "b-r": {"vendor": "", "age": "60"}}
    found = attributes_of(arrays, find_card("embed"), noted)
    assert {name: values.tolist() for name, values in found.items()} == {
        "side": ["l", "r", "r"],
        "density": ["D", "", "A"],
        "vendor": ["ge", "", ""],
        "age": ["40", "60", ""],
    }
    assert attributes_of(arrays, find_card("gamma"), {}) == {}  # no sides, no strata
    assert attributes_of(arrays, None, {}) == {}
