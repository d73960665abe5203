"""The synthetic RSNA archive: every fault is there, and its table read back gives the planted labels."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.pixels import pixel_array

from data_tools.archives import rsna
from data_tools.archives.plan import ArchiveOptions, ArchivePlan
from data_tools.phantom import rsna as phantom_rsna
from data_tools.phantom.screening import draw_sides

SEED, PATIENTS = 3, 12
Made = tuple[Path, list[dict[str, Any]], list[dict[str, str]]]


def make(root: Path, seed: int, indices: range, faults: bool = True) -> Made:
    """An archive: its folder, what ``make_patient`` returned, and the rows of its table."""
    made = [phantom_rsna.make_patient(root, seed, index, faults, 0.35) for index in indices]
    rows = [row for one in made for row in one["tables"]["train.csv"]]
    with (root / "train.csv").open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, phantom_rsna.COLUMNS["train.csv"])
        writer.writeheader()
        writer.writerows(rows)
    return root, made, rows


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("rsna"), SEED, range(PATIENTS))


def slot_of(fault: str) -> int:
    return next(at for at, names in enumerate(phantom_rsna.FAULT_SLOTS) if fault in names)


def of(archive: Made, fault: str) -> list[tuple[dict[str, str], Path]]:
    """Rows and files of the patient with a fault."""
    root, made, _ = archive
    rows = made[slot_of(fault)]["tables"]["train.csv"]
    return [(row, root / "train_images" / row["patient_id"] / f"{row['image_id']}.dcm") for row in rows]


def planned(archive: Made, **options: str) -> ArchivePlan:
    return rsna.plan_archive(archive[0], ArchiveOptions(**options))  # type: ignore[arg-type]


def test_every_fault_is_planted(archive: Made) -> None:
    counts: Counter[str] = sum((one["faults"] for one in archive[1]), Counter())
    assert all(counts[name] > 0 for name in phantom_rsna.FAULTS)
    assert set(counts) <= set(phantom_rsna.FAULTS)
    assert len(list(archive[0].rglob("*.dcm"))) == sum(one["files"] for one in archive[1])


@pytest.mark.parametrize("scheme", ["triage", "release", "native_rsna"])
def test_labels_of_the_table_are_those_planted(archive: Made, scheme: str) -> None:
    plan = planned(archive, birads_scheme=scheme)
    truth = {(s["patient"], s["side"].upper()): s["expected"] for one in archive[1] for s in one["samples"]}
    assert {(s.patient, s.side): s.labels for s in plan.samples} == {
        key: expected["labels"][scheme] for key, expected in truth.items()
    }
    classes = Counter(s.labels["birads"] for s in plan.samples)
    assert set(classes) == ({-1, 0, 1} if scheme == "release" else {-1, 0, 1, 2})


def test_modalities_are_those_whose_files_can_be_read(archive: Made) -> None:
    truth = {(s["patient"], s["side"].upper()): s for one in archive[1] for s in one["samples"]}
    unread = Counter[str]()
    for sample in planned(archive).samples:
        found = []
        for name, paths in sample.images.items():
            try:
                files = [pydicom.dcmread(archive[0] / path) for path in paths]
                arrays = [pixel_array(ds, correct_unused_bits=False) for ds in files]
            except FileNotFoundError:
                unread["missing"] += 1
                continue
            except (ValueError, EOFError, AttributeError):
                unread["truncated"] += 1
                continue
            assert all(array.max() > array.min() for array in arrays)
            if any(array.max() >= 2**ds.BitsStored for array, ds in zip(arrays, files, strict=True)):
                unread["beyond"] += 1
                continue
            found.append(name)
        one = truth[sample.patient, sample.side]
        assert one["expected"]["modalities"] == found
        assert one["expected"]["dropped"] is None
        for shares in one["information"].values():
            assert set(shares) == set(found)
            assert not found or abs(sum(shares.values()) - 1.0) < 1e-5
    assert unread == {"missing": 1, "truncated": 1, "beyond": 4}


def test_violations_are_the_two_planted(archive: Made) -> None:
    plan = planned(archive)
    assert plan.violations == {"density_not_constant_within_patient": 1, "birads_not_constant_within_breast": 1}
    assert plan.excluded["images"] == {"other_view": 4}
    assert plan.notes["views_with_several_images"] == 2
    assert plan.notes["implant_images"] == 4


def test_contradiction_holds_where_the_other_breast_is_recalled(tmp_path: Path) -> None:
    """There the left breast would have no BI-RADS at all, and one value cannot contradict none."""
    index = slot_of("contradictory_birads")
    seeds = [
        seed
        for seed in range(60)
        if (sides := draw_sides(seed, index, 0.35)[1])["R"].finding == "spiculated" and sides["L"].finding == "none"
    ]
    assert len(seeds) >= 4
    for seed in seeds[:4]:
        plan = planned(make(tmp_path / str(seed), seed, range(index, index + 1)))
        assert plan.violations == {"birads_not_constant_within_breast": 1}
        assert plan.samples[0].labels["birads"] == -1


def test_site_without_labels(archive: Made) -> None:
    rows = [row for row in archive[2] if row["site_id"] == "2"]
    assert rows
    assert {row["density"] for row in rows} == {""}
    assert {row["BIRADS"] for row in rows} <= {"", "0.0"}
    assert {row["machine_id"] for row in rows}.isdisjoint(
        row["machine_id"] for row in archive[2] if row["site_id"] == "1"
    )


def test_the_worse_take_shows_less_of_the_breast(archive: Made) -> None:
    areas: dict[tuple[str, str], list[tuple[int, int]]] = {}
    for row, path in of(archive, "second_take"):
        area = int((pydicom.dcmread(path).pixel_array > 200).sum())
        areas.setdefault((row["laterality"], row["view"]), []).append((int(row["image_id"]), area))
    (low, worse), (high, better) = sorted(areas["L", "CC"])
    assert low < high
    assert better > 1.1 * worse
    (_, better), (_, worse) = sorted(areas["R", "MLO"])  # and the other way round
    assert better > 1.1 * worse
    assert all(len(areas[key]) == 1 for key in (("L", "MLO"), ("R", "CC")))


def test_headers_and_values_of_the_faulty_images(archive: Made) -> None:
    for _, path in of(archive, "values_beyond_bits_stored"):
        ds = pydicom.dcmread(path)
        assert int(np.frombuffer(ds.PixelData, "<u2").max()) >= 2**ds.BitsStored
    for _, path in of(archive, "low_dynamic_range"):
        pixels = pydicom.dcmread(path).pixel_array
        assert int(pixels.max()) - int(pixels.min()) <= 110
    assert {row["view"] for row, _ in of(archive, "other_views")} == {"CC", "MLO", "AT", "LM", "ML", "LMO"}
    assert {row["implant"] for row, _ in of(archive, "implant")} == {"1"}
    assert {row["site_id"] for row, _ in of(archive, "implant")} == {"1"}
    assert {row["age"] for row, _ in of(archive, "missing_age")} == {""}
    assert [path.exists() for _, path in of(archive, "missing_file")].count(False) == 1


def test_formats(archive: Made) -> None:
    seen: Counter[str] = Counter()
    for path in archive[0].rglob("*.dcm"):
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        assert ds.Modality == "MG"
        seen[ds.file_meta.TransferSyntaxUID] += 1
        seen[ds.PhotometricInterpretation] += 1
        seen[str(ds.get("VOILUTFunction", "no function"))] += 1
        seen["several windows"] += isinstance(ds.WindowCenter, pydicom.multival.MultiValue)
    wanted = (
        "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.70", "1.2.840.10008.1.2.1", "MONOCHROME1", "MONOCHROME2",
        "SIGMOID", "LINEAR_EXACT", "no function", "several windows",
    )  # fmt: skip
    assert {name for name in wanted if seen[name]} == set(wanted)


def test_monochrome1_is_dark_where_there_is_tissue(archive: Made) -> None:
    inverted = 0
    for row in archive[2]:
        path = archive[0] / "train_images" / row["patient_id"] / f"{row['image_id']}.dcm"
        if row["view"] != "CC" or not path.exists():
            continue
        ds = pydicom.dcmread(path, stop_before_pixels=True)
        if ds.PhotometricInterpretation != "MONOCHROME1":
            continue
        pixels = None if int(row["image_id"]) % 100 == 2 else pydicom.dcmread(path).pixel_array  # 2 is truncated
        if pixels is not None:
            wall = pixels[:, :40] if row["laterality"] == "L" else pixels[:, -40:]
            air = pixels[200:, -40:] if row["laterality"] == "L" else pixels[200:, :40]
            assert float(np.median(wall)) < float(np.median(air))
            inverted += 1
    assert inverted


@pytest.mark.parametrize("index", [1, 8])
def test_bytes_depend_on_seed_and_index_only(archive: Made, tmp_path: Path, index: int) -> None:
    again = phantom_rsna.make_patient(tmp_path, SEED, index, True, 0.35)
    assert again == archive[1][index]
    files = sorted(tmp_path.rglob("*.dcm"))
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
