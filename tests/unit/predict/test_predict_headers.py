"""What a DICOM header says: whose breast, which view, and every reason for which a file is left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from data_tools.phantom.dicom import write_mammogram
from m4oe_ds.predict import headers
from tests.mammogram_facts import FACTS

Change = Callable[[Any], None]


def header(tmp_path: Path, change: Change | None = None, **facts: Any) -> headers.Header:
    path = tmp_path / "image.dcm"
    pixels = np.random.default_rng(0).integers(0, 4096, (64, 48), dtype=np.uint16)
    write_mammogram(path, pixels, replace(FACTS, **facts))
    if change is not None:
        ds = pydicom.dcmread(path)
        change(ds)
        ds.save_as(path)
    return headers.read(path, "a/image.dcm")


def put(**values: Any) -> Change:
    def change(ds: Any) -> None:
        for name, value in values.items():
            setattr(ds, name, value)

    return change


def without(*names: str) -> Change:
    def change(ds: Any) -> None:
        for name in names:
            delattr(ds, name)

    return change


def code(value: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", "made up"
    return item


def view_code(value: str) -> Change:
    def change(ds: Any) -> None:
        ds.ViewCodeSequence = [code(value)]
        ds.ViewPosition = ""
        ds.SeriesDescription = ""

    return change


def modifier(value: str, *, beside: bool = False) -> Change:
    def change(ds: Any) -> None:
        (ds if beside else ds.ViewCodeSequence[0]).ViewModifierCodeSequence = [code(value)]

    return change


def test_a_plain_view(tmp_path: Path) -> None:
    found = header(tmp_path)
    assert (found.patient, found.exam, found.side) == ("90000001", "9100000000000001", "L")
    assert (found.modality, found.reason, found.lossy, found.male) == ("ffdm_cc", "", False, False)
    assert found.row is not None
    assert (found.row["AcquisitionTime"], found.row["anon_dicom_path"]) == ("101500", "a/image.dcm")


@pytest.mark.parametrize(
    ("change", "modality"),
    [
        (put(ViewPosition="MLO"), "ffdm_mlo"),
        (put(ImageType=["DERIVED", "PRIMARY", "TOMO", "GENERATED_2D"]), "syn_cc"),
        (put(SeriesDescription="L CC C-View"), "syn_cc"),
        (put(SeriesDescription="L CC S-VIEW"), "syn_cc"),
        (view_code("399368009"), "ffdm_mlo"),
        (view_code("R-10226"), "ffdm_mlo"),
        (put(ViewPosition="", ViewCodeSequence=[], SeriesDescription="L MLO"), "ffdm_mlo"),  # as EMBED's tables need
        (modifier("399209000"), "ffdm_cc"),  # implant displaced: an ordinary view
        (put(EstimatedRadiographicMagnificationFactor="1.07"), "ffdm_cc"),
        (put(SeriesDescription="L CC IMAGE"), "ffdm_cc"),  # MAG within a word is not a magnification
        (put(PatientSex="M"), "ffdm_cc"),
    ],
)
def test_modality(tmp_path: Path, change: Change, modality: str) -> None:
    found = header(tmp_path, change)
    assert (found.modality, found.reason) == (modality, "")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (put(Modality="CT"), "not_a_mammogram"),
        (without("Modality", "SOPClassUID"), "not_a_mammogram"),
        (put(PresentationIntentType="FOR PROCESSING"), "for_processing"),
        (put(SOPClassUID=headers.FOR_PROCESSING), "for_processing"),
        (put(NumberOfFrames=3), "multi_frame"),
        (put(SamplesPerPixel=3), "colour"),
        (put(SOPClassUID="1.2.840.10008.5.1.4.1.1.7"), "other_image_type"),
        (put(SOPClassUID="1.2.840.10008.5.1.4.1.1.13.1.3"), "other_image_type"),
        (put(ImageType=["DERIVED", "PRIMARY", "TOMO", ""]), "other_image_type"),
        (put(ImageLaterality="B"), "unknown_laterality"),
        (put(ImageLaterality=""), "unknown_laterality"),
        (put(ViewPosition="ML"), "other_view"),
        (put(SeriesDescription="LXCCL"), "other_view"),  # entered as CC
        (view_code("399192008"), "other_view"),
        (modifier("399161006"), "other_view"),
        (put(ViewPosition="", ViewCodeSequence=[], SeriesDescription="views"), "unknown_view"),
        (modifier("399055006"), "spot_or_magnification"),
        (modifier("R-102D6", beside=True), "spot_or_magnification"),
        (put(EstimatedRadiographicMagnificationFactor="1.8"), "spot_or_magnification"),
        (put(SeriesDescription="L CC SPOT"), "spot_or_magnification"),
        (put(PaddleDescription="10CM MAG"), "spot_or_magnification"),
        (without("StudyInstanceUID", "AccessionNumber"), "no_exam_identifier"),
    ],
)
def test_reasons(tmp_path: Path, change: Change, reason: str) -> None:
    found = header(tmp_path, change)
    assert (found.reason, found.modality) == (reason, "")


def test_identifiers_that_are_missing_are_replaced_by_the_study(tmp_path: Path) -> None:
    found = header(tmp_path, put(PatientID="", AccessionNumber=""))
    assert (found.patient, found.exam, found.reason) == ("1.2.3.4.5.6", "1.2.3.4.5.6", "")


def test_identifiers_cannot_be_taken_for_one_another(tmp_path: Path) -> None:
    """The parts of a keyed hash are joined by a bar."""
    assert "|" not in header(tmp_path, put(PatientID="1|2")).patient


def test_the_series_laterality_helps_out(tmp_path: Path) -> None:
    def change(ds: Any) -> None:
        ds.ImageLaterality, ds.Laterality = None, "R"

    assert header(tmp_path, change).side == "R"


def test_loss_is_seen(tmp_path: Path) -> None:
    assert header(tmp_path, put(LossyImageCompression="01")).lossy
    assert not header(tmp_path, put(LossyImageCompression="00")).lossy


def test_what_is_no_dicom(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("no image")
    assert headers.read(path, "x").reason == "not_dicom"
    path.write_bytes(b"")
    assert headers.read(path, "x").reason == "not_dicom"
    assert headers.read(tmp_path / "absent", "absent").reason == "missing_file"


def test_damaged_values_do_not_end_the_search(tmp_path: Path) -> None:
    """Every byte of the header is changed in turn; whatever comes out is a header or a fixed word."""
    path = tmp_path / "image.dcm"
    write_mammogram(path, np.full((8, 8), 7, np.uint16), FACTS)
    good = path.read_bytes()
    random = np.random.default_rng(3)
    seen = set()
    for place in random.integers(132, len(good) - 128, 300):
        changed = bytearray(good)
        changed[place] = random.integers(256)
        path.write_bytes(changed)
        found = headers.read(path, "x")
        seen.add(found.reason or "usable")
        assert "90000001" not in found.reason
    assert "usable" in seen
    assert len(seen) > 3
