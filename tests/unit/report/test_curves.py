"""ROC and decision curves against scikit-learn and sums by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from m4oe_ds.data.cards import find_card
from m4oe_ds.report import curves, figures, tables
from m4oe_ds.report.words import Words

WORDS = Words(find_card("embed"))


def arrays() -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    count = 60
    return {
        "label_density": random.integers(-1, 4, count),
        "prob_density": random.dirichlet(np.ones(4), count),
        "label_risk1": random.integers(-1, 2, count),
        # equal scores occur: a curve that took them one by one would depend on their order
        "prob_risk1": np.stack([1 - (p := random.integers(0, 5, count) / 4), p], 1),
        "label_risk2": np.zeros(count, int),
        "prob_risk2": np.full((count, 2), 0.5),
    }


def split() -> dict[str, dict[str, dict[str, object]]]:
    return {"tasks": {name: {} for name in ("density", "risk1", "risk2", "absent")}}


def test_every_task_with_classes_has_curves_whose_areas_are_right() -> None:
    given = arrays()
    found = curves.roc_curves(given, split())
    assert [(one.task, one.code) for one in found] == [*(("density", code) for code in range(4)), ("risk1", 1)]
    for one in found:
        keep = given[f"label_{one.task}"] >= 0
        truth = given[f"label_{one.task}"][keep] == one.code
        assert one.area == pytest.approx(roc_auc_score(truth, given[f"prob_{one.task}"][keep, one.code]))
        assert (one.fpr[0], one.tpr[0], one.fpr[-1], one.tpr[-1]) == (0, 0, 1, 1)
        assert (one.positives, one.negatives) == (truth.sum(), (~truth).sum())


def test_the_figure_names_tasks_and_classes() -> None:
    figure = figures.roc(arrays(), split(), WORDS)
    assert figure is not None
    first, second = figure.axes
    assert [first.get_title(), second.get_title()] == ["Cancer within 1 year", "Breast density: each class"]
    texts = [text.get_text() for text in second.get_legend().get_texts()]
    assert [text.partition(" ")[0] for text in texts] == ["A", "B", "C", "D", "chance"]
    assert figures.roc({}, split()) is None
    classes = {"density": ["A", "B", "C", "D"], "risk1": ["no cancer", "within 1 y"]}
    rows = tables.roc(curves.roc_curves(arrays(), split()), classes)
    assert {row["class"] for row in rows if row["task"] == "risk1"} == {"within 1 y"}


def test_confusion_matrices_have_class_names_on_their_axes() -> None:
    entry = {"confusion": [[3, 1], [0, 2]]}
    shown = {"tasks": {"risk1": entry, "other": {"confusion": [[1]], "class_names": ["only"]}, "none": {}}}
    first, second = figures.confusions(shown, WORDS).axes
    for labels in (first.get_xticklabels(), first.get_yticklabels()):
        assert [label.get_text() for label in labels] == ["no cancer", "within 1 y"]
    assert first.get_title() == "Cancer within 1 year"
    assert second.get_xticklabels()[0].get_text() == "only"
    assert tables.confusions(shown, WORDS)[1] == {
        "task": "risk1",
        "true": "no cancer",
        "predicted": "within 1 y",
        "count": 1,
    }


def test_equal_scores_move_a_curve_together() -> None:
    x, y = curves.roc_points(np.array([True, False, True, False]), np.array([0.9, 0.5, 0.5, 0.1]))
    assert (x.tolist(), y.tolist()) == ([0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0])


def test_net_benefit_by_hand() -> None:
    labels, probability = np.array([1, 1, 0, 0, 0]), np.array([0.9, 0.3, 0.6, 0.2, 0.1])
    found = curves.net_benefit(labels, probability, np.array([0.25, 0.5]))
    # at 0.25: two true and one false positive of five, odds 1/3; at 0.5: one and one, odds 1
    assert found.tolist() == pytest.approx([2 / 5 - 1 / 5 / 3, 0.0])
    everyone = curves.net_benefit(labels, np.ones(5), np.array([0.25]))
    assert everyone[0] == pytest.approx(2 / 5 - 3 / 5 / 3)


def test_decision_curves_of_two_class_tasks_with_both_classes() -> None:
    rows = curves.decision_rows(arrays(), split())
    assert {row["task"] for row in rows} == {"risk1"}
    assert [row["threshold"] for row in rows] == curves.THRESHOLDS.tolist()
    assert {row["act on none"] for row in rows} == {0.0}
    (axis,) = figures.decision(rows, WORDS).axes
    assert axis.get_title() == "Cancer within 1 year"
    better = sum(row["model"] > max(row["act on all"], 0) for row in rows)
    said = tables.benefits(rows, WORDS)
    assert said == f"Cancer within 1 year: the model is better at {better} of 99 thresholds"


def test_a_long_curve_is_drawn_with_few_points_and_its_ends() -> None:
    steps = np.linspace(0, 1, 5000)
    fpr, tpr = curves.thinned(curves.Roc("t", 1, 0.5, steps, steps, 1, 1))
    assert len(fpr) == len(tpr) == curves.MOST_POINTS
    assert (fpr[0], fpr[-1]) == (0, 1)
