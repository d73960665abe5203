"""Brings a picture to its stored size without stretching it, its masks with it, and masks back again.

One set of numbers, PICTURE_GEOMETRY_FIELDS, places every picture: the box ``crop`` of the source (which may reach
beyond it) lies in a frame of ``padded_shape``, in the middle from top to bottom and at the left (mirrored if
``flipped``), and the frame is resized to ``stored_shape``. A picture in the middle of its frame has a box as wide as
the frame.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.pixels.dicom import BadImage
from data_tools.pixels.geometry import padded_shape
from m4oe_ds.data.codecs import MAX_PIXELS

Geometry = Mapping[str, Any]


def fit(pixels: NDArray[Any], rows: int, cols: int) -> tuple[NDArray[Any], dict[str, Any]]:
    """A whole picture in the middle of ``rows x cols``: aspect kept, zeros around it.

    Args:
        pixels: uint8 or uint16, [H, W] or [H, W, C].
        rows: height of the result.
        cols: width of the result.

    Returns:
        ``(fitted, geometry)``: the same type and channels, and the fields of PICTURE_GEOMETRY_FIELDS.

    Raises:
        BadImage: so elongated that its frame would be larger than any picture.
    """
    height, width = pixels.shape[:2]
    full_height, full_width = padded_shape(height, width, rows, cols)
    if full_height * full_width > MAX_PIXELS:
        raise BadImage("too_elongated")
    above, before = (full_height - height) // 2, (full_width - width) // 2
    box = (-above, -before, full_height, full_width)
    geometry = {**crop_geometry(pixels.shape, box, rows, cols), "padded_shape": [full_height, full_width]}
    return resized(place(pixels, geometry), rows, cols), geometry


def fit_mask(mask: NDArray[Any], geometry: Geometry) -> NDArray[Any]:
    """A mask of the size of its picture, in the geometry of the stored picture; never interpolated.

    Args:
        mask: [H, W] of any type: classes, or bits of classes.
        geometry: of its picture, as :func:`fit` gave it.

    Raises:
        BadImage: of another size than the picture.
    """
    if list(mask.shape) != list(geometry["original_shape"]):
        raise BadImage("mask_size_differs")
    return nearest(mask, geometry)


def crop_geometry(shape: tuple[int, ...], crop: tuple[int, int, int, int], rows: int, cols: int) -> dict[str, Any]:
    """The fields of PICTURE_GEOMETRY_FIELDS of a picture of which ``crop`` (top, left, height, width) is kept."""
    return {
        "original_shape": [int(n) for n in shape[:2]],
        "crop": [int(n) for n in crop],
        "flipped": False,
        "padded_shape": [int(n) for n in padded_shape(crop[2], crop[3], rows, cols)],
        "stored_shape": [rows, cols],
    }


def _overlap(geometry: Geometry) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """The part of the source that is kept: where it lies in the source, and where in the frame."""
    source, frame = [], []
    top, left, height, _ = geometry["crop"]
    above = (geometry["padded_shape"][0] - height) // 2
    for start, length, size, offset in zip(
        (top, left), geometry["crop"][2:], geometry["original_shape"], (above, 0), strict=True
    ):
        first, last = max(0, start), min(size, start + length)
        source.append(slice(first, last))
        frame.append(slice(first - start + offset, last - start + offset))
    if geometry["flipped"]:
        width = geometry["crop"][3]
        frame[1] = slice(width - frame[1].stop, width - frame[1].start)
    return (source[0], source[1]), (frame[0], frame[1])


def place(image: NDArray[Any], geometry: Geometry) -> NDArray[Any]:
    """The frame of a picture or mask before it is resized; zero where the source does not reach."""
    source, frame = _overlap(geometry)
    out = np.zeros((*geometry["padded_shape"], *image.shape[2:]), image.dtype)
    out[frame] = image[source][:, ::-1] if geometry["flipped"] else image[source]
    return out


def resized(image: NDArray[Any], rows: int, cols: int) -> NDArray[Any]:
    """Averages over areas where the source is larger, interpolates where it is smaller; the type stays.

    8-bit grey and RGB are rounded after either direction, as Pillow does, and lie within one step of the average; all
    others are rounded once.

    Args:
        image: uint8 or uint16, [H, W] or [H, W, C].
        rows: height of the result.
        cols: width of the result.
    """
    from PIL import Image

    if image.shape[:2] == (rows, cols):
        return image
    smaller = image.shape[0] >= rows and image.shape[1] >= cols
    method = Image.Resampling.BOX if smaller else Image.Resampling.BILINEAR
    if image.dtype == np.uint8 and (image.ndim == 2 or image.shape[2] == 3):
        return np.asarray(Image.fromarray(image).resize((cols, rows), method))
    # Pillow resizes 16 bits as floats only, and weighs two and four channels by the last, as if it were transparency
    planes = [image] if image.ndim == 2 else [image[:, :, channel] for channel in range(image.shape[2])]
    done = [np.asarray(Image.fromarray(p.astype(np.float32)).resize((cols, rows), method)) for p in planes]
    limit = np.float32(np.iinfo(image.dtype).max)
    exact = [np.clip(np.rint(plane), 0, limit).astype(image.dtype) for plane in done]
    return exact[0] if image.ndim == 2 else np.stack(exact, axis=2)


def nearest(mask: NDArray[Any], geometry: Geometry) -> NDArray[Any]:
    """A mask in a geometry, every stored pixel a pixel of the source."""
    placed = place(mask, geometry)
    rows, cols = geometry["stored_shape"]
    down = ((np.arange(rows) + 0.5) * placed.shape[0] / rows).astype(int)
    across = ((np.arange(cols) + 0.5) * placed.shape[1] / cols).astype(int)
    return np.ascontiguousarray(placed[down][:, across])


def unmap_mask(mask: NDArray[Any], geometry: Geometry) -> NDArray[Any]:
    """A stored or predicted mask ``[rows, cols]`` at the native resolution of its picture, 0 outside what was kept."""
    (source_rows, source_cols), (frame_rows, frame_cols) = _overlap(geometry)
    full_height, full_width = geometry["padded_shape"]
    rows, cols = geometry["stored_shape"]
    down = ((np.arange(frame_rows.start, frame_rows.stop) + 0.5) * rows / full_height).astype(int)
    across = ((np.arange(frame_cols.start, frame_cols.stop) + 0.5) * cols / full_width).astype(int)
    out = np.zeros(geometry["original_shape"], mask.dtype)
    kept = mask[down][:, across]
    out[source_rows, source_cols] = kept[:, ::-1] if geometry["flipped"] else kept
    return out
