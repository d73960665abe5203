"""Censored concordance, AUC and Brier score against slow exact loops and a simulation with known truth."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from m4oe_ds.errors import DataError
from m4oe_ds.evaluation import survival
from m4oe_ds.evaluation.intervals import Bootstrap
from m4oe_ds.evaluation.survival import Censoring, FollowUp

NONE = {"bootstrap": Bootstrap(0)}


def drawn(seed: int, count: int = 60, whole: bool = False, digits: int = 1) -> tuple[FollowUp, np.ndarray]:
    """Follow-up with ties of scores, and of times if ``whole``."""
    random = np.random.default_rng(seed)
    score = random.normal(size=count)
    life, end = random.exponential(4 / np.exp(score)), random.uniform(0, 7, size=count)
    time, event = np.minimum(life, end), life <= end
    if whole:
        time = np.where(event, np.ceil(time), np.floor(time))
    return FollowUp(time, event), np.round(score, digits)


def chance_before(time: list[float], event: list[bool], at: float) -> Fraction:
    """P(C >= at): product over censoring times before ``at``; events of a time have left before its censorings."""
    value = Fraction(1)
    for t in sorted({t for t, e in zip(time, event, strict=True) if not e and t < at}):
        rows = list(zip(time, event, strict=True))
        at_risk = sum(1 for u, e in rows if u > t or (u == t and not e))
        value *= 1 - Fraction(sum(1 for u, e in rows if u == t and not e), at_risk)
    return value


def slow_concordance(data: FollowUp, score: np.ndarray, tau: float, power: int, train: FollowUp | None = None) -> float:
    time, event = data.time.tolist(), data.event.tolist()
    known = data if train is None else train
    times, events = known.time.tolist(), known.event.tolist()
    agreed, total = Fraction(0), Fraction(0)
    for i in range(len(time)):
        if not event[i] or time[i] > tau:
            continue
        weight = chance_before(times, events, time[i]) ** -power
        for j in range(len(time)):
            if time[i] < time[j] or (time[i] == time[j] and not event[j]):
                total += weight
                agreed += weight * (Fraction(1, 2) if score[i] == score[j] else int(score[i] > score[j]))
    return float(agreed / total)


def test_values_are_those_of_scikit_survival() -> None:
    found = json.loads((Path(__file__).parent / "survival_reference.json").read_text())
    train, test = (FollowUp(np.array(found[k]["time"]), np.array(found[k]["event"])) for k in ("train", "test"))
    score, years = np.array(found["test"]["score"]), np.arange(1, 6)
    risks = np.stack([1 - np.exp(-np.exp(score) * t / 4) for t in years], axis=1)
    close = {"rel": 1e-9}
    assert survival.uno_c(test, score, 5, train, **NONE).value == pytest.approx(found["uno_tau5"], **close)
    assert survival.harrell_c(test, score, **NONE).value == pytest.approx(found["harrell"], **close)
    areas = [survival.horizon_auc(test, score, t, train, True, **NONE)["value"] for t in years]
    assert areas == pytest.approx(found["auc"], **close)
    brier = [survival.censored_brier(test, risks[:, t - 1], t, train, **NONE).value for t in years]
    assert brier == pytest.approx(found["brier"], **close)
    integrated = survival.integrated_brier(test, risks, years, train, **NONE).value
    assert integrated == pytest.approx(found["integrated_brier"], **close)


@pytest.mark.parametrize("whole", [False, True], ids=["exact times", "whole years"])
@pytest.mark.parametrize("seed", range(3))
def test_concordance_equals_the_double_loop(seed: int, whole: bool) -> None:
    data, score = drawn(seed, whole=whole)
    harrell = survival.harrell_c(data, score, **NONE)
    assert harrell.value == pytest.approx(slow_concordance(data, score, np.inf, 0), abs=1e-12)
    uno = survival.uno_c(data, score, 4.0, **NONE)
    assert uno.value == pytest.approx(slow_concordance(data, score, 4.0, 2), abs=1e-12)
    train = drawn(seed + 100, 90, whole)[0]
    assert train.time.max() >= 4.0
    uno = survival.uno_c(data, score, 4.0, train, **NONE)
    assert uno.value == pytest.approx(slow_concordance(data, score, 4.0, 2, train), abs=1e-12)


def test_concordance_by_hand() -> None:
    """Times 1 2+ 3 4 (+ censored), scores 4 3 1 2: pairs (1: 3 right), (3 < 4: wrong) = 3/4; G(3-) = 2/3."""
    data, score = FollowUp(np.array([1.0, 2, 3, 4]), np.array([1, 0, 1, 1])), [4, 3, 1, 2]
    assert survival.harrell_c(data, score, **NONE).value == pytest.approx(3 / 4)
    assert survival.uno_c(data, score, 9, **NONE).value == pytest.approx(3 / (3 + 9 / 4))
    assert survival.uno_c(data, score, 2, **NONE).value == 1


@pytest.mark.parametrize("whole", [False, True], ids=["exact times", "whole years"])
def test_censoring_distribution(whole: bool) -> None:
    data, _ = drawn(5, whole=whole)
    found = Censoring.fit(data)
    asked = np.unique(data.time)
    want = [float(chance_before(data.time.tolist(), data.event.tolist(), t)) for t in asked]
    assert found.before(asked) == pytest.approx(want, abs=1e-12)
    assert found.before(0.0) == 1
    assert np.isnan(found.before(asked[-1] + 0.01))


@pytest.mark.parametrize("whole", [False, True], ids=["exact times", "whole years"])
@pytest.mark.parametrize("horizon", [1.0, 3.0])
def test_horizon_auc_equals_the_loop(horizon: float, whole: bool) -> None:
    data, score = drawn(7, whole=whole)
    time, event = data.time.tolist(), data.event.tolist()
    agreed, total = Fraction(0), Fraction(0)
    for i in range(len(time)):
        for j in range(len(time)):
            free = time[j] > horizon or (time[j] == horizon and not event[j])
            if event[i] and time[i] <= horizon and free:
                weight = 1 / chance_before(time, event, time[i])
                total += weight
                agreed += weight * (Fraction(1, 2) if score[i] == score[j] else int(score[i] > score[j]))
    assert survival.horizon_auc(data, score, horizon, **NONE)["value"] == pytest.approx(float(agreed / total))


def test_unweighted_horizon_auc_is_the_auc_of_eligible_cases() -> None:
    data, score = drawn(8)
    case, free = data.event & (data.time <= 2), data.time > 2
    found = survival.horizon_auc(data, score, 2.0, weighted=False, **NONE)
    assert found["value"] == pytest.approx(roc_auc_score(case[case | free], score[case | free]))
    assert (found["events"], found["controls"]) == (case.sum(), free.sum())
    assert found["excluded"] == len(data) - case.sum() - free.sum() > 0


def test_without_censoring_all_reduce_to_plain_formulas() -> None:
    random = np.random.default_rng(9)
    life, risk = random.exponential(3, size=80), random.random(80)
    data = FollowUp(life, np.ones(80, dtype=bool))
    within = life <= 2
    assert survival.horizon_auc(data, risk, 2.0, **NONE)["value"] == pytest.approx(roc_auc_score(within, risk))
    assert survival.censored_brier(data, risk, 2.0, **NONE).value == pytest.approx(np.mean((within - risk) ** 2))
    harrell, uno = survival.harrell_c(data, risk, **NONE), survival.uno_c(data, risk, np.inf, **NONE)
    assert harrell.value == pytest.approx(uno.value)


def test_weights_undo_censoring() -> None:
    """Early events follow the score, late events do not; heavy censoring hides the late ones from plain estimates."""
    random = np.random.default_rng(10)
    count = 6000
    score = random.normal(size=count)
    early = random.random(count) < 1 / (1 + np.exp(2.0 - 2 * score))
    life = np.where(early, random.uniform(0, 1, count), random.uniform(1, 9, count))
    end = random.exponential(3, size=count)
    truth = FollowUp(life, np.ones(count, dtype=bool))
    seen = FollowUp(np.minimum(life, end), life <= end)
    risk = np.clip(0.1 + 0.2 * (score > 0), 0, 1)
    true_c = survival.uno_c(truth, score, 4, **NONE).value
    true_auc = survival.horizon_auc(truth, score, 4, **NONE)["value"]
    true_brier = survival.censored_brier(truth, risk, 4, **NONE).value
    assert true_c is not None
    assert survival.uno_c(seen, score, 4, **NONE).value == pytest.approx(true_c, abs=0.012)
    assert survival.horizon_auc(seen, score, 4, **NONE)["value"] == pytest.approx(true_auc, abs=0.02)
    assert survival.censored_brier(seen, risk, 4, **NONE).value == pytest.approx(true_brier, abs=0.02)
    plain = survival.horizon_auc(seen, score, 4, weighted=False, **NONE)["value"]
    harrell = survival.harrell_c(seen, score, **NONE).value
    assert plain > true_auc + 0.03
    assert harrell is not None
    assert harrell > true_c + 0.03


def test_whole_year_weights_are_unbiased() -> None:
    """The module's rule for ties: events and censorings of a year recorded as times 1..5."""
    random = np.random.default_rng(11)
    count = 20000
    score = random.normal(size=count)
    life = random.exponential(6 / np.exp(score))
    end = random.integers(0, 7, size=count)
    year = np.ceil(life)
    seen = FollowUp(np.minimum(year, end), year <= end)
    true_c = survival.uno_c(FollowUp(year, np.ones(count, dtype=bool)), score, 5, **NONE).value
    assert survival.uno_c(seen, score, 5, **NONE).value == pytest.approx(true_c, abs=0.006)
    risk = 1 - np.exp(-3 * np.exp(score) / 6)
    true_brier = np.mean(((year <= 3) - risk) ** 2)
    assert survival.censored_brier(seen, risk, 3, **NONE).value == pytest.approx(true_brier, abs=0.004)


