"""Converts the images of one sample; runs in worker processes."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from data_tools.geometry import Stored


@dataclass(frozen=True)
class SampleTask:
    """Work of one sample.

    Attributes:
        meta: fields of META_FIELDS but modalities and geometry. images: file of each modality.
        rows, cols, codec: of the stored images.
        source: patient and exam, for the private mapping alone.
    """

    meta: dict[str, Any]
    images: dict[str, str]
    rows: int
    cols: int
    codec: str
    source: tuple[str, str] = ("", "")


@dataclass
class SampleResult:
    """A sample ready for a shard.

    Attributes:
        meta: all fields of META_FIELDS. members: encoded pixels by member name.
        bad: (modality, reason) of images that were not used.
        facts: counts for the histograms of the report.
        sums: per modality (number, sum, sum of squares) of stored pixels.
        digests: of the decoded pixels, to find an image that belongs to two patients.
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


def _convert_view(path: Path, side: str, task: SampleTask, result: SampleResult) -> Stored:
    """One image from file to stored pixels; what was seen is counted in ``result``.

    Raises:
        BadImage: the image cannot be used.
    """
    from data_tools.dicom import BadImage, read_mammogram, syntax_name
    from data_tools.geometry import MAX_AREA, MIN_AREA, breast_mask, canonicalise
    from data_tools.grayscale import grade

    ds, stored = read_mammogram(path)
    graded = grade(ds, stored)
    mask = breast_mask(graded.image)
    area = float(mask.mean())
    if area < MIN_AREA:
        raise BadImage("breast_area_too_small")
    if area > MAX_AREA:
        raise BadImage("breast_area_too_large")
    view = canonicalise(graded.image, mask, task.rows, task.cols)
    result.count("transfer_syntax", syntax_name(ds.file_meta.TransferSyntaxUID))
    result.count("bits_stored", int(ds.get("BitsStored") or 16))
    result.count("photometric_interpretation", "MONOCHROME1" if graded.inverted else "MONOCHROME2")
    result.count("grey_method", graded.method)
    result.count("size", f"{stored.shape[0]}x{stored.shape[1]}")
    result.count("vendor", task.meta["vendor"])
    # as taken, a left breast has its chest wall at the left
    result.count("flip", "agrees with laterality" if view.geometry["flipped"] == (side == "r") else "disagrees")
    result.digests.append(hashlib.blake2b(np.ascontiguousarray(stored).tobytes(), digest_size=16).hexdigest())
    return view


def convert_sample(task: SampleTask) -> SampleResult:
    """Converts all images of a sample; a bad one is noted and the others go on."""
    from data_tools.dicom import BadImage, quiet
    from m4oe_ds.data.codecs import encode
    from m4oe_ds.errors import UserError

    result = SampleResult(dict(task.meta))
    geometry: dict[str, Any] = {}
    for modality, path in task.images.items():
        try:
            with quiet():
                view = _convert_view(Path(path), task.meta["side"], task, result)
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
        geometry[modality] = view.geometry
        result.members[f"{modality}.{task.codec}"] = encode(view.pixels, task.codec)
        wide = view.pixels.astype(np.uint64)
        result.sums[modality] = (wide.size, int(wide.sum()), int((wide * wide).sum()))
    result.meta["modalities"] = list(geometry)
    result.meta["geometry"] = geometry
    return result
