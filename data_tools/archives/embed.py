"""EMBED: its two tables, their repair, and the labels of one breast of one screening exam.

Everything is read as text: exam numbers have 16 digits and lose their last ones as floating-point numbers. Nothing is
dropped without being counted under a reason.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Any

from data_tools.archives.embed_tables import AGE, RACE, SPELLINGS, read_tables
from data_tools.archives.groups import first_said
from data_tools.archives.plan import ArchiveOptions, ArchivePlan, Row, Sample
from data_tools.archives.published import Published
from m4oe_ds.data.cards import find_card
from m4oe_ds.data.schema import MISSING, SPLITS
from m4oe_ds.errors import DataError

SIZE, CONVERTER = (1024, 832), "mammogram"
CHOOSE, ONLY_WOMEN = "first", True
ATTRIBUTES = (AGE, RACE)
HORIZONS = (1, 2, 3, 4, 5)
NO_CANCER = 100  # years to cancer where none is known
DAYS_PER_YEAR = 365.25
CANCER = (0, 1)  # path_severity of invasive and in-situ cancer
SEVERITY = "KMSPABN"  # most severe first; X and empty say nothing
BIRADS_SCHEMES: dict[str, dict[str, int]] = {
    "triage": {"N": 0, "B": 1, "A": 2, "P": 2, "S": 2, "M": 2, "K": 2},
    "release": {"N": 0, "B": 1, "P": 1, "S": 2, "M": 2, "K": 2},
}
_IMAGE_TYPES = {"2d": "ffdm", "cview": "syn"}
_OTHER_IMAGE_TYPES = ("3d", "roi_ssc", "roi_ss")  # documented, not used
_OTHER_VIEWS = (
    "XCCL", "XCCM", "ML", "LM", "LMO", "AT", "CV", "RCC", "FB", "SIO", "ISO", "XCC", "RM", "RL", "SPECIMEN",
)  # fmt: skip
_LETTERS = "ANBPSMKX"
_SCREEN_DETECTED_DAYS = 183  # a cancer found within six months was found by the exam


# ---------------------------------------------------------------------------------------------------- labels


def density_label(values: Iterable[str]) -> int:
    """Code 0..3 of density A..D from all ``tissueden`` of an exam; MISSING if absent, male (5) or in conflict."""
    found = {number for number in map(_number, values) if number in (1.0, 2.0, 3.0, 4.0)}
    return int(found.pop()) - 1 if len(found) == 1 else MISSING


def exam_sides(desc: str) -> str:
    """Sides an exam looked at, by its description: ``LR``, ``L``, ``R`` or empty if it does not say."""
    text = desc.lower()
    if "bilat" in text:
        return "LR"
    return "L" if "left" in text else "R" if "right" in text else ""


def side_letters(rows: Sequence[Row]) -> dict[str, list[str]]:
    """BI-RADS letters per side from the clinical rows of one exam.

    A row without a side, or with side B, speaks of both. A bilateral exam whose findings are all on one side has no
    row for the other side, which was negative: it gets an ``N``.
    """
    letters: dict[str, list[str]] = {"L": [], "R": []}
    named: set[str] = set()
    for row in rows:
        side = row["side"].strip().upper()
        sides = side if side in ("L", "R") else "LR"
        named.update(sides)
        for one in sides:
            letters[one].append(row["asses"].strip().upper())
    bilateral = any(exam_sides(row["desc"]) == "LR" for row in rows)
    if bilateral and len(named) == 1:
        letters["R" if "L" in named else "L"].append("N")
    return letters


def worst_letter(letters: Iterable[str]) -> str:
    """The most severe of some BI-RADS letters; empty if none says anything."""
    found = [letter for letter in letters if letter and letter in SEVERITY]
    return min(found, key=SEVERITY.index) if found else ""


def birads_label(letters: Iterable[str], scheme: str) -> int:
    """Code of the most severe letter under a scheme of BIRADS_SCHEMES; MISSING if the scheme has none for it."""
    return BIRADS_SCHEMES[scheme].get(worst_letter(letters), MISSING)


def whole_years(start: date, end: date) -> int:
    """Whole years of 365.25 days from ``start`` to ``end``, rounded down."""
    return math.floor((end - start).days / DAYS_PER_YEAR)


def risk_labels(index: date, event: date | None, last: date) -> dict[str, int]:
    """``risk1..risk5``: cancer within k years of the index exam.

    Args:
        index: date of the exam.
        event: date of the first cancer, on or after ``index``; None if none is known.
        last: last date anything is known of the patient.

    Returns:
        1 within k years; 0 if known to be free of cancer for k years; MISSING if follow-up is shorter.
    """
    to_cancer = NO_CANCER if event is None else whole_years(index, event)
    followed = whole_years(index, last)
    out = {}
    for k in HORIZONS:
        if to_cancer < k:
            out[f"risk{k}"] = 1
        else:
            out[f"risk{k}"] = 0 if event is not None or followed >= k else MISSING
    return out


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def parse_date(text: str) -> date | None:
    """Date of ``YYYY-MM-DD`` with or without a time; None for anything else."""
    try:
        return date.fromisoformat(text.strip()[:10])
    except ValueError:
        return None


def cancer_events(rows: Iterable[Row]) -> list[tuple[date, str]]:
    """(date, sides) of every clinical row with a cancer specimen; sides are ``L``, ``R`` or ``LR``."""
    events = []
    for row in rows:
        if _number(row["path_severity"]) not in CANCER:
            continue
        dates = (parse_date(row[name]) for name in ("procdate_anon", "pdate_anon", "study_date_anon"))
        day = next((day for day in dates if day is not None), None)
        if day is not None:
            side = (row["bside"].strip() or row["side"].strip()).upper()
            events.append((day, side if side in ("L", "R") else "LR"))
    return sorted(events)


# ---------------------------------------------------------------------------------------------------- images


def view_of(row: Row) -> str:
    """View of an image after repair, e.g. ``CC``, ``MLO``, ``XCCL``; empty if unknown.

    Exaggerated views are entered as CC in some rows, and some rows leave the view empty; the series says which it is.
    """
    view, series = row["ViewPosition"].strip().upper(), row["SeriesDescription"].strip().upper()
    if "XCC" in series:
        return "XCCL"
    if not view or view == "NAN":
        return "MLO" if "MLO" in series else "CC" if "CC" in series else ""
    return view


def image_exclusion(row: Row) -> tuple[str, str]:
    """(modality, reason): one of them is empty. The modality is e.g. ``ffdm_cc``."""
    kind = _IMAGE_TYPES.get(row["FinalImageType"].strip().lower(), "")
    if not kind:
        return "", "other_image_type"
    if row["ImageLateralityFinal"].strip().upper() not in ("L", "R"):
        return "", "unknown_laterality"
    spot = row["spot_mag"].strip()
    if spot and _number(spot) != 0 and spot.lower() != "nan":
        return "", "spot_or_magnification"
    view = view_of(row)
    if view not in ("CC", "MLO"):
        return "", "other_view" if view else "unknown_view"
    return f"{kind}_{view.lower()}", ""


def local_path(text: str) -> PurePosixPath | None:
    """Path below ``images/`` of an ``anon_dicom_path``; what stands before it is a folder of the curators."""
    text = text.strip().replace("\\", "/")
    rest = re.split(r"(?:^|/)(?:anon_dicom|images)/", text)[-1]
    path = PurePosixPath(rest)
    return None if not rest or path.is_absolute() or ".." in path.parts else path


# ---------------------------------------------------------------------------------------------------- tables


def plan_archive(root: Path, options: ArchiveOptions) -> ArchivePlan:
    """What the tables of an EMBED archive say.

    Raises:
        DataError: see :func:`read_tables`; a BI-RADS scheme that EMBED's letters do not have.
    """
    if options.birads_scheme not in BIRADS_SCHEMES:
        raise DataError(
            f"{options.birads_scheme!r} is not defined for EMBED", "--birads-scheme", f"use {', '.join(BIRADS_SCHEMES)}"
        )
    clinical, metadata = read_tables(root)
    return build_plan(clinical, metadata, find_card("embed").modalities, options)


def take_order(row: Row) -> tuple[float, str]:
    """Later takes are the accepted ones; the path decides between takes of the same time."""
    time = _number(row["AcquisitionTime"])
    return (-1.0 if math.isnan(time) else time), row["anon_dicom_path"]


def _group_images(metadata: Sequence[Row], plan: ArchivePlan) -> dict[tuple[str, str], list[Row]]:
    """Metadata rows with identifiers and a usable path, each path once, per (patient, exam); others are counted."""
    excluded = plan.excluded["images"]
    exams: dict[tuple[str, str], list[Row]] = defaultdict(list)
    seen: set[str] = set()
    for row in metadata:
        path = row["anon_dicom_path"].strip()
        if not row["empi_anon"] or not row["acc_anon"]:
            excluded["no_identifier"] += 1
        elif path in seen:
            excluded["duplicate_row"] += 1
        elif local_path(path) is None:
            excluded["bad_path"] += 1
        else:
            seen.add(path)
            exams[row["empi_anon"], row["acc_anon"]].append(row)
    return exams


def _exam_drop_reason(findings: Sequence[Row], images: Sequence[Row]) -> str:
    """Why an exam cannot be an index exam, before dates are looked at; empty if it can."""
    if not findings:
        return "no_clinical_row"
    descriptions = {row["desc"].strip().lower() for row in findings} - {""}
    if not descriptions:
        return "no_description"
    screening = any("screen" in text for text in descriptions)
    if not screening:
        return "diagnostic" if any("diag" in text for text in descriptions) else "other_exam"
    if any("diag" in text for text in descriptions):
        return "contradictory_description"
    male = any(row["PatientSex"].strip().upper() in ("M", "MALE") for row in images)
    male = male or any(row["GENDER_DESC"].strip().lower() in ("m", "male") for row in findings)
    return "male" if male or any(_number(row["tissueden"]) == 5.0 for row in findings) else ""


def _count_unknown(clinical: Sequence[Row], metadata: Sequence[Row], plan: ArchivePlan) -> None:
    """Counts values that the archive's documentation does not have."""
    found = plan.violations
    for row in metadata:
        kind, view = row["FinalImageType"].strip().lower(), row["ViewPosition"].strip().upper()
        found["unknown_image_type"] += kind not in _IMAGE_TYPES and kind not in _OTHER_IMAGE_TYPES
        found["unknown_view_position"] += view not in ("", "NAN", "CC", "MLO", *_OTHER_VIEWS)
        found["unknown_laterality"] += row["ImageLateralityFinal"].strip().upper() not in ("L", "R", "B", "", "NAN")
    for row in clinical:
        found["unknown_birads_letter"] += row["asses"].strip().upper() not in ("", *_LETTERS)
        found["unknown_side"] += row["side"].strip().upper() not in ("", "L", "R", "B")
        for name, codes in (("tissueden", range(1, 6)), ("path_severity", range(7))):
            text = row[name].strip()
            found[f"unknown_{name}"] += bool(text) and _number(text) not in codes
    plan.violations = +found  # only what occurred


