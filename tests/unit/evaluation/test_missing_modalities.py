"""Figures by number of modalities, and the figure that stands for each kind of task."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn import metrics as sk

from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.evaluation.intervals import Bootstrap
from m4oe_ds.evaluation.main_metric import main_metric
from m4oe_ds.evaluation.missing_modalities import cohort_size, format_observed, observed, removed

GRADE = TaskSpec("grade", "classes", 3, ("a", "b", "c"))
SICK = TaskSpec("sick", "binary", 2, ("no", "yes"))
ROWS = np.arange(60)


def answers(skill: float, seed: int = 0) -> dict[str, np.ndarray]:
    """60 rows of 30 patients; the larger the skill, the more of the probability lies on the true class."""
    random = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {"groups": ROWS // 2, "keys": ROWS}
    for task in (GRADE, SICK):
        labels = np.random.default_rng(5).integers(task.num_classes, size=60)
        logits = random.normal(size=(60, task.num_classes)) + skill * np.eye(task.num_classes)[labels]
        found[f"prob_{task.name}"] = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32)
        labels[:6] = -1
        found[f"label_{task.name}"] = labels
    return found


def test_coded_figures_are_those_of_scikit_learn() -> None:
    arrays = answers(1.0)
    balanced, auroc = main_metric(SICK, arrays)
    known = np.flatnonzero(balanced.known)
    assert known.tolist() == list(range(6, 60))
    label, score = arrays["label_sick"][6:], arrays["prob_sick"][6:]
    assert balanced.value(known) == pytest.approx(sk.balanced_accuracy_score(label, score.argmax(1)))
    assert auroc.value(known) == pytest.approx(sk.roc_auc_score(label, score[:, 1]))
    assert (balanced.trivial(known), auroc.trivial(known)) == (0.5, 0.5)
    assert main_metric(GRADE, arrays)[0].trivial(known) == pytest.approx(1 / 3)
    assert math.isnan(balanced.value(known[:0]))


def test_the_other_kinds_are_judged_by_what_evaluation_keeps_of_them() -> None:
    random = np.random.default_rng(0)
    age, true_age = random.normal(50, 9, 20).astype(np.float32), random.normal(50, 9, 20).astype(np.float32)
    true_age[:3] = np.nan
    (mae,) = main_metric(TaskSpec("age", "number", 1), {"value_age": age, "label_age": true_age})
    rows = np.flatnonzero(mae.known)
    assert mae.value(rows) == pytest.approx(sk.mean_absolute_error(true_age[3:], age[3:]))
    assert mae.trivial(rows) == pytest.approx(float(np.mean(np.abs(true_age[3:] - np.median(true_age[3:])))))

    time, event = np.arange(1, 21, dtype=float), np.ones(20)
    risk = np.stack([np.zeros(20), 1 / time], 1).astype(np.float32)
    label = np.stack([time, event], 1).astype(np.float32)
    label[0] = np.nan
    (c_index,) = main_metric(TaskSpec("death", "survival", 2), {"risk_death": risk, "label_death": label})
    assert c_index.value(np.flatnonzero(c_index.known)) == 1.0
    assert not c_index.known[0]

    dice = np.array([[1.0, 0.5], [0.0, 0.5], [np.nan, np.nan]])
    (overlap,) = main_metric(TaskSpec("disc", "mask", 2), {"dice_disc": dice})
    assert overlap.value(np.flatnonzero(overlap.known)) == 0.5
    assert math.isnan(overlap.trivial(np.array([0])))


def test_arrays_without_the_answers_give_no_figure() -> None:
    assert main_metric(TaskSpec("age", "number", 1), {"label_age": np.zeros(3)}) == []


def test_groups_too_small_are_counts_alone() -> None:
    present = np.ones((60, 3), dtype=bool)
    present[:50, 2] = False
    rows = observed((GRADE, SICK), answers(2.0), present, Bootstrap(20))
    by_place = {(row["task"], row["metric"], row["present"]): row for row in rows}
    assert len(by_place) == 2 * 2 * 2
    many, few = by_place["sick", "auroc", 2], by_place["sick", "auroc", 3]
    assert (many["n"], many["n_groups"], few["n"], few["n_groups"]) == (44, 22, 10, 5)
    assert many["low"] < many["value"] < many["high"]
    assert few["value"] is None
    assert few["reason"] == "fewer than 20 patients: counts only"
    lines = format_observed(rows).splitlines()
    assert len(lines) == 1 + len(rows)
    (line,) = [one for one in lines if one.split()[:3] == ["sick", "auroc", "2"]]
    assert line.split()[3:] == ["44", f"{many['value']:.3f}", f"[{many['low']:.3f},", f"{many['high']:.3f}]", "0.500"]
    assert "counts only" in next(one for one in lines if one.split()[:3] == ["sick", "auroc", "3"])
    assert many["value"] == pytest.approx(
        sk.roc_auc_score(answers(2.0)["label_sick"][6:50], answers(2.0)["prob_sick"][6:50, 1])
    )


def test_draws_are_averaged_and_losing_modalities_costs() -> None:
    passes = {0: [answers(3.0)], 1: [answers(0.5, seed) for seed in (1, 2, 3)]}
    rows = removed((SICK,), passes, ROWS, Bootstrap(50))
    by_place = {(row["metric"], row["removed"]): row for row in rows}
    singles = [removed((SICK,), {1: [one]}, ROWS, Bootstrap(0))[1]["value"] for one in passes[1]]
    assert len(set(singles)) == 3
    whole, less = by_place["auroc", 0], by_place["auroc", 1]
    assert less["value"] == pytest.approx(np.mean(singles))
    assert whole["low"] > less["high"]
    assert (whole["draws"], less["draws"], less["n"], less["n_groups"]) == (1, 3, 54, 27)


def test_only_the_cohort_counts() -> None:
    (balanced, _) = removed((SICK,), {0: [answers(1.0)]}, np.arange(30, 60), Bootstrap(0))
    measure = main_metric(SICK, answers(1.0))[0]
    assert balanced["n"] == 30
    assert balanced["value"] == pytest.approx(measure.value(np.arange(30, 60)))


def test_masks_that_some_draws_cannot_ask_for_count_where_they_can() -> None:
    mask = TaskSpec("cup", "mask", 1)
    common = {"groups": np.arange(3), "keys": np.arange(3)}
    draws = [{**common, "dice_cup": np.array(one)} for one in ([1.0, np.nan, np.nan], [np.nan, 0.5, np.nan])]
    (row,) = removed((mask,), {1: draws}, np.arange(3), Bootstrap(0))
    assert (row["value"], row["n"], row["trivial"]) == (0.75, 2, None)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [([4, 4, 2, 1], 4), ([4, 2, 2, 1], 2), ([1, 1, 1], 2), ([3], 3), ([], 2), ([4, 3, 3, 2, 1], 3)],
)
def test_a_cohort_keeps_half_of_the_samples_where_it_can(numbers: list[int], expected: int) -> None:
    assert cohort_size(np.array(numbers, dtype=int)) == expected
