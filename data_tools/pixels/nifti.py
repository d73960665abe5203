"""Reads a NIfTI volume: values after slope and intercept, upright, spacing in mm. Headers' texts are never used."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.pixels.dicom import BadImage
from data_tools.pixels.formats import check_size
from data_tools.pixels.voxels import Voxels, upright

_MM = {"mm": 1.0, "unknown": 1.0, "meter": 1000.0, "micron": 0.001}
_AT_ONCE = 1 << 20


def _check_sum(path: Path, expected: int) -> None:
    """Reads a compressed file to its end, where its checksum is; nibabel stops at the last voxel.

    Raises:
        BadImage: more than the header announces, by far.
        OSError: a wrong checksum; also EOFError and zlib.error.
    """
    total = 0
    with gzip.open(path) as stream:
        while part := stream.read(_AT_ONCE):
            total += len(part)
            if total > expected + (1 << 26):  # header extensions hold some text, not more than 64 MiB
                raise BadImage("too_large")


def read_nifti(path: Path) -> Voxels:
    """Voxels of a ``.nii`` or ``.nii.gz`` file.

    Raises:
        BadImage: not one grey volume, too large, or without a usable spacing; the caller turns what nibabel raises on
            damaged files into a reason.
    """
    import nibabel

    image: Any = nibabel.load(path)  # type: ignore[attr-defined]  # re-exported without __all__
    header, proxy = image.header, image.dataobj
    shape = tuple(int(n) for n in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        raise BadImage("several_volumes" if len(shape) > 3 else "not_a_volume")
    check_size(*shape)
    dtype = header.get_data_dtype()
    if dtype.kind not in "uif":
        raise BadImage("colour" if dtype.fields else "not_real_numbers")
    if path.name.lower().endswith(".gz"):
        _check_sum(path, int(np.prod(shape)) * dtype.itemsize)
    values = np.asanyarray(proxy).reshape(shape)  # scaled to floats only where slope and intercept say so
    factor = _MM.get(str(header.get_xyzt_units()[0]))
    if factor is None:
        raise BadImage("bad_spacing")
    affine = np.array(image.affine, np.float64)
    affine[:3] *= factor
    placed = int(header["sform_code"]) > 0 or int(header["qform_code"]) > 0
    return upright(values, affine, () if placed else ("orientation_assumed",))
