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
from m4oe_ds.errors import CheckpointError, DataError
from m4oe_ds.evaluation.inference import Predictions
from m4oe_ds.models.interface import ModelSpec
from m4oe_ds.predict import results
from m4oe_ds.predict.exams import File, Found
from m4oe_ds.predict.headers import Header
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
MASKS = {(key, "cup"): f"masks/{key}.cup.png" for key in KEYS}


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
    assert rows[0]["cup_mask"] == MASKS[KEYS[0], "cup"]
    assert rows[0]["cup_contribution_ffdm_mlo"] == "0.7500000"


def test_without_routing_there_is_no_contribution() -> None:
    made = results.entries(predictions([[0.5, 0.5], [0.9, 0.1]], routed=False), ROWS, SPEC, MASKS)
    assert set(made[0]["tasks"]["risk1"]) == {"probabilities", "predicted"}


def test_predictions_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(CheckpointError, match="1 predictions that are not numbers"):
        results.entries(predictions([[np.nan, 0.5], [0.9, 0.1]]), ROWS, SPEC, MASKS)


def test_masks_are_plain_images(tmp_path: Path) -> None:
    mask = np.array([[[True, False], [False, False]]])
    results.save_mask(tmp_path / "masks" / "m.png", mask)
    with Image.open(tmp_path / "masks" / "m.png") as image:
        np.testing.assert_array_equal(np.asarray(image), mask[0] * np.uint8(255))
    several = np.array([[[True, False]], [[True, True]], [[False, True]]])  # a bit per class, as shards store them
    results.save_mask(tmp_path / "several.png", several)
    with Image.open(tmp_path / "several.png") as image:
        assert np.asarray(image).tolist() == [[0b011, 0b110]]
    with pytest.raises(DataError, match="the mask has 3 dimensions"):
        results.save_mask(tmp_path / "v.png", several[:, None])


def test_numbers_and_risks_have_columns_of_their_own(tmp_path: Path) -> None:
    age = TaskSpec("age", "number", 1, unit="months")
    failure = TaskSpec("failure", "survival", 2, unit="years", horizons=(1.0, 2.5))
    found = replace(
        predictions([[0.2, 0.8], [0.9, 0.1]], routed=False),
        values={"age": np.array([81.25, -3.5], np.float32)},
        risks={"failure": np.array([[0.25, 0.5], [0.125, 0.75]], np.float32)},
    )
    spec = replace(SPEC, tasks=(age, failure))
    made = results.entries(found, ROWS, spec, {})
    assert made[0]["tasks"] == {
        "age": {"value": 81.25, "unit": "months"},
        "failure": {"risk": {"1": 0.25, "2.5": 0.5}, "unit": "years"},
    }
    results.write_table(tmp_path / "p.csv", made)
    with (tmp_path / "p.csv").open(newline="") as stream:
        row = list(csv.DictReader(stream))[1]
    assert (row["age_value"], row["failure_risk_1"], row["failure_risk_2_5"]) == ("-3.5", "0.1250000", "0.7500000")
    with pytest.raises(CheckpointError, match="1 predictions that are not numbers"):
        results.entries(replace(found, values={"age": np.array([np.inf, 1.0])}), ROWS, spec, {})


def found() -> Found:
    used = Header("p1", "a1", "L", "ffdm_cc")
    spot = Header("p1", "a1", "L", "", reason="spot_or_magnification")
    lost = Header("p2", "a2", "R", "", reason="other_view")
    return Found(
        [
            File("x/1.dcm", used, "used"),
            File("x/2.dcm", spot, "spot_or_magnification"),
            File("y/3.dcm", lost, "other_view"),
            File(os.fsdecode(b"\xff.txt"), Header(reason="not_dicom"), "not_dicom"),
        ]
    )


def test_mapping_names_every_file_and_is_private(tmp_path: Path) -> None:
    files = found()
    exam_key = results.exam_keys(files, "embed", b"secret")
    assert set(exam_key) == {("p1", "a1"), ("p2", "a2")}
    path = tmp_path / "out.mapping.csv"
    results.write_mapping(path, files, exam_key, {f"{exam_key['p1', 'a1']}-l": KEYS[0]})
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
