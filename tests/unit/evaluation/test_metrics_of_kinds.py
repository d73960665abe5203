"""Metrics of numbers, survival, masks and ordered classes against libraries, and their baselines."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.data.task_statistics import TaskStatistics, event_shares, from_json, to_json
from m4oe_ds.errors import DataError
from m4oe_ds.evaluation import metrics, number
from m4oe_ds.evaluation.intervals import Bootstrap
from m4oe_ds.evaluation.metrics_text import format_table
from m4oe_ds.evaluation.survival import FollowUp, censored_brier, harrell_c, horizon_auc, integrated_brier, uno_c

AGE = TaskSpec("age", "number", 1, unit="years")
RELAPSE = TaskSpec("relapse", "survival", 2, ("within 1 years", "within 3 years"), unit="years", horizons=(1.0, 3.0))
LESION = TaskSpec("lesion", "mask", 2, ("core", "edema"), of="t1")
GRADE = TaskSpec("grade", "ordinal", 4, ("a", "b", "c", "d"))
TRAIN = {
    "age": TaskStatistics(30, centre=61.0, spread=9.0, median=58.0),
    "relapse": TaskStatistics(30, risks=(0.2, 0.4)),
}
GROUPS = np.array([f"g{i // 2}" for i in range(60)])


def numbers(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = np.round(60 + 10 * random.normal(size=60)).astype(np.float32)  # with ties
    value = np.round(truth + 6 * random.normal(size=60)).astype(np.float32)
    truth[::7] = np.nan
    return {"groups": GROUPS, "keys": GROUPS, "label_age": truth, "value_age": value}


def test_number_metrics_are_those_of_the_libraries() -> None:
    arrays = numbers()
    keep = np.isfinite(arrays["label_age"])
    truth, value = arrays["label_age"][keep].astype(float), arrays["value_age"][keep].astype(float)
    entry = metrics.evaluate_split(arrays, [AGE], resamples=200, train=TRAIN)["tasks"]["age"]
    found = {name: one["value"] for name, one in entry["metrics"].items()}
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(truth, value))
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(truth, value))
    assert found["r2"] == pytest.approx(sk.r2_score(truth, value))
    assert found["spearman"] == pytest.approx(stats.spearmanr(truth, value).statistic)
    assert entry["n"] == keep.sum() == 51
    assert entry["unit"] == "years"
    assert all(one["low"] < one["value"] < one["high"] for one in entry["metrics"].values())
    assert entry["baseline"] == {
        "value": 58.0,
        "of": "training median",
        "mae": pytest.approx(np.abs(truth - 58).mean()),
        "rmse": pytest.approx(math.sqrt(np.square(truth - 58).mean())),
    }
    assert entry["skill"]["value"] == pytest.approx(1 - found["mae"] / entry["baseline"]["mae"])
    assert entry["beats_chance"]
    again = metrics.evaluate_split(arrays, [AGE], resamples=0)["tasks"]["age"]["baseline"]
    assert (again["of"], again["value"]) == ("median of this split", float(np.median(truth)))


def test_the_formulas_of_the_bootstrap_are_those_of_the_libraries() -> None:
    random = np.random.default_rng(2)
    for _ in range(20):
        truth, value = random.integers(0, 6, 15).astype(float), random.integers(0, 6, 15).astype(float)
        assert number.explained_variance(truth, value) == pytest.approx(sk.r2_score(truth, value))
        assert number.rank_correlation(truth, value) == pytest.approx(stats.spearmanr(truth, value).statistic)


def test_numbers_that_say_nothing() -> None:
    arrays = numbers()
    constant = metrics.evaluate_split({**arrays, "value_age": np.full(60, 58.0)}, [AGE], resamples=50, train=TRAIN)
    entry = constant["tasks"]["age"]
    assert entry["metrics"]["spearman"]["value"] is None
    assert entry["skill"]["value"] == 0.0
    assert not entry["beats_chance"]
    nothing = metrics.evaluate_split({**arrays, "label_age": np.full(60, np.nan)}, [AGE], resamples=50)["tasks"]["age"]
    assert (nothing["n"], nothing["metrics"], nothing["note"]) == (0, {}, "no labelled samples")
    broken = {**arrays, "value_age": np.full(60, np.nan)}
    entry = metrics.evaluate_split(broken, [AGE], resamples=5, train=TRAIN)["tasks"]["age"]
    assert all(one["value"] is None for one in entry["metrics"].values())
    assert "no labels" in format_table({"tasks": {"age": nothing}})


def follow_up(seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    hazard = random.normal(size=60)
    time, censored = random.exponential(3 * np.exp(-hazard)), random.exponential(4, 60)
    labels = np.stack([np.minimum(time, censored), time <= censored], 1).astype(np.float32)
    labels[::9] = np.nan
    rate = np.exp(hazard + 0.3 * random.normal(size=60))[:, None] / 3
    risks = (1 - np.exp(-rate * np.array([1.0, 3.0]))).astype(np.float32)
    return {"groups": GROUPS, "keys": GROUPS, "label_relapse": labels, "risk_relapse": risks}


def test_survival_metrics_are_those_of_the_follow_up() -> None:
    arrays = follow_up()
    keep = np.isfinite(arrays["label_relapse"]).all(1)
    labels, risks = arrays["label_relapse"][keep], arrays["risk_relapse"][keep].astype(float)
    data, once = FollowUp(labels[:, 0], labels[:, 1]), Bootstrap(0)
    entry = metrics.evaluate_split(arrays, [RELAPSE], resamples=100, train=TRAIN)["tasks"]["relapse"]
    found = {name: one["value"] for name, one in entry["metrics"].items()}
    assert found == {
        "uno_c": pytest.approx(uno_c(data, risks[:, 1], 3.0, bootstrap=once).value),
        "harrell_c": pytest.approx(harrell_c(data, risks[:, 1], bootstrap=once).value),
        "integrated_brier": pytest.approx(integrated_brier(data, risks, (1.0, 3.0), bootstrap=once).value),
        "auc_1": pytest.approx(horizon_auc(data, risks[:, 0], 1.0, bootstrap=once)["value"]),
        "auc_3": pytest.approx(horizon_auc(data, risks[:, 1], 3.0, bootstrap=once)["value"]),
        "brier_1": pytest.approx(censored_brier(data, risks[:, 0], 1.0, bootstrap=once).value),
        "brier_3": pytest.approx(censored_brier(data, risks[:, 1], 3.0, bootstrap=once).value),
    }
    assert entry["events"] == int(labels[:, 1].sum())
    assert entry["baseline"]["of"] == "Kaplan-Meier of the training split"
    trivial = np.full(len(data), 0.4)
    assert entry["baseline"]["brier_3"] == pytest.approx(censored_brier(data, trivial, 3.0, bootstrap=once).value)
    assert entry["beats_chance"]
    assert all(one["low"] <= one["value"] <= one["high"] for one in entry["metrics"].values())
    assert [one["observed"] for one in entry["horizons"]] == pytest.approx(event_shares(data.time, data.event, (1, 3)))
    own = metrics.evaluate_split(arrays, [RELAPSE], resamples=0)["tasks"]["relapse"]["baseline"]
    assert own["of"] == "Kaplan-Meier of this split"


def test_a_split_without_events_has_no_concordance_and_says_why() -> None:
    arrays = follow_up()
    arrays["label_relapse"][:, 1] = 0
    entry = metrics.evaluate_split(arrays, [RELAPSE], resamples=20)["tasks"]["relapse"]
    assert entry["metrics"]["uno_c"]["value"] is None
    assert "no event" in entry["reasons"]["uno_c"]
    assert not entry["beats_chance"]
    assert "0 events" in format_table({"tasks": {"relapse": entry}})


def test_kaplan_meier_by_hand_and_by_the_share_without_censoring() -> None:
    time, event = np.array([1.0, 2.0, 2.0, 3.0, 5.0]), np.array([True, True, False, True, False])
    # 4/5; then 3 of 4 at time 2, whose censored case is still at risk; then 1 of 2
    assert event_shares(time, event, (0.5, 1, 2, 4, 9)) == pytest.approx((0, 1 / 5, 2 / 5, 7 / 10, 7 / 10))
    times = np.random.default_rng(0).exponential(size=50)
    assert event_shares(times, np.ones(50, dtype=bool), (0.5, 1)) == pytest.approx(
        ((times <= 0.5).mean(), (times <= 1).mean())
    )


def test_dice_by_class_and_of_the_whole_picture() -> None:
    dice = np.array([[0.5, 1.0], [1.0, 0.0], [np.nan, np.nan]])
    area = np.array([[0.5, 0.0], [0.25, 0.1], [np.nan, np.nan]])
    arrays = {"groups": GROUPS[:3], "keys": GROUPS[:3], "dice_lesion": dice, "area_lesion": area}
    entry = metrics.evaluate_split(arrays, [LESION], resamples=20)["tasks"]["lesion"]
    assert entry["n"] == 2
    assert {name: one["value"] for name, one in entry["metrics"].items()} == {
        "dice": 0.625,
        "dice_core": 0.75,
        "dice_edema": 0.5,
    }
    masks = np.zeros((8, 8), dtype=bool)
    masks[:4] = True
    assert sk.f1_score(masks.ravel(), np.ones(64)) == pytest.approx(2 * 0.5 / 1.5)
    assert entry["baseline"]["dice_core"] == pytest.approx((2 * 0.5 / 1.5 + 2 * 0.25 / 1.25) / 2)
    older = metrics.evaluate_split({k: v for k, v in arrays.items() if "area" not in k}, [LESION], resamples=0)
    assert "baseline" not in older["tasks"]["lesion"]
    assert "Dice core 0.750" in format_table(older)


def test_ordered_classes_are_also_told_by_how_far_off_answers_are() -> None:
    random = np.random.default_rng(1)
    labels, probability = random.integers(0, 4, 60), random.dirichlet(np.ones(4), 60)
    arrays = {"groups": GROUPS, "keys": GROUPS, "label_grade": labels, "prob_grade": probability}
    entry = metrics.evaluate_split(arrays, [GRADE], resamples=50)["tasks"]["grade"]
    value = entry["metrics"]["class_error"]
    assert value["value"] == pytest.approx(sk.mean_absolute_error(labels, probability.argmax(1)))
    assert value["low"] < value["value"] < value["high"]
    assert entry["baseline"]["class_error"] == pytest.approx(np.abs(labels - int(np.median(labels))).mean())
    plain = TaskSpec("grade", "classes", 4, ("a", "b", "c", "d"))
    assert "class_error" not in metrics.evaluate_split(arrays, [plain], resamples=0)["tasks"]["grade"]["metrics"]


def test_statistics_go_through_json_exactly_and_damage_is_named() -> None:
    tasks = (AGE, RELAPSE, GRADE, LESION)
    known = {**TRAIN, "grade": TaskStatistics(9, (1, 2, 3, 3)), "lesion": TaskStatistics(4)}
    assert from_json(to_json(known), tasks, "f") == known
    for name, wrong in (("age", {"spread": 0.0}), ("grade", {"counts": [1, 2]}), ("relapse", {"risks": [0.1]})):
        content = to_json(known)
        content[name] |= wrong
        with pytest.raises(DataError, match=f"nothing usable of task {name}"):
            from_json(content, tasks, "f")
    with pytest.raises(DataError, match="nothing usable of task lesion"):
        from_json({name: one for name, one in to_json(known).items() if name != "lesion"}, tasks, "f")
