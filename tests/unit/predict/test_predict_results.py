"""Files of a prediction: columns, rounding, masks, and a mapping that only its owner can read."""

from __future__ import annotations

import csv
import os
import stat
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from m4oe_ds.data.cards import find_card
from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.errors import CheckpointError
from m4oe_ds.evaluation.inference import Predictions
from m4oe_ds.models.interface import ModelSpec
from m4oe_ds.predict import results
from m4oe_ds.predict.given import File, Found, Row
from m4oe_ds.predict.samples import KnownSample

KEYS = ("embed-00000000000000aa-l", "embed-00000000000000bb-r")
SPEC = ModelSpec(
    find_card("rsna").inputs,
    (find_card("embed").task("risk1"), TaskSpec("cup", "mask", 1, ("cup",))),
    (4, 4),
)
ROWS = {
    KEYS[0]: KnownSample(KEYS[0], "g1", "e1", "l", ("ffdm_cc", "ffdm_mlo")),
    KEYS[1]: KnownSample(KEYS[1], "g2", "e2", "r", ("ffdm_mlo",)),
}
MASKS = {(key, "cup"): {"": f"masks/{key}.cup.png"} for key in KEYS}


def predictions(probabilities: list[list[float]], routed: bool = True) -> Predictions:
    return Predictions(
        keys=np.array(KEYS),
        groups=np.array(["g1", "g2"]),
        labels={},
        dice={},
        losses={},
        probabilities={"risk1": np.array(probabilities, np.float32)},
        contribution=np.array([[[0.25, 0.75]] * 2, [[0.0, 1.0]] * 2], np.float32) if routed else None,
        token_share=np.array([0.5, 0.5]),
    )


