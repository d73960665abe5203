"""Labels, splits and checks of the VinDr-Mammo tables, against tables and answers written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.archives import vindr
from data_tools.archives.plan import ArchiveOptions, ArchivePlan
from m4oe_ds.errors import DataError

HEADER = "study_id,series_id,image_id,laterality,view_position,height,width,breast_birads,breast_density,split"
FINDINGS = (
    "study_id,series_id,image_id,laterality,view_position,height,width,breast_birads,breast_density,"
    "finding_categories,finding_birads,xmin,ymin,xmax,ymax,split"
)
IMAGE, SIDE, VIEW, BIRADS, DENSITY, SPLIT = 2, 3, 4, 7, 8, 9


def name(number: int) -> str:
    """An invented identifier."""
    return f"{number:032x}"


def study(
    number: int, birads: tuple[int, int] = (1, 1), density: str = "CC", split: str = "training"
) -> list[list[str]]:
    """The four rows of a study; birads and density of L and R. Images are number * 256 + 0..3."""
    return [
        [
            name(number),
            name(number + 4096),
            name(number * 256 + at),
            side,
            view,
            "3518",
            "2800",
            f"BI-RADS {birads['LR'.index(side)]}",
            f"DENSITY {density['LR'.index(side)]}",
            split,
        ]
        for at, (side, view) in enumerate((side, view) for side in "LR" for view in ("CC", "MLO"))
    ]


def planned(root: Path, rows: list[list[str]], header: str = HEADER, **options: str) -> ArchivePlan:
    """The plan of an archive with these rows."""
    text = header + "\n" + "".join(",".join(row) + "\n" for row in rows)
    (root / "breast-level_annotations.csv").write_text(text, encoding="utf-8")
    return vindr.plan_archive(root, ArchiveOptions(**options))  # type: ignore[arg-type]


def labels(plan: ArchivePlan, task: str) -> list[int]:
    return [sample.labels[task] for sample in plan.samples]


def test_invented_example(tmp_path: Path) -> None:
    plan = planned(tmp_path, study(1, (1, 2)) + study(2, (4, 2), "BB", "test"))
    assert [(s.patient, s.exam, s.side, s.split) for s in plan.samples] == [
        (name(number), name(number), side, split) for number, split in ((1, "train"), (2, "test")) for side in "LR"
    ]
    assert labels(plan, "birads") == [0, 1, 2, 1]
    assert labels(plan, "density") == [2, 2, 1, 1]
    assert plan.samples[0].images == {
        "ffdm_cc": (f"images/{name(1)}/{name(256)}.dicom",),
        "ffdm_mlo": (f"images/{name(1)}/{name(257)}.dicom",),
    }
    assert not plan.violations
    assert not plan.notes
    assert plan.steps == {"table_rows": 8, "samples_planned": 4, "images_planned": 8}


@pytest.mark.parametrize(("scheme", "codes"), [("triage", [0, 1, 2, 2, 2]), ("release", [0, 1, 1, 2, 2])])
def test_schemes(tmp_path: Path, scheme: str, codes: list[int]) -> None:
    rows = study(1, (1, 2)) + study(2, (3, 4)) + study(3, (5, 1))
    assert labels(planned(tmp_path, rows, birads_scheme=scheme), "birads") == [*codes, 0]


def test_densities_may_differ_between_the_breasts(tmp_path: Path) -> None:
    rows = study(1, density="AB") + study(2, density="CD")
    assert labels(planned(tmp_path, rows), "density") == [0, 1, 2, 3]


def test_the_coding_of_rsna_is_not_defined_here(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not defined for VinDr-Mammo"):
        planned(tmp_path, study(1), birads_scheme="native_rsna")


def test_the_left_breast_without_mlo(tmp_path: Path) -> None:
    rows = study(1)
    rows[1][VIEW] = "CC"
    plan = planned(tmp_path, rows)
    assert plan.samples[0].images == {
        "ffdm_cc": (f"images/{name(1)}/{name(256)}.dicom", f"images/{name(1)}/{name(257)}.dicom")
    }
    assert plan.samples[0].choose == "area"
    assert plan.notes == {"breasts_without_mlo": 1}
    assert not plan.violations
    plan = planned(tmp_path, rows, require="complete")
    assert [sample.side for sample in plan.samples] == ["R"]
    assert plan.excluded["samples"] == {"incomplete": 1}
    assert plan.excluded["images"] == {"of_excluded_samples": 2}


def test_a_study_in_both_splits_is_in_neither(tmp_path: Path) -> None:
    rows = study(1) + study(2)
    rows[0][SPLIT] = "test"
    plan = planned(tmp_path, rows)
    assert plan.violations == {"study_in_both_splits": 1}
    assert {sample.patient for sample in plan.samples} == {name(2)}
    assert plan.excluded["exams"] == {"in_both_splits": 1}
    assert plan.excluded["images"] == {"of_excluded_exams": 4}


@pytest.mark.parametrize(
    ("column", "value", "violation"),
    [
        (IMAGE, name(257), "duplicate_image"),
        (IMAGE, "", "damaged_identifier"),
        (IMAGE, "../1", "damaged_identifier"),
        (0, "a/b", "damaged_identifier"),
        (SIDE, "B", "unknown_laterality"),
        (VIEW, "ML", "unknown_view"),
        (SPLIT, "validation", "unknown_split"),
    ],
)
def test_rows_that_cannot_be_used_are_counted(tmp_path: Path, column: int, value: str, violation: str) -> None:
    rows = study(1)
    rows[0][column] = value
    plan = planned(tmp_path, rows)
    assert plan.violations[violation] == 1
    assert sum(plan.excluded["images"].values()) == 1
    assert plan.steps["images_planned"] == 3


@pytest.mark.parametrize(("column", "value"), [(BIRADS, "BI-RADS 4"), (DENSITY, "DENSITY A")])
def test_contradictory_labels_become_missing(tmp_path: Path, column: int, value: str) -> None:
    rows = study(1)
    rows[1][column] = value
    plan = planned(tmp_path, rows)
    task, other = ("birads", "density") if column == BIRADS else ("density", "birads")
    assert plan.violations == {f"{task}_not_constant_within_breast": 1}
    assert labels(plan, task) == [-1, 0 if task == "birads" else 2]
    assert -1 not in labels(plan, other)


@pytest.mark.parametrize(("column", "value"), [(BIRADS, "BI-RADS 0"), (DENSITY, "")])
def test_values_outside_the_documentation(tmp_path: Path, column: int, value: str) -> None:
    rows = study(1)
    rows[2][column] = rows[3][column] = value
    plan = planned(tmp_path, rows)
    task = "birads" if column == BIRADS else "density"
    assert plan.violations == {f"unknown_{task}": 1}
    assert labels(plan, task)[1] == -1


@pytest.mark.parametrize("count", [3, 5])
def test_studies_have_four_images(tmp_path: Path, count: int) -> None:
    rows = study(1)
    rows = rows[:3] if count == 3 else [*rows, [*rows[0][:2], name(999), *rows[0][3:]]]
    plan = planned(tmp_path, study(2) + rows)
    assert plan.violations == {"study_without_four_images": 1}
    assert plan.steps["images_planned"] == (7 if count == 3 else 8)  # the fifth is a second candidate


@pytest.mark.parametrize("value", ["1.0", "1e+31", "5.2E+30"])
@pytest.mark.parametrize("column", [0, 1, IMAGE])
def test_rounded_identifiers_stop_the_conversion(tmp_path: Path, column: int, value: str) -> None:
    rows = study(1)
    rows[0][column] = value
    with pytest.raises(DataError, match="rounded identifiers"):
        planned(tmp_path, rows)


def test_identifiers_of_digits_stay_as_they_are(tmp_path: Path) -> None:
    rows = study(1)
    for row in rows:
        row[0] = "0" * 20 + "12e456789012"  # would be a number to a spreadsheet
    assert planned(tmp_path, rows).samples[0].patient == "0" * 20 + "12e456789012"


def test_missing_columns_are_named(tmp_path: Path) -> None:
    header = HEADER.replace("breast_birads", "birads").replace("split", "part")
    with pytest.raises(DataError, match="breast_birads, split"):
        planned(tmp_path, study(1), header=header)
    with pytest.raises(DataError, match="not here"):
        vindr.plan_archive(tmp_path / "elsewhere", ArchiveOptions())


@pytest.mark.parametrize("repeated", ["SOP Instance UID", "SOP Instance UID.1"])
def test_manufacturer_from_the_metadata(tmp_path: Path, repeated: str) -> None:
    """The published header repeats a name; a table saved by pandas has renamed the second one."""
    assert {sample.manufacturer for sample in planned(tmp_path, study(1)).samples} == {""}  # the file is optional
    lines = [f"SOP Instance UID,Series Instance UID,{repeated},Manufacturer"]
    lines += [f"{name(256 + at)},{name(4097)},x,{'SIEMENS' if at < 2 else 'Planmed'}" for at in (3, 2, 1, 0)]
    (tmp_path / "metadata.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert [sample.manufacturer for sample in planned(tmp_path, study(1)).samples] == ["SIEMENS", "Planmed"]


def test_findings_are_only_counted(tmp_path: Path) -> None:
    boxes = [("", "", "", ""), ("-1.5", "2", "30", "40"), ("1", "2", "2800.5", "40"), ("1", "2", "30", "40")]
    lines = [FINDINGS]
    for row, box in zip(study(1), boxes, strict=True):
        lines.append(",".join([*row[:9], "\"['Mass', 'Skin Thickening']\"", "BI-RADS 5", *box, row[9]]))
    (tmp_path / "finding_annotations.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    plan = planned(tmp_path, study(1))
    assert plan.steps["finding_rows"] == 4
    assert plan.notes == {"finding_boxes_beyond_the_image": 2}
    assert labels(plan, "birads") == [0, 0]


def test_published_counts_add_up() -> None:
    counts = vindr.EXPECTED
    images, breasts = counts["images"], counts["breasts"]
    for parts in (("training", "test"), ("L", "R"), ("CC", "MLO")):
        assert sum(images[part] for part in parts) == images["all"] == 20_000
    for split in ("training", "test"):
        assert images[split] == 4 * counts["patients"][split] == 2 * breasts[split]
        for task in ("birads", "density"):
            assert sum(counts[f"{task}_by_breast_{split}"].values()) == breasts[split]
