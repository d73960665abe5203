"""Breast mask, crop, flip, aspect and size, against images whose breast is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data_tools.pixels import breast as breast_
from data_tools.pixels import geometry
from data_tools.pixels.grayscale import Graded
from m4oe_ds.data.schema import PICTURE_GEOMETRY_FIELDS

Image = NDArray[np.float32]


def breast(rows: int = 400, cols: int = 300, *, right: bool = False, level: float = 0.4) -> tuple[Image, NDArray]:
    """A half ellipse at a side border in noisy air, with a bright dense core; and where it is."""
    y, x = np.ogrid[:rows, :cols]
    inside = ((y - rows / 2) / (0.38 * rows)) ** 2 + (x / (0.62 * cols)) ** 2 < 1
    core = ((y - rows / 2) / (0.2 * rows)) ** 2 + ((x - 0.2 * cols) / (0.2 * cols)) ** 2 < 1
    rng = np.random.default_rng(0)
    image = np.where(inside, level + 0.5 * core, 0.0) + 0.004 * rng.random((rows, cols))
    if right:
        image, inside = image[:, ::-1], inside[:, ::-1]
    return np.ascontiguousarray(image, np.float32), np.ascontiguousarray(inside)


def graded(image: Image) -> Graded:
    """An image as after decoding, with a table that changes nothing: mask and parts are made as in a conversion."""
    return Graded(
        np.rint(image * 65535).astype(np.uint16), 0, np.linspace(0, 1, 65536, dtype=np.float32), "window", False
    )


def stored_as(image: Image, rows: int, cols: int) -> geometry.Stored:
    return geometry.canonicalise(graded(image).part, graded(image).mask(), rows, cols)


def full(mask: breast_.CoarseMask) -> NDArray:
    """A value per pixel; pixels after the last whole block belong to no block."""
    out = np.zeros(mask.shape, bool)
    blown_up = np.kron(mask.blocks, np.ones((mask.factor, mask.factor), bool))
    out[: blown_up.shape[0], : blown_up.shape[1]] = blown_up
    return out


def in_the_source(info: dict[str, Any], row: float, col: float) -> tuple[float, float]:
    """Position in the source image of a position in the stored one; pixel centres are whole numbers in both."""
    top, left, height, width = info["crop"]
    full_height, full_width = info["padded_shape"]
    rows, cols = info["stored_shape"]
    y = (row + 0.5) * full_height / rows - 0.5 - (full_height - height) // 2
    x = (col + 0.5) * full_width / cols - 0.5
    return top + y, left + (width - 1 - x if info["flipped"] else x)


def overlap(found: NDArray, truth: NDArray) -> float:
    return float((found & truth).sum() / (found | truth).sum())


@pytest.mark.parametrize("level", [0.06, 0.2, 0.45])
@pytest.mark.parametrize("size", [(400, 300), (1600, 1300)])
def test_mask_is_the_breast_though_its_core_is_far_brighter(level: float, size: tuple[int, int]) -> None:
    image, truth = breast(*size, level=level)
    assert overlap(full(graded(image).mask()), truth) > 0.97


def test_marker_and_frame_are_not_stored() -> None:
    image, truth = breast()
    image[20:40, 220:280] = 1.0  # a view marker in the air
    image[:, -1] = 1.0  # a bright frame
    mask = graded(image).mask()
    assert overlap(full(mask), truth) > 0.97
    stored = geometry.canonicalise(graded(image).part, mask, 104, 84)
    assert stored.pixels.max() < 0.92 * 65535


def test_an_empty_image_has_no_breast() -> None:
    assert not graded(np.zeros((200, 160), np.float32)).mask().blocks.any()


def test_mask_agrees_with_the_phantom() -> None:
    from data_tools.phantom import breast as phantom_breast

    rng = np.random.default_rng(3)
    made = phantom_breast.make_breast(3, 0, "L", 2)
    for modality in ("ffdm_cc", "ffdm_mlo"):
        pixels = phantom_breast.render(made, modality, (), rng).astype(np.float32) / 4095
        mask = graded(pixels).mask()
        assert overlap(full(mask), made.mask[modality.split("_")[1]] > 0.5) > 0.93


def test_chest_wall_ends_up_at_the_left() -> None:
    left, right = (breast(right=side)[0] for side in (False, True))
    one, two = (stored_as(image, 128, 104) for image in (left, right))
    assert (one.geometry["flipped"], two.geometry["flipped"]) == (False, True)
    np.testing.assert_array_equal(one.pixels, two.pixels)
    assert one.pixels[:, :30].sum() > one.pixels[:, -30:].sum()
    assert set(one.geometry) == PICTURE_GEOMETRY_FIELDS


def test_aspect_is_kept_and_background_is_zero() -> None:
    image, truth = breast(600, 300)
    stored = stored_as(image, 256, 208)
    height, width = stored.geometry["padded_shape"]
    assert height / width == pytest.approx(256 / 208, rel=0.01)
    assert stored.pixels.dtype == np.uint16
    assert stored.pixels.shape == (256, 208)
    scale = (256 / height) * (208 / width)
    assert (stored.pixels > 0.2 * 65535).sum() == pytest.approx(truth.sum() * scale, rel=0.04)


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("shape", [(64, 52), (97, 41), (30, 90), (9, 7)])
@pytest.mark.parametrize("size", [(600, 500), (1091, 803)])
def test_averaging_in_parts_is_pillows_box_filter_of_the_whole(
    size: tuple[int, int], shape: tuple[int, int], right: bool
) -> None:
    """The crop, made in full, masked, mirrored, padded, given to Pillow at once: the slow way to the same picture."""
    from PIL import Image as Pillow

    image, _ = breast(*size, right=right)
    image *= np.random.default_rng(1).uniform(0.7, 1.0, size).astype(np.float32)
    mask = graded(image).mask()
    assert mask.factor == -(-size[0] // breast_.MASK_SIDE)  # 3 leaves rows and columns that belong to no whole block
    stored = geometry.canonicalise(graded(image).part, mask, *shape)
    top, left, height, width = stored.geometry["crop"]
    part = (image * full(mask))[top : top + height, left : left + width]
    canvas = np.zeros(stored.geometry["padded_shape"], np.float32)
    above = (canvas.shape[0] - height) // 2
    canvas[above : above + height, :width] = part[:, ::-1] if right else part
    expected = np.asarray(Pillow.fromarray(canvas).resize(shape[::-1], Pillow.Resampling.BOX)) * 65535
    assert stored.geometry["flipped"] is right
    np.testing.assert_allclose(stored.pixels, expected, atol=1)


@pytest.mark.parametrize("seed", range(8))
def test_the_mask_is_that_of_plain_morphology(seed: int) -> None:
    """Opening, the largest component, dilation within the bright, holes filled: by scipy, step by step."""
    from scipy import ndimage

    rng = np.random.default_rng(seed)
    small = ndimage.gaussian_filter(rng.random((120, 90)), 2.5).astype(np.float32)
    small = (small - small.min()) / (small.max() - small.min())  # blobs, bridges and holes at random
    bright = small > breast_.air_threshold(small)
    inner = np.zeros_like(bright)
    inner[1:-1, 1:-1] = True
    bright &= inner
    labels, _ = ndimage.label(ndimage.binary_opening(bright))
    sizes = np.bincount(labels.ravel())[1:]
    expected = ndimage.binary_fill_holes(ndimage.binary_dilation(labels == 1 + int(np.argmax(sizes))) & bright)
    found = breast_.coarse_mask(small, 1, small.shape)
    np.testing.assert_array_equal(found.blocks, expected)
    assert 0 < expected.sum() < bright.size


def test_the_threshold_of_air_lies_a_fifth_of_the_way_to_otsus() -> None:
    """Otsu's threshold by its definition: the split of numpy's histogram with the least variance within both parts."""
    rng = np.random.default_rng(0)
    image = np.clip(np.append(rng.normal(0.1, 0.01, 9000), rng.normal(0.6, 0.1, 3000)), 0, 1).astype(np.float32)
    counts, edges = np.histogram(image, bins=256, range=(0.0, 1.0))
    centres = (edges[1:] + edges[:-1]) / 2

    def within(split: int) -> float:
        parts = [(counts[part], centres[part]) for part in (slice(split), slice(split, None))]
        return sum(
            n.sum() * np.average((x - np.average(x, weights=n)) ** 2, weights=n) if n.sum() else 0.0 for n, x in parts
        )

    otsu = min(range(1, 256), key=within)
    air = centres[np.argmax(counts[:otsu])]
    assert breast_.air_threshold(image) == pytest.approx(air + 0.2 * (edges[otsu] - air), abs=1e-6)


def test_downsampling_averages_whole_blocks() -> None:
    rng = np.random.default_rng(1)
    image = (0.3 + 0.5 * rng.random((96, 80))).astype(np.float32)
    mask = breast_.CoarseMask(np.ones((48, 40), bool), 2, (96, 80), right_heavy=False)
    stored = geometry.canonicalise(graded(image).part, mask, 24, 20)
    expected = image.reshape(24, 4, 20, 4).mean(axis=(1, 3))
    if stored.geometry["flipped"]:
        expected = expected[:, ::-1]
    np.testing.assert_allclose(stored.pixels / 65535, expected, atol=2e-5)


@given(
    row=st.integers(120, 270),
    col=st.integers(10, 150),
    right=st.booleans(),
    shape=st.sampled_from([(512, 416), (256, 256), (300, 520)]),
)
@settings(max_examples=15, deadline=None)
def test_a_point_is_found_again_in_the_source(row: int, col: int, right: bool, shape: tuple[int, int]) -> None:
    image, _ = breast()
    image = np.minimum(image, 0.45)
    image[row - 1 : row + 2, col - 1 : col + 2] = 1.0
    if right:
        image, col = np.ascontiguousarray(image[:, ::-1]), image.shape[1] - 1 - col
    stored = stored_as(image, *shape)
    bright = np.argwhere(stored.pixels > 0.8 * 65535).mean(axis=0)
    found = in_the_source(stored.geometry, *bright)
    assert found == pytest.approx((row, col), abs=1.2)


@pytest.mark.parametrize("stride", [1, 2, 4, 5])
@pytest.mark.parametrize("shape", [(20, 16), (23, 19), (21, 18)])
def test_a_thinned_mask_is_every_nth_pixel_of_the_full_one(shape: tuple[int, int], stride: int) -> None:
    blocks = np.random.default_rng(0).random((shape[0] // 3, shape[1] // 3)) < 0.5
    mask = breast_.CoarseMask(blocks, 3, shape, right_heavy=False)
    assert full(mask).sum() == 9 * blocks.sum()
    np.testing.assert_array_equal(mask.every(stride), full(mask)[::stride, ::stride])
    gone = np.ones(shape, bool)
    for row, gaps in enumerate(mask.gaps(shape[1])):
        for first, last in gaps:
            gone[3 * row : 3 * row + 3, first:last] = False
    gone[3 * len(blocks) :] = False
    np.testing.assert_array_equal(gone, full(mask))
