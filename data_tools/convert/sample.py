"""The work of one sample and what comes of it."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.archives.plan import Outline
from m4oe_ds.data.cards import MaskFile
from m4oe_ds.data.codecs import encode
from m4oe_ds.data.schema import ModalitySpec, TaskSpec


@dataclass(frozen=True)
class ExamJob:
    """What a sample of a card's table needs besides.

    Attributes:
        inputs: modalities of the card.
        masks: mask tasks of the card.
        ranges: stored values that become black and white, by modality.
        volume_size: depth, rows and columns of the stored volumes.
        tables: ``{table modality: {column: number, code or None}}``.
        layers: files of each mask, see :class:`data_tools.archives.plan.Sample`; their patterns are paths.
    """

    inputs: tuple[ModalitySpec, ...]
    masks: tuple[TaskSpec, ...]
    ranges: dict[str, tuple[float, float]]
    volume_size: tuple[int, int, int]
    tables: dict[str, dict[str, float | int | None]]
    layers: dict[str, tuple[MaskFile | None, ...]]


@dataclass(frozen=True)
class SampleJob:
    """Work of one sample.

    Attributes:
        meta: fields of META_FIELDS but modalities and geometry.
        images: candidate files of each modality.
        rows: height of the stored images.
        cols: columns of the stored images.
        codec: codec of the stored images.
        choose: see :class:`data_tools.archives.plan.Sample`.
        masks: file per segmentation task.
        source: patient and exam, for the private mapping alone.
        converter: what converts its images: ``mammogram``, ``film``, ``eye`` or ``exam``.
        outlines: see :class:`data_tools.archives.plan.Sample`.
        exam: of a sample of a card's table what it needs besides.
    """

    meta: dict[str, Any]
    images: dict[str, tuple[str, ...]]
    rows: int
    cols: int
    codec: str
    choose: str = "first"
    masks: dict[str, str] = field(default_factory=dict)
    source: tuple[str, str] = ("", "")
    converter: str = "mammogram"
    outlines: dict[str, tuple[Outline, ...]] = field(default_factory=dict)
    exam: ExamJob | None = None

    @property
    def mask_tasks(self) -> set[str]:
        """Tasks that a file of masks is named for."""
        return {*self.masks, *self.outlines, *(self.exam.layers if self.exam is not None else ())}


@dataclass(frozen=True)
class Sums:
    """Sums over stored pixels: whole numbers are exact, and so do not depend on the order of the samples.

    Attributes:
        pixels: number of pixels.
        total: sum of their values.
        squares: sum of the squares of their values.
        full: largest value their type holds, 255 or 65535.
    """

    pixels: int
    total: int
    squares: int
    full: int

    @classmethod
    def of(cls, pixels: NDArray[Any]) -> Sums:
        """The sums of an array of uint8 or uint16."""
        total = squares = 0
        flat = pixels.ravel()
        # as float64 the sums stay below 2^53 for a million pixels at a time
        for start in range(0, flat.size, 1 << 20):
            part = flat[start : start + (1 << 20)].astype(np.float64)
            total += int(part.sum())
            squares += int(np.dot(part, part))
        return cls(int(pixels.size), total, squares, int(np.iinfo(pixels.dtype).max))

    def __add__(self, other: Sums) -> Sums:
        full = max(self.full, other.full)
        one, two = full // self.full, full // other.full  # 8 bits among 16 count 257 times as much: exactly
        total = one * self.total + two * other.total
        squares = one * one * self.squares + two * two * other.squares
        return Sums(self.pixels + other.pixels, total, squares, full)


@dataclass
class SampleResult:
    """A sample ready for a shard.

    Attributes:
        meta: all fields of META_FIELDS.
        members: encoded pixels by member name.
        bad: (modality, reason) of images that were not used.
        facts: counts for the histograms of the report.
        sums: sums of the stored pixels per modality.
        numbers: numbers of tables, by ``modality.column``.
        digests: digests of the members, to find an image that belongs to two patients.
    """

    meta: dict[str, Any]
    members: dict[str, bytes] = field(default_factory=dict)
    bad: list[tuple[str, str]] = field(default_factory=list)
    facts: dict[str, Counter[str]] = field(default_factory=dict)
    sums: dict[str, Sums] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    digests: list[str] = field(default_factory=list)

    def count(self, name: str, value: object) -> None:
        """Adds one to a histogram."""
        self.facts.setdefault(name, Counter())[str(value)] += 1

    def add(self, modality: str, pixels: NDArray[Any], codec: str) -> None:
        """Stores the pixels (uint8 or uint16) of a modality as a member and adds them to its sums."""
        self.members[f"{modality}.{codec}"] = encode(pixels, codec)
        # what is equal as a member is equal for every use, and is a fraction of the decoded pixels
        self.digests.append(hashlib.blake2b(self.members[f"{modality}.{codec}"], digest_size=16).hexdigest())
        self.sums[modality] = Sums.of(pixels)
