"""Synthetic screening exams with one finding per breast, for archives whose labels are density and BI-RADS.

Also what their layouts have in common: takes are planned, drawn and written one after the other, with a row per table,
and the truth has the same form.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.phantom.breast import Breast, Lesion, information_shares, make_breast, render, where_drawn
from data_tools.phantom.dicom import DicomFacts, burn_in_marker, write_mammogram
from data_tools.phantom.embed_plan import DENSITY_SHARES, FINDING_CONTRAST, VISIBILITY

MODALITIES = ("ffdm_cc", "ffdm_mlo")
RULES = ("even", "hidden_cc", "hidden_mlo")  # which views show the finding, and so inform BI-RADS
FINDINGS = ("none", "smooth", "spiculated")
FINDING_SHARES = (0.45, 0.25, 0.30)
FAULT_PERIOD = 24  # patients after which the faults of a layout begin again
VISIBILITIES = {**VISIBILITY, "even": (1.0, 1.0, 1.0, 1.0)}


@dataclass(frozen=True)
class Side:
    """One breast as planned: ``finding`` is one of FINDINGS, ``rule`` one of RULES, ``density`` 0..3."""

    seed: int
    index: int
    side: str
    density: int
    finding: str
    rule: str

    def breast(self) -> Breast:
        """The tissue."""
        return make_breast(self.seed, self.index, self.side, self.density)

    def lesion(self) -> Lesion:
        """The finding, whether it is drawn or not."""
        rng = np.random.default_rng([self.seed, self.index, 2, "LR".index(self.side)])
        return Lesion(
            "spiculated" if self.finding == "spiculated" else "smooth",
            (rng.uniform(-0.2, 0.2), rng.uniform(-0.1, 0.35), 0.42 + rng.uniform(-0.08, 0.08)),
            float(rng.uniform(0.13, 0.16)),
            FINDING_CONTRAST * (1.3 if self.finding == "spiculated" else 1.15),
            VISIBILITIES[self.rule],
            int(rng.integers(2**31)),
        )

    def image(self, modality: str, take: int, marker: bool) -> NDArray[np.uint16]:
        """12-bit pixels as the machine stores them: the right breast has its chest wall at the right border."""
        rng = np.random.default_rng([self.seed, self.index, 5, take, "LR".index(self.side), MODALITIES.index(modality)])
        drawn = () if self.finding == "none" else (self.lesion(),)
        pixels = render(self.breast(), modality, drawn, rng)
        if self.side == "R":
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        if marker:
            pixels = burn_in_marker(pixels, f"{self.side} {modality.split('_')[1].upper()}", self.side, 4000)
        return pixels

    def drawn(self, present: tuple[str, ...]) -> list[dict[str, Any]]:
        """Where the finding lies in the stored images; empty without one."""
        if self.finding == "none":
            return []
        return [where_drawn(self.lesion(), self.breast(), present, self.side, ("birads",))]

    def shares(self, present: Sequence[str]) -> dict[str, dict[str, float]]:
        """Share of the evidence on ``birads`` and ``density`` in each modality present."""
        if not present:
            return {"birads": {}, "density": {}}
        found = information_shares(self.breast(), {"birads": self.lesion()}, tuple(present))
        return {task: {name: round(value, 6) for name, value in one.items()} for task, one in found.items()}


@dataclass(frozen=True)
class Take:
    """One image file of an exam.

    Attributes:
        side: ``L`` or ``R``.
        modality: what is drawn.
        view: what the table calls it; only CC and MLO are used.
        number: number of the file within the exam.
        fate: see :func:`write_fated`.
        spoilt: shows less of the breast than another take.
    """

    side: str
    modality: str
    view: str
    number: int
    fate: str = "ok"
    spoilt: bool = False

    @property
    def usable(self) -> bool:
        """Whether it is a CC or MLO view."""
        return self.view in ("CC", "MLO")


@dataclass(frozen=True)
class Image:
    """A take as drawn: where its file goes, what the header says, and the pixels."""

    path: Path
    facts: DicomFacts
    pixels: NDArray[np.uint16]


@dataclass
class Written:
    """What was written of an exam.

    Attributes:
        tables: rows by path of the table.
        files: number of files.
        present: per side the modalities of which there is an image that can be used.
    """

    tables: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    files: int = 0
    present: dict[str, set[str]] = field(default_factory=lambda: {"L": set(), "R": set()})


def planted(slots: Sequence[tuple[str, ...]], index: int, faults: bool) -> frozenset[str]:
    """The faults of a patient: one slot each for the first ones of every ``FAULT_PERIOD``."""
    slot = index % FAULT_PERIOD
    return frozenset(slots[slot]) if faults and slot < len(slots) else frozenset()


def ordinary_takes() -> list[Take]:
    """The four images of an exam without faults, left before right and CC before MLO."""
    order = [(side, name) for side in "LR" for name in MODALITIES]
    return [Take(side, name, name.split("_")[1].upper(), number) for number, (side, name) in enumerate(order)]


def write_takes(
    takes: Sequence[Take], draw: Callable[[Take], Image], rows: Callable[[Take, Image], Mapping[str, dict[str, str]]]
) -> Written:
    """Draws and writes the images of an exam, one at a time.

    Args:
        takes: planned images, in the order of the tables.
        draw: makes the image of a take.
        rows: what the tables say of it, by path of the table.
    """
    written = Written()
    for take in takes:
        image = draw(take)
        write_fated(image.path, image.pixels, image.facts, take.fate)
        written.files += take.fate != "missing"
        for path, row in rows(take, image).items():
            written.tables.setdefault(path, []).append(row)
        if take.usable and take.fate == "ok":
            written.present[take.side].add(take.modality)
    return written


def truth(
    patient: str,
    side: Side,
    present: Collection[str],
    labels: Mapping[str, dict[str, int]],
    dropped: str | None = None,
    split: str = "",
) -> dict[str, Any]:
    """What a conversion must make of a breast.

    Args:
        patient: number of the patient in the archive; the exam has the same number.
        side: the planned side.
        present: modalities of which there is an image that can be used.
        labels: per BI-RADS scheme.
        dropped: why the sample must be left out; None if it is kept.
        split: the official one, where a conversion must keep it.
    """
    known = [name for name in MODALITIES if name in present]
    return {
        "patient": patient,
        "exam": patient,
        "side": side.side.lower(),
        "expected": {"labels": dict(labels), "modalities": known, "dropped": dropped, "split": split},
        "information": side.shares(known),
        "lesions": side.drawn(tuple(known)),
    }


def draw_sides(seed: int, index: int, prevalence: float) -> tuple[int, dict[str, Side]]:
    """Density of a woman (0..3) and her two breasts; ``prevalence`` scales how often there is a finding."""
    rng = np.random.default_rng([seed, index, 1])
    density = int(rng.choice(4, p=DENSITY_SHARES))
    share = min(1.0, prevalence / 0.35)
    none = 1.0 - (1.0 - FINDING_SHARES[0]) * share
    rest = np.array(FINDING_SHARES[1:]) / sum(FINDING_SHARES[1:]) * (1.0 - none)
    sides = {}
    for side in "LR":
        finding = FINDINGS[int(rng.choice(3, p=[none, *rest]))]
        rule = RULES[int(rng.integers(len(RULES)))]
        sides[side] = Side(seed, index, side, density, finding, rule)
    return density, sides


def write_fated(path: Path, pixels: NDArray[np.uint16], facts: DicomFacts, fate: str) -> None:
    """Writes a file as its fate demands.

    Args:
        fate: ``ok``, ``missing`` (nothing is written), ``truncated``, ``beyond_bits`` (the header promises fewer bits
            than the values use).
    """
    if fate == "missing":
        return
    write_mammogram(path, pixels, facts)
    if fate == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 5])
    elif fate == "beyond_bits":
        from pydicom import dcmread, dcmwrite

        ds: Any = dcmread(path)
        ds.BitsStored, ds.HighBit = facts.bits - 2, facts.bits - 3
        dcmwrite(path, ds, enforce_file_format=True)


def cut_off(pixels: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """A take with less of the breast on it: bad positioning, repeated afterwards."""
    out = np.zeros_like(pixels)
    rows = pixels.shape[0] // 3
    out[rows:] = pixels[:-rows]
    return out