def _exam_views(images: Sequence[Row], plan: ArchivePlan) -> dict[str, dict[str, Row]]:
    """Chosen image row per side and modality of an exam."""
    excluded = plan.excluded["images"]
    chosen: dict[str, dict[str, Row]] = {"L": {}, "R": {}}
    for row in sorted(images, key=take_order, reverse=True):
        modality, reason = image_exclusion(row)
        if reason:
            excluded[reason] += 1
            continue
        if row["ViewPosition"].strip() == "":
            plan.notes["view_recovered_from_series"] += 1
        views = chosen[row["ImageLateralityFinal"].strip().upper()]
        if modality in views:
            excluded["earlier_take"] += 1
        else:
            views[modality] = row
    return chosen


def _count_findings(findings: Sequence[Row], density: int, plan: ArchivePlan) -> None:
    """Notes what is odd in the clinical rows of a kept exam."""
    if density == MISSING and len({_number(row["tissueden"]) for row in findings} & {1.0, 2.0, 3.0, 4.0}) > 1:
        plan.notes["density_conflict"] += 1
    if any(row["asses"].strip().upper() in tuple("PSMK") for row in findings):
        plan.notes["screening_exam_with_diagnostic_letter"] += 1
    named = {row["side"].strip().upper() for row in findings}
    if len(named) == 1 and named <= {"L", "R"} and any(exam_sides(row["desc"]) == "LR" for row in findings):
        plan.notes["contralateral_negative_added"] += 1


