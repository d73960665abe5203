"""Folders to samples: takes, duplicates, men, decoders that are not there, and files that are none."""

from __future__ import annotations

import os
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.phantom.dicom import write_mammogram
from m4oe_ds.data.cards import find_card
from m4oe_ds.errors import EnvironmentProblem
from m4oe_ds.predict import exams
from m4oe_ds.predict.given import Found
from tests import mammogram_facts

FACTS = replace(mammogram_facts.FACTS, series_description="")
ALL = find_card("embed").modalities
TWO = find_card("rsna").modalities


def put(path: Path, **facts: Any) -> None:
    uid = f"1.2.3.{zlib.crc32(path.as_posix().encode())}"
    write_mammogram(path, np.arange(64, dtype=np.uint16).reshape(8, 8), replace(FACTS, **{"sop_uid": uid, **facts}))


def outcomes(found: Found) -> dict[str, str]:
    return {file.name: file.outcome for file in found.files}


def test_samples_are_breasts_of_exams(tmp_path: Path) -> None:
    put(tmp_path / "a" / "1")
    put(tmp_path / "b" / "2", view="MLO")  # folders mean nothing
    put(tmp_path / "b" / "3", side="R")
    put(tmp_path / "b" / "4", accession="77")
    put(tmp_path / "b" / "5", patient="x")  # the same accession number of another patient
    found = exams.collect(tmp_path, "embed", ALL)
    assert [(s.patient, s.exam, s.side, dict(s.images)) for s in found.plan.samples] == [
        ("90000001", "77", "L", {"ffdm_cc": ("b/4",)}),
        ("90000001", "9100000000000001", "L", {"ffdm_cc": ("a/1",), "ffdm_mlo": ("b/2",)}),
        ("90000001", "9100000000000001", "R", {"ffdm_cc": ("b/3",)}),
        ("x", "9100000000000001", "L", {"ffdm_cc": ("b/5",)}),
    ]
    assert set(outcomes(found).values()) == {""}


def test_the_last_take_counts_for_embed_and_all_for_rsna(tmp_path: Path) -> None:
    put(tmp_path / "10.dcm", time="101400")
    put(tmp_path / "9.dcm", time="102030")
    found = exams.collect(tmp_path, "embed", ALL)
    assert found.plan.samples[0].images == {"ffdm_cc": ("9.dcm",)}
    assert found.plan.samples[0].choose == "first"
    assert outcomes(found)["10.dcm"] == "earlier_take"
    found = exams.collect(tmp_path, "rsna", TWO)
    assert found.plan.samples[0].images == {"ffdm_cc": ("9.dcm", "10.dcm")}  # by number, as the converter sorts them
    assert found.plan.samples[0].choose == "area"


def test_copies_men_and_views_the_run_does_not_use(tmp_path: Path) -> None:
    put(tmp_path / "1", sop_uid="1.2.3.9")
    put(tmp_path / "2", sop_uid="1.2.3.9")
    put(tmp_path / "3", accession="5", sex="M")
    put(tmp_path / "4", bits=10, view="MLO")
    assert outcomes(exams.collect(tmp_path, "embed", ALL)) == {"1": "", "2": "duplicate_image", "3": "male", "4": ""}
    assert outcomes(exams.collect(tmp_path, "rsna", TWO)) == {
        "1": "",
        "2": "duplicate_image",
        "3": "",
        "4": "view_not_used_by_the_run",
    }
    assert outcomes(exams.collect(tmp_path, "embed", ("syn_mlo",)))["1"] == "view_not_used_by_the_run"


def test_lossy_images_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    import pydicom

    put(tmp_path / "1")
    ds = pydicom.dcmread(tmp_path / "1")
    ds.LossyImageCompression = "01"
    ds.save_as(tmp_path / "1")
    assert outcomes(exams.collect(tmp_path, "embed", ALL)) == {"1": "lossy_compression"}
    assert outcomes(exams.collect(tmp_path, "embed", ALL, lossy=True)) == {"1": ""}


def test_a_missing_decoder_is_counted_and_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "1", syntax="RLELossless")
    put(tmp_path / "2", syntax="RLELossless", view="MLO")
    put(tmp_path / "3", side="R")

    def require(syntaxes: list[str]) -> None:
        if "1.2.840.10008.1.2.5" in syntaxes:
            raise EnvironmentProblem("no decoder for RLE images", "DICOM files", "install rle")

    monkeypatch.setattr(exams, "require_decoders", require)
    found = exams.collect(tmp_path, "embed", ALL)
    assert outcomes(found) == {"1": "no_decoder", "2": "no_decoder", "3": ""}
    assert found.notes == ["no decoder for RLE images; install rle"]


def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / os.fsdecode(b"name\xff.txt")).write_text("not UTF-8")
    found = exams.collect(tmp_path, "embed", ALL)
    assert found.reasons() == {"not_a_file": 1, "unreadable_file": 1, "not_dicom": 1}
    assert found.plan.samples == []
