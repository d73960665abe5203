"""Converts the images of one sample; runs in worker processes."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_tools.pixels.dicom import BadImage, quiet
from m4oe_ds.data.codecs import encode
from m4oe_ds.errors import UserError

if TYPE_CHECKING:
    from data_tools.pixels.geometry import Stored


@dataclass(frozen=True)
class SampleTask:
    """Work of one sample.

    Attributes:
        meta: fields of META_FIELDS but modalities and geometry. images: candidate files of each modality.
        rows, cols, codec: of the stored images. choose: see :class:`data_tools.archives.plan.Sample`.
        masks: file per segmentation task.
        source: patient and exam, for the private mapping alone.
    """

    meta: dict[str, Any]
    images: dict[str, tuple[str, ...]]
    rows: int
    cols: int
    codec: str
    choose: str = "first"
    masks: dict[str, str] = field(default_factory=dict)
    source: tuple[str, str] = ("", "")


@dataclass
class SampleResult:
    """A sample ready for a shard.

    Attributes:
        meta: all fields of META_FIELDS. members: encoded pixels by member name.
        bad: (modality, reason) of images that were not used.
        facts: counts for the histograms of the report.
        sums: per modality (number, sum, sum of squares) of stored pixels.
        digests: of the members, to find an image that belongs to two patients.
    """

    meta: dict[str, Any]
    members: dict[str, bytes] = field(default_factory=dict)
    bad: list[tuple[str, str]] = field(default_factory=list)
    facts: dict[str, Counter[str]] = field(default_factory=dict)
    sums: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    digests: list[str] = field(default_factory=list)

    def count(self, name: str, value: object) -> None:
        """Adds one to a histogram."""
        self.facts.setdefault(name, Counter())[str(value)] += 1

    def add(self, modality: str, pixels: NDArray[Any], codec: str) -> None:
        """Stores the pixels (uint8 or uint16) of a modality as a member and adds them to its sums."""
        self.members[f"{modality}.{codec}"] = encode(pixels, codec)
        # what is equal as a member is equal for every use, and is a fraction of the decoded pixels
        self.digests.append(hashlib.blake2b(self.members[f"{modality}.{codec}"], digest_size=16).hexdigest())
        # sums of whole numbers are exact and so do not depend on the order of the samples; as float64 they stay below
        # 2^53 for a million pixels at a time
        total = squares = 0
        flat = pixels.ravel()
        for start in range(0, flat.size, 1 << 20):
            part = flat[start : start + (1 << 20)].astype(np.float64)
            total += int(part.sum())
            squares += int(np.dot(part, part))
        self.sums[modality] = (int(pixels.size), total, squares)


@dataclass(frozen=True)
class _View:
    """A converted image and what was seen on the way; counted only if it is the one used."""

    stored: Stored
    facts: dict[str, str]


def _convert_view(path: Path, side: str, task: SampleTask) -> _View:
    """One image from file to stored pixels.

    Raises:
        BadImage: the image cannot be used.
    """
    from data_tools.deidentify import vendor_family
    from data_tools.pixels.dicom import BadImage, decode, syntax_name
    from data_tools.pixels.geometry import MAX_AREA, MIN_AREA, canonicalise
    from data_tools.pixels.grayscale import grade

    ds, stored, extremes = decode(path)
    graded = grade(ds, stored, extremes)
    mask = graded.mask()
    area = mask.area
    if area < MIN_AREA:
        raise BadImage("breast_area_too_small")
    if area > MAX_AREA:
        raise BadImage("breast_area_too_large")
    view = canonicalise(graded.part, mask, task.rows, task.cols)
    vendor = task.meta["vendor"] or vendor_family(str(ds.get("Manufacturer") or ""))
    facts = {
        "transfer_syntax": syntax_name(ds.file_meta.TransferSyntaxUID),
        "bits_stored": str(int(ds.get("BitsStored") or 16)),
        "photometric_interpretation": "MONOCHROME1" if graded.inverted else "MONOCHROME2",
        "grey_method": graded.method,
        "size": f"{stored.shape[0]}x{stored.shape[1]}",
        "vendor": vendor,
        # as taken, a left breast has its chest wall at the left
        "flip": "agrees with laterality" if view.geometry["flipped"] == (side == "r") else "disagrees",
    }
    return _View(view, facts)


def _best_view(modality: str, task: SampleTask, result: SampleResult) -> _View | None:
    """The candidate to use; those that cannot be read are noted."""
    best: _View | None = None
    for path in task.images[modality]:
        try:
            with quiet():
                view = _convert_view(Path(path), task.meta["side"], task)
        except BadImage as bad:
            result.bad.append((modality, bad.reason))
            continue
        except UserError:
            raise  # concerns every image, such as a missing decoder
        except Exception as error:
            # damaged headers fail in ways no list foresees; one file may not end a conversion of days. It is
            # quarantined under the kind of error, without its text, which may quote the header
            result.bad.append((modality, f"unexpected_{type(error).__name__}"))
            continue
        if best is None or view.stored.area > best.stored.area:
            best = view
        if task.choose == "first":
            break
    return best


def convert_sample(task: SampleTask) -> SampleResult:
    """Converts all images of a sample; a bad one is noted and the others go on."""
    if task.meta["dataset"] == "gamma":
        from data_tools.convert.eye import convert_eye

        return convert_eye(task)
    result = SampleResult(dict(task.meta))
    geometry: dict[str, Any] = {}
    for modality in task.images:
        view = _best_view(modality, task, result)
        if view is None:
            continue
        for name, value in view.facts.items():
            result.count(name, value)
        result.meta["vendor"] = result.meta["vendor"] or view.facts["vendor"]
        result.add(modality, view.stored.pixels, task.codec)
        geometry[modality] = view.stored.geometry
    result.meta["vendor"] = result.meta["vendor"] or "other"
    result.meta["modalities"] = list(geometry)
    result.meta["geometry"] = geometry
    return result
