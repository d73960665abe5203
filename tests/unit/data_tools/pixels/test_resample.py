"""Volumes in cubic voxels: averages where they shrink, nothing stretched, masks follow and come back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data_tools.pixels.dicom import BadImage
from data_tools.pixels.resample import VOLUME_GEOMETRY_FIELDS, resample_isotropic, resample_mask, unmap
from data_tools.pixels.volume import Volume


def noise(shape: tuple[int, ...], dtype: Any = np.uint16) -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def volume(pixels: NDArray[Any], spacing: tuple[float, float, float] | None = None) -> Volume:
    return Volume(pixels, spacing, "unknown")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_volume_of_the_stored_size_is_kept(dtype: Any) -> None:
    pixels = noise((5, 6, 7), dtype)
    stored, geometry = resample_isotropic(volume(pixels), (5, 6, 7))
    np.testing.assert_array_equal(stored, pixels, strict=True)
    assert set(geometry) == VOLUME_GEOMETRY_FIELDS
    stored, geometry = resample_isotropic(volume(pixels), (9, 10, 7))  # padding alone
    np.testing.assert_array_equal(stored[2:7, 2:8], pixels)
    assert int(stored.sum(dtype=np.int64)) == int(pixels.sum(dtype=np.int64))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_anisotropic_voxels_become_cubes_by_averages(dtype: Any) -> None:
    pixels = noise((4, 16, 24), dtype)  # 10 x 20 x 30 mm
    stored, geometry = resample_isotropic(volume(pixels, (2.5, 1.25, 1.25)), (12, 12, 12))
    means = pixels.reshape(4, 8, 2, 12, 2).mean(axis=(2, 4))
    assert stored.dtype == dtype
    assert geometry["voxel"] == 2.5
    assert geometry["content_shape"] == [4, 8, 12]
    assert geometry["offset"] == [4, 2, 0]
    assert np.abs(stored[4:8, 2:10] - means).max() <= 0.51
    assert not stored[:4].any()
    assert not stored[8:].any()


def test_shares_of_voxels_count_as_shares() -> None:
    line = np.array([0, 30, 60], np.uint8).reshape(1, 1, 3)
    stored, _ = resample_isotropic(volume(line), (1, 1, 2))
    np.testing.assert_array_equal(stored.ravel(), [10, 50])  # (0 + 30 / 2) / 1.5 and (30 / 2 + 60) / 1.5


def test_smaller_voxels_are_interpolated_linearly() -> None:
    line = np.array([0, 100], np.uint8).reshape(1, 1, 2)
    stored, geometry = resample_isotropic(volume(line, (1, 1, 2)), (1, 1, 4))
    np.testing.assert_array_equal(stored.ravel(), [0, 25, 75, 100])
    assert geometry["content_shape"] == [1, 1, 4]


def test_a_ball_stays_a_ball() -> None:
    spacing = (3.0, 1.0, 0.8)
    shape = (20, 60, 75)  # 60 mm each way
    grid = [((np.arange(n) + 0.5) * s - 30) for n, s in zip(shape, spacing, strict=True)]
    ball = grid[0][:, None, None] ** 2 + grid[1][None, :, None] ** 2 + grid[2] ** 2 < 18**2
    stored, geometry = resample_isotropic(volume(ball.astype(np.uint8) * np.uint8(255), spacing), (32, 32, 48))
    widths = [np.ptp(np.nonzero(stored > 127)[axis]) + 1 for axis in range(3)]
    assert max(widths) - min(widths) <= 1
    assert np.mean(widths) * geometry["voxel"] == pytest.approx(36, abs=2.5)
    centre = [float(np.mean(places)) for places in np.nonzero(stored > 127)]
    assert centre == pytest.approx([15.5, 15.5, 23.5], abs=0.3)


@pytest.mark.parametrize("size", [(8, 8, 8), (16, 8, 4), (5, 20, 33), (40, 40, 40)])
@pytest.mark.parametrize("spacing", [None, (2.5, 0.5, 0.75)])
def test_masks_lie_on_their_volume_and_are_never_interpolated(
    size: tuple[int, int, int], spacing: tuple[float, float, float] | None
) -> None:
    mask = np.zeros((20, 30, 28), np.uint8)
    mask[5:15, 6:24, 7:21] = 130
    stored, geometry = resample_isotropic(volume(mask, spacing), size)
    labels = resample_mask(mask, geometry)
    assert set(np.unique(labels)) <= {0, 130}
    assert stored.shape == labels.shape == size
    assert np.abs(stored.astype(int) - labels).max() <= 66 * 2 or min(geometry["content_shape"]) < 4
    back = unmap(labels, geometry)
    assert back.shape == mask.shape
    if min(geometry["content_shape"]) >= 8:
        assert (back == mask).mean() > 0.85


def test_what_was_enlarged_comes_back_exactly() -> None:
    mask = noise((5, 6, 7), np.uint8)
    _, geometry = resample_isotropic(volume(mask, (2.0, 1.0, 1.0)), (20, 20, 20))
    np.testing.assert_array_equal(unmap(resample_mask(mask, geometry), geometry), mask)


def test_masks_of_another_size_are_refused() -> None:
    _, geometry = resample_isotropic(volume(noise((5, 6, 7))), (4, 4, 4))
    with pytest.raises(BadImage, match="mask_size_differs"):
        resample_mask(np.zeros((7, 6, 5), np.uint8), geometry)


def test_a_thin_volume_keeps_at_least_one_voxel() -> None:
    stored, geometry = resample_isotropic(volume(noise((1, 400, 400))), (8, 8, 8))
    assert geometry["content_shape"] == [1, 8, 8]
    assert np.count_nonzero(stored.any(axis=(1, 2))) == 1
