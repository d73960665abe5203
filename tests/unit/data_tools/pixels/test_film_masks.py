"""Masks go where their images go, pixel by pixel; films lose their frame and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data_tools.pixels.dicom import BadImage
from data_tools.pixels.film import without_frame
from data_tools.pixels.fit import fit_mask, unmap_mask


def source_of(row: int, col: int, geometry: dict[str, Any]) -> tuple[int, int] | None:
    """The original pixel under the centre of a stored one, in words: unscale, unpad, unmirror, uncrop."""
    rows, cols = geometry["stored_shape"]
    tall, wide = geometry["padded_shape"]
    top, left, height, width = geometry["crop"]
    high, broad = geometry["original_shape"]
    y, x = int((row + 0.5) * tall / rows) - (tall - height) // 2, int((col + 0.5) * wide / cols)
    if not (0 <= y < height and 0 <= x < width):
        return None
    y, x = top + y, left + (width - 1 - x if geometry["flipped"] else x)
    return (y, x) if 0 <= y < high and 0 <= x < broad else None


def by_hand(mask: NDArray[Any], geometry: dict[str, Any]) -> NDArray[Any]:
    out = np.zeros(geometry["stored_shape"], mask.dtype)
    for row, col in np.ndindex(out.shape):
        place = source_of(row, col, geometry)
        out[row, col] = 0 if place is None else mask[place]
    return out


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize(
    ("crop", "padded", "stored"),
    [
        ((0, 0, 40, 30), (40, 30), (40, 30)),  # as it is
        ((3, 5, 31, 20), (31, 25), (12, 10)),  # padded at the right
        ((2, 4, 21, 24), (30, 24), (15, 12)),  # padded above and below, by an odd number
        ((10, 0, 17, 30), (38, 30), (57, 45)),  # enlarged
        ((5, 6, 20, 11), (20, 16), (20, 16)),  # padded alone
        ((5, -3, 20, 16), (20, 16), (20, 16)),  # a box that reaches beyond the film
    ],
)
def test_a_mask_is_cropped_mirrored_padded_and_resized_like_its_image(
    crop: tuple[int, ...], padded: tuple[int, int], stored: tuple[int, int], flipped: bool
) -> None:
    mask = np.random.default_rng(0).integers(0, 4, (40, 30), dtype=np.uint8)
    geometry = {
        "original_shape": [40, 30],
        "crop": list(crop),
        "flipped": flipped,
        "padded_shape": list(padded),
        "stored_shape": list(stored),
    }
    placed = fit_mask(mask, geometry)
    assert placed.dtype == np.uint8
    np.testing.assert_array_equal(placed, by_hand(mask, geometry))
    with pytest.raises(BadImage, match="mask_size_differs"):
        fit_mask(mask[1:], geometry)
    if stored == padded:  # and back again, without loss
        top, left, height, width = crop
        inside = np.zeros_like(mask)
        box = slice(top, top + height), slice(max(0, left), left + width)
        inside[box] = mask[box]
        np.testing.assert_array_equal(unmap_mask(placed, geometry), inside)


@pytest.mark.parametrize("turn", range(4))
def test_a_bright_frame_goes_and_tissue_at_the_border_stays(turn: int) -> None:
    rng = np.random.default_rng(1)
    film = rng.integers(0, 200, (400, 300)).astype(np.uint16)
    film[100:300, :150] = 30000 + rng.integers(0, 900, (200, 150))  # tissue up to the left border
    framed = film.copy()
    framed[:3] = 60000
    framed[-4:, :120] = 65535  # of part of the film's width
    cleaned = np.rot90(without_frame(np.ascontiguousarray(np.rot90(framed, turn))), -turn)
    assert cleaned[:3].max() < 5000
    assert cleaned[-4:].max() < 5000
    np.testing.assert_array_equal(cleaned[3:-4], film[3:-4])
    np.testing.assert_array_equal(without_frame(film), film)


def test_a_film_as_narrow_as_a_frame_is_left_alone() -> None:
    film = np.array([[9, 1, 9]], np.uint16)
    np.testing.assert_array_equal(without_frame(film), film)
