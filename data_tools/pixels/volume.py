"""Reads one volume for a modality of kind ``volume``: NIfTI, DICOM series, slices in a folder, TIFF pages, ``.npy``.

Volumes with a known position in the body (NIfTI, DICOM) are brought to one orientation by turning and mirroring
alone: ``[D, H, W]`` goes from feet to head, from front to back and from the patient's right to left, so that an axial
slice lies as radiologists see it. The others stay as they are stored.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.pixels.dicom import BadImage
from data_tools.pixels.formats import SUFFIXES, check_size, decode_file, guarded, kind_of, tiff_page, tiff_pages
from data_tools.pixels.masks import Values, class_bits
from data_tools.pixels.nifti import read_nifti
from data_tools.pixels.picture import as_channels
from data_tools.pixels.series import read_series
from data_tools.pixels.values import Range, check_numbers, check_range, spread
from data_tools.pixels.voxels import Voxels

PERCENTILES = (0.5, 99.5)
_NIFTI = (".nii", ".nii.gz")
_NOT_SLICES = ("thumbs.db", "desktop.ini", "dicomdir")


@dataclass(frozen=True)
class Volume:
    """One volume ready to be resampled into its stored size.

    Attributes:
        pixels: uint8 or uint16 [D, H, W].
        spacing: mm from voxel to voxel along D, H and W; None where the file does not say.
        orientation: axis codes of the file and what was made of them, as ``RAS to LPS``; ``unknown`` where it has none.
        mapping: how values became integers: ``kind`` (``exact``, ``range``, ``percentile`` or ``extremes``) and the
            values ``low`` and ``high`` that became 0 and 65535 (None where kept exactly).
        notes: what else was done to it, for counts.
        affine: float64 [4, 4] from voxel (W, H, D) to mm (to the right, to the front, up), None where unknown.
    """

    pixels: NDArray[Any]
    spacing: tuple[float, float, float] | None
    orientation: str
    mapping: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    affine: NDArray[np.float64] | None = None


def read_volume(path: Path, value_range: Range | None = None, clip: bool = False) -> Volume:
    """A volume from a file, or a folder of DICOM or numbered pictures.

    8 and 16 bits without sign are kept exactly. All else (floats, signed numbers, rescaled numbers such as Hounsfield
    units) is spread over 16 bits between the ends of ``value_range`` or, without one, between the 0.5 and 99.5
    percentiles of the volume; which of them is recorded in ``mapping``.

    Args:
        path: the file or folder.
        value_range: the values that become 0 and 65535; every type of number is then mapped.
        clip: values outside the range become its ends (a window); else they are refused.

    Raises:
        BadImage: with its reason.
        EnvironmentProblem: no decoder for a DICOM transfer syntax.
        ValueError: an empty range.
    """
    if value_range is not None:
        check_range(value_range)
    voxels = _read(path, labels=False)
    pixels, mapping = _mapped(voxels.values, value_range, clip)
    if int(pixels.min()) == int(pixels.max()):
        raise BadImage("constant")
    return Volume(pixels, voxels.spacing, voxels.orientation, mapping, voxels.notes, voxels.affine)


def read_volume_mask(
    path: Path,
    shape: tuple[int, ...],
    classes: int,
    values: Values | None = None,
    at_least: float | None = None,
    affine: NDArray[np.float64] | None = None,
) -> NDArray[np.uint8]:
    """The mask of a volume, in its native size: bits of classes, as :func:`data_tools.pixels.masks.read_mask`.

    Args:
        path: a file or folder in any format of :func:`read_volume`.
        shape: [D, H, W] of its volume as it was read.
        classes: 1 to 8.
        values: per class the stored values that belong to it.
        at_least: of one class, the least value of a soft map that belongs to it.
        affine: of its volume; a mask that has one of its own must lie in the same place.

    Raises:
        BadImage: as for pictures, or a mask that lies elsewhere in the body.
        ValueError: classes, values and threshold that contradict each other.
    """
    voxels = _read(path, labels=True)
    if "lossy" in voxels.notes and at_least is None:
        raise BadImage("mask_lossy")
    if tuple(voxels.values.shape) != tuple(shape):
        raise BadImage("mask_size_differs")
    if affine is not None and voxels.affine is not None:
        corners = np.array([[w, h, d, 1] for d in (0, shape[0]) for h in (0, shape[1]) for w in (0, shape[2])])
        voxel = np.linalg.norm(affine[:3, :3], axis=0).min()
        if np.abs(corners @ (affine - voxels.affine)[:3].T).max() > voxel / 2:
            raise BadImage("mask_placed_differently")
    return class_bits(voxels.values, classes, values, at_least)


def _mapped(values: NDArray[Any], value_range: Range | None, clip: bool) -> tuple[NDArray[Any], dict[str, Any]]:
    """``(uint8 or uint16, mapping)`` of values of any type."""
    check_numbers(values)
    if value_range is not None:
        return spread(values, value_range, clip), {"kind": "range", "low": value_range[0], "high": value_range[1]}
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * np.uint8(255), {"kind": "exact", "low": None, "high": None}
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        exact = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
        return exact, {"kind": "exact", "low": None, "high": None}
    kind, (low, high) = "percentile", (float(n) for n in np.percentile(values, PERCENTILES))
    if not low < high:  # a small bright thing in a large empty volume
        kind, low, high = "extremes", float(values.min()), float(values.max())
    if not low < high:
        raise BadImage("constant")
    return spread(values, (low, high), clip=True), {"kind": kind, "low": low, "high": high}


def _read(path: Path, labels: bool) -> Voxels:
    if path.is_dir():
        return _folder(path, labels)
    if path.name.lower().endswith(_NIFTI):
        if not path.is_file():
            raise BadImage("missing_file")
        return guarded(lambda: read_nifti(path), "nibabel")
    kind = kind_of(path)
    if kind == "npy":
        return guarded(lambda: _npy(path))
    if kind == "tiff":
        return guarded(lambda: _tiff(path, labels))
    raise BadImage("one_slice" if kind != "dicom" else "multi_frame")


def _folder(path: Path, labels: bool) -> Voxels:
    files = sorted(p for p in path.iterdir() if p.is_file() and p.name[0] != "." and p.name.lower() not in _NOT_SLICES)
    series: list[Path] = []
    pictures: list[Path] = []
    others = 0
    for file in files:
        try:
            kind = kind_of(file)
        except BadImage as bad:
            if bad.reason != "unknown_format" or file.suffix.lower() in ("", ".dcm", ".ima", *SUFFIXES):
                raise  # a slice that lost its beginning, not a note that lies beside the slices
            others += 1
            continue
        (series if kind == "dicom" else pictures).append(file)
    if series and pictures:
        raise BadImage("mixed_formats")
    if not files or not (series or pictures):
        raise BadImage("no_slices")
    voxels = guarded(lambda: read_series(series, labels), "pydicom") if series else _slices(pictures, labels)
    return voxels if not others else voxels.noted("other_files")


def numbered(names: Sequence[str]) -> list[int]:
    """Places of names in the order of the one number in which they differ: 2 comes before 10.

    Args:
        names: file names without their suffix.

    Raises:
        BadImage: names that differ in more than one number, numbers that are missing or there twice.
    """
    parts = [re.split(r"(\d+)", name) for name in names]
    if len({tuple(part[::2]) for part in parts}) != 1:
        raise BadImage("slice_names_differ")
    numbers = np.array([[int(n) for n in part[1::2]] for part in parts], dtype=object)
    varying = [column for column in range(numbers.shape[1]) if len(set(numbers[:, column])) > 1]
    if not varying and len(names) > 1:
        raise BadImage("duplicate_slices" if numbers.shape[1] else "slice_names_differ")
    if len(varying) != 1:
        raise BadImage("one_slice" if len(names) == 1 else "slice_names_differ")
    of_name = [int(n) for n in numbers[:, varying[0]]]
    if len(set(of_name)) != len(of_name):
        raise BadImage("duplicate_slices")
    if max(of_name) - min(of_name) + 1 != len(of_name):
        raise BadImage("missing_slices")
    return sorted(range(len(of_name)), key=of_name.__getitem__)


def _slices(files: Sequence[Path], labels: bool) -> Voxels:
    ordered = [files[place] for place in numbered([file.stem for file in files])]
    out: NDArray[Any] | None = None
    notes: set[str] = set()
    for number, file in enumerate(ordered):
        decoded = decode_file(file, indices=labels)
        values, more = as_channels(decoded.values, decoded.alpha, 1)
        notes.update(decoded.notes, more, ("lossy",) if decoded.lossy else ())
        if out is None:
            check_size(len(ordered), *values.shape)
            out = np.empty((len(ordered), *values.shape), values.dtype)
        if values.shape != out.shape[1:]:
            raise BadImage("slices_of_different_sizes")
        if values.dtype != out.dtype:
            raise BadImage("slices_of_different_depths")
        out[number] = values
    if out is None:
        raise BadImage("no_slices")
    return Voxels(out, None, "unknown", notes=tuple(sorted(notes)))


def _npy(path: Path) -> Voxels:
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    if mapped.ndim != 3:
        raise BadImage("not_a_volume")
    check_size(*mapped.shape)
    return Voxels(np.array(mapped), None, "unknown")


def _tiff(path: Path, labels: bool) -> Voxels:
    from tifffile import TiffFile

    size = path.stat().st_size
    with TiffFile(path) as file:
        pages = tiff_pages(file)
        if len(pages) == 1:  # a stack may have one directory for all its slices: ImageJ's large ones, tifffile's
            series = file.series[0] if file.is_imagej or file.is_shaped else None
            if series is None or len(series.shape) != 3 or not series.axes.endswith("YX"):
                raise BadImage("one_slice")
            check_size(*series.shape)
            return Voxels(series.asarray(), None, "unknown")
        check_size(len(pages), *pages[0].shape)
        if any(page.shape != pages[0].shape for page in pages):
            raise BadImage("slices_of_different_sizes")
        if any(page.dtype != pages[0].dtype for page in pages):
            raise BadImage("slices_of_different_depths")
        decoded = [tiff_page(page, size, labels) for page in pages]
    planes = [as_channels(one.values, one.alpha, 1) for one in decoded]
    notes = {note for one in decoded for note in one.notes} | {note for _, more in planes for note in more}
    notes |= {"lossy"} if any(one.lossy for one in decoded) else set()
    return Voxels(np.stack([values for values, _ in planes]), None, "unknown", notes=tuple(sorted(notes)))
