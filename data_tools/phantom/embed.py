"""Makes one synthetic patient of an EMBED archive: images, table rows, and the truth behind them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from data_tools.phantom.embed_images import write_exam
from data_tools.phantom.embed_plan import COLUMNS, FAULTS, PREFIXES, SINGLE, Patient, plan_patient

__all__ = ["COLUMNS", "FAULTS", "make_patient"]  # what every layout says


def make_patient(root: Path, seed: int, index: int, faults: bool, risk_prevalence: float) -> dict[str, Any]:
    """Writes the images of one patient below ``root`` and returns the rest.

    Returns:
        ``tables`` (rows by path), ``samples`` of the truth, ``faults`` and ``variety`` counts, ``files``.
    """
    patient = plan_patient(seed, index, faults, risk_prevalence)
    result: dict[str, Any] = {
        "tables": {
            "tables/EMBED_OpenData_clinical.csv": [row for exam in patient.exams for row in exam.rows]
            + patient.later_rows,
            "tables/EMBED_OpenData_metadata.csv": [],
        },
        "samples": [],
        "faults": Counter(),
        "variety": Counter(),
        "files": 0,
    }
    for exam in patient.exams:
        part = write_exam(root, seed, patient, exam)
        result["tables"]["tables/EMBED_OpenData_metadata.csv"].extend(part["metadata"])
        result["samples"].extend(part["samples"])
        for key in ("faults", "variety"):
            result[key].update(part[key])
        result["files"] += part["files"]
    _count_table_faults(patient, result["faults"])
    return result


def _count_table_faults(patient: Patient, counts: Counter[str]) -> None:
    """Counts the faults that sit in the clinical table; those of images are counted where they are made."""
    counts["male_patient"] += int(patient.male)
    for exam in patient.exams:
        sides = [row["side"] for row in exam.rows]
        counts["missing_contralateral_row"] += int(exam.screening and len(exam.letters) == 2 and set(sides) in SINGLE)
        counts["several_findings"] += int(len(sides) > len(set(sides)))
    for name in ("conflicting_density", "assessment_x"):
        counts[name] += sum(exam.screening for exam in patient.exams) if name in patient.faults else 0
    counts["diagnostic_exam"] += sum(not exam.screening for exam in patient.exams)
    counts["exam_after_cancer"] += sum(exam.dropped == "prior_cancer" for exam in patient.exams)
    counts["signed_a_day_later"] += sum(exam.signed != exam.day for exam in patient.exams)
    counts["foreign_path_prefix"] += int(patient.prefix != PREFIXES[0])
