"""From a graded image and its mask to the stored one: crop, chest wall to the left, aspect, size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.pixels.breast import CoarseMask, Unit

ROWS_AT_ONCE = 64  # source rows looked up and averaged together: they then stay in the cache
MARGIN_SHARE = 0.01  # kept around the breast, of its box
MIN_AREA, MAX_AREA = 0.02, 0.98  # share of the image a breast may cover


@dataclass(frozen=True)
class Stored:
    """A view ready for a shard.

    Attributes:
        pixels: uint16 [rows, cols], chest wall at the left, 0 outside the breast.
        geometry: the fields of PICTURE_GEOMETRY_FIELDS, from which a position in the source follows.
        area: share of the source image covered by the breast.
    """

    pixels: NDArray[np.uint16]
    geometry: dict[str, Any]
    area: float


def crop_box(mask: CoarseMask) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the mask with a margin, inside the image."""
    rows, cols = np.flatnonzero(mask.blocks.any(axis=1)), np.flatnonzero(mask.blocks.any(axis=0))
    top, bottom = int(rows[0]) * mask.factor, (int(rows[-1]) + 1) * mask.factor
    left, right = int(cols[0]) * mask.factor, (int(cols[-1]) + 1) * mask.factor
    margin = round(MARGIN_SHARE * max(bottom - top, right - left))
    top, left = max(0, top - margin), max(0, left - margin)
    bottom, right = min(mask.shape[0], bottom + margin), min(mask.shape[1], right + margin)
    return top, left, bottom - top, right - left


def padded_shape(height: int, width: int, rows: int, cols: int) -> tuple[int, int]:
    """Smallest shape of aspect ``rows : cols`` that holds ``height x width``."""
    return (
        (height, max(width, round(height * cols / rows)))
        if height * cols >= width * rows
        else (max(height, round(width * rows / cols)), width)
    )


def _edges(full: int, parts: int) -> NDArray[np.intp]:
    """``parts + 1`` borders of runs of whole source pixels, each the pixels whose centre lies in one target pixel."""
    return np.floor(np.arange(parts + 1) * (full / parts) + 0.5).astype(np.intp)


def _masked(
    render: Callable[[int, int, int, int], Unit],
    gaps: list[list[tuple[int, int]]],
    factor: int,
    top: int,
    left: int,
    height: int,
    width: int,
) -> Unit:
    """A freshly made rectangle of the image, 0 where it is not breast."""
    part = np.array(render(top, left, height, width), np.float32, copy=None)
    for row in range(top // factor, -(-(top + height) // factor)):
        above, below = max(0, row * factor - top), (row + 1) * factor - top
        for first, last in gaps[row] if row < len(gaps) else [(0, left + width)]:
            if last > left:
                part[above:below, max(0, first - left) : last - left] = 0.0
    return part


def _sums(part: Unit, starts: NDArray[np.intp], counts: NDArray[np.intp]) -> Unit:
    """Sums of runs of rows: run i begins at ``starts[i]`` and has ``counts[i]`` rows."""
    out = np.zeros((len(starts), part.shape[1]), np.float32)
    for place in range(int(counts.max(initial=0))):
        longer = np.flatnonzero(counts > place)
        if len(longer) == len(starts):
            out += part[starts + place]
        else:
            out[longer] += part[starts[longer] + place]
    return out


def _average(
    render: Callable[[int, int, int, int], Unit],
    mask: CoarseMask,
    box: tuple[int, int, int, int],
    padded: tuple[int, int],
    rows: int,
    cols: int,
) -> Unit:
    """Averages over areas, [rows, cols]: what Pillow's box filter gives, without making the full grey image.

    Rows are averaged first, a few at a time; the columns of what is left, a third, are Pillow's work.
    """
    from PIL import Image

    top, left, height, width = box
    above = (padded[0] - height) // 2
    edges = _edges(padded[0], rows)
    gaps = mask.gaps(mask.shape[1])
    tall = np.zeros((rows, padded[1]), np.float32)
    step = max(1, ROWS_AT_ONCE * rows // padded[0])
    for first in range(0, rows, step):
        borders = np.clip(edges[first : first + step + 1] - above, 0, height)
        if borders[0] < borders[-1]:
            part = _masked(render, gaps, mask.factor, top + int(borders[0]), left, int(borders[-1] - borders[0]), width)
            sums = _sums(part, borders[:-1] - borders[0], np.diff(borders))
            tall[first : first + len(sums), :width] = sums[:, ::-1] if mask.right_heavy else sums
    tall /= np.diff(edges)[:, None].astype(np.float32)
    return np.asarray(Image.fromarray(tall).resize((cols, rows), Image.Resampling.BOX))


def canonicalise(render: Callable[[int, int, int, int], Unit], mask: CoarseMask, rows: int, cols: int) -> Stored:
    """Crops to the breast, mirrors if needed, pads to the aspect (below, above and at the right) and resizes.

    Args:
        render: ``(top, left, height, width) -> float32 [height, width]`` in 0..1, an array of its own: only the parts
            that are kept are ever made, some rows at a time.
        mask: the breast; not empty.
        rows: height of the result.
        cols: width of the result.
    """
    from PIL import Image

    box = crop_box(mask)
    _, _, height, width = box
    padded = padded_shape(height, width, rows, cols)
    if padded[0] >= rows and padded[1] >= cols:
        resized = _average(render, mask, box, padded, rows, cols)
    else:  # interpolation where the source is smaller than the target
        part = _masked(render, mask.gaps(mask.shape[1]), mask.factor, *box)
        canvas = np.zeros(padded, np.float32)
        above = (padded[0] - height) // 2
        canvas[above : above + height, :width] = part[:, ::-1] if mask.right_heavy else part
        resized = np.asarray(Image.fromarray(canvas).resize((cols, rows), Image.Resampling.BILINEAR))
    pixels = np.rint(np.clip(resized, 0.0, 1.0) * np.float32(65535.0)).astype(np.uint16)
    geometry = {
        "original_shape": [int(n) for n in mask.shape],
        "crop": list(box),
        "flipped": mask.right_heavy,
        "padded_shape": list(padded),
        "stored_shape": [rows, cols],
    }
    return Stored(pixels, geometry, mask.area)
