"""CBIS-DDSM's tables and downloads: labels of breasts, splits of patients, series found whatever folders are called."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest

from data_tools.archives import cbis
from data_tools.archives.downloads import walk
from data_tools.archives.plan import ArchiveOptions, ArchivePlan
from data_tools.phantom import archive as phantom
from data_tools.phantom.cbis import COLUMNS, FAULTS
from m4oe_ds.errors import DataError

PATIENTS = 17
OLDER = {
    "left or right breast": "side", "image view": "view", "abnormality id": "abn_num",
    "abnormality type": "abnormality_type", "mass shape": "mass_shape", "mass margins": "mass_margins",
    "image file path": "od_img_path", "cropped image file path": "od_crop_path", "ROI mask file path": "mask_path",
}  # fmt: skip


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cbis") / "archive"
    phantom.generate("cbis", out, PATIENTS, 3, workers=1)
    return out


@pytest.fixture
def copy(archive: Path, tmp_path: Path) -> Path:
    """The archive with files of its own to change: films are hard links."""
    return Path(shutil.copytree(archive, tmp_path / "copy", copy_function=_link))


def _link(source: str, target: str) -> None:
    if source.endswith(".dcm"):
        Path(target).hardlink_to(source)
    else:
        shutil.copy(source, target)


def plan_of(root: Path, **options: Any) -> ArchivePlan:
    return cbis.plan_archive(root, ArchiveOptions(**options))


def truth(root: Path) -> dict[tuple[str, str], dict[str, Any]]:
    samples = json.loads((root / "truth.json").read_text())["samples"]
    return {(sample["patient"], sample["side"].upper()): sample["expected"] for sample in samples}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def change(root: Path, table: str, edit: Callable[[list[dict[str, str]]], None]) -> None:
    path = root / table
    rows = rows_of(path)
    columns = list(rows[0])
    edit(rows)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)


def same_plans(one: ArchivePlan, other: ArchivePlan, root: Path, there: Path) -> None:
    """Equal but for the paths, which lead to the same series."""

    def described(plan: ArchivePlan, base: Path) -> Iterator[Any]:
        for sample in plan.samples:
            files = [path for paths in sample.images.values() for path in paths]
            outlines = [(one.of, one.code, one.own) for several in sample.outlines.values() for one in several]
            files += [path for several in sample.outlines.values() for one in several for path in one.files]
            images = sorted(
                str(pydicom.dcmread(base / path, specific_tags=["SOPInstanceUID"], force=True).SOPInstanceUID)
                for path in files
            )
            yield sample.patient, sample.side, sample.labels, sample.split, tuple(sample.images), outlines, images

    assert list(described(one, root)) == list(described(other, there))


def test_labels_splits_and_views_are_those_planted(archive: Path) -> None:
    plan, expected = plan_of(archive), truth(archive)
    assert {(s.patient, s.side) for s in plan.samples} == set(expected)
    for sample in plan.samples:
        wanted = expected[sample.patient, sample.side]
        labels = wanted["labels"]["triage"]
        for task in ("density", "assessment", "pathology"):
            assert sample.labels[task] == labels[task], (sample.patient, sample.side, task)
        assert sample.split == (wanted["split"] or "train")
        assert set(sample.images) >= set(wanted["modalities"])  # a truncated film is found out when it is read
        for task in ("lesion_cc", "lesion_mlo"):
            assert sample.labels[task] == -1
            assert task in sample.outlines or labels[task] == -1


def test_every_fault_is_planted_and_counted(archive: Path) -> None:
    faults = json.loads((archive / "faults.json").read_text())["faults"]
    assert faults == dict.fromkeys(FAULTS, 1)
    plan = plan_of(archive)
    assert plan.violations == {}
    assert plan.excluded["images"] == {"film_not_here": 1}
    assert plan.notes["patients_in_both_splits"] == 1
    assert plan.notes["views_scanned_twice"] == 4
    assert plan.notes["breasts_without_assessment"] == 1
    unknown = [one["labels"]["triage"]["density"] for one in truth(archive).values()].count(-1)
    assert plan.notes["breasts_without_density"] == unknown > 0
    assert plan.notes["views_without_all_masks"] == 1
    assert plan.notes["breasts_with_lesions_of_different_pathology"] >= 1
    codes = [tuple(one.code for one in sample.outlines.get("lesion_cc", ())) for sample in plan.samples]
    assert {(0,), (1,), (0, 1)} <= set(codes)
    assert sum(code in ((0, 0), (1, 1)) for code in codes) == 2  # the two breasts with two lesions of one table
    own = Counter(one.own for sample in plan.samples for several in sample.outlines.values() for one in several)
    assert own[False] == 4
    assert all(set(sample.outlines) <= {f"lesion_{name[5:]}" for name in sample.images} for sample in plan.samples)


def test_the_worst_lesion_decides_and_an_unfinished_assessment_leaves_it_open(copy: Path) -> None:
    table = "mass_case_description_train_set.csv"
    first = rows_of(copy / table)[0]
    breast = (first["patient_id"], first["left or right breast"][0])

    def labels(edit: Callable[[dict[str, str]], None]) -> dict[str, int]:
        def one(rows: list[dict[str, str]]) -> None:
            mine = [row for row in rows if row["patient_id"] == breast[0] and row["image view"] == "MLO"]
            edit(mine[0])

        change(copy, table, one)
        return next(s.labels for s in plan_of(copy).samples if (s.patient, s.side) == breast)

    assert labels(lambda row: row.update(assessment="5", pathology="MALIGNANT"))["assessment"] == 4
    assert labels(lambda row: row.update(pathology="MALIGNANT"))["pathology"] == 1
    assert labels(lambda row: row.update(assessment="0"))["assessment"] == -1
    assert labels(lambda row: row.update(breast_density="0"))["density"] == -1  # the other view says something


def test_both_spellings_and_line_breaks_are_read(archive: Path, copy: Path) -> None:
    path = copy / "mass_case_description_train_set.csv"
    assert '\n"' in path.read_text()  # a line break inside a quoted path, as in the real tables
    rows = rows_of(path)
    stream = io.StringIO()
    names = [OLDER.get(name, name) for name in COLUMNS[path.name]]
    writer = csv.writer(stream, lineterminator="\r\n")
    writer.writerow(names)
    for row in rows:
        writer.writerow([value.strip().replace("/", "\\") for value in row.values()])
    path.write_text(stream.getvalue())
    assert cbis.read_rows(path) == cbis.read_rows(archive / path.name)
    same_plans(plan_of(archive), plan_of(copy), archive, copy)


def _series_folders(root: Path) -> Iterator[tuple[Path, str]]:
    for folder in sorted({path.parent for path in root.rglob("*.dcm")}):
        first = next(folder.iterdir())
        yield folder, str(pydicom.dcmread(first, specific_tags=["SeriesInstanceUID"], force=True).SeriesInstanceUID)


def _by_uid(folder: Path, series: str, root: Path) -> Path:
    return root / "manifest-17" / "CBIS-DDSM" / folder.parents[1].name / series


def _as_in_the_tables(folder: Path, series: str, root: Path) -> Path:
    return root / folder.parents[1].name / "1.2.3.4.5.6.7.8.9" / series


def _without_na(folder: Path, series: str, root: Path) -> Path:
    name = folder.parent.name.replace("-NA-", "-")
    return root / "deep" / folder.parents[1].name / name / f"1-{folder.name.split('-', 1)[1]}"


def _meaningless(folder: Path, series: str, root: Path) -> Path:
    return root / "export" / hashlib.sha256(series.encode()).hexdigest()[:8]


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (_by_uid, "1-%d.dcm"),
        (_as_in_the_tables, "00000%d.dcm"),
        (_without_na, "00000%d.dcm"),
        (_meaningless, "1-13%d.DCM"),
    ],
)
def test_series_are_found_in_every_layout(
    archive: Path, copy: Path, place: Callable[[Path, str, Path], Path], name: str
) -> None:
    for folder, series in list(_series_folders(copy)):
        target = place(folder, series, copy)
        target.mkdir(parents=True, exist_ok=True)
        for number, path in enumerate(sorted(folder.iterdir())):
            path.rename(target / (name % number))
    shutil.rmtree(copy / "CBIS-DDSM")
    plan = plan_of(copy)
    same_plans(plan_of(archive), plan, archive, copy)
    assert bool(plan.notes["headers_read_to_find_series"]) == (place is _meaningless)


def test_the_last_digits_count_only_below_their_patient(tmp_path: Path) -> None:
    for patient in ("Mass-Training_P_00001_LEFT_CC", "Mass-Training_P_00002_LEFT_CC"):
        folder = tmp_path / patient / "10-04-2016-DDSM-NA-11111" / "1.000000-full mammogram images-54321"
        folder.mkdir(parents=True)
        (folder / "1-1.dcm").touch()
    found = walk(tmp_path, ())
    series = "1.3.6.1.4.1.9590.100.1.2.99954321"
    assert len(found.find("Mass-Training_P_00001_LEFT_CC", series)) == 1
    assert "P_00002" in found.find("Mass-Training_P_00002_LEFT_CC", series)[0]
    assert found.find("Mass-Training_P_00003_LEFT_CC", series) == ()


def test_links_are_counted_and_not_followed(copy: Path, tmp_path: Path) -> None:
    (copy / "CBIS-DDSM").rename(tmp_path / "elsewhere")
    (copy / "CBIS-DDSM").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"none of the \d+ series"):
        plan_of(copy)
    (tmp_path / "elsewhere").rename(copy / "real")
    assert plan_of(copy).notes["links_not_followed"] == 1


def test_tables_that_are_missing_or_contradict_each_other_are_refused(copy: Path) -> None:
    other = copy / "other" / "calc_case_description_test_set.csv"
    other.parent.mkdir()
    shutil.copy(copy / other.name, other)
    plan_of(copy)  # the same one twice
    other.write_text(other.read_text() + "\n\n")
    with pytest.raises(DataError, match="2 different tables"):
        plan_of(copy)
    other.unlink()
    (copy / other.name).unlink()
    with pytest.raises(DataError, match=r"tables missing: calc_case_description_test_set\.csv"):
        plan_of(copy)


def test_wrong_rows_are_counted_each_under_its_reason(copy: Path) -> None:
    def spoil(rows: list[dict[str, str]]) -> None:
        rows.append(dict(rows[-1]))
        rows[0]["left or right breast"] = "BOTH"
        rows[1]["image view"] = "ML"
        rows[2]["patient_id"] = "00007"
        rows[3]["image file path"] = "1-1.dcm"
        rows[4]["image view"] = "CC" if rows[4]["image view"] == "MLO" else "MLO"
        rows[5]["pathology"] = "SUSPICIOUS"
        rows[6]["ROI mask file path"] = ""
        rows[7]["abnormality type"] = "cyst"

    change(copy, "mass_case_description_train_set.csv", spoil)
    plan = plan_of(copy)
    expected = {
        "duplicate_row", "unknown_laterality", "unknown_view", "damaged_identifier", "damaged_path",
        "path_of_another_film", "unknown_abnormality_type",
    }  # fmt: skip
    assert {name: plan.excluded["images"][name] for name in expected} == dict.fromkeys(expected, 1)
    assert set(plan.violations) == expected | {"unknown_pathology", "damaged_mask_path"}


def test_complete_breasts_have_both_views(archive: Path) -> None:
    plan = plan_of(archive, require="complete")
    assert all(len(sample.images) == 2 for sample in plan.samples)
    assert plan.excluded["samples"]["incomplete"] == 2  # the missing film and the breast seen once
    assert cbis.published({"require": "complete"}) == []


def test_the_counts_of_the_whole_archive_add_up() -> None:
    expected = cbis.EXPECTED
    assert sum(n for name, n in expected["rows"].items() if name != "all") == expected["rows"]["all"]
    for part in ("train", "test"):
        assert sum(expected[f"pathology_{part}"].values()) == expected["breasts"][part]
    assert sum(expected["density_test"].values()) == expected["breasts"]["test"] - 1
    assert expected["views"]["all"] == 2 * expected["views"]["both"] + 280 + 104
    published = cbis.published({"require": "any"})
    assert [one.splits for one in published] == [("train", "val"), ("test",)]
