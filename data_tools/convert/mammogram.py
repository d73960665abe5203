"""Converts one mammogram view; runs in worker processes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.convert.sample import SampleJob, SampleResult
from data_tools.pixels.dicom import BadImage, quiet
from m4oe_ds.errors import UserError

if TYPE_CHECKING:
    from data_tools.pixels.geometry import Stored


@dataclass(frozen=True)
class _View:
    """A converted image and what was seen on the way; counted only if it is the one used."""

    stored: Stored
    facts: dict[str, str]


def _convert_view(path: Path, side: str, job: SampleJob) -> _View:
    """One image from file to stored pixels.

    Raises:
        BadImage: the image cannot be used.
    """
    from data_tools.deidentify import vendor_family
    from data_tools.pixels.dicom import BadImage, decode, syntax_name
    from data_tools.pixels.film import without_frame
    from data_tools.pixels.geometry import MAX_AREA, MIN_AREA, canonicalise
    from data_tools.pixels.grayscale import grade

    ds, stored, extremes = decode(path)
    if job.converter == "film":
        stored = without_frame(stored)
        extremes = int(stored.min()), int(stored.max())
    graded = grade(ds, stored, extremes)
    mask = graded.mask()
    area = mask.area
    if area < MIN_AREA:
        raise BadImage("breast_area_too_small")
    if area > MAX_AREA:
        raise BadImage("breast_area_too_large")
    view = canonicalise(graded.part, mask, job.rows, job.cols)
    vendor = job.meta["vendor"] or vendor_family(str(ds.get("Manufacturer") or ""))
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
    if job.converter == "film":
        letter = str(ds.get("Laterality") or "").strip().lower()
        facts["laterality"] = ("agrees" if letter == side else "disagrees") if letter else "absent"
    return _View(view, facts)


def best_view(modality: str, job: SampleJob, result: SampleResult) -> _View | None:
    """The candidate to use; those that cannot be read are noted."""
    best: _View | None = None
    for path in job.images[modality]:
        try:
            with quiet():
                view = _convert_view(Path(path), job.meta["side"], job)
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
        if job.choose == "first":
            break
    return best


def convert_views(job: SampleJob, result: SampleResult) -> None:
    """Converts all views of a sample into the result; a bad one is noted and left out."""
    geometry: dict[str, Any] = {}
    for modality in job.images:
        view = best_view(modality, job, result)
        if view is None:
            continue
        for name, value in view.facts.items():
            result.count(name, value)
        result.meta["vendor"] = result.meta["vendor"] or view.facts["vendor"]
        result.add(modality, view.stored.pixels, job.codec)
        geometry[modality] = view.stored.geometry
    result.meta["vendor"] = result.meta["vendor"] or "other"
    result.meta["modalities"] = list(geometry)
    result.meta["geometry"] = geometry
