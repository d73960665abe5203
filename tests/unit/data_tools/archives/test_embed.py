"""Labels and repairs of the EMBED tables, against worked examples done by hand."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_tools.archives import embed, embed_tables
from m4oe_ds.data.cards import find_card
from m4oe_ds.errors import DataError

MODALITIES = find_card("embed").modalities
CLINICAL = [*embed_tables.CLINICAL_REQUIRED, *embed_tables.CLINICAL_OPTIONAL]
METADATA = [*embed_tables.METADATA_REQUIRED, *embed_tables.METADATA_OPTIONAL]
BILATERAL = "MG Screen Bilat w/Tomo/CAD Stnd Protocol"


def finding(patient: str, exam: str, day: str, desc: str, asses: str, density: str, side: str, **more: str) -> dict:
    """One row of the clinical table."""
    row = dict.fromkeys(CLINICAL, "")
    row.update(empi_anon=patient, acc_anon=exam, study_date_anon=day, desc=desc, asses=asses, tissueden=density)
    return row | {"side": side} | more


def image(patient: str, exam: str, day: str, series: str, kind: str, side: str, view: str, **more: str) -> dict:
    """One row of the metadata table; the path follows from the series and the time."""
    row = dict.fromkeys(METADATA, "")
    row.update(empi_anon=patient, acc_anon=exam, study_date_anon=f"{day} 00:00:00", SeriesDescription=series)
    row.update(FinalImageType=kind, ImageLateralityFinal=side, ViewPosition=view, AcquisitionTime="101500")
    row.update(PatientSex="F", Manufacturer="HOLOGIC, Inc.", **more)
    name = f"{series}-{kind}-{side}-{view}-{row['AcquisitionTime']}".replace(" ", "_")
    row["anon_dicom_path"] = (
        row["anon_dicom_path"] or f"/mnt/NAS2/mammo/anon_dicom/cohort_1/{patient}/{exam}/{name}.dcm"
    )
    return row


def invented_tables() -> tuple[list[dict], list[dict]]:
    """Four invented patients: screening with cancer, screening without, diagnostic, male."""
    p1, p2, p3, p4 = "90000001", "90000002", "90000003", "90000004"
    e1, e2, e3, e4 = "9999000000000001", "9999000000000003", "9999000000000005", "9999000000000007"
    cancer = {"path_severity": "0.0", "bside": "L", "procdate_anon": "2014-03-28", "pdate_anon": "2014-03-30 00:00:00"}
    clinical = [
        finding(p1, e1, "2014-03-03", BILATERAL, "A", "3.0", "L", **cancer),
        finding(p2, e2, "2016-08-11", "MG Screening Bilateral", "N", "2.0", ""),
        finding(p2, "9999000000000009", "2019-09-01", "MG Screening Bilateral w/CAD", "B", "2.0", "R"),
        finding(p3, e3, "2015-01-20", "MG Diagnostic Left w/CAD", "S", "4.0", "L", path_severity="4.0"),
        finding(p3, e3, "2015-01-20", "MG Diagnostic Left w/CAD", "P", "4.0", "L"),
        finding(p4, e4, "2013-05-05", "MG Diagnostic Mammo Bilateral", "X", "5.0", "B"),
    ]
    day = "2014-03-02"
    metadata = [
        image(p1, e1, day, f"{side} {view}{suffix}", kind, side, view)
        for side in "LR"
        for view in ("CC", "MLO")
        for kind, suffix in (("2D", ""), ("cview", " C-View"))
    ]
    metadata += [
        image(p1, e1, day, "L CC", "2D", "L", "CC", AcquisitionTime="102030"),
        image(p1, e1, day, "RXCCL", "2D", "R", "CC"),
        image(p1, e1, day, "L MLO", "2D", "L", ""),
    ]
    metadata += [image(p2, e2, "2016-08-11", f"{s} {v}", "2D", s, v) for s in "LR" for v in ("CC", "MLO")]
    metadata += [
        image(p3, e3, "2015-01-20", "L CC SPOT", "2D", "L", "CC", spot_mag="1.0"),
        image(p3, e3, "2015-01-20", "L ML", "2D", "L", "ML"),
        image(p4, e4, "2013-05-05", "L MLO", "2D", "L", "MLO") | {"PatientSex": "M"},
    ]
    return clinical, metadata


def plan_of(clinical: list[dict], metadata: list[dict], **options: str) -> embed.ArchivePlan:
    return embed.build_plan(clinical, metadata, MODALITIES, embed.ArchiveOptions(**options))


@pytest.mark.parametrize(
    ("index", "event", "last", "expected"),
    [
        ("2014-03-02", "2014-03-28", "2014-03-30", (1, 1, 1, 1, 1)),
        ("2012-01-10", "2014-06-01", "2014-06-20", (0, 0, 1, 1, 1)),
        ("2016-08-11", None, "2019-09-01", (0, 0, 0, -1, -1)),
        ("2019-09-01", None, "2019-09-01", (-1, -1, -1, -1, -1)),
        ("2010-01-01", "2019-01-01", "2019-01-01", (0, 0, 0, 0, 0)),
    ],
)
def test_risk_of_worked_examples(index: str, event: str | None, last: str, expected: tuple[int, ...]) -> None:
    day = date.fromisoformat
    labels = embed.risk_labels(day(index), None if event is None else day(event), day(last))
    assert tuple(labels[f"risk{k}"] for k in range(1, 6)) == expected


@given(days=st.integers(0, 4000), follow=st.integers(0, 4000), cancer=st.booleans())
@settings(max_examples=60, deadline=None)
def test_risk_never_falls_with_the_horizon(days: int, follow: int, cancer: bool) -> None:
    start = date(2010, 1, 1).toordinal()
    event = date.fromordinal(start + days) if cancer else None
    last = date.fromordinal(start + max(follow, days if cancer else 0))
    labels = embed.risk_labels(date(2010, 1, 1), event, last)
    known = [value for value in labels.values() if value >= 0]
    assert known == sorted(known)
    assert cancer is False or -1 not in labels.values()


@pytest.mark.parametrize(
    ("values", "expected"),
    [(["1.0"], 0), (["4"], 3), (["3.0", "3.0", ""], 2), (["2.0", "3.0"], -1), (["5.0"], -1), (["", "nan"], -1)],
)
def test_density(values: list[str], expected: int) -> None:
    assert embed.density_label(values) == expected


@pytest.mark.parametrize(
    ("letters", "triage", "release"),
    [
        ("N", 0, 0), ("B", 1, 1), ("A", 2, -1), ("P", 2, 1), ("S", 2, 2), ("M", 2, 2), ("K", 2, 2), ("X", -1, -1),
        ("", -1, -1), ("BA", 2, -1), ("NB", 1, 1), ("XN", 0, 0), ("PS", 2, 2), ("SK", 2, 2),
    ],
)  # fmt: skip
def test_birads_takes_the_most_severe_letter(letters: str, triage: int, release: int) -> None:
    assert embed.birads_label(letters, "triage") == triage
    assert embed.birads_label(reversed(letters), "release") == release


def test_contralateral_side_of_a_bilateral_exam_is_negative() -> None:
    rows = [finding("1", "2", "2014-01-01", BILATERAL, "A", "3.0", "L")]
    assert embed.side_letters(rows) == {"L": ["A"], "R": ["N"]}
    one_sided = [finding("1", "2", "2014-01-01", "MG Screening Left", "B", "3.0", "L")]
    assert embed.side_letters(one_sided) == {"L": ["B"], "R": []}
    both = [finding("1", "2", "2014-01-01", BILATERAL, "B", "3.0", "")]
    assert embed.side_letters(both) == {"L": ["B"], "R": ["B"]}


@pytest.mark.parametrize(
    ("view", "series", "expected"),
    [
        ("CC", "L CC", "CC"), ("CC", "RXCCL", "XCCL"), ("", "L MLO", "MLO"), ("", "R CC C-View", "CC"),
        ("", "LXCCL", "XCCL"), ("", "L SPOT", ""), ("ML", "L ML", "ML"),
    ],
)  # fmt: skip
def test_view_repair(view: str, series: str, expected: str) -> None:
    assert embed.view_of({"ViewPosition": view, "SeriesDescription": series}) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/mnt/NAS3/mammo/anon_dicom/cohort_2/p/s/i.dcm", "cohort_2/p/s/i.dcm"),
        ("./images/cohort_1/p/i.dcm", "cohort_1/p/i.dcm"),
        ("cohort_1/p/i.dcm", "cohort_1/p/i.dcm"),
        ("/mnt/anon_dicom/../../etc/passwd", None),
        ("/etc/passwd", None),
        ("", None),
    ],
)
def test_paths_are_rerooted_and_stay_inside(text: str, expected: str | None) -> None:
    path = embed.local_path(text)
    assert (None if path is None else path.as_posix()) == expected


def test_invented_tables_give_the_labels_worked_out_by_hand() -> None:
    plan = plan_of(*invented_tables())
    found = {(sample.patient, sample.side): sample for sample in plan.samples}
    assert set(found) == {("90000001", "L"), ("90000001", "R"), ("90000002", "L"), ("90000002", "R")}
    soon = {f"risk{k}": 1 for k in range(1, 6)}
    later = {"risk1": 0, "risk2": 0, "risk3": 0, "risk4": -1, "risk5": -1}
    assert found["90000001", "L"].labels == {"birads": 2, **soon, "density": 2}
    assert found["90000001", "R"].labels == {"birads": 0, **soon, "density": 2}
    for side in "LR":
        assert found["90000002", side].labels == {"birads": 0, **later, "density": 1}
        assert list(found["90000002", side].images) == ["ffdm_cc", "ffdm_mlo"]
        assert list(found["90000001", side].images) == list(MODALITIES)
    assert found["90000001", "L"].images["ffdm_cc"][0].endswith("102030.dcm")  # the later take
    assert plan.excluded["exams"] == {"diagnostic": 2}
    images = plan.excluded["images"]
    assert (images["other_view"], images["earlier_take"], images["of_excluded_exams"]) == (1, 2, 3)
    # every image row is used or counted
    assert sum(len(sample.images) for sample in plan.samples) + images.total() == plan.steps["metadata_rows"]


def test_release_scheme_and_side_scope() -> None:
    plan = plan_of(*invented_tables(), birads_scheme="release", risk_scope="side")
    left, right = plan.samples[:2]
    assert left.labels["birads"] == -1
    assert left.labels["risk1"] == 1
    # the other breast has no cancer of its own and almost no follow-up
    assert [right.labels[f"risk{k}"] for k in range(1, 6)] == [-1] * 5


def test_complete_drops_samples_without_all_modalities() -> None:
    plan = plan_of(*invented_tables(), require="complete")
    assert {sample.patient for sample in plan.samples} == {"90000001"}
    assert plan.excluded["samples"]["incomplete"] == 2


def test_exams_after_cancer_and_of_men_are_dropped() -> None:
    clinical, metadata = invented_tables()
    later = finding("90000001", "9999000000000011", "2016-01-01", BILATERAL, "N", "3.0", "")
    man = finding("90000009", "9999000000000013", "2016-01-01", BILATERAL, "N", "5.0", "")
    clinical += [later, man]
    metadata += [
        image(row["empi_anon"], row["acc_anon"], "2016-01-01", "L CC", "2D", "L", "CC") for row in (later, man)
    ]
    plan = plan_of(clinical, metadata)
    assert plan.excluded["exams"]["prior_cancer"] == 1
    assert plan.excluded["exams"]["male"] == 1
    assert len(plan.samples) == 4


def test_an_exam_of_another_patient_is_not_joined_by_number_alone() -> None:
    clinical, metadata = invented_tables()
    metadata.append(image("90000077", "9999000000000003", "2016-08-11", "L CC", "2D", "L", "CC"))
    plan = plan_of(clinical, metadata)
    assert plan.excluded["exams"]["no_clinical_row"] == 1
    assert len(plan.samples) == 4


def test_neighbouring_sixteen_digit_exams_stay_apart(tmp_path: Path) -> None:
    import csv

    clinical = [
        finding("90000001", exam, "2014-01-01", BILATERAL, letter, "1.0", "")
        for exam, letter in (("9999000000000001", "N"), ("9999000000000000", "B"))
    ] + [finding("", "", "", "", "", "", "")]  # an empty field makes readers that guess turn numbers into floats
    metadata = [
        image("90000001", exam, "2014-01-01", "L CC", "2D", "L", "CC", anon_dicom_path=f"images/cohort_1/{exam}.dcm")
        for exam in ("9999000000000001", "9999000000000000")
    ]
    (tmp_path / "tables").mkdir()
    for name, rows in (("clinical", clinical), ("metadata", metadata)):
        path = tmp_path / "tables" / f"EMBED_OpenData_{name}.csv"
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    plan = plan_of(*embed.read_tables(tmp_path))
    assert {sample.exam: sample.labels["birads"] for sample in plan.samples} == {
        "9999000000000001": 0,
        "9999000000000000": 1,
    }


def test_tables_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        embed.read_tables(tmp_path / "absent")
    with pytest.raises(DataError, match=r"EMBED_OpenData_clinical\.csv"):
        embed.read_tables(tmp_path)
    (tmp_path / "tables").mkdir()
    table = tmp_path / "tables" / "EMBED_OpenData_clinical.csv"
    table.write_text(",".join(name for name in CLINICAL if name != "asses") + "\n")
    with pytest.raises(DataError, match="columns missing: asses"):
        embed.read_tables(tmp_path)
    table.write_text(",".join(CLINICAL) + "\n90000001,9.999e15" + "," * (len(CLINICAL) - 2) + "\n")
    with pytest.raises(DataError, match="acc_anon are not whole numbers") as caught:
        embed.read_tables(tmp_path)
    assert "9.999" not in str(caught.value)


@pytest.mark.parametrize(
    ("table", "column", "value", "name"),
    [
        ("metadata", "FinalImageType", "4D", "unknown_image_type"),
        ("metadata", "ViewPosition", "UP", "unknown_view_position"),
        ("metadata", "ImageLateralityFinal", "X", "unknown_laterality"),
        ("clinical", "asses", "Q", "unknown_birads_letter"),
        ("clinical", "side", "M", "unknown_side"),
        ("clinical", "tissueden", "9", "unknown_tissueden"),
        ("clinical", "path_severity", "12", "unknown_path_severity"),
    ],
)
def test_values_the_documentation_does_not_have_are_counted(table: str, column: str, value: str, name: str) -> None:
    tables = dict(zip(("clinical", "metadata"), invented_tables(), strict=True))
    assert not plan_of(tables["clinical"], tables["metadata"]).violations
    tables[table][0] = {**tables[table][0], column: value}
    assert plan_of(tables["clinical"], tables["metadata"]).violations == {name: 1}


def test_screen_detected_cancers_can_be_left_out() -> None:
    """The first invented patient has her biopsy 26 days after the exam."""
    plan = plan_of(*invented_tables(), exclude_screen_detected=True)  # type: ignore[arg-type]
    assert {sample.patient for sample in plan.samples} == {"90000002"}
    assert plan.excluded["exams"]["screen_detected_cancer"] == 1
