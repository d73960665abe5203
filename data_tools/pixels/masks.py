"""Brings a mask to the place of its image: the same crop, mirror, frame and size, without grey between its values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def nearest(mask: NDArray[Any], rows: int, cols: int) -> NDArray[Any]:
    """The mask ``[rows, cols]``: every pixel is the one in which its centre lies."""
    down = ((np.arange(rows) + 0.5) * mask.shape[0] / rows).astype(int)
    across = ((np.arange(cols) + 0.5) * mask.shape[1] / cols).astype(int)
    return np.ascontiguousarray(mask[down][:, across])


def place_mask(mask: NDArray[Any], geometry: Mapping[str, Any]) -> NDArray[Any]:
    """A mask in the geometry of its stored image, 0 outside the crop.

    Args:
        mask: ``[H, W]`` of the size of the original image.
        geometry: the fields of GEOMETRY_FIELDS that the image was stored with.

    Returns:
        ``[rows, cols]`` of the mask's type.

    Raises:
        ValueError: the mask has another size than the image: an error of the caller.
    """
    if list(mask.shape) != list(geometry["original_shape"]):
        raise ValueError("a mask must have the size of its image")
    top, left, height, width = geometry["crop"]
    part = mask[top : top + height, left : left + width]
    padded = np.zeros(tuple(geometry["padded_shape"]), mask.dtype)
    above = (padded.shape[0] - height) // 2
    padded[above : above + height, :width] = part[:, ::-1] if geometry["flipped"] else part
    return nearest(padded, *geometry["stored_shape"])