def test_brier_by_hand() -> None:
    """Times 1 1+ 2 3+ at horizon 2: event 1 (G = 1), censored at 1 (out), event 2 and free (G = 2/3)."""
    data = FollowUp(np.array([1.0, 1, 2, 3]), np.array([1, 0, 1, 0]))
    found = survival.censored_brier(data, [0.5, 0.9, 0.8, 0.3], 2.0, **NONE)
    assert found.value == pytest.approx((0.25 + 0.04 * 1.5 + 0.09 * 1.5) / 4)
    flat = survival.censored_brier(data, [0.5, 0.9, 0.8, 0.3], 1.0, **NONE).value
    assert flat == pytest.approx((0.25 + 0.81 + 0.64 + 0.09) / 4)
    table = np.repeat(np.array([[0.5], [0.9], [0.8], [0.3]]), 2, axis=1)
    both = survival.integrated_brier(data, table, [1.0, 2.0], **NONE)
    assert both.value == pytest.approx((found.value + flat) / 2)


def test_follow_up_from_labels() -> None:
    labels = [[0, 0, 0], [1, 1, 1], [0, 1, 1], [0, -1, -1], [-1, -1, -1], [0, 0, 1]]
    data, kept = survival.from_horizon_labels(labels)
    assert kept.tolist() == [0, 1, 2, 3, 5]
    assert data.time.tolist() == [3, 1, 2, 1, 3]
    assert data.event.tolist() == [False, True, True, False, True]


