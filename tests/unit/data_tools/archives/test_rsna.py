"""Labels, image choice and checks of the RSNA table, against tables and answers written by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.archives import rsna
from data_tools.archives.plan import ArchiveOptions, ArchivePlan
from m4oe_ds.errors import DataError

HEADER = (
    "site_id,patient_id,image_id,laterality,view,age,cancer,biopsy,invasive,BIRADS,implant,density,machine_id,"
    "difficult_negative_case"
)
# Invented. 900001: L-MLO twice; 900002: recalled on the left, the right unresolved; 900003, 900004: the other site
EXAMPLE = """\
1,900001,1000000000,L,CC,58.0,0,0,0,1.0,0,B,49,False
1,900001,1000000001,L,MLO,58.0,0,0,0,1.0,0,B,49,False
1,900001,1000000010,R,CC,58.0,0,0,0,1.0,0,B,49,False
1,900001,1000000011,R,MLO,58.0,0,0,0,1.0,0,B,49,False
1,900002,1000000100,L,CC,58.0,0,1,0,0.0,0,C,49,True
1,900002,1000000101,L,MLO,58.0,0,1,0,0.0,0,C,49,True
1,900002,1000000110,R,CC,58.0,0,0,0,,0,C,49,True
1,900002,1000000111,R,MLO,58.0,0,0,0,,0,C,49,True
2,900003,1000000200,L,CC,58.0,0,0,0,,0,,29,False
2,900003,1000000201,L,MLO,58.0,0,0,0,,0,,29,False
2,900003,1000000210,R,CC,58.0,0,0,0,,0,,29,False
2,900003,1000000211,R,MLO,58.0,0,0,0,,0,,29,False
2,900004,1000000300,L,CC,58.0,1,1,0,0.0,0,,29,False
2,900004,1000000301,L,MLO,58.0,1,1,0,0.0,0,,29,False
2,900004,1000000310,R,CC,58.0,0,0,0,,0,,29,False
2,900004,1000000311,R,MLO,58.0,0,0,0,,0,,29,False
1,900001,1000000050,L,MLO,58.0,0,0,0,1.0,0,B,49,False
"""


def four(patient: int, birads: tuple[str, str] = ("1.0", "1.0"), density: str = "B", site: int = 1) -> list[list[str]]:
    """The rows of a patient with one image per view; birads of L and R."""
    return [
        [
            str(site),
            str(patient),
            str(patient * 10 + number),
            side,
            view,
            "58.0",
            "0",
            "0",
            "0",
            birads["LR".index(side)],
            "0",
            density,
            "49",
            "False",
        ]
        for number, (side, view) in enumerate((side, view) for side in "LR" for view in ("CC", "MLO"))
    ]


BIRADS, DENSITY, IMPLANT, VIEW, SIDE, IMAGE, SITE = 9, 11, 10, 4, 3, 2, 0


def planned(root: Path, rows: list[list[str]] | str, header: str = HEADER, **options: str) -> ArchivePlan:
    """The plan of an archive with these rows."""
    body = rows if isinstance(rows, str) else "".join(",".join(row) + "\n" for row in rows)
    (root / "train.csv").write_text(header + "\n" + body, encoding="utf-8")
    return rsna.plan_archive(root, ArchiveOptions(**options))  # type: ignore[arg-type]


def labels(plan: ArchivePlan, task: str) -> dict[tuple[str, str], int]:
    return {(sample.patient, sample.side): sample.labels[task] for sample in plan.samples}


def test_invented_example(tmp_path: Path) -> None:
    plan = planned(tmp_path, EXAMPLE)
    assert [(s.patient, s.exam, s.side, s.stratum) for s in plan.samples] == [
        (patient, patient, side, f"site{site}")
        for patient, site in (("900001", 1), ("900002", 1), ("900003", 2), ("900004", 2))
        for side in "LR"
    ]
    assert list(labels(plan, "density").values()) == [1, 1, 2, 2, -1, -1, -1, -1]
    assert list(labels(plan, "birads").values()) == [0, 0, 2, -1, -1, -1, -1, -1]
    assert plan.samples[0].images == {
        "ffdm_cc": ("train_images/900001/1000000000.dcm",),
        "ffdm_mlo": ("train_images/900001/1000000001.dcm", "train_images/900001/1000000050.dcm"),
    }
    assert all(s.choose == "area" and s.screening is True and s.split == "" for s in plan.samples)
    assert not plan.violations
    assert plan.notes["birads_of_a_site_that_only_recalls_left_out"] == 1
    assert plan.notes["views_with_several_images"] == 1


@pytest.mark.parametrize(
    ("scheme", "codes"), [("triage", [2, 0, 1, -1]), ("release", [-1, 0, 1, -1]), ("native_rsna", [0, 1, 2, -1])]
)
def test_schemes(tmp_path: Path, scheme: str, codes: list[int]) -> None:
    rows = four(1, ("0.0", "1.0")) + four(2, ("2.0", ""))
    assert list(labels(planned(tmp_path, rows, birads_scheme=scheme), "birads").values()) == codes


def test_a_number_written_in_two_ways_is_one_value(tmp_path: Path) -> None:
    rows = four(1)
    rows[0][BIRADS] = "1"
    plan = planned(tmp_path, rows)
    assert labels(plan, "birads") == {("1", "L"): 0, ("1", "R"): 0}
    assert not plan.violations


def test_unknown_scheme(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not defined for RSNA"):
        planned(tmp_path, four(1), birads_scheme="letters")


@pytest.mark.parametrize(("sites", "recalled"), [("labelled", -1), ("all", 2)])
def test_birads_of_the_site_that_only_recalls(tmp_path: Path, sites: str, recalled: int) -> None:
    rows = four(1, ("1.0", "2.0")) + four(2, ("0.0", ""), "", site=2)
    found = labels(planned(tmp_path, rows, birads_sites=sites), "birads")
    assert found == {("1", "L"): 0, ("1", "R"): 1, ("2", "L"): recalled, ("2", "R"): -1}


def test_a_site_needs_only_one_of_the_two_classes(tmp_path: Path) -> None:
    found = labels(planned(tmp_path, four(1, ("0.0", "2.0"))), "birads")
    assert found == {("1", "L"): 2, ("1", "R"): 1}


def test_candidates_are_ordered_as_numbers(tmp_path: Path) -> None:
    rows = four(1)
    more = [list(rows[0]), list(rows[0])]
    more[0][IMAGE], more[1][IMAGE] = "9", "100000"
    images = planned(tmp_path, more + rows).samples[0].images["ffdm_cc"]
    assert images == ("train_images/1/9.dcm", "train_images/1/10.dcm", "train_images/1/100000.dcm")


def test_other_views_are_counted_and_not_used(tmp_path: Path) -> None:
    rows = four(1)
    for number, view in enumerate(("AT", "LM", "ML", "LMO")):
        rows.append(list(rows[0]))
        rows[-1][IMAGE], rows[-1][VIEW] = str(900 + number), view
    plan = planned(tmp_path, rows)
    assert plan.excluded["images"] == {"other_view": 4}
    assert plan.samples[0].images["ffdm_cc"] == ("train_images/1/10.dcm",)
    assert not plan.violations


def test_implants_are_noted_and_kept(tmp_path: Path) -> None:
    rows = four(1)
    rows[0][IMPLANT] = rows[2][IMPLANT] = "1"
    plan = planned(tmp_path, rows)
    assert plan.notes["implant_images"] == 2
    assert len(plan.samples) == 2


@pytest.mark.parametrize(
    ("column", "value", "violation"),
    [
        (DENSITY, "D", "density_not_constant_within_patient"),
        (BIRADS, "2.0", "birads_not_constant_within_breast"),
        (VIEW, "XX", "unknown_view"),
        (SIDE, "B", "unknown_laterality"),
        (SITE, "2", "site_not_constant_within_patient"),
        (IMAGE, "11", "duplicate_image"),
        (IMAGE, "", "damaged_identifier"),
        (IMAGE, "../../x", "damaged_identifier"),
    ],
)
def test_each_violation_is_counted(tmp_path: Path, column: int, value: str, violation: str) -> None:
    rows = four(1) + four(2)
    assert not planned(tmp_path, rows).violations
    rows[0][column] = value
    plan = planned(tmp_path, rows)
    assert plan.violations[violation] == 1
    lost = column in (VIEW, SIDE, IMAGE)
    assert sum(plan.excluded["images"].values()) == int(lost)
    assert plan.violations["patient_without_four_views"] == int(lost)
    assert plan.steps["images_planned"] == 8 - int(lost)


@pytest.mark.parametrize(("column", "value", "name"), [(DENSITY, "E", "density"), (BIRADS, "4.0", "birads")])
def test_values_outside_the_documentation(tmp_path: Path, column: int, value: str, name: str) -> None:
    rows = four(1)
    for row in rows:
        row[column] = value
    plan = planned(tmp_path, rows)
    assert plan.violations[f"unknown_{name}"] == (1 if name == "density" else 2)  # per patient, per breast
    assert set(labels(plan, name).values()) == {-1}


def test_contradictions_leave_the_other_labels_alone(tmp_path: Path) -> None:
    rows = four(1, ("1.0", "2.0"))
    rows[1][BIRADS] = "0.0"
    plan = planned(tmp_path, rows)
    assert labels(plan, "birads") == {("1", "L"): -1, ("1", "R"): 1}
    assert labels(plan, "density") == {("1", "L"): 1, ("1", "R"): 1}
    rows = four(1, ("1.0", "2.0"))
    rows[3][DENSITY] = "C"
    plan = planned(tmp_path, rows)
    assert labels(plan, "birads") == {("1", "L"): 0, ("1", "R"): 1}
    assert labels(plan, "density") == {("1", "L"): -1, ("1", "R"): -1}


@pytest.mark.parametrize("value", ["10.0", "1.942326e+09", "1.9E+09"])
@pytest.mark.parametrize("column", [1, IMAGE])
def test_rounded_identifiers_stop_the_conversion(tmp_path: Path, column: int, value: str) -> None:
    rows = four(1)
    rows[0][column] = value
    with pytest.raises(DataError, match="rounded identifiers"):
        planned(tmp_path, rows)


def test_missing_columns_are_named(tmp_path: Path) -> None:
    header = HEADER.replace("BIRADS", "rating").replace("density", "tissue")
    with pytest.raises(DataError, match="BIRADS, density"):
        planned(tmp_path, four(1), header=header)
    with pytest.raises(DataError, match="not here"):
        rsna.plan_archive(tmp_path / "elsewhere", ArchiveOptions())


def test_complete_samples_only(tmp_path: Path) -> None:
    rows = four(1)[:3]
    assert len(planned(tmp_path, rows).samples) == 2
    plan = planned(tmp_path, rows, require="complete")
    assert [sample.side for sample in plan.samples] == ["L"]
    assert plan.excluded["samples"] == {"incomplete": 1}
    assert plan.excluded["images"] == {"of_excluded_samples": 1}


def test_published_counts_add_up() -> None:
    counts = rsna.EXPECTED
    images = counts["images"]
    for parts in (("site1", "site2"), ("L", "R"), ("CC", "MLO", "AT", "LM", "ML", "LMO")):
        assert sum(images[part] for part in parts) == images["all"] == 54_706
    assert sum(counts["density_by_patient"].values()) == counts["patients"]["all"] == 11_913
    assert counts["patients"]["site1"] + counts["patients"]["site2"] == 11_913
    assert sum(counts["birads_by_breast"].values()) == counts["breasts"]["all"] == 2 * 11_913
    for code in ("0", "1", "2"):
        both = counts["birads_by_breast_site1"][code] + counts["birads_by_breast_site2"].get(code, 0)
        assert both == counts["birads_by_breast"][code]
