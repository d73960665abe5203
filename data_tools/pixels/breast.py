"""Finds the breast: a mask in blocks of pixels, from the grey scale alone.

Nothing here passes over a full image: blocks are judged by a few of their pixels, and the mask is applied block by
block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

MASK_SIDE = 512  # the mask is found on a copy of at most this many pixels per side
SAMPLES_PER_BLOCK = 3  # pixels looked at per block and direction to find the mask
BORDER_SHARE = 0.0015  # outermost rows and columns ignored: 5 pixels of a full frame

Unit = NDArray[np.float32]
Mask = NDArray[np.bool_]


def block_mean(image: NDArray[Any], factor: int, grey: Callable[[NDArray[Any]], Unit] = lambda part: part) -> Unit:
    """Mean of up to ``SAMPLES_PER_BLOCK`` pixels per direction of every whole block of ``factor x factor`` pixels.

    Args:
        grey: makes a float image in 0..1 of a part of ``image``; called for the pixels looked at alone.
    """
    rows, cols = image.shape[0] // factor * factor, image.shape[1] // factor * factor
    offsets = range(0, factor, -(-factor // SAMPLES_PER_BLOCK))
    total = np.zeros((rows // factor, cols // factor), np.float32)
    for down in offsets:
        for across in offsets:
            total += grey(image[down:rows:factor, across:cols:factor])
    total /= np.float32(len(offsets) ** 2)
    return total


def air_threshold(image: Unit) -> float:
    """Grey value between air and skin: a fifth of the way from the most frequent dark value to Otsu's threshold.

    Otsu's threshold itself separates fat from gland in dense breasts and would cut the skin line off.
    """
    edges = np.linspace(0.0, 1.0, 257)
    counts = np.bincount(np.clip(image * 256, 0, 255).astype(np.intp).ravel(), minlength=256)
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
        blocks: bool [rows / factor, cols / factor].
        factor: pixels per block and side.
        shape: shape of the full image.
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

    def gaps(self, width: int) -> list[list[tuple[int, int]]]:
        """Per row of blocks the stretches of columns, out of ``width``, that are not breast."""
        framed = np.ones((len(self.blocks), self.blocks.shape[1] + 2), bool)
        framed[:, 1:-1] = self.blocks
        framed[:, [0, -1]] = True
        out: list[list[tuple[int, int]]] = [[] for _ in self.blocks]
        rows, places = np.nonzero(framed[:, 1:] != framed[:, :-1])
        for row, first, last in zip(rows[::2].tolist(), places[::2].tolist(), places[1::2].tolist(), strict=True):
            out[row].append((first * self.factor, last * self.factor))
        behind = self.blocks.shape[1] * self.factor
        if behind < width:  # pixels after the last whole block belong to no block
            for row_gaps in out:
                row_gaps.append((behind, width))
        return out

    def every(self, stride: int) -> Mask:
        """The mask of every ``stride``-th pixel in each direction, beginning with the first."""
        out = np.zeros((-(-self.shape[0] // stride), -(-self.shape[1] // stride)), bool)
        rows, cols = (np.arange(0, n * self.factor, stride) // self.factor for n in self.blocks.shape)
        out[: len(rows), : len(cols)] = self.blocks[rows[:, None], cols]  # after the last whole block: in no block
        return out


def block_factor(shape: tuple[int, ...]) -> int:
    """Pixels per block and side at which the mask of an image is found."""
    return max(1, -(-max(shape[:2]) // MASK_SIDE))


def coarse_mask(small: Unit, factor: int, shape: tuple[int, int]) -> CoarseMask:
    """The breast (with the pectoral muscle): the largest bright component, holes filled.

    Args:
        small: float [rows / factor, cols / factor] in 0..1: block means of an image with bright tissue on dark air.
        shape: shape of that image.

    Returns:
        A mask that is False everywhere where nothing is brighter than air.
    """
    from scipy.ndimage import label

    bright = small > air_threshold(small)
    border = max(1, round(BORDER_SHARE * small.shape[0]))
    inner = np.zeros_like(bright)
    inner[border:-border, border:-border] = True
    bright &= inner
    # opening cuts thin bridges to markers and collimator edges
    labels, count = label(_grown(_shrunk(bright)))
    if count == 0:
        return CoarseMask(np.zeros_like(bright), factor, shape, False)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    breast = _grown(labels == int(np.argmax(sizes))) & bright
    outside, count = label(~breast)
    open_air = np.zeros(count + 1, bool)  # what reaches the border; the rest of the outside are holes
    for side in (outside[0], outside[-1], outside[:, 0], outside[:, -1]):
        open_air[side] = True
    open_air[0] = False
    breast = ~open_air[outside]
    return CoarseMask(breast, factor, shape, chest_wall_at_right(np.where(breast, small, np.float32(0))))


def _grown(mask: Mask) -> Mask:
    """Dilation by the four neighbours. As shifts it takes a tenth of the time of ``scipy.ndimage``."""
    out = mask.copy()
    out[1:] |= mask[:-1]
    out[:-1] |= mask[1:]
    out[:, 1:] |= mask[:, :-1]
    out[:, :-1] |= mask[:, 1:]
    return out


def _shrunk(mask: Mask) -> Mask:
    """Erosion by the four neighbours; beyond the border is nothing."""
    out = np.zeros_like(mask)
    out[1:-1, 1:-1] = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return out


def chest_wall_at_right(image: Unit) -> bool:
    """Whether the right third holds more intensity than the left third of a masked, uncropped image."""
    third = max(1, image.shape[1] // 3)
    return bool(image[:, -third:].sum(dtype=np.float64) > image[:, :third].sum(dtype=np.float64))