@pytest.mark.parametrize("row", [[1, 0, 0], [0, -1, 0], [-1, 1, 1], [0, 2, 2], [1, 1, -1, 1]])
def test_impossible_labels(row: list[int]) -> None:
    with pytest.raises(DataError):
        survival.from_horizon_labels([row])


def test_undefined_is_none_with_a_reason() -> None:
    nothing = FollowUp(np.array([1.0, 2.0]), np.array([0, 0]))
    assert "no comparable pair" in survival.harrell_c(nothing, [1, 2]).reason
    assert "no event up to" in survival.uno_c(nothing, [1, 2], 5).reason
    assert "no event" in survival.horizon_auc(nothing, [1, 2], 5)["reason"]
    all_early = FollowUp(np.array([1.0, 2.0]), np.array([1, 1]))
    assert "no case followed" in survival.horizon_auc(all_early, [1, 2], 5)["reason"]
    short = FollowUp(np.array([0.5, 0.7]), np.array([1, 0]))
    late = FollowUp(np.array([1.0, 2.0, 3.0]), np.array([1, 1, 0]))
    for found in (
        survival.uno_c(late, [1, 2, 3], 5, short),
        survival.censored_brier(late, [0.1, 0.2, 0.3], 2, short),
    ):
        assert found.value is None
        assert "censoring distribution" in found.reason
    assert survival.horizon_auc(late, [1, 2, 3], 2, short)["value"] is None
    empty, _ = survival.from_horizon_labels(np.full((3, 5), -1))
    assert survival.harrell_c(empty, []).reason == "no labelled cases"
    assert survival.censored_brier(empty, [], 1).reason == "no labelled cases"


