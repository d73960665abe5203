"""Fitting pictures: nothing is stretched, nothing lost in sight, masks follow and come back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data_tools.pixels.dicom import BadImage
from data_tools.pixels.fit import fit, fit_mask, unmap_mask
from m4oe_ds.data.schema import PICTURE_GEOMETRY_FIELDS

SHAPES = [(60, 40), (40, 60), (50, 50), (7, 90), (12, 10), (33, 47)]
SIZES = [(32, 32), (48, 20), (20, 48), (64, 64)]


def noise(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [0, 2, 3, 4])
def test_whole_blocks_are_averaged_and_the_middle_is_the_middle(channels: int, dtype: Any) -> None:
    pixels = noise((12, 20, channels) if channels else (12, 20), dtype)
    fitted, geometry = fit(pixels, 10, 10)  # 12 x 20 in 20 x 20, by halves
    means = pixels.reshape(6, 2, 10, 2, *pixels.shape[2:]).mean(axis=(1, 3))
    assert fitted.dtype == dtype
    assert not fitted[:2].any()
    assert not fitted[8:].any()
    twice_rounded = dtype == np.uint8 and channels in (0, 3)
    assert np.abs(fitted[2:8] - means).max() <= (1 if twice_rounded else 0.5 + 1e-3)
    assert set(geometry) == PICTURE_GEOMETRY_FIELDS


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_picture_of_the_stored_size_is_kept_bit_for_bit(dtype: Any) -> None:
    pixels = noise((30, 20, 3), dtype)
    fitted, geometry = fit(pixels, 30, 20)
    np.testing.assert_array_equal(fitted, pixels, strict=True)
    assert geometry == {
        "original_shape": [30, 20], "crop": [0, 0, 30, 20], "flipped": False, "padded_shape": [30, 20],
        "stored_shape": [30, 20],
    }  # fmt: skip


def test_padding_alone_keeps_every_pixel() -> None:
    for shape, size in (((30, 10), (30, 20)), ((10, 30), (20, 30)), ((9, 30), (20, 30))):
        pixels = noise(shape, np.uint16)
        fitted, geometry = fit(pixels, *size)
        np.testing.assert_array_equal(unmap_mask(fitted, geometry), pixels)
        rows, cols = np.nonzero(fitted)
        assert abs(rows.min() + rows.max() - size[0] + 1) <= 1
        assert abs(cols.min() + cols.max() - size[1] + 1) <= 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_square_stays_square_and_its_mask_lies_on_it(shape: tuple[int, int], size: tuple[int, int]) -> None:
    side = min(shape) // 2
    top, left = shape[0] // 4, shape[1] - side - 1
    mask = np.zeros(shape, np.uint8)
    mask[top : top + side, left : left + side] = 1
    fitted, geometry = fit(mask * np.uint8(255), *size)
    stored = fit_mask(mask, geometry)
    assert stored.shape == fitted.shape == size
    assert set(np.unique(stored)) <= {0, 1}
    rows, cols = np.flatnonzero(stored.any(axis=1)), np.flatnonzero(stored.any(axis=0))
    assert abs(len(rows) - len(cols)) <= 1
    assert (np.abs(fitted / 255 - stored) <= 0.8).all()  # they may differ within pixels of the border, not beyond
    back = unmap_mask(stored, geometry)
    assert back.shape == shape
    scale = max(1.0, shape[0] / size[0], shape[1] / size[1])
    inner = mask.copy()
    border = int(np.ceil(scale))
    wrong = np.argwhere(back != inner)
    for row, col in wrong:  # only along the border of the square
        near = mask[max(0, row - border) : row + border + 1, max(0, col - border) : col + border + 1]
        assert 0 < near.sum() < near.size


@pytest.mark.parametrize("shape", [(10, 7), (8, 8), (5, 11)])
def test_what_was_enlarged_comes_back_exactly(shape: tuple[int, int]) -> None:
    mask = noise(shape, np.uint8)
    _, geometry = fit(mask, 64, 48)
    np.testing.assert_array_equal(unmap_mask(fit_mask(mask, geometry), geometry), mask)


def test_masks_are_never_interpolated() -> None:
    mask = np.random.default_rng(0).choice(np.array([0, 1, 130], np.uint8), (61, 37))
    for size in SIZES:
        assert set(np.unique(fit_mask(mask, fit(mask, *size)[1]))) <= {0, 1, 130}


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(BadImage, match="too_elongated"):
        fit(np.zeros((1, 60000), np.uint8), 224, 224)
    _, geometry = fit(noise((30, 20), np.uint8), 16, 16)
    with pytest.raises(BadImage, match="mask_size_differs"):
        fit_mask(np.zeros((20, 30), np.uint8), geometry)
