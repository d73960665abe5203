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
from data_tools.phantom.dicom import DicomFacts
from data_tools.phantom.screening import MODALITIES, Side, cut_off, draw_sides, uid, write_fated

COLUMNS = {"train.csv": list(TABLE_COLUMNS)}
FAULT_PERIOD = 24
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
    0: "JPEG2000Lossless", 1: "JPEGLosslessSV1", 3: "monochrome1", 5: "several_windows", 8: "SIGMOID", 9: "LINEAR_EXACT",
    10: "JPEG2000Lossless",
}  # fmt: skip
MACHINES = {1: ("49", "93", "170"), 2: ("21", "29", "48")}
BIRADS = {"none": 1.0, "smooth": 2.0, "spiculated": 0.0}
EXPECTED = {
    "triage": {1.0: 0, 2.0: 1, 0.0: 2}, "release": {1.0: 0, 2.0: 1, 0.0: -1}, "native_rsna": {1.0: 1, 2.0: 2, 0.0: 0}
}  # fmt: skip


@dataclass(frozen=True)
class _Take:
    """One image file. ``usable``: a CC or MLO view; ``spoilt``: shows less of the breast than another take."""

    side: str
    modality: str
    view: str
    number: int
    fate: str = "ok"
    spoilt: bool = False

    @property
    def usable(self) -> bool:
        return self.view in ("CC", "MLO")


def _plan_takes(faults: frozenset[str]) -> list[_Take]:
    takes = [
        _Take(side, name, name.split("_")[1].upper(), number)
        for number, (side, name) in enumerate((side, name) for side in "LR" for name in MODALITIES)
    ]
    if "second_take" in faults:  # the better take has the higher number, so the area decides, not the order
        takes[0] = replace(takes[0], spoilt=True)
        takes.append(_Take("L", "ffdm_cc", "CC", 10))
        takes.append(_Take("R", "ffdm_mlo", "MLO", 11, spoilt=True))
    if "other_views" in faults:
        takes += [_Take("L", "ffdm_mlo", view, 10 + n) for n, view in enumerate(("AT", "LM", "ML", "LMO"))]
    if "missing_file" in faults:
        takes[1] = replace(takes[1], fate="missing")
    if "truncated_file" in faults:
        takes[2] = replace(takes[2], fate="truncated")
    if "values_beyond_bits_stored" in faults:  # as in the real archive: every image of one patient
        takes = [replace(take, fate="beyond_bits") for take in takes]
    return takes


def _facts(patient: str, image: str, take: _Take, variety: str | None) -> DicomFacts:
    window: tuple[tuple[int, int], ...] = ((2047, 4096),)
    if variety == "several_windows":
        window = (*window, (2300, 2048), (1800, 3000))
    return DicomFacts(
        patient, "", uid("rsna study", patient), uid("rsna series", patient), uid("rsna", image), "2000-01-01", "101500",
        "", "", take.side, take.view if take.usable else "MLO", "F", "HOLOGIC, Inc.", "Selenia Dimensions", 12, window,
        syntax=variety if variety and variety.startswith("JPEG") else "ExplicitVRLittleEndian",
        monochrome1=variety == "monochrome1",
        voi_function=variety if variety in ("SIGMOID", "LINEAR_EXACT") else "",
    )  # fmt: skip


def _row(
    site: int, patient: str, image: str, take: _Take, side: Side, birads: str, density: str, faults: frozenset[str]
) -> dict[str, str]:
    machines = MACHINES[site]
    return dict(
        zip(
            TABLE_COLUMNS,
            (
                str(site), patient, image, take.side, take.view, "" if "missing_age" in faults else "58.0", "0", "0", "0",
                birads, str(int("implant" in faults)), density, machines[side.index % len(machines)], "False",
            ),
            strict=True,
        )
    )  # fmt: skip


