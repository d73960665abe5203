"""Values of a volume and where they lie in the body; turning them to one orientation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.pixels.dicom import BadImage

STORED = ("L", "P", "S")  # directions of W, H and D: to the patient's left, back and head


@dataclass(frozen=True)
class Voxels:
    """What a file or folder stores of a volume.

    Attributes:
        values: [D, H, W] of any type.
        spacing: mm along D, H and W, or None.
        orientation: axis codes before and after, or ``unknown``.
        affine: float64 [4, 4] from voxel (W, H, D) to mm (to the right, to the front, up), or None.
        notes: what was done to it on the way.
    """

    values: NDArray[Any]
    spacing: tuple[float, float, float] | None
    orientation: str
    affine: NDArray[np.float64] | None = None
    notes: tuple[str, ...] = ()

    def noted(self, note: str) -> Voxels:
        """The same with one note more."""
        return replace(self, notes=(*self.notes, note))


def upright(values: NDArray[Any], affine: NDArray[np.float64], notes: tuple[str, ...] = ()) -> Voxels:
    """Turned and mirrored to the closest of the directions of ``STORED``; no value is interpolated.

    Args:
        values: [x, y, z] in the order of the columns of ``affine``.
        affine: from voxel to mm to the patient's right, front and head (nibabel's RAS+).
        notes: of the result.

    Raises:
        BadImage: an affine without three directions.
    """
    from nibabel.orientations import (
        aff2axcodes,
        apply_orientation,
        axcodes2ornt,
        inv_ornt_aff,
        io_orientation,
        ornt_transform,
    )

    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or (sizes <= 0).any() or abs(np.linalg.det(affine[:3, :3] / sizes)) < 0.1:
        raise BadImage("bad_spacing")
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(STORED))
    turned = apply_orientation(values, turn)
    new = affine @ inv_ornt_aff(turn, values.shape)
    width, height, depth = (float(n) for n in np.linalg.norm(new[:3, :3], axis=0))
    codes = "".join(aff2axcodes(affine))
    pixels = np.ascontiguousarray(turned.transpose(2, 1, 0))
    return Voxels(pixels, (depth, height, width), f"{codes} to {''.join(STORED)}", new, notes)