def build_plan(
    clinical: Sequence[Row], metadata: Sequence[Row], modalities: Sequence[str], options: ArchiveOptions
) -> ArchivePlan:
    """Samples with labels and images from the rows of both tables, in order of patient, exam, side.

    Args:
        clinical: rows of the clinical table, as :func:`read_tables` returns them.
        metadata: rows of the metadata table, as :func:`read_tables` returns them.
        modalities: names of the modalities, in the order in which samples list them.
    """
    plan = ArchivePlan(steps={"clinical_rows": len(clinical), "metadata_rows": len(metadata)})
    _count_unknown(clinical, metadata, plan)
    images = _group_images(metadata, plan)
    by_patient: dict[str, list[Row]] = defaultdict(list)
    by_exam: dict[tuple[str, str], list[Row]] = defaultdict(list)
    dates: dict[str, list[date]] = defaultdict(list)
    for row in clinical:
        by_patient[row["empi_anon"]].append(row)
        by_exam[row["empi_anon"], row["acc_anon"]].append(row)
        for name in ("study_date_anon", "procdate_anon", "pdate_anon"):
            if (day := parse_date(row[name])) is not None:
                dates[row["empi_anon"]].append(day)
    for row in metadata:
        if (day := parse_date(row["study_date_anon"])) is not None:
            dates[row["empi_anon"]].append(day)
    plan.steps["exams_with_images"] = len(images)
    events = {patient: cancer_events(rows) for patient, rows in by_patient.items()}
    for (patient, exam), rows in sorted(images.items()):
        findings = by_exam.get((patient, exam), [])
        _add_exam(plan, patient, exam, findings, rows, events.get(patient, []), dates[patient], modalities, options)
    plan.notes = +plan.notes  # only what occurred
    plan.count_planned()
    return plan


