"""Sections of samples, model card, contrast and the numbers behind the figures."""

from __future__ import annotations

import numpy as np
import pytest

from m4oe_ds.data.cards import find_card
from m4oe_ds.report import tables
from m4oe_ds.report.card import card
from m4oe_ds.report.figures import COLOURS
from m4oe_ds.report.patients import ink, patients


def contrast(first: str, second: str) -> float:
    """WCAG contrast ratio of two ``#rrggbb``."""

    def luminance(colour: str) -> float:
        levels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        return sum(
            weight * (level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4)
            for weight, level in zip((0.2126, 0.7152, 0.0722), levels, strict=True)
        )

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("colour", COLOURS)
def test_numbers_on_bars_can_be_read(colour: str) -> None:
    assert contrast(colour, ink(colour)) >= 4.5


def arrays() -> dict[str, np.ndarray]:
    return {
        "keys": np.array(["a", "b", "c"]),
        "tasks": np.array(["density", "cup"]),
        "modalities": np.array(["x", "y"]),
        "prob_density": np.array([[0.1, 0.7, 0.1, 0.1], [0.4, 0.3, 0.2, 0.1], [0.25] * 4]),
        "label_density": np.array([1, 3, -1]),
        "dice_cup": np.array([0.5, np.nan, 0.9]),
    }


def test_a_sample_says_what_was_answered_and_whether_it_is_right() -> None:
    examples = {
        "keys": np.array(["b", "a", "c", "gone"]),
        "present": np.array([[True, False]] * 4),
        "views": np.zeros((4, 2, 8, 8), dtype=np.uint8),
        "contribution": np.full((4, 2, 2), 0.5),
    }
    examples["contribution"][0, 1] = np.nan  # a task without slots
    patients_found = patients(examples, arrays(), {}, {}, find_card("embed"))
    found = [patient["samples"][0] for patient in patients_found]
    assert [one["key"] for one in found] == ["b", "a", "c", "gone"]
    answers = [one["answers"][0] for one in found]
    assert [(a["task"], a["said"], a["truth"], a["right"]) for a in answers] == [
        ("Breast density", "A (0.40)", "D", False),
        ("Breast density", "B (0.70)", "B", True),
        ("Breast density", "A (0.25)", "unknown", None),
        ("Breast density", "–", "–", None),
    ]
    assert found[1]["answers"][1]["said"] == "Dice 0.50"
    assert found[0]["answers"][1] == {"task": "Cup", "shares": [], "said": "mask", "truth": "–", "right": None}
    assert [share["percent"] for share in answers[0]["shares"]] == [50.0, 50.0]
    assert [bool(view["image"]) for view in found[0]["views"]] == [True, False]
    assert patients({}, arrays(), {}, {}, find_card("embed")) == []


def test_the_card_says_what_the_folder_knows_and_nothing_else() -> None:
    environment = {
        "dataset": "embed",
        "synthetic": True,
        "seed": 7,
        "world": 2,
        "ep_size": 2,
        "device": "cpu",
        "num_parameters": 1000,
        "num_expert_parameters": 600,
        "batch": {"train": 32},
        "git": {"commit": "0123456789abcdef", "modified": True},
    }
    task = {"n": 9, "prior": 0.6, "metrics": {"accuracy": {"value": 0.6}}}
    none = {"n": 9, "prior": 0.6, "metrics": {"accuracy": {"value": 0.0}}}  # never right is not always right
    metrics = {
        "test": {"n": 9, "n_groups": 4, "tasks": {"density": task, "risk1": task | {"prior": 0.5}, "birads": none}},
        "checkpoint": {"tag": "x"},
    }
    tree = {
        "model": {"name": "m4oe", "mtoe": {"num_experts": 16}},
        "loss": {"alpha": 0.05},
        "schedule": {"peak_factor": 10.0},
        "data": {"tasks": ["density"], "modalities": ["ffdm_cc"]},
    }
    engine = {
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 2},
    }
    records = [{"step": 12, "epoch": 3, "lr": 9.8e-4}, {"event": "validation", "step": 12}]
    found = dict(card(environment, metrics, records, tree, engine, {}, find_card("embed")))
    assert "1,000 parameters, 600 of them in experts; 16 experts" in found["Model"]
    assert "alpha = 0.05" in found["Model"]
    for phrase in (
        "synthetic phantoms",
        "test 9 samples of 4 patients",
        "Modalities: digital mammogram, CC (ffdm_cc).",
        "breast density (density): A, B, C, D.",
    ):
        assert phrase in found["Data"], phrase
    assert "risk1" not in found["Data"]
    for phrase in (
        "12 optimizer steps in 4 epochs",
        "seed 7",
        "AdamW, base learning rate 0.0001 times 10 at its peak, so 0.001 (highest logged: 0.00098);",
        "bf16, ZeRO-2",
        "experts shared by 2",
        "code 0123456789 with uncommitted changes",
    ):
        assert phrase in found["Training"], phrase
    assert "by accuracy: Breast density, BI-RADS." in found["Limits"]  # risk1 beats its majority
    assert "was not measured" in found["Explanations"]
    empty = dict(card({}, {}, [], {}, {}, {}, None))
    assert set(empty) == set(found)
    assert empty["Data"].startswith("unknown")


def test_the_brightest_token_is_put_into_words() -> None:
    maps = np.zeros((1, 2, 6, 3), dtype=np.float32)
    maps[0, 0, 0, 2], maps[0, 1, 5, 0] = 0.3, 0.2
    gallery = {
        "tasks": np.array(["t", "u"]),
        "modalities": np.array(["x", "y"]),
        "present": np.array([[True, False]]),
        "map_0": maps,
        "map_1": np.ones_like(maps),
    }
    assert tables.brightest(gallery, 0) == "T X top right, U X bottom left"
    rows = tables.dispatch_map(gallery, 0)
    assert len(rows) == 2 * 6 * 3
    assert max(rows, key=lambda row: row["weight"]) == {
        "task": "t",
        "modality": "x",
        "row": 0,
        "column": 2,
        "weight": pytest.approx(0.3),
    }
