"""The synthetic VinDr-Mammo archive: every fault is there, and its tables read back give the planted labels."""

from __future__ import annotations

import ast
import csv
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from data_tools.archives import vindr
from data_tools.archives.plan import ArchiveOptions, ArchivePlan
from data_tools.phantom import vindr as phantom_vindr

SEED, STUDIES = 4, 12
Made = tuple[Path, list[dict[str, Any]], dict[str, list[dict[str, str]]]]
BREASTS = "breast-level_annotations.csv"


def make(root: Path, seed: int, indices: range, faults: bool = True) -> Made:
    """An archive: its folder, what ``make_patient`` returned, and the rows of its tables."""
    made = [phantom_vindr.make_patient(root, seed, index, faults, 0.6) for index in indices]
    tables = {name: [row for one in made for row in one["tables"][name]] for name in phantom_vindr.COLUMNS}
    for name, rows in tables.items():
        with (root / name).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, phantom_vindr.COLUMNS[name])
            writer.writeheader()
            writer.writerows(rows)
    return root, made, tables


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("vindr"), SEED, range(STUDIES))


def truth_of(archive: Made) -> dict[tuple[str, str], dict[str, Any]]:
    return {(s["patient"], s["side"].upper()): s for one in archive[1] for s in one["samples"]}


def planned(archive: Made, **options: str) -> ArchivePlan:
    return vindr.plan_archive(archive[0], ArchiveOptions(**options))  # type: ignore[arg-type]


def headers(archive: Made, variety: str) -> list[Any]:
    """Data sets of the study that has this variety."""
    slot = next(at for at, name in phantom_vindr.VARIETY_SLOTS.items() if name == variety)
    study = archive[1][slot]["samples"][0]["patient"]
    return [pydicom.dcmread(path) for path in sorted((archive[0] / "images" / study).iterdir())]


def test_every_fault_is_planted(archive: Made) -> None:
    counts: Counter[str] = sum((one["faults"] for one in archive[1]), Counter())
    assert counts == dict.fromkeys(phantom_vindr.FAULTS, 1)
    assert len(list(archive[0].rglob("*.dicom"))) == sum(one["files"] for one in archive[1])


@pytest.mark.parametrize("scheme", ["triage", "release"])
def test_labels_of_the_tables_are_those_planted(archive: Made, scheme: str) -> None:
    plan, truth = planned(archive, birads_scheme=scheme), truth_of(archive)
    kept = {key: one["expected"] for key, one in truth.items() if one["expected"]["dropped"] is None}
    assert len(kept) == 2 * STUDIES - 2
    assert {(s.patient, s.side): s.labels for s in plan.samples} == {
        key: expected["labels"][scheme] for key, expected in kept.items()
    }
    assert {(s.patient, s.side): s.split for s in plan.samples} == {
        key: expected["split"] or "train" for key, expected in kept.items()
    }
    assert {s.split for s in plan.samples} == {"train", "test"}


def test_modalities_are_those_whose_files_can_be_read(archive: Made) -> None:
    truth, unread = truth_of(archive), Counter[str]()
    for sample in planned(archive).samples:
        found = []
        for name, paths in sample.images.items():
            try:
                arrays = [pydicom.dcmread(archive[0] / path).pixel_array for path in paths]
            except FileNotFoundError:
                unread["missing"] += 1
                continue
            except (ValueError, EOFError, AttributeError):
                unread["truncated"] += 1
                continue
            assert all(array.max() > array.min() for array in arrays)
            found.append(name)
        one = truth[sample.patient, sample.side]
        assert one["expected"]["modalities"] == found
        for shares in one["information"].values():
            assert set(shares) == set(found)
            assert abs(sum(shares.values()) - 1.0) < 1e-5
    assert unread == {"missing": 1, "truncated": 1}


def test_violations_are_those_planted(archive: Made) -> None:
    plan = planned(archive)
    assert plan.violations == {
        "study_without_four_images": 1,
        "birads_not_constant_within_breast": 1,
        "study_in_both_splits": 1,
    }
    assert plan.excluded["exams"] == {"in_both_splits": 1}
    assert plan.notes["breasts_without_mlo"] == 2  # the known study, and the one with three images
    assert plan.notes["finding_boxes_beyond_the_image"] == 4


