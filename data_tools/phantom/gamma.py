"""Synthetic eyes in the layout of GAMMA, with the faults of real copies of the archive.

The grade is planted in both modalities: the cup of the fundus widens and the nerve-fibre layer of the OCT thins with
it. A rule per eye says which of them shows it. Everything about an eye follows from (seed, index).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.archives.gamma import BACKGROUND, CLASSES, CUP, NUM_SLICES, RIM, SHEET

COLUMNS: dict[str, list[str]] = {}  # its only table is a spreadsheet: see write_sheet
TRAINING = Path("Glaucoma_grading/training")
MASKS = Path("task3_disc_cup_segmentation/training/Disc_Cup_Mask")
FUNDUS_SHAPE, OTHER_SHAPE = (200, 299), (193, 196)  # of the two cameras, the real ones divided by 10
OCT_SHAPE = (62, 32)  # the real one divided by 16
FAULT_PERIOD = 20
FAULT_SLOTS: tuple[tuple[str, ...], ...] = (
    ("scrambled_slices",),
    ("missing_slice",),
    ("colour_slice",),
    ("smooth_mask",),
    ("missing_mask",),
    ("row_with_two_ones",),
    ("truncated_fundus",),
    ("other_camera",),
    ("missing_oct",),
    ("mask_of_another_size",),
)
FAULTS = tuple(name for slot in FAULT_SLOTS for name in slot)
GRADE_SHARES = (0.5, 0.26, 0.24)
CUP_RATIO = (0.35, 0.58, 0.80)  # of the disc's diameter, by grade
LAYER = (0.26, 0.17, 0.09)  # thickness of the nerve-fibre layer, of the height of a B-scan
# Which modalities show the grade: the other shows a cup or layer of the middle of the range
RULES = {"both": (True, True), "fundus_only": (True, False), "oct_only": (False, True)}
MIDDLE_RATIO, MIDDLE_LAYER = 0.58, 0.17


def _ellipse(shape: tuple[int, int], centre: tuple[float, float], radii: tuple[float, float]) -> NDArray[np.float64]:
    """Squared distance from the centre in units of the radii: below 1 inside."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    return ((y - centre[0]) / radii[0]) ** 2 + ((x - centre[1]) / radii[1]) ** 2


def _edge(distance: NDArray[np.float64], steepness: float) -> NDArray[np.float64]:
    """1 inside an ellipse, 0 outside, with a soft edge."""
    return 1.0 / (1.0 + np.exp(np.clip(steepness * (distance - 1.0), -50.0, 50.0)))


