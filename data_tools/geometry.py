"""From a graded image to the stored one: breast mask, crop, chest wall to the left, aspect, size; and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MASK_SIDE = 512  # the mask is found on a copy of at most this many pixels per side
BORDER_SHARE = 0.0015  # outermost rows and columns ignored: 5 pixels of a full frame
MARGIN_SHARE = 0.01  # kept around the breast, of its box
MIN_AREA, MAX_AREA = 0.02, 0.98  # share of the image a breast may cover

Unit = NDArray[np.float32]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Stored:
    """A view ready for a shard.

    Attributes:
        pixels: uint16 [rows, cols], chest wall at the left, 0 outside the breast.
        geometry: the fields of GEOMETRY_FIELDS; :func:`to_source` reads them.
        area: share of the source image covered by the breast.
    """

    pixels: NDArray[np.uint16]
    geometry: dict[str, Any]
    area: float


def block_mean(image: Unit, factor: int) -> Unit:
    """Mean of every whole block of ``factor x factor`` pixels."""
    rows, cols = image.shape[0] // factor * factor, image.shape[1] // factor * factor
    total = np.zeros((rows // factor, cols // factor), np.float32)
    for down in range(factor):  # a few passes over short rows: several times faster than a mean over two inner axes
        for across in range(factor):
            total += image[down:rows:factor, across:cols:factor]
    return (total / np.float32(factor * factor)).astype(np.float32)


def air_threshold(image: Unit) -> float:
    """Grey value between air and skin: a fifth of the way from the most frequent dark value to Otsu's threshold.

    Otsu's threshold itself separates fat from gland in dense breasts and would cut the skin line off.
    """
    counts, edges = np.histogram(image, bins=256, range=(0.0, 1.0))
    centres = (edges[:-1] + edges[1:]) / 2
    weight = np.cumsum(counts)
    mass = np.cumsum(counts * centres)
    below, above = weight[:-1], weight[-1] - weight[:-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (mass[:-1] / below - (mass[-1] - mass[:-1]) / above) ** 2
    otsu = int(np.argmax(np.nan_to_num(between))) + 1
    air = float(centres[int(np.argmax(counts[:otsu]))])
    return air + max(0.012, 0.2 * (float(edges[otsu]) - air))


@dataclass(frozen=True)
class CoarseMask:
    """A breast mask in blocks of pixels: found, cropped and applied without a pass over the full image.

    Attributes:
        blocks: bool [rows / factor, cols / factor]. factor: pixels per block and side. shape: of the full image.
        right_heavy: the right third of the masked image holds more intensity than the left third.
    """

    blocks: Mask
    factor: int
    shape: tuple[int, int]
    right_heavy: bool

    @property
    def area(self) -> float:
        """Share of the image."""
        return float(self.blocks.sum()) * self.factor**2 / (self.shape[0] * self.shape[1])

    def part(self, top: int, left: int, height: int, width: int) -> Mask:
        """The mask of a rectangle, one value per pixel."""
        factor = self.factor
        first_row, first_col = top // factor, left // factor
        blocks = self.blocks[first_row : -(-(top + height) // factor), first_col : -(-(left + width) // factor)]
        above, before = top - first_row * factor, left - first_col * factor
        wide = np.repeat(blocks, factor, axis=1)[:, before : before + width]
        tall = np.repeat(wide, factor, axis=0)[above : above + height]
        if tall.shape == (height, width):
            return tall
        out = np.zeros((height, width), bool)  # pixels behind the last whole block belong to no block
        out[: tall.shape[0], : tall.shape[1]] = tall
        return out

    def full(self) -> Mask:
        """The mask of the whole image."""
        return self.part(0, 0, *self.shape)


def block_factor(shape: tuple[int, ...]) -> int:
    """Pixels per block and side at which the mask of an image is found."""
    return max(1, -(-max(shape[:2]) // MASK_SIDE))


def coarse_mask(small: Unit, factor: int, shape: tuple[int, int]) -> CoarseMask:
    """The breast (with the pectoral muscle): the largest bright component, holes filled.

    Args:
        small: float [rows / factor, cols / factor] in 0..1: block means of an image with bright tissue on dark air.
        shape: of that image.

    Returns:
        A mask that is False everywhere where nothing is brighter than air.
    """
    from scipy import ndimage

    bright = small > air_threshold(small)
    border = max(1, round(BORDER_SHARE * small.shape[0]))
    inner = np.zeros_like(bright)
    inner[border:-border, border:-border] = True
    bright &= inner
    # opening cuts thin bridges to markers and collimator edges
    labels, count = ndimage.label(ndimage.binary_opening(bright, iterations=1))
    if count == 0:
        return CoarseMask(np.zeros_like(bright), factor, shape, False)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    breast = labels == int(np.argmax(sizes))
    breast = ndimage.binary_dilation(breast, iterations=1) & bright
    breast = ndimage.binary_fill_holes(breast)
    return CoarseMask(breast, factor, shape, chest_wall_at_right(np.where(breast, small, np.float32(0))))


def breast_mask(image: Unit) -> CoarseMask:
    """:func:`coarse_mask` of a full float image [rows, cols] in 0..1."""
    factor = block_factor(image.shape)
    return coarse_mask(block_mean(image, factor), factor, (image.shape[0], image.shape[1]))


def crop_box(mask: CoarseMask) -> tuple[int, int, int, int]:
    """(top, left, height, width) of the mask with a margin, inside the image."""
    rows, cols = np.flatnonzero(mask.blocks.any(axis=1)), np.flatnonzero(mask.blocks.any(axis=0))
    top, bottom = int(rows[0]) * mask.factor, (int(rows[-1]) + 1) * mask.factor
    left, right = int(cols[0]) * mask.factor, (int(cols[-1]) + 1) * mask.factor
    margin = round(MARGIN_SHARE * max(bottom - top, right - left))
    top, left = max(0, top - margin), max(0, left - margin)
    bottom, right = min(mask.shape[0], bottom + margin), min(mask.shape[1], right + margin)
    return top, left, bottom - top, right - left


def chest_wall_at_right(image: Unit) -> bool:
    """Whether the right third holds more intensity than the left third of a masked, uncropped image."""
    third = max(1, image.shape[1] // 3)
    return bool(image[:, -third:].sum(dtype=np.float64) > image[:, :third].sum(dtype=np.float64))


def padded_shape(height: int, width: int, rows: int, cols: int) -> tuple[int, int]:
    """Smallest shape of aspect ``rows : cols`` that holds ``height x width``."""
    return (height, max(width, round(height * cols / rows))) if height * cols >= width * rows else (
        max(height, round(width * rows / cols)), width)  # fmt: skip


def canonicalise(render: Callable[[int, int, int, int], Unit], mask: CoarseMask, rows: int, cols: int) -> Stored:
    """Crops to the breast, mirrors if needed, pads to the aspect (below, above and at the right) and resizes.

    Args:
        render: ``(top, left, height, width) -> float32 [height, width]`` in 0..1: only the part that is kept is ever made.
        mask: not empty. rows, cols: of the result.
    """
    from PIL import Image

    top, left, height, width = crop_box(mask)
    part, inside = render(top, left, height, width), mask.part(top, left, height, width)
    if mask.right_heavy:
        part, inside = part[:, ::-1], inside[:, ::-1]
    full_height, full_width = padded_shape(height, width, rows, cols)
    padded = np.zeros((full_height, full_width), np.float32)
    above = (full_height - height) // 2
    np.copyto(padded[above : above + height, :width], part, where=inside)
    # averaging over areas where pixels are merged; interpolation where the source is smaller than the target
    shrinking = full_height >= rows and full_width >= cols
    method = Image.Resampling.BOX if shrinking else Image.Resampling.BILINEAR
    resized = np.asarray(Image.fromarray(padded).resize((cols, rows), method))
    pixels = np.rint(np.clip(resized, 0.0, 1.0) * 65535.0).astype(np.uint16)
    geometry = {
        "original_shape": [int(n) for n in mask.shape],
        "crop": [top, left, height, width],
        "flipped": mask.right_heavy,
        "padded_shape": [full_height, full_width],
        "stored_shape": [rows, cols],
    }
    return Stored(pixels, geometry, mask.area)


def from_image(image: Unit) -> Callable[[int, int, int, int], Unit]:
    """What :func:`canonicalise` wants, from a full image."""
    return lambda top, left, height, width: image[top : top + height, left : left + width]


def to_source(geometry: Mapping[str, Any], row: float, col: float) -> tuple[float, float]:
    """Position in the source image of a position in the stored one; pixel centres are whole numbers in both."""
    top, left, height, width = geometry["crop"]
    full_height, full_width = geometry["padded_shape"]
    rows, cols = geometry["stored_shape"]
    y = (row + 0.5) * full_height / rows - 0.5 - (full_height - height) // 2
    x = (col + 0.5) * full_width / cols - 0.5
    if geometry["flipped"]:
        x = width - 1 - x
    return top + y, left + x