def test_table_and_entries(tmp_path: Path) -> None:
    made = results.entries(predictions([[0.2012030455, 0.7987969545], [0.9, 0.1]]), ROWS, SPEC, MASKS)
    assert made[0]["tasks"]["risk1"]["predicted"] == "within 1 y"
    assert made[0]["tasks"]["risk1"]["contribution"] == {"ffdm_cc": 0.25, "ffdm_mlo": 0.75}
    assert made[1]["missing"] == ["ffdm_cc"]
    results.write_table(tmp_path / "p.csv", made)
    with (tmp_path / "p.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["missing_views"] for row in rows] == ["0", "1"]
    assert rows[1]["modalities"] == "ffdm_mlo"
    assert rows[0]["risk1_probability_no_cancer"] == "0.2012030"  # eight decimals would read as a date
    assert rows[1]["risk1_predicted"] == "no cancer"
    assert rows[0]["cup_mask"] == MASKS[KEYS[0], "cup"][""]
    assert rows[0]["cup_contribution_ffdm_mlo"] == "0.7500000"


def test_without_routing_there_is_no_contribution() -> None:
    made = results.entries(predictions([[0.5, 0.5], [0.9, 0.1]], routed=False), ROWS, SPEC, MASKS)
    assert set(made[0]["tasks"]["risk1"]) == {"probabilities", "predicted"}


def test_predictions_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(CheckpointError, match="1 predictions that are not numbers"):
        results.entries(predictions([[np.nan, 0.5], [0.9, 0.1]]), ROWS, SPEC, MASKS)


def test_masks_are_plain_images(tmp_path: Path) -> None:
    mask = np.array([[[True, False], [False, False]]])
    assert results.save_masks(tmp_path, "k", TaskSpec("cup", "mask", 1, ("cup",)), mask) == {"": "masks/k.cup.png"}
    with Image.open(tmp_path / "masks" / "k.cup.png") as image:
        np.testing.assert_array_equal(np.asarray(image), mask[0] * np.uint8(255))
    parts = np.stack([mask[0], ~mask[0]])
    files = results.save_masks(tmp_path, "k", TaskSpec("eye", "mask", 2, ("cup", "the disc")), parts)
    assert files == {"cup": "masks/k.eye.cup.png", "the disc": "masks/k.eye.the_disc.png"}
    with Image.open(tmp_path / files["the disc"]) as image:
        np.testing.assert_array_equal(np.asarray(image), parts[1] * np.uint8(255))
    files = results.save_masks(tmp_path, "k", TaskSpec("brain", "mask", 2, ("a", "b")), parts[:, None])
    assert files == {"": "masks/k.brain.npy"}
    bits = np.load(tmp_path / files[""], allow_pickle=False)
    assert bits.dtype == np.uint8
    np.testing.assert_array_equal(bits, [[[1, 2], [2, 2]]])


def test_numbers_risks_and_masks_of_several_classes_have_their_columns(tmp_path: Path) -> None:
    tasks = (
        TaskSpec("age", "number", 1, unit="years"),
        TaskSpec("death", "survival", 2, horizons=(1.0, 2.5), unit="years"),
        TaskSpec("eye", "mask", 2, ("cup", "disc")),
    )
    rows = {
        KEYS[0]: KnownSample(KEYS[0], "g1", "e1", "", ("ffdm_cc",), 2),
        KEYS[1]: KnownSample(KEYS[1], "g2", "e2", "", ("ffdm_cc",), 5),
    }
    given = replace(
        predictions([[0.5, 0.5], [0.9, 0.1]]),
        probabilities={},
        contribution=None,
        values={"age": np.array([61.25, 1234567.9], np.float32)},
        risks={"death": np.array([[0.125, 0.5], [0.0, 1.0]], np.float32)},
    )
    masks = {(key, "eye"): {"cup": f"{key}.cup.png", "disc": f"{key}.disc.png"} for key in KEYS}
    made = results.entries(given, rows, ModelSpec(find_card("rsna").inputs, tasks, (4, 4)), masks)
    assert made[0]["tasks"]["age"] == {"value": 61.25, "unit": "years"}
    assert made[0]["tasks"]["death"] == {"risk": {"1": 0.125, "2.5": 0.5}, "unit": "years"}
    assert "side" not in made[0]
    results.write_table(tmp_path / "p.csv", made)
    with (tmp_path / "p.csv").open(newline="") as stream:
        lines = list(csv.DictReader(stream))
    assert [line["row"] for line in lines] == ["2", "5"]
    assert [line["age_value"] for line in lines] == ["61.25", "1234568"]
    assert lines[0]["death_risk_2_5"] == "0.5000000"
    assert lines[1]["eye_mask_disc"] == f"{KEYS[1]}.disc.png"
    bad = replace(given, values={"age": np.array([np.inf, 1], np.float32)})
    with pytest.raises(CheckpointError, match="1 predictions that are not numbers"):
        results.entries(bad, rows, ModelSpec(find_card("rsna").inputs, tasks, (4, 4)), masks)


def found() -> Found:
    def file(name: str, outcome: str, *source: str, modality: str = "") -> File:
        patient, exam, side = source or ("", "", "")
        return File(name, modality, patient=patient, exam=exam, sample=exam, side=side, outcome=outcome)

    return Found(
        "mammogram",
        "look",
        [
            file("x/1.dcm", "used", "p1", "a1", "l", modality="ffdm_cc"),
            file("x/2.dcm", "spot_or_magnification", "p1", "a1", "l"),
            file("y/3.dcm", "other_view", "p2", "a2", "r"),
            file(os.fsdecode(b"\xff.txt"), "not_dicom"),
        ],
    )


def test_mapping_of_a_table_has_its_rows(tmp_path: Path) -> None:
    good, twice = Row(patient="p", exam="s", sample="s", row=2, outcome="used"), Row(row=3, outcome="empty_row")
    given = Found("row", "look", rows=[good, twice], row_of={good.source: good})
    path = tmp_path / "out.mapping.csv"
    results.write_mapping(path, given, {("p", "s"): "e" * 16}, {good.source: KEYS[0]})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["key"] for row in rows] == [KEYS[0], ""]
    assert [(row["row"], row["outcome"]) for row in rows] == [("2", "used"), ("3", "empty_row")]


def test_mapping_names_every_file_and_is_private(tmp_path: Path) -> None:
    files = found()
    exam_key = results.exam_keys(files, "embed", b"secret")
    assert set(exam_key) == {("p1", "a1"), ("p2", "a2")}
    path = tmp_path / "out.mapping.csv"
    results.write_mapping(path, files, exam_key, {("p1", "a1", "l"): KEYS[0]})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["key"] for row in rows] == [KEYS[0], "", "", ""]
    assert [row["outcome"] for row in rows] == ["used", "spot_or_magnification", "other_view", "not_dicom"]
    assert rows[2]["exam"] == "a2"
    assert rows[3]["file"] == "\\xff.txt"


def test_exams_without_a_prediction_are_listed_with_their_reasons() -> None:
    files = found()
    exam_key = results.exam_keys(files, "embed", b"secret")
    first, second = exam_key["p1", "a1"], exam_key["p2", "a2"]
    assert results.exams_without_prediction(files, exam_key, {first}) == [{"exam": second, "files": {"other_view": 1}}]
    assert [one["exam"] for one in results.exams_without_prediction(files, exam_key, set())] == sorted([first, second])