def test_bad_input() -> None:
    data = FollowUp(np.array([1.0, 2.0]), np.array([1, 0]))
    for scores in ([1.0], [1.0, float("nan")]):
        with pytest.raises(DataError):
            survival.harrell_c(data, scores)
    with pytest.raises(DataError):
        survival.censored_brier(data, [0.5, 1.5], 1)
    with pytest.raises(DataError):
        survival.integrated_brier(data, [[0.1, 0.2], [0.1, 0.2]], [2, 1])
    for time, event in (([-1.0], [1]), ([np.nan], [1]), ([1.0], [2]), ([1.0, 2.0], [1])):
        with pytest.raises(DataError):
            FollowUp(np.array(time), np.array(event))


def test_report_is_json_and_clustered() -> None:
    data, score = drawn(12, count=150)
    labels = np.stack(
        [np.where(data.event & (data.time <= k), 1, np.where(data.time >= k, 0, -1)) for k in range(1, 6)], axis=1
    )
    risks = 1 - np.exp(-np.exp(score)[:, None] * np.arange(1, 6) / 4)
    one = survival.follow_up_report(labels, risks, bootstrap=Bootstrap(40))
    json.dumps(one, allow_nan=False)
    assert one["n"] + one["rows_without_labels"] == 150
    assert one["uno_c"]["low"] < one["uno_c"]["value"] < one["uno_c"]["high"]
    assert [entry["auc"]["horizon"] for entry in one["horizons"]] == [1, 2, 3, 4, 5]
    # every row three times under one patient: the same data, so the same values and the same interval
    three = survival.follow_up_report(
        np.tile(labels, (3, 1)), np.tile(risks, (3, 1)), np.tile(np.arange(150), 3), labels, bootstrap=Bootstrap(40)
    )
    single = survival.follow_up_report(labels, risks, np.arange(150), labels, bootstrap=Bootstrap(40))
    for name in ("value", "low", "high"):
        assert three["horizons"][2]["auc"][name] == pytest.approx(single["horizons"][2]["auc"][name])
        assert three["uno_c"][name] == pytest.approx(single["uno_c"][name])


def test_report_asks_each_head_and_the_training_split() -> None:
    random = np.random.default_rng(13)
    zeros = random.integers(0, 6, size=120)
    event = random.random(120) < 0.4
    years = np.arange(1, 6)
    labels = np.where(years <= zeros[:, None], 0, np.where(event[:, None], 1, -1))
    train = labels[random.permutation(120)[:90]]
    risks = random.random((120, 5))
    owner = np.arange(120) // 2
    options: dict[str, Any] = {"bootstrap": Bootstrap(20, seed=3)}
    found = survival.follow_up_report(labels, risks, owner, train, **options)
    data, kept = survival.from_horizon_labels(labels)
    known, _ = survival.from_horizon_labels(train)
    assert 0 < len(kept) < 120
    assert found["integrated_brier"]["n_groups"] == len(set(owner[kept])) < len(kept)
    options["groups"] = owner[kept]
    last = risks[kept, 4]
    assert found["uno_c"] == survival.uno_c(data, last, 5, known, **options).as_dict()
    assert found["uno_c"]["value"] != survival.uno_c(data, last, 5, **options).value
    assert found["harrell_c"] == survival.harrell_c(data, last, **options).as_dict()
    assert found["integrated_brier"] == survival.integrated_brier(data, risks[kept], years, known, **options).as_dict()
    for k, entry in enumerate(found["horizons"]):
        mine = risks[kept, k]
        assert entry["auc"] == survival.horizon_auc(data, mine, k + 1, known, **options)
        assert entry["auc_unweighted"] == survival.horizon_auc(data, mine, k + 1, weighted=False, **options)
        assert entry["brier"] == survival.censored_brier(data, mine, k + 1, known, **options).as_dict()
    assert found["horizons"][4]["auc"]["value"] != found["horizons"][4]["auc_unweighted"]["value"]
