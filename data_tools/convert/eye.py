"""Converts one eye of GAMMA: fundus photograph, OCT volume and cup mask; runs in worker processes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.archives.gamma import BACKGROUND, CUP, NUM_SLICES, RIM
from data_tools.convert.sample import SampleJob, SampleResult
from data_tools.pixels.dicom import BadImage
from data_tools.pixels.fit import crop_geometry, nearest, place, resized
from m4oe_ds.data.codecs import encode
from m4oe_ds.data.schema import MISSING
from m4oe_ds.errors import UserError

# Frames of 2000 rows hold a disc in the middle: the part that the other camera's 1934 x 1956 frames show
WIDE_ROWS, WIDE_CROP = 2000, (33, 518, 1934, 1956)  # top, left, height, width
_SLICE = re.compile(r"(\d+)_image\.jpe?g", re.IGNORECASE)


def _read(path: Path, mode: str) -> NDArray[np.uint8]:
    """An 8-bit image: ``RGB`` or ``L``.

    Raises:
        BadImage: missing, damaged or of another kind.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=["JPEG", "PNG"]) as image:
            if image.mode not in ("RGB", "L"):
                raise BadImage("not_8_bit_grey_or_colour")
            image.load()
            return np.asarray(image if image.mode == mode else image.convert(mode))
    except FileNotFoundError:
        raise BadImage("missing_file") from None
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        raise BadImage("undecodable_pixels") from None


def fundus_crop(image: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the part to keep: the known frame of wide images, else where it is not black."""
    if image.shape[0] == WIDE_ROWS and image.shape[1] >= WIDE_CROP[1] + WIDE_CROP[3]:
        return WIDE_CROP
    lit = image.max(axis=2) > 12
    rows, cols = np.flatnonzero(lit.mean(axis=1) > 0.02), np.flatnonzero(lit.mean(axis=0) > 0.02)
    if not len(rows) or not len(cols):
        raise BadImage("nothing_to_see")
    return int(rows[0]), int(cols[0]), int(rows[-1] - rows[0] + 1), int(cols[-1] - cols[0] + 1)


def convert_fundus(path: Path, rows: int, cols: int) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """``(uint8 [rows, cols, 3], geometry)`` of a fundus photograph."""
    image = _read(path, "RGB")
    geometry = crop_geometry(image.shape, fundus_crop(image), rows, cols)
    return resized(place(image, geometry), rows, cols), geometry


def convert_mask(path: Path, geometry: Mapping[str, Any], result: SampleResult) -> NDArray[np.uint8]:
    """Cup mask ``uint8 [rows, cols]`` in {0, 1} in the geometry of its fundus image.

    The mask is made binary before it is resized (nearest), so that no interpolated grey becomes a class.

    Raises:
        BadImage: missing, damaged, or of another size than the fundus image.
    """
    grey = _read(path, "L")
    if list(grey.shape) != geometry["original_shape"]:
        raise BadImage("mask_size_differs")
    known = np.array([CUP, RIM, BACKGROUND])
    if not np.isin(grey, known).all():  # re-exported with smooth edges: the nearest value
        result.count("mask", "grey values snapped")
        distance = np.abs(grey[..., None].astype(np.int16) - known)
        grey = known[distance.argmin(axis=-1)].astype(np.uint8)
    return nearest((grey == CUP).astype(np.uint8), geometry)


def slice_paths(folder: Path) -> list[Path]:
    """B-scans in the order of their number: by name ``10_image.jpg`` would come before ``2_image.jpg``.

    Raises:
        BadImage: the numbers are not 0 to 255.
    """
    numbered = {int(match[1]): path for path in folder.iterdir() if (match := _SLICE.fullmatch(path.name))}
    if sorted(numbered) != list(range(NUM_SLICES)):
        raise BadImage("slices_not_0_to_255")
    return [numbered[number] for number in range(NUM_SLICES)]


def convert_volume(folder: Path, rows: int, cols: int) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """``(uint8 [256, rows, cols], geometry)`` of an OCT volume: every B-scan whole, stretched to the stored shape.

    B-scans are resampled without keeping their aspect: depth and width have different physical scales anyway.

    Raises:
        BadImage: slices missing, damaged, or of different sizes.
    """
    volume = np.empty((NUM_SLICES, rows, cols), np.uint8)
    shape: tuple[int, ...] | None = None
    for number, path in enumerate(slice_paths(folder)):
        scan = _read(path, "L")
        shape = shape or scan.shape
        if scan.shape != shape:
            raise BadImage("slices_of_different_sizes")
        volume[number] = resized(scan, rows, cols)
    if shape is None or int(volume.min()) == int(volume.max()):
        raise BadImage("constant")
    geometry = {
        "original_shape": list(shape),
        "crop": [0, 0, *shape],
        "flipped": False,
        "padded_shape": list(shape),
        "stored_shape": [rows, cols],
    }
    return volume, geometry


def _convert(modality: str, job: SampleJob, result: SampleResult) -> dict[str, Any]:
    path = Path(job.images[modality][0])
    if modality == "fundus":
        pixels, geometry = convert_fundus(path, job.rows, job.cols)
    else:
        pixels, geometry = convert_volume(path, job.rows, job.cols)
    shape = geometry["original_shape"]
    result.count(f"{modality}_size", f"{shape[0]}x{shape[1]}")
    result.add(modality, pixels, "b2" if modality == "oct" else job.codec)  # PNG holds no volumes
    return geometry


def convert_eye(job: SampleJob) -> SampleResult:
    """Converts both modalities and the mask of an eye; a bad one is noted and left out."""
    result = SampleResult({**job.meta, "vendor": job.meta["vendor"] or "other"})
    result.meta["labels"] = dict(job.meta["labels"])
    geometry: dict[str, Any] = {}
    for modality in job.images:
        try:
            geometry[modality] = _convert(modality, job, result)
        except BadImage as bad:
            result.bad.append((modality, bad.reason))
        except UserError:
            raise
        except Exception as error:  # as for mammograms: one file may not end a conversion
            result.bad.append((modality, f"unexpected_{type(error).__name__}"))
    result.meta["labels"]["cup"] = MISSING
    if "cup" in job.masks and "fundus" in geometry:
        try:
            mask = convert_mask(Path(job.masks["cup"]), geometry["fundus"], result)
            result.members[f"cup.{job.codec}"] = encode(mask, job.codec)
            result.meta["labels"]["cup"] = 1  # a mask is there; what it shows is in its member
        except BadImage as bad:
            result.bad.append(("cup", bad.reason))
    result.meta["modalities"] = list(geometry)
    result.meta["geometry"] = geometry
    return result