def _earliest(rows: Sequence[Row]) -> date | None:
    return min((day for row in rows if (day := parse_date(row["study_date_anon"])) is not None), default=None)


def _add_exam(
    plan: ArchivePlan,
    patient: str,
    exam: str,
    findings: Sequence[Row],
    rows: Sequence[Row],
    events: Sequence[tuple[date, str]],
    dates: Sequence[date],
    modalities: Sequence[str],
    options: ArchiveOptions,
) -> None:
    """Adds the samples of one exam to the plan, or counts why it has none."""
    reason = _exam_drop_reason(findings, rows)
    # the day of acquisition; the clinical table has the day the report was signed
    index = _earliest(rows) or _earliest(findings)
    if not reason and index is None:
        reason = "no_date"
    if not reason and index is not None and events and events[0][0] < index:
        reason = "prior_cancer"
    if not reason and index is not None and options.exclude_screen_detected and events:
        reason = "screen_detected_cancer" if (events[0][0] - index).days <= _SCREEN_DETECTED_DAYS else ""
    if reason or index is None:
        plan.excluded["exams"][reason] += 1
        plan.excluded["images"]["of_excluded_exams"] += len(rows)
        return
    last = max(dates)
    density = density_label(row["tissueden"] for row in findings)
    _count_findings(findings, density, plan)
    letters = side_letters(findings)
    looked_at = "".join(exam_sides(row["desc"]) for row in findings) or "LR"
    for side, views in _exam_views(rows, plan).items():
        names = [name for name in modalities if name in views]
        if side not in looked_at and names:
            plan.notes["images_of_a_side_the_description_does_not_name"] += 1
        if not names or (options.require == "complete" and len(names) < len(modalities)):
            plan.excluded["samples"]["incomplete" if names else "no_image"] += 1
            plan.excluded["images"]["of_excluded_samples"] += len(names)
            continue
        mine = [day for day, sides in events if options.risk_scope == "exam" or side in sides]
        labels = {
            "birads": birads_label(letters[side], options.birads_scheme),
            **risk_labels(index, mine[0] if mine else None, last),
            "density": density,
        }
        plan.notes["implant_images"] += sum(
            views[name]["BreastImplantPresent"].strip().upper() == "YES" for name in names
        )
        plan.samples.append(_sample((patient, exam, side), labels, {name: views[name] for name in names}, findings))


def _sample(who: tuple[str, str, str], labels: dict[str, int], views: Mapping[str, Row], exam: Sequence[Row]) -> Sample:
    """One breast, given the rows of its images by view and those of its exam."""
    risks = [labels[f"risk{k}"] for k in HORIZONS if labels[f"risk{k}"] != MISSING]
    if risks != sorted(risks):
        raise AssertionError("risk labels fall with the horizon")  # cannot happen: an error of this module
    paths: dict[str, tuple[str, ...]] = {
        name: (f"images/{path}",)
        for name, row in views.items()
        if (path := local_path(row["anon_dicom_path"])) is not None
    }
    maker = next(iter(views.values()))["Manufacturer"]
    return Sample(*who, labels, paths, screening=True, manufacturer=maker, attributes=first_said(exam, SPELLINGS))


def published(_: Mapping[str, Any]) -> list[Published]:
    """Shares of the densities per breast; counts differ between the drops of the tables."""
    density = {"0": 0.099, "1": 0.419, "2": 0.428, "3": 0.054}
    return [Published("published", SPLITS, {"density": density}, counted=False)]
