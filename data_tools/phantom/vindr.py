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
from data_tools.phantom.dicom import DicomFacts, uid
from data_tools.phantom.screening import (
    FAULT_PERIOD,
    Image,
    Side,
    Take,
    draw_sides,
    ordinary_takes,
    planted,
    truth,
    write_takes,
)

METADATA_COLUMNS = [
    "SOP Instance UID", "Series Instance UID", "SOP Instance UID.1", "Patient's Age", "View Position",
    "Image Laterality", "Manufacturer", "Manufacturer's Model Name", "Photometric Interpretation", "Rows", "Columns",
    "Imager Pixel Spacing", "Pixel Spacing", "Pixel Padding Value", "Pixel Padding Range Limit", "Window Center",
    "Window Width", "Rescale Intercept", "Rescale Slope", "Rescale Type", "Window Center & Width Explanation",
]  # fmt: skip
COLUMNS = {
    "breast-level_annotations.csv": list(BREAST_COLUMNS),
    "finding_annotations.csv": list(FINDING_COLUMNS),
    "metadata.csv": METADATA_COLUMNS,
}
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
class _Study:
    """One study as planned, before images.

    Attributes:
        name: name of the study in the tables.
        series: name of the series in the tables.
        density: BI-RADS density A..D as 0..3.
        sides: the two breasts.
        birads: category 1..5 per side.
        split: official split.
        faults: planted in its images and rows.
        variety: what is unusual but valid about its images.
        takes: images of the study, in the order of the tables.
        images: names by the number of the take.
    """

    name: str
    series: str
    density: int
    sides: dict[str, Side]
    birads: dict[str, int]
    split: str
    faults: frozenset[str]
    variety: str | None
    takes: tuple[Take, ...]
    images: dict[int, str]


def _hex(*parts: object) -> str:
    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def _plan_takes(faults: frozenset[str]) -> list[Take]:
    takes = ordinary_takes()
    if "left_without_mlo" in faults:  # the one known study: L-CC twice, no L-MLO
        takes[1] = replace(takes[1], modality="ffdm_cc", view="CC")
    if "three_images" in faults:
        takes = takes[:3]
    if "truncated_file" in faults:
        takes[1] = replace(takes[1], fate="truncated")
    if "missing_file" in faults:
        takes[2] = replace(takes[2], fate="missing")
    return takes


def _plan(seed: int, index: int, faults: bool, risk_prevalence: float) -> _Study:
    """Draws one study: its breasts, what the tables say of them, and its images."""
    mine = planted(FAULT_SLOTS, index, faults)
    density, sides = draw_sides(seed, index, risk_prevalence)
    rng = np.random.default_rng([seed, index, 6])
    birads = {
        name: int(rng.integers(BIRADS_OF[side.finding][0], BIRADS_OF[side.finding][1] + 1))
        for name, side in sides.items()
    }
    takes = tuple(_plan_takes(mine))
    return _Study(
        name=_hex("study", seed, index),
        series=_hex("series", seed, index),
        density=density,
        sides=sides,
        birads=birads,
        split="test" if rng.random() < 0.2 else "training",
        faults=mine,
        variety=VARIETY_SLOTS.get(index % FAULT_PERIOD),
        takes=takes,
        images={take.number: _hex("image", seed, index, take.number) for take in takes},
    )


