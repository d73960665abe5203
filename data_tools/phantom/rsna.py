"""Synthetic patients in the layout of RSNA Screening Mammography 2023, with the faults of the real archive.

Everything about a patient follows from (seed, patient index). Labels in the truth come from the plan, never from the
table.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.archives.rsna import COLUMNS as TABLE_COLUMNS
from data_tools.phantom.dicom import DicomFacts, uid
from data_tools.phantom.screening import (
    FAULT_PERIOD,
    Image,
    Side,
    Take,
    cut_off,
    draw_sides,
    ordinary_takes,
    planted,
    truth,
    write_takes,
)

COLUMNS = {"train.csv": list(TABLE_COLUMNS)}
FAULT_SLOTS: tuple[tuple[str, ...], ...] = (
    ("second_take",),
    ("other_views",),
    ("missing_file",),
    ("truncated_file",),
    ("values_beyond_bits_stored",),
    ("implant",),
    ("contradictory_density",),
    ("contradictory_birads",),
    ("missing_age",),
    ("low_dynamic_range",),
)
FAULTS = (*(name for slot in FAULT_SLOTS for name in slot), "site_without_labels")
VARIETY_SLOTS = {
    0: "JPEG2000Lossless",
    1: "JPEGLosslessSV1",
    3: "monochrome1",
    5: "several_windows",
    8: "SIGMOID",
    9: "LINEAR_EXACT",
    10: "JPEG2000Lossless",
}
MACHINES = {1: ("49", "93", "170"), 2: ("21", "29", "48")}
BIRADS = {"none": 1.0, "smooth": 2.0, "spiculated": 0.0}
EXPECTED = {
    "triage": {1.0: 0, 2.0: 1, 0.0: 2},
    "release": {1.0: 0, 2.0: 1, 0.0: -1},
    "native_rsna": {1.0: 1, 2.0: 2, 0.0: 0},
}


@dataclass(frozen=True)
class _Patient:
    """One woman as planned, before images.

    Attributes:
        number: number of the patient in the table.
        first_image: number of her first image.
        site: 1 knows all labels, 2 only recalls.
        density: BI-RADS density A..D as 0..3.
        sides: her breasts.
        codes: BI-RADS planted, per side.
        texts: BI-RADS in the table, per side.
        faults: planted in her images and rows.
        variety: what is unusual but valid about her images.
        takes: her images in the order of the table.
        markers: numbers of the takes with letters burnt in.
    """

    number: str
    first_image: int
    site: int
    density: int
    sides: dict[str, Side]
    codes: dict[str, float]
    texts: dict[str, str]
    faults: frozenset[str]
    variety: str | None
    takes: tuple[Take, ...]
    markers: frozenset[int]

    @property
    def age(self) -> int:
        """Her age in whole years, which shows in nothing else."""
        return 36 + int(self.number) * 13 % 46

    def image(self, take: Take) -> str:
        """Number of the image of a take."""
        return str(self.first_image + take.number)


def _plan_takes(faults: frozenset[str]) -> list[Take]:
    takes = ordinary_takes()
    if "second_take" in faults:  # the better take has the higher number, so the area decides, not the order
        takes[0] = replace(takes[0], spoilt=True)
        takes.append(Take("L", "ffdm_cc", "CC", 10))
        takes.append(Take("R", "ffdm_mlo", "MLO", 11, spoilt=True))
    if "other_views" in faults:
        takes += [Take("L", "ffdm_mlo", view, 10 + n) for n, view in enumerate(("AT", "LM", "ML", "LMO"))]
    if "missing_file" in faults:
        takes[1] = replace(takes[1], fate="missing")
    if "truncated_file" in faults:
        takes[2] = replace(takes[2], fate="truncated")
    if "values_beyond_bits_stored" in faults:  # as in the real archive: every image of one patient
        takes = [replace(take, fate="beyond_bits") for take in takes]
    return takes


def _plan(seed: int, index: int, faults: bool, risk_prevalence: float) -> _Patient:
    """Draws one patient: her breasts, what the table says of them, and her images."""
    slot = index % FAULT_PERIOD
    mine = planted(FAULT_SLOTS, index, faults)
    site = 2 if faults and slot >= len(FAULT_SLOTS) and slot % 4 == 3 else 1
    density, sides = draw_sides(seed, index, risk_prevalence)
    rng = np.random.default_rng([seed, index, 6])
    codes = {name: BIRADS[side.finding] for name, side in sides.items()}
    recalled = {name: codes["R" if name == "L" else "L"] == 0.0 and rng.random() < 0.5 for name in "LR"}
    if "contradictory_birads" in mine:
        recalled["L"] = False  # an empty field contradicts nothing
    takes = tuple(_plan_takes(mine))
    return _Patient(
        number=str(10000 + index * 7 + seed % 7),
        first_image=1_000_000_000 + index * 100,
        site=site,
        density=density,
        sides=sides,
        codes=codes,
        texts={name: _birads_text(codes[name], site, recalled[name]) for name in "LR"},
        faults=mine,
        variety=VARIETY_SLOTS.get(slot),
        takes=takes,
        markers=frozenset(take.number for take in takes if rng.random() < 0.3),
    )


def _birads_text(code: float, site: int, other_is_recalled: bool) -> str:
    """BI-RADS as the table has it: site 2 knows only recalls; if one breast is recalled, the other is often empty."""
    if site == 2 and code != 0.0:
        return ""
    return "" if other_is_recalled and code != 0.0 else str(code)


def _facts(patient: _Patient, take: Take) -> DicomFacts:
    variety = patient.variety
    window: tuple[tuple[int, int], ...] = ((2047, 4096),)
    if variety == "several_windows":
        window = (*window, (2300, 2048), (1800, 3000))
    return DicomFacts(
        patient=patient.number,
        accession="",
        study_uid=uid("rsna study", patient.number),
        series_uid=uid("rsna series", patient.number),
        sop_uid=uid("rsna", patient.image(take)),
        date="2000-01-01",
        time="101500",
        study_description="",
        series_description="",
        side=take.side,
        view=take.view if take.usable else "MLO",
        sex="F",
        manufacturer="HOLOGIC, Inc.",
        model="Selenia Dimensions",
        bits=12,
        window=window,
        syntax=variety if variety and variety.startswith("JPEG") else "ExplicitVRLittleEndian",
        monochrome1=variety == "monochrome1",
        voi_function=variety if variety in ("SIGMOID", "LINEAR_EXACT") else "",
    )


def _draw(root: Path, patient: _Patient, take: Take) -> Image:
    pixels = patient.sides[take.side].image(take.modality, take.number, marker=take.number in patient.markers)
    if take.spoilt:
        pixels = cut_off(pixels)
    if "low_dynamic_range" in patient.faults:
        pixels = pixels // 40 + 3000  # a hundred grey levels high up in the range
    path = root / "train_images" / patient.number / f"{patient.image(take)}.dcm"
    return Image(path, _facts(patient, take), pixels)


def _row(patient: _Patient, take: Take) -> dict[str, str]:
    letter = "" if patient.site == 2 else "ABCD"[patient.density]
    if "contradictory_density" in patient.faults and take.number == 3:
        letter = "ABCD"[(patient.density + 1) % 4]
    birads = patient.texts[take.side]
    if "contradictory_birads" in patient.faults and take.number == 1:
        birads = "2.0" if birads != "2.0" else "1.0"
    machines = MACHINES[patient.site]
    return {
        "site_id": str(patient.site),
        "patient_id": patient.number,
        "image_id": patient.image(take),
        "laterality": take.side,
        "view": take.view,
        "age": "" if "missing_age" in patient.faults else f"{patient.age}.0",
        "cancer": "0",
        "biopsy": "0",
        "invasive": "0",
        "BIRADS": birads,
        "implant": str(int("implant" in patient.faults)),
        "density": letter,
        "machine_id": machines[patient.sides[take.side].index % len(machines)],
        "difficult_negative_case": "False",
    }


def _truth(patient: _Patient, side: Side, present: set[str]) -> dict[str, Any]:
    contradictory = "contradictory_birads" in patient.faults and side.side == "L"
    no_birads = patient.texts[side.side] == "" or patient.site == 2 or contradictory
    no_density = patient.site == 2 or "contradictory_density" in patient.faults
    labels = {
        scheme: {
            "density": -1 if no_density else patient.density,
            "birads": -1 if no_birads else codes[patient.codes[side.side]],
        }
        for scheme, codes in EXPECTED.items()
    }
    return truth(patient.number, side, present, labels)


def _count_faults(patient: _Patient) -> Counter[str]:
    counts: Counter[str] = Counter(patient.faults - {"other_views", "second_take"})
    counts["other_views"] = sum(not take.usable for take in patient.takes)
    counts["second_take"] = sum(take.number >= 10 and take.usable for take in patient.takes)
    counts["site_without_labels"] = int(patient.site == 2)
    return counts


def make_patient(root: Path, seed: int, index: int, faults: bool, risk_prevalence: float) -> dict[str, Any]:
    """Writes the images of one patient below ``root`` and returns the rest.

    Returns:
        ``tables`` (rows by path), ``samples`` of the truth, ``faults`` and ``variety`` counts, ``files``.
    """
    patient = _plan(seed, index, faults, risk_prevalence)
    variety: Counter[str] = Counter()

    def draw(take: Take) -> Image:
        image = _draw(root, patient, take)
        variety.update([image.facts.syntax, patient.variety or "plain"])
        return image

    written = write_takes(patient.takes, draw, lambda take, image: {"train.csv": _row(patient, take)})
    return {
        "tables": written.tables,
        "samples": [_truth(patient, side, written.present[name]) for name, side in patient.sides.items()],
        "faults": _count_faults(patient),
        "variety": variety,
        "files": written.files,
    }