def _birads_text(code: float, site: int, other_is_recalled: bool) -> str:
    """As the table has it: site 2 knows only recalls; where one breast is recalled, the other is often empty."""
    if site == 2 and code != 0.0:
        return ""
    return "" if other_is_recalled and code != 0.0 else str(code)


def make_patient(root: Path, seed: int, index: int, faults: bool, risk_prevalence: float) -> dict[str, Any]:
    """Writes the images of one patient below ``root`` and returns the rest.

    Returns:
        ``tables`` (rows by path), ``samples`` of the truth, ``faults`` and ``variety`` counts, ``files``.
    """
    slot = index % FAULT_PERIOD
    mine = frozenset(FAULT_SLOTS[slot]) if faults and slot < len(FAULT_SLOTS) else frozenset()
    variety = VARIETY_SLOTS.get(slot)
    site = 2 if faults and slot >= len(FAULT_SLOTS) and slot % 4 == 3 else 1
    patient = str(10000 + index * 7 + seed % 7)
    density, sides = draw_sides(seed, index, risk_prevalence)
    rng = np.random.default_rng([seed, index, 6])
    codes = {name: BIRADS[side.finding] for name, side in sides.items()}
    recalled = {name: codes["R" if name == "L" else "L"] == 0.0 and rng.random() < 0.5 for name in "LR"}
    if "contradictory_birads" in mine:
        recalled["L"] = False  # an empty field contradicts nothing
    texts = {name: _birads_text(codes[name], site, recalled[name]) for name in "LR"}
    counts: Counter[str] = Counter({name: 1 for name in mine if name not in ("other_views", "second_take")})
    counts["site_without_labels"] += site == 2
    shown: Counter[str] = Counter()
    rows: list[dict[str, str]] = []
    present: dict[str, set[str]] = {"L": set(), "R": set()}
    files = 0
    for take in _plan_takes(mine):
        image = str(1_000_000_000 + index * 100 + take.number)
        side = sides[take.side]
        pixels = side.image(take.modality, take.number, marker=bool(rng.random() < 0.3))
        if take.spoilt:
            pixels = cut_off(pixels)
        if "low_dynamic_range" in mine:
            pixels = pixels // 40 + 3000  # a hundred grey levels high up in the range
        facts = _facts(patient, image, take, variety)
        write_fated(root / "train_images" / patient / f"{image}.dcm", pixels, facts, take.fate)
        files += take.fate != "missing"
        letter = "" if site == 2 else "ABCD"[density]
        if "contradictory_density" in mine and take.number == 3:
            letter = "ABCD"[(density + 1) % 4]
        text = texts[take.side]
        if "contradictory_birads" in mine and take.number == 1:
            text = "2.0" if text != "2.0" else "1.0"
        rows.append(_row(site, patient, image, take, side, text, letter, mine))
        counts["other_views"] += not take.usable
        counts["second_take"] += take.number >= 10 and take.usable
        shown[facts.syntax] += 1
        shown[variety or "plain"] += 1
        if take.usable and take.fate == "ok":
            present[take.side].add(take.modality)
    samples = []
    for name, side in sides.items():
        known = tuple(sorted(present[name]))
        contradictory = "contradictory_birads" in mine and name == "L"
        birads = {
            scheme: -1 if texts[name] == "" or site == 2 or contradictory else table[codes[name]]
            for scheme, table in EXPECTED.items()
        }
        unknown = site == 2 or "contradictory_density" in mine
        samples.append(
            {
                "patient": patient, "exam": patient, "side": name.lower(),
                "expected": {
                    "labels": {
                        scheme: {"density": -1 if unknown else density, "birads": code} for scheme, code in birads.items()
                    },
                    "modalities": [modality for modality in MODALITIES if modality in known],
                    "dropped": None,
                    "split": "",
                },
                "information": side.shares(known),
            }
        )  # fmt: skip
    return {
        "tables": {"train.csv": rows}, "samples": samples, "faults": counts, "variety": shown, "files": files
    }  # fmt: skip