def test_the_known_study_without_a_left_mlo(archive: Made) -> None:
    rows = archive[1][0]["tables"][BREASTS]
    assert [(row["laterality"], row["view_position"]) for row in rows] == [
        ("L", "CC"),
        ("L", "CC"),
        ("R", "CC"),
        ("R", "MLO"),
    ]
    left = planned(archive, require="any").samples
    sample = next(s for s in left if s.patient == rows[0]["study_id"] and s.side == "L")
    assert list(sample.images) == ["ffdm_cc"]
    assert len(sample.images["ffdm_cc"]) == 2


def test_tables_look_like_the_real_ones(archive: Made) -> None:
    tables = archive[2]
    for row in tables[BREASTS]:
        for name in ("study_id", "series_id", "image_id"):
            assert re.fullmatch("[0-9a-f]{32}", row[name])
        assert re.fullmatch("BI-RADS [1-5]", row["breast_birads"])
        assert re.fullmatch("DENSITY [A-D]", row["breast_density"])
        assert row["split"] in ("training", "test")
    for row in tables["finding_annotations.csv"]:
        assert isinstance(ast.literal_eval(row["finding_categories"]), list)
        assert row["finding_birads"] in ("", "BI-RADS 3", "BI-RADS 4", "BI-RADS 5")
    assert any(row["xmin"].startswith("-") for row in tables["finding_annotations.csv"])
    assert "SOP Instance UID.1" in phantom_vindr.COLUMNS["metadata.csv"]
    assert len(phantom_vindr.COLUMNS["metadata.csv"]) == 21
    assert [row["SOP Instance UID"] for row in tables["metadata.csv"]] == [row["image_id"] for row in tables[BREASTS]]


def test_manufacturers_come_from_the_metadata(archive: Made) -> None:
    vendors = {sample.manufacturer for sample in planned(archive).samples}
    assert vendors == {"SIEMENS", "Planmed", "IMS s.r.l."}


def test_planmed_is_stored_inverted_with_14_bits(archive: Made) -> None:
    for ds in headers(archive, "planmed"):
        assert (ds.PhotometricInterpretation, ds.BitsStored, ds.ManufacturerModelName) == (
            "MONOCHROME1",
            14,
            "Planmed Nuance",
        )
        pixels = ds.pixel_array
        wall = pixels[:, :40] if ds.ImageLaterality == "L" else pixels[:, -40:]
        air = pixels[250:, -40:] if ds.ImageLaterality == "L" else pixels[250:, :40]
        assert 4095 < float(np.median(wall)) < float(np.median(air))


def test_formats(archive: Made) -> None:
    assert all(len(ds.VOILUTSequence) == 1 for ds in headers(archive, "voi_lut"))
    assert {ds.VOILUTFunction for ds in headers(archive, "SIGMOID")} == {"SIGMOID"}
    assert {ds.ManufacturerModelName for ds in headers(archive, "giotto")} == {"GIOTTO IMAGE 3DL"}
    for ds in headers(archive, "bright_frame"):
        pixels = ds.pixel_array
        assert all(edge.min() == 4095 for edge in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]))
        assert pixels[2:-2, 2:-2].mean() < 3000
    for ds in headers(archive, "padding"):
        padded = ds.pixel_array == ds.PixelPaddingValue
        assert padded[:10].all()
        assert padded[-10:].all()
        assert not padded[10:-10].any()
    assert {ds.file_meta.TransferSyntaxUID for ds in headers(archive, "JPEG2000Lossless")} == {"1.2.840.10008.1.2.4.90"}


@pytest.mark.parametrize("index", [4, 9])
def test_bytes_depend_on_seed_and_index_only(archive: Made, tmp_path: Path, index: int) -> None:
    again = phantom_vindr.make_patient(tmp_path, SEED, index, True, 0.6)
    assert again == archive[1][index]
    files = sorted(tmp_path.rglob("*.dicom"))
    assert len(files) == again["files"]
    for path in files:
        assert path.read_bytes() == (archive[0] / path.relative_to(tmp_path)).read_bytes()


def test_no_faults_when_none_are_asked_for(tmp_path: Path) -> None:
    made = make(tmp_path, SEED, range(6, 8), faults=False)
    assert not sum((one["faults"] for one in made[1]), Counter())
    plan = planned(made)
    assert not plan.violations
    assert not any(plan.excluded.values())
    assert [len(sample.images) for sample in plan.samples] == [2] * 4
