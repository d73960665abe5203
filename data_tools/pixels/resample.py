"""Brings a volume to cubic voxels in its stored size, its masks with it, and masks back again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.pixels.dicom import BadImage
from data_tools.pixels.volume import Volume

Geometry = Mapping[str, Any]
VOLUME_GEOMETRY_FIELDS = frozenset(
    {
        "original_shape",  # [D, H, W] as read
        "spacing",  # mm along D, H, W as read; null where the file does not say, then taken as 1
        "voxel",  # side of the cubic voxels wanted, in the unit of the spacing
        "content_shape",  # [d, h, w] of the resampled volume
        "offset",  # where it begins in the stored one
        "stored_shape",
    }
)


def resample_isotropic(volume: Volume, size: tuple[int, int, int]) -> tuple[NDArray[Any], dict[str, Any]]:
    """A whole volume with cubic voxels in the middle of ``size``: never stretched, zeros around it.

    The voxels are the smallest with which it fits. Along an axis on which voxels get larger they are averaged over
    their extents, along one on which they get smaller interpolated linearly.

    Args:
        volume: as read.
        size: [D, H, W] of the result.

    Returns:
        ``(pixels, geometry)``: the same type, and the fields of VOLUME_GEOMETRY_FIELDS.
    """
    shape = volume.pixels.shape
    spacing = volume.spacing or (1.0, 1.0, 1.0)
    extents = [count * step for count, step in zip(shape, spacing, strict=True)]
    voxel = max(extent / side for extent, side in zip(extents, size, strict=True))
    content = [min(side, max(1, round(extent / voxel))) for extent, side in zip(extents, size, strict=True)]
    offset = [(side - inner) // 2 for side, inner in zip(size, content, strict=True)]
    geometry = {
        "original_shape": list(shape),
        "spacing": None if volume.spacing is None else [float(n) for n in volume.spacing],
        "voxel": float(voxel),
        "content_shape": content,
        "offset": offset,
        "stored_shape": [int(n) for n in size],
    }
    out = np.zeros(size, volume.pixels.dtype)
    out[_inner(geometry)] = _resampled(volume.pixels, content)
    return out, geometry


def resample_mask(mask: NDArray[Any], geometry: Geometry) -> NDArray[Any]:
    """A mask in the geometry of its volume: every stored voxel is one of the source.

    Args:
        mask: [D, H, W] of any type, in the size of its volume as read.
        geometry: of the volume.

    Raises:
        BadImage: of another size than the volume.
    """
    if list(mask.shape) != list(geometry["original_shape"]):
        raise BadImage("mask_size_differs")
    out = np.zeros(geometry["stored_shape"], mask.dtype)
    out[_inner(geometry)] = _nearest(mask, geometry["content_shape"])
    return out


def unmap(mask: NDArray[Any], geometry: Geometry) -> NDArray[Any]:
    """A stored or predicted mask at the native resolution of its volume (in the orientation in which it was read)."""
    return _nearest(mask[_inner(geometry)], geometry["original_shape"])


def _inner(geometry: Geometry) -> tuple[slice, ...]:
    return tuple(
        slice(first, first + length)
        for first, length in zip(geometry["offset"], geometry["content_shape"], strict=True)
    )


def _nearest(values: NDArray[Any], shape: Sequence[int]) -> NDArray[Any]:
    places = [((np.arange(new) + 0.5) * old / new).astype(int) for old, new in zip(values.shape, shape, strict=True)]
    return np.ascontiguousarray(values[np.ix_(*places)])


def _weights(old: int, new: int) -> Any:
    """Sparse float32 [new, old]: shares of overlap where voxels get larger, linear interpolation where smaller."""
    from scipy.sparse import coo_array

    if new <= old:
        edges = np.arange(new + 1) * (old / new)
        first, last = np.floor(edges[:-1] + 1e-9).astype(int), np.ceil(edges[1:] - 1e-9).astype(int)
        rows = np.repeat(np.arange(new), last - first)
        cols = np.concatenate([np.arange(a, b) for a, b in zip(first, last, strict=True)])
        share = np.minimum(edges[rows + 1], cols + 1) - np.maximum(edges[rows], cols)
        share *= new / old
    else:
        centre = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
        below = np.minimum(np.floor(centre).astype(int), max(0, old - 2))
        part = centre - below
        rows = np.concatenate([np.arange(new)] * 2)
        cols = np.concatenate([below, np.minimum(below + 1, old - 1)])
        share = np.concatenate([1 - part, part])
    return coo_array((share.astype(np.float32), (rows, cols)), shape=(new, old)).tocsr()


def _resampled(pixels: NDArray[Any], shape: list[int]) -> NDArray[Any]:
    """Axis by axis, the one that shrinks most first: what follows is then smaller."""
    if list(pixels.shape) == list(shape):
        return pixels
    values = pixels
    for axis in sorted(range(3), key=lambda n: shape[n] / pixels.shape[n]):
        old, new = values.shape[axis], shape[axis]
        if old == new:
            continue
        moved = np.moveaxis(values, axis, 0)
        flat = np.ascontiguousarray(moved, dtype=np.float32).reshape(old, -1)
        values = np.moveaxis((_weights(old, new) @ flat).reshape(new, *moved.shape[1:]), 0, axis)
    limit = np.float32(np.iinfo(pixels.dtype).max)
    return np.clip(np.rint(values), 0, limit).astype(pixels.dtype)
