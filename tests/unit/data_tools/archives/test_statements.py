"""Every statement that a reader makes about its archive, on a phantom that violates it."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.convert.options import Shares
from data_tools.phantom import archive as phantom
from m4oe_ds.data.cards import find_card
from m4oe_ds.errors import DataError
from tests.unit.data_tools.archives.archive_cases import converted, plan_of, run


def edit(path: Path, change: Callable[[list[dict[str, str]]], None]) -> None:
    with path.open(newline="") as stream:
        reader = csv.DictReader(stream)
        rows, names = list(reader), reader.fieldnames or []
    change(rows)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        writer.writerows(rows)


def setting(row: int, column: str, value: str) -> Callable[[list[dict[str, str]]], None]:
    def change(rows: list[dict[str, str]]) -> None:
        rows[row][column] = value

    return change


def repeat(rows: list[dict[str, str]]) -> None:
    rows.append(dict(rows[0]))


def lose(rows: list[dict[str, str]]) -> None:
    del rows[0]


RSNA, VINDR = "train.csv", "breast-level_annotations.csv"
VIOLATIONS = [
    ("rsna", RSNA, setting(0, "view", "UP"), "unknown_view"),
    ("rsna", RSNA, setting(0, "laterality", "X"), "unknown_laterality"),
    ("rsna", RSNA, setting(0, "density", "D"), "density_not_constant_within_patient"),
    ("rsna", RSNA, setting(0, "BIRADS", "0.0"), "birads_not_constant_within_breast"),
    ("rsna", RSNA, setting(0, "site_id", "2"), "site_not_constant_within_patient"),
    ("rsna", RSNA, setting(0, "patient_id", "abc"), "damaged_identifier"),
    ("rsna", RSNA, repeat, "duplicate_image"),
    ("rsna", RSNA, lose, "patient_without_four_views"),
    ("vindr", VINDR, setting(0, "view_position", "UP"), "unknown_view"),
    ("vindr", VINDR, setting(0, "laterality", "X"), "unknown_laterality"),
    ("vindr", VINDR, setting(0, "split", "neither"), "unknown_split"),
    ("vindr", VINDR, setting(0, "breast_density", "DENSITY E"), "density_not_constant_within_breast"),
    ("vindr", VINDR, setting(0, "breast_birads", "BI-RADS 9"), "birads_not_constant_within_breast"),
    ("vindr", VINDR, setting(0, "image_id", ""), "damaged_identifier"),
    ("vindr", VINDR, repeat, "duplicate_image"),
    ("vindr", VINDR, lose, "study_without_four_images"),
]
SHEET = "data,non,early,mid_advanced\n"
GAMMA_VIOLATIONS = [
    ("1,1,1,0\n2,0,0,1\n", "label_row_not_one_hot"),
    ("1,0,0,0\n2,0,0,1\n", "label_row_not_one_hot"),
    ("1,1,0,0\n1,0,0,1\n2,0,0,1\n", "eye_twice_in_the_sheet"),
    ("1,1,0,0\neye 2,0,0,1\n", "damaged_identifier"),
]


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Archives without any fault, small; every breast of the first patient has a known density and BI-RADS."""
    folder = tmp_path_factory.mktemp("clean")
    for layout in ("embed", "rsna", "vindr"):
        phantom.generate(layout, folder / layout, 3, 12, workers=1, faults="none")
    phantom.generate("gamma", folder / "gamma", 2, 12, workers=1, faults="none")
    return {layout: folder / layout for layout in ("embed", "rsna", "vindr", "gamma")}


@pytest.mark.parametrize("layout", ["rsna", "vindr", "gamma", "embed"])
def test_a_clean_phantom_violates_nothing(clean: dict[str, Path], layout: str) -> None:
    assert not plan_of(layout, clean[layout]).violations


@pytest.mark.parametrize(("layout", "table", "change", "name"), VIOLATIONS, ids=[f"{v[0]}-{v[3]}" for v in VIOLATIONS])
def test_a_violated_statement_is_counted(
    clean: dict[str, Path], tmp_path: Path, layout: str, table: str, change: Any, name: str
) -> None:
    root = tmp_path / "archive"
    root.mkdir()
    for path in clean[layout].glob("*.csv"):
        shutil.copy(path, root)
    edit(root / table, change)
    assert plan_of(layout, root).violations[name] == 1


@pytest.fixture
def gamma_part(clean: dict[str, Path], tmp_path: Path) -> Path:
    """The folders of two eyes, without masks; the sheet is each test's own."""
    source = clean["gamma"] / "Glaucoma_grading" / "training" / "multi-modality_images"
    shutil.copytree(source, tmp_path / "archive" / "training" / "multi-modality_images")
    return tmp_path / "archive"


