"""Reads a DICOM series: slices in the order of their positions in the body, whatever their files are called."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.pixels.dicom import BadImage, read_header, read_stored
from data_tools.pixels.formats import check_size
from data_tools.pixels.grayscale import header_value, modality_values, padding_of
from data_tools.pixels.voxels import Voxels, upright

_TAGS = (
    "SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns",
    "NumberOfFrames", "PhotometricInterpretation",
)  # fmt: skip
UNEVEN = 0.05  # of the distance between slices: rounding in headers is smaller, a missing slice is twenty times that
TILT = 0.02  # shift across the slices per mm along them; above, the volume is sheared (a tilted gantry)


def _vector(header: Any, name: str, length: int) -> NDArray[np.float64]:
    try:
        vector = np.array([float(n) for n in header_value(header, name)], np.float64)
    except (TypeError, ValueError):
        raise BadImage("no_slice_positions") from None
    if vector.shape != (length,) or not np.isfinite(vector).all():
        raise BadImage("no_slice_positions")
    return vector


def _one_series(headers: Sequence[Any]) -> None:
    """Refuses a folder of more than one series, of slices that do not fit on each other, or of one slice."""
    series = {str(header_value(header, "SeriesInstanceUID")) for header in headers}
    if len(series) != 1:
        raise BadImage(f"{len(series)}_series_in_folder")
    if any(str(header_value(header, "NumberOfFrames") or "1").strip() != "1" for header in headers):
        raise BadImage("multi_frame")
    if any(str(header_value(header, "PhotometricInterpretation")).strip() != "MONOCHROME2" for header in headers):
        raise BadImage("photometric_interpretation")
    if len({(header_value(header, "Rows"), header_value(header, "Columns")) for header in headers}) != 1:
        raise BadImage("slices_of_different_sizes")
    if len(headers) == 1:
        raise BadImage("one_slice")


def _placed(headers: Sequence[Any]) -> tuple[list[int], NDArray[np.float64]]:
    """Order of the slices along their normal, and the affine of the stack (columns, rows, slices) in RAS+ mm."""
    first = _vector(headers[0], "ImageOrientationPatient", 6)
    spacing = _vector(headers[0], "PixelSpacing", 2)
    for header in headers:
        if np.abs(_vector(header, "ImageOrientationPatient", 6) - first).max() > 1e-3:
            raise BadImage("slices_of_different_orientations")
        if np.abs(_vector(header, "PixelSpacing", 2) - spacing).max() > 1e-3 * spacing.max():
            raise BadImage("slices_of_different_sizes")
    along_row, along_column = first[:3], first[3:]
    normal = np.cross(along_row, along_column)
    if abs(float(np.linalg.norm(normal)) - 1) > 0.01 or (spacing <= 0).any():
        raise BadImage("bad_spacing")
    positions = np.stack([_vector(header, "ImagePositionPatient", 3) for header in headers])
    order = [int(n) for n in np.argsort(positions @ normal, kind="stable")]
    positions = positions[order]
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    if (gaps <= max(1e-3, UNEVEN * usual)).any():
        raise BadImage("duplicate_positions")
    if (gaps > (1 + UNEVEN) * usual).any():
        ratios = gaps / usual
        whole = np.abs(ratios - np.rint(ratios)).max() <= UNEVEN * ratios.max()
        raise BadImage("missing_slices" if whole else "uneven_slices")
    if (gaps < (1 - UNEVEN) * usual).any():
        raise BadImage("uneven_slices")
    extent = positions[-1] - positions[0]
    step = float(extent @ normal)
    if float(np.linalg.norm(extent - step * normal)) > TILT * step:
        raise BadImage("tilted_slices")
    affine = np.eye(4)
    affine[:3, 0] = along_row * spacing[1]
    affine[:3, 1] = along_column * spacing[0]
    affine[:3, 2] = normal * (step / (len(order) - 1))
    affine[:3, 3] = positions[0]
    affine[:2] *= -1  # DICOM counts to the left and back, nibabel to the right and front
    return order, affine


def read_series(files: Sequence[Path], labels: bool = False) -> Voxels:
    """Voxels of the one series of the given files, after each slice's rescale.

    Padding becomes the least value of the rest.

    Args:
        files: DICOM files in any order.
        labels: stored values as they are, without rescale and padding.

    Raises:
        BadImage: several series, gaps, the same position twice, slices that do not fit on each other, or damaged.
        EnvironmentProblem: no decoder for a transfer syntax.
    """
    headers = [read_header(file, _TAGS) for file in files]
    _one_series(headers)
    check_size(len(files), int(headers[0].Rows), int(headers[0].Columns))
    order, affine = _placed(headers)
    slices, empty = [], []
    for place in order:
        ds, stored, _ = read_stored(files[place])
        values = stored if labels else modality_values(ds, stored)
        slices.append(values.astype(np.float32) if values.dtype == np.float64 else values)
        empty.append(np.zeros(0, bool) if labels else padding_of(ds, stored))
    stack = np.stack(slices)
    padded = any(mask.any() for mask in empty)
    if padded:
        mask = np.stack(empty)
        if mask.all():
            raise BadImage("constant")
        stack[mask] = stack[~mask].min()
    return upright(stack.transpose(2, 1, 0), affine, ("padding",) if padded else ())
