"""Plans and writes the synthetic patients of an EMBED archive: exams, tables, faults, and the truth behind them.

Everything about a patient follows from (seed, patient index), so patients can be made in any order and by any number
of processes. Labels in the truth come from the plan (dates drawn, findings drawn), never from the tables.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date, timedelta

import numpy as np

YEAR = 365.25
CLINICAL_COLUMNS = [
    "empi_anon",
    "acc_anon",
    "cohort_num",
    "study_date_anon",
    "desc",
    "asses",
    "tissueden",
    "side",
    "numfind",
    "total_L_find",
    "total_R_find",
    "path_severity",
    "bside",
    "procdate_anon",
    "pdate_anon",
    "type",
    "path1",
    "age_at_study",
    "ETHNICITY_DESC",
]
METADATA_COLUMNS = [
    "Unnamed: 0",
    "empi_anon",
    "acc_anon",
    "cohort_num",
    "study_date_anon",
    "StudyDescription",
    "SeriesDescription",
    "FinalImageType",
    "ImageLateralityFinal",
    "ViewPosition",
    "spot_mag",
    "Manufacturer",
    "ManufacturerModelName",
    "PatientSex",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "AcquisitionTime",
    "num_roi",
    "ROI_coords",
    "anon_dicom_path",
]
COLUMNS = {
    "tables/EMBED_OpenData_clinical.csv": CLINICAL_COLUMNS,
    "tables/EMBED_OpenData_metadata.csv": METADATA_COLUMNS,
}
# As the table writes them, one with its two spaces; empty where it says nothing
RACES = ("African American  or Black", "Caucasian or White", "Asian", "Unknown, Unavailable or Unreported", "")
RACE_SHARES = (0.42, 0.4, 0.08, 0.06, 0.04)
PREFIXES = ("/mnt/NAS2/mammo/anon_dicom/", "/mnt/NAS3/mammo/anon_dicom/", "./images/")
# Which images show a sign: one factor per (ffdm_cc, ffdm_mlo, syn_cc, syn_mlo)
VISIBILITY = {
    "ffdm_dominant": (1.0, 1.0, 0.3, 0.3),
    "syn_dominant": (0.3, 0.3, 1.0, 1.0),
    "hidden_cc": (0.2, 1.0, 0.2, 1.0),
    "hidden_mlo": (1.0, 0.2, 1.0, 0.2),
}
# Faults of the first thirteen patients of every FAULT_PERIOD
FAULT_PERIOD = 48
FAULT_SLOTS: tuple[tuple[str, ...], ...] = (
    ("missing_contralateral_row",),
    ("repeat_take", "signed_a_day_later"),
    ("xccl_labelled_cc", "duplicate_metadata_row"),
    ("empty_view_position", "sloppy_image_type"),
    ("spot_magnification", "several_findings"),
    ("male_patient",),
    ("assessment_x",),
    ("diagnostic_exam",),
    ("conflicting_density",),
    ("missing_file",),
    ("truncated_file", "garbage_file"),
    ("exam_after_cancer",),
    ("short_file",),
)
FAULTS = tuple(name for slot in FAULT_SLOTS for name in slot)
# Formats that are unusual but valid; present with and without planted faults
VARIETY_SLOTS = {
    1: "monochrome1",
    3: "JPEG2000Lossless",
    4: "RLELossless",
    6: "JPEGLSLossless",
    8: "several_windows",
    9: "JPEGLosslessSV1",
    13: "padding",
}
DENSITY_SHARES = (0.15, 0.35, 0.35, 0.15)
BIRADS = {
    "triage": {"N": 0, "B": 1, "A": 2, "P": 2, "S": 2, "X": -1},
    "release": {"N": 0, "B": 1, "P": 1, "S": 2, "A": -1, "X": -1},
}
SINGLE = ({"L"}, {"R"})
SIGN_CONTRAST, FINDING_CONTRAST = 0.60, 0.34  # in units of the full grey range


@dataclass
class Exam:
    """One exam with images. ``letters``: BI-RADS letter per side examined; ``rows``: its rows of the clinical table."""

    number: int
    accession: str
    day: date
    signed: date
    screening: bool
    desc: str
    letters: dict[str, str]
    years_to_cancer: float | None
    dropped: str | None = None
    rows: list[dict[str, str]] = field(default_factory=list)


@dataclass
class Patient:
    """One synthetic woman (or man) as planned, before images. Times in years are relative to the first exam."""

    index: int
    empi: str
    cohort: int
    faults: frozenset[str]
    variety: str | None
    male: bool
    density: int
    synthesised: bool
    vendor: tuple[str, str]
    prefix: str
    age: float
    race: str
    risk_rule: str
    birads_rule: str
    first_day: date
    event: date | None
    event_side: str
    last_day: date
    exams: list[Exam] = field(default_factory=list)
    later_rows: list[dict[str, str]] = field(default_factory=list)


def _clear_days(rng: np.random.Generator, low: float, high: float, gap: int) -> int:
    """Days in [low, high) years, at least three weeks from a whole year counted from day 0 and from day ``gap``.

    The tables differ by a day in what they call the date of an exam; no label may depend on that.
    """
    while True:
        days = int(rng.uniform(low, high) * YEAR)
        if all(0.06 < (days - start) / YEAR % 1.0 < 0.94 for start in (0, gap)):
            return days


def plan_patient(seed: int, index: int, faults: bool, risk_prevalence: float) -> Patient:
    """Draws one patient: who she is, her exams and what becomes of her."""
    rng = np.random.default_rng([seed, index, 1])
    slot = index % FAULT_PERIOD
    mine = frozenset(FAULT_SLOTS[slot]) if faults and slot < len(FAULT_SLOTS) else frozenset()
    male = "male_patient" in mine
    draws = rng.random(8)
    cancer = (draws[0] < risk_prevalence and not (male or "diagnostic_exam" in mine)) or "exam_after_cancer" in mine
    late_cancer = not (cancer or male or "diagnostic_exam" in mine) and draws[1] < 0.05
    gap = int(rng.uniform(0.95, 1.3) * YEAR)
    synthesised = bool(draws[2] < 0.6) or "sloppy_image_type" in mine or "garbage_file" in mine
    vendor = ("HOLOGIC, Inc.", "Selenia Dimensions")
    if not synthesised and draws[3] < 0.5:
        vendor = (
            ("GE MEDICAL SYSTEMS", "Senographe Essential VERSION ADS_54.10"),
            ("FUJIFILM Corporation", "AMULET Innovality"),
        )[int(draws[3] < 0.12)]
    first = date(2012, 1, 9) + timedelta(days=int(rng.integers(0, 4 * 365)))
    event, follow = None, _clear_days(rng, 0.3, 7.5, gap)
    if cancer or late_cancer:
        span = (0.07, 4.95) if cancer else (5.1, 6.9)
        if "exam_after_cancer" in mine:
            span = (0.07, 0.9)
        event = first + timedelta(days=_clear_days(rng, *span, gap))
    rules = tuple(VISIBILITY) if synthesised else ("hidden_cc", "hidden_mlo")
    patient = Patient(
        index=index,
        empi=str(90000000 + (index * 7919 + seed * 31) % 9999999),
        cohort=1 + int(draws[4] < 0.5),
        faults=mine,
        variety=VARIETY_SLOTS.get(slot),
        male=male,
        density=int(rng.choice(4, p=DENSITY_SHARES)),
        synthesised=synthesised,
        vendor=vendor,
        prefix=PREFIXES[index % 3] if faults else PREFIXES[0],
        age=float(rng.uniform(40, 78)),
        race=str(np.random.default_rng([seed, index, 8]).choice(RACES, p=RACE_SHARES)),  # plays no part in the rest
        risk_rule=rules[int(rng.integers(len(rules)))],
        birads_rule=rules[int(rng.integers(len(rules)))],
        first_day=first,
        event=event,
        event_side="LR"[int(draws[5] < 0.5)],
        last_day=first + timedelta(days=follow),
    )
    second = draws[6] < 0.35 and (first + timedelta(days=gap + 30) < (event or patient.last_day))
    for number in range(1 + int(second)):
        _add_screening(patient, rng, number, first + timedelta(days=gap * number), faults)
    if "diagnostic_exam" in mine:
        _add_diagnostic(patient, first + timedelta(days=25))
    if "exam_after_cancer" in mine and event is not None:
        _add_screening(patient, rng, 5, event + timedelta(days=400), faults, dropped="prior_cancer")
    _add_outcome(patient, rng)
    return patient


def _accession(patient: Patient, number: int) -> str:
    """16 digits above 2**53 and odd: read as a float, neighbours merge."""
    return str(9100000000000001 + 2 * (16 * patient.index + number))


def _letters(patient: Patient, rng: np.random.Generator, years: float | None) -> dict[str, str]:
    """Draws the assessment of both sides: mostly one side carries a finding, close to cancer its own side."""
    letters = {"L": "N", "R": "N"}
    if "assessment_x" in patient.faults:
        return {"L": "X", "R": "X"}
    side = "LR"[int(rng.integers(2))]
    choice = rng.random()
    forced = patient.faults & {"missing_contralateral_row", "conflicting_density", "several_findings"}
    if years is not None and years < 0.5 and choice < 0.7:
        letters[patient.event_side] = "A"
    elif choice < 0.36 or "several_findings" in forced:
        letters[side] = "A"
    elif choice < 0.75 or forced:
        letters[side] = "B"
    other = "R" if side == "L" else "L"
    if letters[other] == "N" and rng.random() < 0.25 and not forced:
        letters[other] = "B"
    return letters


def _row(patient: Patient, exam: Exam, letter: str, side: str, **more: str) -> dict[str, str]:
    row = dict.fromkeys(CLINICAL_COLUMNS, "")
    row.update(
        empi_anon=patient.empi,
        acc_anon=exam.accession,
        cohort_num=str(patient.cohort),
        study_date_anon=exam.signed.isoformat(),
        desc=exam.desc,
        asses=letter,
        tissueden="5.0" if patient.male else f"{patient.density + 1}.0",
        side=side,
        numfind="1",
        total_L_find=f"{int(exam.letters.get('L', 'N') in 'BAPS')}.0",
        total_R_find=f"{int(exam.letters.get('R', 'N') in 'BAPS')}.0",
        age_at_study=f"{patient.age + (exam.day - patient.first_day).days / YEAR:.2f}",
        ETHNICITY_DESC=patient.race,
    )
    row.update(more)
    return row


def _add_screening(
    patient: Patient, rng: np.random.Generator, number: int, day: date, faults: bool, dropped: str | None = None
) -> None:
    """Adds a bilateral screening exam with images and its clinical rows."""
    years = None if patient.event is None else (patient.event - day).days / YEAR
    late = "signed_a_day_later" in patient.faults or (faults and rng.random() < 0.2)
    desc = "MG Screen Bilat w/Tomo/CAD Stnd Protocol" if patient.synthesised else "MG Screening Bilateral w/CAD"
    letters = _letters(patient, rng, years)
    exam = Exam(
        number,
        _accession(patient, number),
        day,
        day + timedelta(days=int(late)),
        True,
        desc,
        letters,
        years,
        "male" if patient.male else dropped,
    )
    if letters["L"] == letters["R"]:
        exam.rows.append(_row(patient, exam, letters["L"], "" if letters["L"] in "NX" else "B"))
    else:
        for side, letter in letters.items():
            if letter == "N" and "missing_contralateral_row" in patient.faults:
                continue
            if letter == "A" and "several_findings" in patient.faults:
                exam.rows.append(_row(patient, exam, "B", side))
                exam.rows.append(_row(patient, exam, letter, side, numfind="2"))
                continue
            more: dict[str, str] = {}
            if letter == "A" and patient.event is None and rng.random() < 0.4:  # a biopsy that found nothing bad
                biopsy = (exam.day + timedelta(days=20)).isoformat()
                more = {"path_severity": "4.0", "type": "B", "path1": "FA", "bside": side, "procdate_anon": biopsy}
            exam.rows.append(_row(patient, exam, letter, side, **more))
    if "conflicting_density" in patient.faults:
        exam.rows[-1]["tissueden"] = f"{(patient.density + 1) % 4 + 1}.0"
    patient.exams.append(exam)


def _add_diagnostic(patient: Patient, day: date) -> None:
    """Adds a diagnostic exam of the left breast only, with images."""
    accession, letters = _accession(patient, 4), {"L": "S"}
    exam = Exam(4, accession, day, day, False, "MG Diagnostic Left w/CAD", letters, None)
    exam.rows.append(_row(patient, exam, "S", "L", numfind="1"))
    exam.rows.append(_row(patient, exam, "P", "L", numfind="2"))
    patient.exams.append(exam)


def _add_outcome(patient: Patient, rng: np.random.Generator) -> None:
    """Adds what happened later, without images: the biopsy that found cancer, or the last negative exam."""
    if patient.event is None:
        day, desc = patient.last_day, "MG Screening Bilateral"
        if patient.exams and day <= max(exam.signed for exam in patient.exams):
            return
        exam = Exam(8, _accession(patient, 8), day, day, True, desc, {"L": "N", "R": "N"}, None)
        patient.later_rows.append(_row(patient, exam, "N", ""))
        return
    style = rng.random()
    before = max(exam.day for exam in patient.exams if exam.dropped != "prior_cancer")
    day = patient.event if style > 0.8 else max(patient.event - timedelta(days=9), before + timedelta(days=2))
    side = patient.event_side
    exam = Exam(
        8,
        _accession(patient, 8),
        day,
        day,
        False,
        f"MG Diagnostic {'Left' if side == 'L' else 'Right'} w/CAD",
        {side: "M"},
        None,
    )
    invasive = rng.random() < 0.75
    known = {"path_severity": "0.0" if invasive else "1.0", "type": "B", "path1": "ID" if invasive else "DC"}
    known["bside"] = side if rng.random() < 0.8 else ""
    if style <= 0.65:
        known["procdate_anon"] = patient.event.isoformat()
        known["pdate_anon"] = f"{patient.event + timedelta(days=2)} 00:00:00"
    elif style <= 0.8:
        known["pdate_anon"] = f"{patient.event} 00:00:00"
    patient.later_rows.append(_row(patient, exam, "M", side, **known))


def risk_labels(patient: Patient, exam: Exam) -> dict[str, int]:
    """``risk1..risk5`` of an exam by the dates planned; -1 where follow-up is too short and for diagnostic exams."""
    if not exam.screening or exam.dropped:
        return {f"risk{k}": -1 for k in range(1, 6)}
    if exam.years_to_cancer is not None:
        return {f"risk{k}": int(exam.years_to_cancer < k) for k in range(1, 6)}
    last = max([patient.last_day, *(other.day for other in patient.exams)])
    followed = (last - exam.day).days / YEAR
    return {f"risk{k}": 0 if followed >= k else -1 for k in range(1, 6)}


def expected_labels(patient: Patient, exam: Exam, side: str) -> dict[str, dict[str, int]]:
    """All labels of one breast, per BI-RADS scheme."""
    density = -1 if patient.male or "conflicting_density" in patient.faults else patient.density
    risks = risk_labels(patient, exam)
    return {
        scheme: {"birads": codes[exam.letters[side]], **risks, "density": density} for scheme, codes in BIRADS.items()
    }