@pytest.mark.parametrize(("rows", "name"), GAMMA_VIOLATIONS)
def test_a_violated_statement_about_gammas_sheet_is_counted(gamma_part: Path, rows: str, name: str) -> None:
    (gamma_part / "glaucoma_grading_training_GT.csv").write_text(SHEET + rows)
    plan = plan_of("gamma", gamma_part)
    assert plan.violations == {name: 1}
    if name == "label_row_not_one_hot":  # and no class is guessed
        assert plan.samples[0].labels["glaucoma"] == -1


def test_a_slice_too_few_or_too_many_is_quarantined_and_said(gamma_part: Path, tmp_path: Path) -> None:
    (gamma_part / "glaucoma_grading_training_GT.csv").write_text(SHEET + "1,1,0,0\n2,0,0,1\n")
    volumes = [gamma_part / "training" / "multi-modality_images" / name / name for name in ("0001", "0002")]
    shutil.copy(volumes[0] / "0_image.jpg", volumes[0] / "256_image.jpg")
    (volumes[1] / "17_image.jpg").unlink()
    report = run("gamma", gamma_part, tmp_path / "out", max_quarantine=1.0)
    assert report["images_quarantined"] == {"slices_not_0_to_255": 2}
    assert report["violations"]["slices_not_0_to_255"] == 2


@pytest.mark.parametrize(
    ("layout", "table", "column"),
    [
        ("vindr", VINDR, "breast_density"),
        ("vindr", "finding_annotations.csv", "xmin"),
        ("vindr", "metadata.csv", "Manufacturer"),
    ],
)
def test_a_missing_column_of_vindr_is_named(
    clean: dict[str, Path], tmp_path: Path, layout: str, table: str, column: str
) -> None:
    for path in clean[layout].glob("*.csv"):
        shutil.copy(path, tmp_path)
    lines = (tmp_path / table).read_text().split("\n", 1)
    names = [f"{name}_" if name.strip('"') == column else name for name in lines[0].rstrip("\r").split(",")]
    (tmp_path / table).write_text("\n".join([",".join(names), lines[1]]))
    with pytest.raises(DataError, match=f"columns missing: {column}"):
        plan_of(layout, tmp_path)


def test_a_missing_column_of_gammas_sheet_is_named(gamma_part: Path) -> None:
    (gamma_part / "glaucoma_grading_training_GT.csv").write_text("data,non,early\n1,1,0\n")
    with pytest.raises(DataError, match="columns missing: mid_advanced"):
        plan_of("gamma", gamma_part)


def rewrite(path: Path, change: Callable[[Any], np.ndarray]) -> None:
    """The file uncompressed, with other pixels."""
    from pydicom import dcmread
    from pydicom.uid import ExplicitVRLittleEndian

    ds = dcmread(path)
    pixels = change(ds)
    if ds.file_meta.TransferSyntaxUID.is_encapsulated:
        ds.decompress()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.PixelData = pixels.astype("<u2").tobytes()
    ds.save_as(path)


def _beyond(ds: Any) -> np.ndarray:
    pixels = ds.pixel_array.copy()
    pixels[5, 5] = 1 << ds.BitsStored
    return pixels


def _no_breast(ds: Any) -> np.ndarray:
    pixels = np.zeros_like(ds.pixel_array)
    pixels[100:130, 100:130] = 2000  # a marker alone
    return pixels


@pytest.mark.parametrize(
    ("change", "reason", "name"),
    [
        (_beyond, "beyond_bits_stored", "values_beyond_bits_stored"),
        (_no_breast, "breast_area_too_small", "implausible_breast_area"),
    ],
)
def test_a_violated_statement_about_pixels_is_quarantined_and_said(
    clean: dict[str, Path], tmp_path: Path, change: Callable[[Any], np.ndarray], reason: str, name: str
) -> None:
    root = tmp_path / "archive"
    shutil.copytree(clean["rsna"], root)
    rewrite(min(root.rglob("*.dcm")), change)
    report = run("rsna", root, tmp_path / "out")
    assert report["images_quarantined"] == {reason: 1}
    assert report["violations"][name] == 1
    with pytest.raises(DataError, match=f"{name} 1"):
        run("rsna", root, tmp_path / "strict", strict=True)


def test_an_archive_that_is_not_the_published_one_is_said(clean: dict[str, Path], tmp_path: Path) -> None:
    """A few breasts are not the 20,000 images of VinDr-Mammo; what is known to be synthetic or a part is not judged."""
    root = tmp_path / "archive"
    shutil.copytree(clean["vindr"], root)
    assert "label_counts_unlike_published" not in run("vindr", root, tmp_path / "synthetic")["violations"]
    (root / "phantom.json").unlink()
    salt = tmp_path / "salt"
    found = run("vindr", root, tmp_path / "real", salt_file=salt)["violations"]
    assert found["label_counts_unlike_published"] == 14  # every class of both tasks in both official splits
    assert "label_shares_unlike_published" in found
    few = run("vindr", root, tmp_path / "few", salt_file=salt, limit=4)
    assert "label_counts_unlike_published" not in few["violations"]


