"""Synthetic patients in the layout of VinDr-Mammo, with the faults of the real archive.

Everything about a study follows from (seed, index). Labels in the truth come from the plan, never from the tables.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.archives.vindr import BREAST_COLUMNS, FINDING_COLUMNS
from data_tools.phantom.dicom import DicomFacts
from data_tools.phantom.screening import MODALITIES, Side, draw_sides, uid, write_fated

METADATA_COLUMNS = [
    "SOP Instance UID", "Series Instance UID", "SOP Instance UID.1", "Patient's Age", "View Position", "Image Laterality",
    "Manufacturer", "Manufacturer's Model Name", "Photometric Interpretation", "Rows", "Columns", "Imager Pixel Spacing",
    "Pixel Spacing", "Pixel Padding Value", "Pixel Padding Range Limit", "Window Center", "Window Width",
    "Rescale Intercept", "Rescale Slope", "Rescale Type", "Window Center & Width Explanation",
]  # fmt: skip
COLUMNS = {
    "breast-level_annotations.csv": list(BREAST_COLUMNS),
    "finding_annotations.csv": list(FINDING_COLUMNS),
    "metadata.csv": METADATA_COLUMNS,
}
FAULT_PERIOD = 24
FAULT_SLOTS: tuple[tuple[str, ...], ...] = (
    ("left_without_mlo",),
    ("three_images",),
    ("truncated_file",),
    ("missing_file",),
    ("contradictory_birads",),
    ("box_beyond_image",),
    ("study_in_both_splits",),
)
FAULTS = tuple(name for slot in FAULT_SLOTS for name in slot)
# Machines: (manufacturer, model, bits); Planmed stores its images inverted and with a larger range
SIEMENS = ("SIEMENS", "Mammomat Inspiration", 12)
PLANMED = ("Planmed", "Planmed Nuance", 14)
GIOTTO = ("IMS s.r.l.", "GIOTTO IMAGE 3DL", 12)
VARIETY_SLOTS = {
    1: "planmed", 2: "giotto", 4: "voi_lut", 5: "SIGMOID", 7: "bright_frame", 8: "padding", 9: "JPEG2000Lossless",
    10: "planmed", 11: "RLELossless",
}  # fmt: skip
BIRADS_OF = {"none": (1, 1), "smooth": (2, 2), "spiculated": (3, 5)}
EXPECTED = {"triage": {1: 0, 2: 1, 3: 2, 4: 2, 5: 2}, "release": {1: 0, 2: 1, 3: 1, 4: 2, 5: 2}}


@dataclass(frozen=True)
class _Take:
    side: str
    modality: str
    number: int
    fate: str = "ok"


def _hex(*parts: object) -> str:
    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def _plan_takes(faults: frozenset[str]) -> list[_Take]:
    order = [(side, name) for side in "LR" for name in MODALITIES]
    takes = [_Take(side, name, number) for number, (side, name) in enumerate(order)]
    if "left_without_mlo" in faults:  # the one known study: L-CC twice, no L-MLO
        takes[1] = replace(takes[1], modality="ffdm_cc")
    if "three_images" in faults:
        takes = takes[:3]
    if "truncated_file" in faults:
        takes[1] = replace(takes[1], fate="truncated")
    if "missing_file" in faults:
        takes[2] = replace(takes[2], fate="missing")
    return takes


def _facts(study: str, image: str, take: _Take, variety: str | None) -> DicomFacts:
    machine = {"planmed": PLANMED, "giotto": GIOTTO}.get(variety or "", SIEMENS)
    full = 2 ** machine[2]
    return DicomFacts(
        study, "", uid("vindr study", study), uid("vindr series", study), uid("vindr", image), "2000-01-01", "101500", "",
        "", take.side, take.modality.split("_")[1].upper(), "F", machine[0], machine[1], machine[2],
        ((full // 2 - 1, full),),
        syntax=variety if variety and variety.endswith("Lossless") else "ExplicitVRLittleEndian",
        monochrome1=variety == "planmed",
        padding=full - 1 if variety == "padding" else None,
        voi_function="SIGMOID" if variety == "SIGMOID" else "",
        voi_lut=variety == "voi_lut",
    )  # fmt: skip


def _pixels(side: Side, take: _Take, facts: DicomFacts, variety: str | None) -> np.ndarray:
    pixels = side.image(take.modality, take.number, marker=False)
    if facts.bits == 14:
        pixels = pixels * np.uint16(4)
    top = 2**facts.bits - 1
    if variety == "bright_frame":  # two bright pixels along every border, as some collimators leave
        pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:] = top, top, top, top
    if facts.padding is not None:
        pixels = np.minimum(pixels, facts.padding - 1)
        pixels[:10] = facts.padding
        pixels[-10:] = facts.padding
    return pixels


def make_patient(root: Path, seed: int, index: int, faults: bool, risk_prevalence: float) -> dict[str, Any]:
    """Writes the images of one study below ``root`` and returns the rest.

    Returns:
        ``tables`` (rows by path), ``samples`` of the truth, ``faults`` and ``variety`` counts, ``files``.
    """
    slot = index % FAULT_PERIOD
    mine = frozenset(FAULT_SLOTS[slot]) if faults and slot < len(FAULT_SLOTS) else frozenset()
    variety = VARIETY_SLOTS.get(slot)
    study, series = _hex("study", seed, index), _hex("series", seed, index)
    density, sides = draw_sides(seed, index, risk_prevalence)
    rng = np.random.default_rng([seed, index, 6])
    birads = {
        name: int(rng.integers(BIRADS_OF[side.finding][0], BIRADS_OF[side.finding][1] + 1))
        for name, side in sides.items()
    }
    split = "test" if rng.random() < 0.2 else "training"
    tables: dict[str, list[dict[str, str]]] = {path: [] for path in COLUMNS}
    counts: Counter[str] = Counter(dict.fromkeys(mine, 1))
    shown: Counter[str] = Counter()
    present: dict[str, set[str]] = {"L": set(), "R": set()}
    files = 0
    for take in _plan_takes(mine):
        image, side = _hex("image", seed, index, take.number), sides[take.side]
        facts = _facts(study, image, take, variety)
        pixels = _pixels(side, take, facts, variety)
        write_fated(root / "images" / study / f"{image}.dicom", pixels, facts, take.fate)
        files += take.fate != "missing"
        shown[variety or "plain"] += 1
        here = "test" if "study_in_both_splits" in mine and take.number == 3 else split
        if "study_in_both_splits" in mine and take.number == 0:
            here = "training"
        level = birads[take.side]
        if "contradictory_birads" in mine and take.number == 1:
            level = level % 5 + 1
        row = {
            "study_id": study, "series_id": series, "image_id": image, "laterality": take.side,
            "view_position": facts.view, "height": str(pixels.shape[0]), "width": str(pixels.shape[1]),
            "breast_birads": f"BI-RADS {level}", "breast_density": f"DENSITY {'ABCD'[density]}", "split": here,
        }  # fmt: skip
        tables["breast-level_annotations.csv"].append(row)
        tables["finding_annotations.csv"].append(_finding(row, side, "box_beyond_image" in mine))
        tables["metadata.csv"].append(_metadata(row, facts))
        if take.fate == "ok":
            present[take.side].add(take.modality)
    dropped = "in_both_splits" if "study_in_both_splits" in mine else None
    samples = [
        _sample(study, side, present[name], birads[name], density, mine, dropped, split) for name, side in sides.items()
    ]
    return {"tables": tables, "samples": samples, "faults": counts, "variety": shown, "files": files}


def _finding(row: dict[str, str], side: Side, beyond: bool) -> dict[str, str]:
    empty = dict.fromkeys(FINDING_COLUMNS, "")
    out = {**empty, **row, "finding_categories": "['No Finding']"}
    if side.finding != "none":
        box = ("-4.5", "10.0", "80.0", "90.0") if beyond else ("20.0", "10.0", "80.0", "90.0")
        out.update(
            finding_categories="['Mass']" if side.finding == "smooth" else "['Mass', 'Architectural Distortion']",
            finding_birads=row["breast_birads"] if row["breast_birads"] >= "BI-RADS 3" else "",
            **dict(zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)),
        )
    elif beyond:
        out.update(xmin="-4.5", ymin="10.0", xmax="80.0", ymax="90.0", finding_categories="['Skin Thickening']")
    return out


def _metadata(row: dict[str, str], facts: DicomFacts) -> dict[str, str]:
    out = dict.fromkeys(METADATA_COLUMNS, "")
    out.update(
        {
            "SOP Instance UID": row["image_id"], "Series Instance UID": row["series_id"],
            "SOP Instance UID.1": row["image_id"], "View Position": facts.view, "Image Laterality": facts.side,
            "Manufacturer": facts.manufacturer, "Manufacturer's Model Name": facts.model, "Rows": row["height"],
            "Columns": row["width"], "Patient's Age": "055Y",
            "Photometric Interpretation": "MONOCHROME1" if facts.monochrome1 else "MONOCHROME2",
            "Window Center": str(facts.window[0][0]), "Window Width": str(facts.window[0][1]),
            "Rescale Intercept": "0", "Rescale Slope": "1", "Rescale Type": "US",
        }
    )  # fmt: skip
    return out


def _sample(
    study: str, side: Side, present: set[str], birads: int, density: int, faults: frozenset[str], dropped: str | None,
    split: str,
) -> dict[str, Any]:  # fmt: skip
    known = [name for name in MODALITIES if name in present]
    contradictory = "contradictory_birads" in faults and side.side == "L"
    return {
        "patient": study, "exam": study, "side": side.side.lower(),
        "expected": {
            "labels": {
                scheme: {"density": density, "birads": -1 if contradictory else codes[birads]}
                for scheme, codes in EXPECTED.items()
            },
            "modalities": known,
            "dropped": dropped,
            "split": "test" if split == "test" else "",
        },
        "information": side.shares(known),
    }  # fmt: skip