def _facts(study: _Study, take: Take) -> DicomFacts:
    variety = study.variety
    manufacturer, model, bits = {"planmed": PLANMED, "giotto": GIOTTO}.get(variety or "", SIEMENS)
    full = 2**bits
    return DicomFacts(
        patient=study.name,
        accession="",
        study_uid=uid("vindr study", study.name),
        series_uid=uid("vindr series", study.name),
        sop_uid=uid("vindr", study.images[take.number]),
        date="2000-01-01",
        time="101500",
        study_description="",
        series_description="",
        side=take.side,
        view=take.view,
        sex="F",
        manufacturer=manufacturer,
        model=model,
        bits=bits,
        window=((full // 2 - 1, full),),
        syntax=variety if variety and variety.endswith("Lossless") else "ExplicitVRLittleEndian",
        monochrome1=variety == "planmed",
        padding=full - 1 if variety == "padding" else None,
        voi_function="SIGMOID" if variety == "SIGMOID" else "",
        voi_lut=variety == "voi_lut",
    )


def _draw(root: Path, study: _Study, take: Take) -> Image:
    facts = _facts(study, take)
    pixels = study.sides[take.side].image(take.modality, take.number, marker=False)
    if facts.bits == 14:
        pixels = pixels * np.uint16(4)
    top = 2**facts.bits - 1
    if study.variety == "bright_frame":  # two bright pixels along every border, as some collimators leave
        pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:] = top, top, top, top
    if facts.padding is not None:
        pixels = np.minimum(pixels, facts.padding - 1)
        pixels[:10] = facts.padding
        pixels[-10:] = facts.padding
    return Image(root / "images" / study.name / f"{study.images[take.number]}.dicom", facts, pixels)


def _rows(study: _Study, take: Take, image: Image) -> dict[str, dict[str, str]]:
    """What the three tables say of an image."""
    split = study.split
    if "study_in_both_splits" in study.faults and take.number in (0, 3):
        split = "test" if take.number == 3 else "training"
    level = study.birads[take.side]
    if "contradictory_birads" in study.faults and take.number == 1:
        level = level % 5 + 1
    row = {
        "study_id": study.name,
        "series_id": study.series,
        "image_id": study.images[take.number],
        "laterality": take.side,
        "view_position": take.view,
        "height": str(image.pixels.shape[0]),
        "width": str(image.pixels.shape[1]),
        "breast_birads": f"BI-RADS {level}",
        "breast_density": f"DENSITY {'ABCD'[study.density]}",
        "split": split,
    }
    return {
        "breast-level_annotations.csv": row,
        "finding_annotations.csv": _finding(row, study.sides[take.side], "box_beyond_image" in study.faults),
        "metadata.csv": _metadata(row, image.facts),
    }


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
            "SOP Instance UID": row["image_id"],
            "Series Instance UID": row["series_id"],
            "SOP Instance UID.1": row["image_id"],
            "View Position": facts.view,
            "Image Laterality": facts.side,
            "Manufacturer": facts.manufacturer,
            "Manufacturer's Model Name": facts.model,
            "Rows": row["height"],
            "Columns": row["width"],
            "Patient's Age": study_age(row["study_id"]),
            "Photometric Interpretation": "MONOCHROME1" if facts.monochrome1 else "MONOCHROME2",
            "Window Center": str(facts.window[0][0]),
            "Window Width": str(facts.window[0][1]),
            "Rescale Intercept": "0",
            "Rescale Slope": "1",
            "Rescale Type": "US",
        }
    )
    return out


def study_age(study: str) -> str:
    """Age of a woman as DICOM writes it; a fifth of the table has none."""
    draw = int(study[:8], 16)
    return "" if draw % 5 == 0 else f"{38 + draw % 45:03d}Y"


def _truth(study: _Study, side: Side, present: set[str]) -> dict[str, Any]:
    contradictory = "contradictory_birads" in study.faults and side.side == "L"
    labels = {
        scheme: {"density": study.density, "birads": -1 if contradictory else codes[study.birads[side.side]]}
        for scheme, codes in EXPECTED.items()
    }
    dropped = "in_both_splits" if "study_in_both_splits" in study.faults else None
    return truth(study.name, side, present, labels, dropped, "test" if study.split == "test" else "")


def make_patient(root: Path, seed: int, index: int, faults: bool, risk_prevalence: float) -> dict[str, Any]:
    """Writes the images of one study below ``root`` and returns the rest.

    Returns:
        ``tables`` (rows by path), ``samples`` of the truth, ``faults`` and ``variety`` counts, ``files``.
    """
    study = _plan(seed, index, faults, risk_prevalence)
    written = write_takes(
        study.takes, lambda take: _draw(root, study, take), lambda take, image: _rows(study, take, image)
    )
    return {
        "tables": written.tables,
        "samples": [_truth(study, side, written.present[name]) for name, side in study.sides.items()],
        "faults": Counter(study.faults),
        "variety": Counter({study.variety or "plain": len(study.takes)}),
        "files": written.files,
    }
