"""Numbers, times to an event and masks in the words of the card."""

from __future__ import annotations

import numpy as np
import pytest

from m4oe_ds.data.cards import parse_card
from m4oe_ds.evaluation.metrics import evaluate_split
from m4oe_ds.report import figures
from m4oe_ds.report.kind_tables import answer, scatter_rows, tables_of
from m4oe_ds.yaml_tree import parse_tree
from tests.integration import six_kinds

CARD = parse_card(parse_tree(six_kinds.CARD, "lamps.yaml"), "lamps.yaml")
TASKS = tuple(CARD.task(name) for name in ("age", "failure", "parts"))
NAN = float("nan")
ARRAYS = {
    "keys": np.array(list("abcd")),
    "groups": np.array(list("abcd")),
    "label_age": np.array([60.0, 70.0, NAN, 90.0], np.float32),
    "value_age": np.array([63.0, 68.0, 50.0, 95.0], np.float32),
    "label_failure": np.array([[0.5, 1], [2.0, 0], [NAN, NAN], [6.0, 1]], np.float32),
    "risk_failure": np.array([[0.5, 0.7, 0.9], [0.1, 0.2, 0.3], [0.1, 0.2, 0.3], [0.0, 0.1, 0.2]], np.float32),
    "dice_parts": np.array([[0.5, 1.0], [NAN, NAN], [0.7, 0.2], [0.9, 0.6]], np.float32),
    "area_parts": np.array([[0.2, 0.1], [NAN, NAN], [0.2, 0.1], [0.2, 0.1]], np.float32),
}


@pytest.mark.parametrize(
    ("task", "row", "said", "truth"),
    [
        ("age", 0, "63 months", "60 months"),
        ("age", 2, "50 months", "unknown"),
        ("failure", 0, "50 % within 1, 70 % within 2.5, 90 % within 5 years", "failure at 0.5 years"),
        ("failure", 1, "10 % within 1, 20 % within 2.5, 30 % within 5 years", "no failure for 2 years"),
        ("failure", 2, "10 % within 1, 20 % within 2.5, 30 % within 5 years", "unknown"),
        ("parts", 0, "Dice bulb 0.50, socket 1.00", "–"),
        ("parts", 1, "mask", "–"),
    ],
)
def test_answers_of_a_sample(task: str, row: int, said: str, truth: str) -> None:
    assert answer(ARRAYS, task, row, CARD.task(task)) == {"said": said, "truth": truth, "right": None}


def test_a_task_with_classes_is_told_elsewhere_and_words_may_be_missing() -> None:
    assert answer({"prob_lit": np.zeros((4, 2))}, "lit", 0, CARD.task("lit")) is None
    found = answer(ARRAYS, "age", 0, None)
    assert found is not None
    assert found["said"] == "63"


def test_one_table_per_kind_with_labels_units_and_baselines() -> None:
    split = evaluate_split(ARRAYS, TASKS, resamples=10)
    numbers, survival, masks = tables_of(split, CARD)
    assert numbers["rows"][0][:2] == ["Age of the lamp", 3]
    assert "months" in numbers["rows"][0][2]
    assert "median of this split, 70 months" in numbers["rows"][0][3]
    assert [row[0] for row in survival["rows"]] == [f"Failure of the lamp, within {h} years" for h in ("1", "2.5", "5")]
    assert "2 of 3 with the event (failure)" in survival["note"]
    assert [row[2] for row in masks["rows"]] == ["mean", "bulb", "socket"]
    assert masks["rows"][1][4] == f"{2 * 0.2 / 1.2:.3f}"
    assert all(len(row) == len(table["header"]) for table in (numbers, survival, masks) for row in table["rows"])


def test_tables_of_a_split_without_labels() -> None:
    arrays = {name: np.full_like(v, np.nan) if v.dtype.kind == "f" else v for name, v in ARRAYS.items()}
    found = tables_of(evaluate_split(arrays, TASKS, resamples=10), None)
    assert [table["rows"][0][0] for table in found] == ["Age", "Failure", "Parts"]
    assert all("no labels" in row for table in found for row in table["rows"])


def test_the_scatter_shows_every_known_number() -> None:
    split = evaluate_split(ARRAYS, TASKS, resamples=0)
    rows = scatter_rows(ARRAYS, split)
    assert [(row["true"], row["predicted"]) for row in rows] == [(60.0, 63.0), (70.0, 68.0), (90.0, 95.0)]
    (axis,) = figures.numbers(rows, split).axes
    assert axis.get_xlabel() == "true (months)"
    assert axis.collections[0].get_offsets().tolist() == [[60.0, 63.0], [70.0, 68.0], [90.0, 95.0]]