def draw_fundus(
    rng: np.random.Generator, shape: tuple[int, int], ratio: float
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A fundus photograph ``uint8 [H, W, 3]`` and its mask ``uint8 [H, W]`` in the archive's grey values."""
    height, width = shape
    field = _ellipse(shape, (height / 2, width / 2), (height * 0.485, height * 0.485)) < 1
    radius = height * 0.10 * rng.uniform(0.9, 1.1)
    centre = (height * rng.uniform(0.42, 0.58), width / 2 + height * rng.uniform(-0.18, 0.18))
    disc = _ellipse(shape, centre, (radius, radius * 0.93))
    cup = _ellipse(shape, centre, (radius * ratio, radius * 0.93 * ratio))
    y, x = np.mgrid[:height, :width]
    coarse = rng.normal(0, 1, (height // 8 + 2, width // 8 + 2))
    texture = np.kron(coarse, np.ones((8, 8)))[:height, :width]
    base = 0.55 + 0.08 * (1 - _ellipse(shape, (height / 2, width / 2), (height / 2, height / 2))) + 0.02 * texture
    vessels = np.zeros(shape)
    for angle in rng.uniform(0, 2 * np.pi, 7):
        bend = rng.uniform(-0.004, 0.004)
        distance = np.hypot(y - centre[0], x - centre[1])
        direction = np.arctan2(y - centre[0], x - centre[1]) - angle - bend * distance
        across = np.abs(np.sin(direction)) * distance
        ahead = np.cos(direction) > 0
        vessels = np.maximum(vessels, ahead * np.exp(-((across / (height * 0.008)) ** 2)))
    grey = base - 0.22 * vessels
    grey = grey + 0.16 * _edge(disc, 12) + 0.20 * _edge(cup, 14)
    grey = grey + rng.normal(0, 0.015, shape)
    colour = np.stack([grey, 0.62 * grey, 0.34 * grey], axis=-1) * 255 * field[..., None]
    mask = np.where(cup < 1, CUP, np.where(disc < 1, RIM, BACKGROUND)).astype(np.uint8)
    return np.clip(colour, 0, 255).astype(np.uint8), mask


def draw_scan(rng: np.random.Generator, shape: tuple[int, int], layer: float, place: float) -> NDArray[np.uint8]:
    """One B-scan: a bright nerve-fibre layer over retina; ``place`` in 0..1 across the volume dips the surface."""
    height, width = shape
    y = np.arange(height)[:, None] / height
    x = np.linspace(-1, 1, width)[None, :]
    surface = 0.25 + 0.10 * np.exp(-((x**2 + (2 * place - 1) ** 2) / 0.15))
    depth = y - surface
    image = 0.08 + 0.72 * ((depth > 0) & (depth < layer)) + 0.35 * ((depth >= layer) & (depth < 0.55))
    image = image + rng.normal(0, 0.09, shape)
    return np.asarray(np.clip(image * 255, 0, 255), np.uint8)


def _save(image: NDArray[np.uint8], path: Path, quality: int = 95) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray(image).save(path)
    else:
        Image.fromarray(image).save(path, quality=quality)


def write_sheet(root: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the grading sheet; ids are numbers in it, as in the real one."""
    import pandas as pd

    frame = pd.DataFrame(rows, columns=["data", *CLASSES])
    (root / TRAINING).mkdir(parents=True, exist_ok=True)
    frame.to_excel(root / TRAINING / f"{SHEET}.xlsx", index=False)


def _write_volume(folder: Path, rng: np.random.Generator, layer: float, faults: frozenset[str]) -> None:
    order = np.arange(NUM_SLICES)
    if "scrambled_slices" in faults:  # the order in which files are made is what some readers get to see
        order = rng.permutation(NUM_SLICES)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".DS_Store").write_bytes(b"\0")
    scans = {number: draw_scan(rng, OCT_SHAPE, layer, number / (NUM_SLICES - 1)) for number in range(NUM_SLICES)}
    for number in order:
        if "missing_slice" in faults and number == 100:
            continue
        scan = scans[int(number)]
        if "colour_slice" in faults and number == 7:
            scan = np.repeat(scan[..., None], 3, axis=2)
        _save(scan, folder / f"{number}_image.jpg", 90)


def _smooth(mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mask after an export that smoothed its edges a little: greys between the three values appear."""
    out = mask.astype(np.int16)
    out[out == RIM] = RIM + 9
    out[out == BACKGROUND] = BACKGROUND - 6
    out[out == CUP] = CUP + 5
    return out.astype(np.uint8)


@dataclass(frozen=True)
class _Eye:
    """One eye as planned, before images.

    Attributes:
        number: number of the eye in the sheet.
        faults: planted in its images and its row.
        grade: class of glaucoma, 0..2.
        rule: one of RULES.
        ratio: ratio of the cup's diameter to the disc's.
        layer: thickness of the nerve-fibre layer, of the height of a B-scan.
    """

    number: int
    faults: frozenset[str]
    grade: int
    rule: str
    ratio: float
    layer: float

    @property
    def name(self) -> str:
        """Name of the eye's folder and files."""
        return f"{self.number:04d}"


def _plan(rng: np.random.Generator, index: int, faults: bool, risk_prevalence: float) -> _Eye:
    """Draws one eye: its grade and what shows it."""
    slot = index % FAULT_PERIOD
    ill = min(1.0, (1 - GRADE_SHARES[0]) * risk_prevalence / 0.35)
    grade = int(rng.choice(3, p=[1 - ill, ill * 0.52, ill * 0.48]))
    rule = tuple(RULES)[int(rng.integers(len(RULES)))]
    in_fundus, in_oct = RULES[rule]
    return _Eye(
        number=index + 1,
        faults=frozenset(FAULT_SLOTS[slot]) if faults and slot < len(FAULT_SLOTS) else frozenset(),
        grade=grade,
        rule=rule,
        ratio=(CUP_RATIO[grade] if in_fundus else MIDDLE_RATIO) + rng.uniform(-0.03, 0.03),
        layer=(LAYER[grade] if in_oct else MIDDLE_LAYER) + rng.uniform(-0.012, 0.012),
    )


def _write_images(root: Path, rng: np.random.Generator, eye: _Eye) -> int:
    """Draws and writes fundus, mask and volume of an eye; returns the pixels of its cup."""
    folder = root / TRAINING / "multi-modality_images" / eye.name
    fundus, mask = draw_fundus(rng, OTHER_SHAPE if "other_camera" in eye.faults else FUNDUS_SHAPE, eye.ratio)
    path = folder / f"{eye.name}.jpg"
    _save(fundus, path)
    if "truncated_fundus" in eye.faults:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if "missing_oct" not in eye.faults:
        _write_volume(folder / eye.name, rng, eye.layer, eye.faults)
    stored = mask
    if "smooth_mask" in eye.faults:
        stored = _smooth(mask)
    elif "mask_of_another_size" in eye.faults:
        stored = mask[: mask.shape[0] // 2]
    if "missing_mask" not in eye.faults:
        _save(stored, root / MASKS / f"{eye.name}.png")
    return int((mask == CUP).sum())


def _sheet_row(eye: _Eye) -> dict[str, int]:
    row = {"data": eye.number, **{column: int(code == eye.grade) for code, column in enumerate(CLASSES)}}
    if "row_with_two_ones" in eye.faults:
        row[CLASSES[(eye.grade + 1) % 3]] = 1
    return row


def _truth(eye: _Eye, cup_pixels: int) -> dict[str, Any]:
    """What a conversion must make of an eye, and the share of the evidence in each modality."""
    spoilt = {"fundus": {"truncated_fundus"}, "oct": {"missing_oct", "missing_slice"}}
    present = [modality for modality, faults in spoilt.items() if not eye.faults & faults]
    has_mask = "fundus" in present and not eye.faults & {"missing_mask", "mask_of_another_size"}
    evidence = dict(zip(spoilt, map(float, RULES[eye.rule]), strict=True))
    total = sum(evidence[modality] for modality in present)
    labels = {
        "glaucoma": -1 if "row_with_two_ones" in eye.faults else eye.grade,
        "cup": 1 if has_mask else -1,
    }
    return {
        "patient": eye.name,
        "exam": eye.name,
        "side": "e",
        "expected": {
            "labels": dict.fromkeys(("triage", "release"), labels),
            "modalities": present,
            "dropped": None,
            "split": "",
            "mask_pixels": cup_pixels if has_mask else 0,
        },
        "information": {
            "glaucoma": {name: evidence[name] / total if total else 1 / len(present) for name in present},
        },
    }


def make_patient(root: Path, seed: int, index: int, faults: bool, risk_prevalence: float) -> dict[str, Any]:
    """Writes the images of one eye below ``root`` and returns the rest.

    Args:
        root: folder of the archive.
        seed: seed of the archive.
        index: index of the eye.
        faults: whether the known faults are planted.
        risk_prevalence: 0.35 gives the class shares of the archive; other values scale the share of glaucoma.

    Returns:
        ``sheet`` (its row), ``tables`` (none), ``samples`` of the truth, ``faults`` and ``variety`` counts, ``files``.
    """
    rng = np.random.default_rng([seed, index, 7])
    eye = _plan(rng, index, faults, risk_prevalence)
    cup_pixels = _write_images(root, rng, eye)
    slices = 0 if "missing_oct" in eye.faults else NUM_SLICES - ("missing_slice" in eye.faults)
    return {
        "tables": {},
        "sheet": _sheet_row(eye),
        "samples": [_truth(eye, cup_pixels)],
        "faults": Counter(eye.faults),
        "variety": Counter([eye.rule]),
        "files": 1 + slices,
    }