def test_a_study_in_both_splits_is_left_out(clean: dict[str, Path], tmp_path: Path) -> None:
    root = tmp_path / "archive"
    root.mkdir()
    shutil.copy(clean["vindr"] / VINDR, root)
    other = {"training": "test", "test": "training"}
    edit(root / VINDR, lambda rows: rows[0].update(split=other[rows[0]["split"]]))
    plan = plan_of("vindr", root)
    assert plan.violations == {"study_in_both_splits": 1}
    assert len(plan.samples) == len(plan_of("vindr", clean["vindr"]).samples) - 2


@pytest.mark.parametrize(("layout", "table", "column"), [("rsna", RSNA, "patient_id"), ("rsna", RSNA, "image_id")])
@pytest.mark.parametrize("text", ["10000.0", "1.0e+16"])
def test_rounded_identifiers_are_refused(
    clean: dict[str, Path], tmp_path: Path, layout: str, table: str, column: str, text: str
) -> None:
    root = tmp_path / "archive"
    root.mkdir()
    shutil.copy(clean[layout] / table, root)
    edit(root / table, setting(0, column, text))
    with pytest.raises(DataError, match="rounded identifiers"):
        plan_of(layout, root)


def test_a_missing_column_is_named(clean: dict[str, Path], tmp_path: Path) -> None:
    text = (clean["rsna"] / RSNA).read_text().replace("density", "densitas", 1)
    (tmp_path / RSNA).write_text(text)
    with pytest.raises(DataError, match="columns missing: density"):
        plan_of("rsna", tmp_path)


def test_strict_stops_where_the_archive_is_not_as_documented(clean: dict[str, Path], tmp_path: Path) -> None:
    root = tmp_path / "archive"
    shutil.copytree(clean["rsna"], root)
    edit(root / RSNA, setting(0, "view", "UP"))
    with pytest.raises(DataError, match="unknown_view 1"):
        run("rsna", root, tmp_path / "out", strict=True)
    assert not (tmp_path / "out").exists()
    run("rsna", root, tmp_path / "out")


def test_an_image_that_belongs_to_two_patients_is_found(clean: dict[str, Path], tmp_path: Path) -> None:
    root = tmp_path / "archive"
    shutil.copytree(clean["rsna"], root)
    first, second = sorted((root / "train_images").iterdir())[:2]
    shutil.copy(min(first.iterdir()), min(second.iterdir()))
    report = run("rsna", root, tmp_path / "out", split=Shares(50, 0, 50))
    assert report["violations"]["duplicate_pixels_across_patients"] == 1
    where = {name[0]: split for name, (split, _) in converted(tmp_path / "out").items()}
    crossing = where[first.name] != where[second.name]
    assert report["violations"].get("duplicate_pixels_across_splits", 0) == int(crossing)


def test_mirrored_images_are_found(clean: dict[str, Path], tmp_path: Path) -> None:
    """Left and right exchanged in the table: the chest wall is on the wrong side of every image."""
    root = tmp_path / "archive"
    shutil.copytree(clean["rsna"], root)
    exchange = {"L": "R", "R": "L"}
    edit(root / RSNA, lambda rows: [row.update(laterality=exchange[row["laterality"]]) for row in rows] and None)
    report = run("rsna", root, tmp_path / "out")
    assert report["violations"]["chest_wall_disagrees_with_laterality"] == report["images_written"]


def test_gamma_without_masks_or_with_a_csv_sheet(clean: dict[str, Path], tmp_path: Path) -> None:
    root = tmp_path / "training_data"
    source = clean["gamma"] / "Glaucoma_grading" / "training"
    shutil.copytree(source / "multi-modality_images", root / "multi-modality_images")
    (root / "glaucoma_grading_training_GT.csv").write_text("data,non,early,mid_advanced\n1,1,0,0\n2,0,0,1\n")
    plan = plan_of("gamma", tmp_path)
    assert [sample.labels["glaucoma"] for sample in plan.samples] == [0, 2]
    assert not any(sample.masks for sample in plan.samples)
    assert {sample.patient for sample in plan.samples} == {"0001", "0002"}


def test_every_task_and_modality_is_one_of_the_schema(clean: dict[str, Path]) -> None:
    for layout, root in clean.items():
        spec = find_card(layout)
        for sample in plan_of(layout, root).samples:
            assert set(sample.images) <= set(spec.modalities)
            assert set(sample.labels) | set(sample.masks) <= {task.name for task in spec.tasks}
