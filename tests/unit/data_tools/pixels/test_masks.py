"""Masks: which stored value belongs to which class, exactly, and what is refused rather than guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from data_tools.pixels.dicom import BadImage
from data_tools.pixels.masks import Values, class_bits, overlay, read_mask

LABELS = np.random.default_rng(0).integers(0, 4, (11, 7), dtype=np.uint8)


def write(path: Path, stored: NDArray[Any]) -> Path:
    Image.fromarray(stored).save(path)
    return path


def reason(path: Path, classes: int = 1, **options: Any) -> str:
    with pytest.raises(BadImage) as caught:
        read_mask(path, (11, 7), classes, **options)
    return caught.value.reason


def test_one_class_is_everything_that_is_not_zero(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", LABELS * np.uint8(85))
    np.testing.assert_array_equal(read_mask(path, (11, 7), 1), (LABELS > 0).astype(np.uint8), strict=True)


def test_several_classes_are_counted_from_one(tmp_path: Path) -> None:
    bits = read_mask(write(tmp_path / "a.png", LABELS), (11, 7), 3)
    np.testing.assert_array_equal(bits, np.array([0, 1, 2, 4], np.uint8)[LABELS], strict=True)
    assert reason(tmp_path / "a.png", 2) == "mask_value_unknown"


def test_stored_values_belong_to_classes_that_may_overlap(tmp_path: Path) -> None:
    stored = np.array([0, 128, 200, 255], np.uint8)[LABELS]
    path = write(tmp_path / "a.png", stored)
    disc_and_cup: Values = {0: (128, 200, 255), 1: (255, 200)}
    np.testing.assert_array_equal(
        read_mask(path, (11, 7), 2, disc_and_cup), np.array([0, 1, 3, 3], np.uint8)[LABELS], strict=True
    )
    assert reason(path, 2, values={0: (128, 255), 1: (255,)}) == "mask_value_unknown"
    assert reason(path, 1, values={0: (128,)}) == "mask_value_unknown"


@pytest.mark.parametrize("threshold", [1, 100, 0.5])
def test_soft_maps_are_cut_at_a_threshold(tmp_path: Path, threshold: float) -> None:
    soft = np.random.default_rng(0).integers(0, 256, (11, 7)).astype(np.uint8 if threshold >= 1 else np.float32)
    soft = soft if threshold >= 1 else soft / 255
    tifffile.imwrite(tmp_path / "a.tif", soft)
    np.testing.assert_array_equal(
        read_mask(tmp_path / "a.tif", (11, 7), 1, at_least=threshold), (soft >= threshold).astype(np.uint8)
    )


def test_an_empty_mask_is_one(tmp_path: Path) -> None:
    assert not read_mask(write(tmp_path / "a.png", np.zeros((11, 7), np.uint8)), (11, 7), 1).any()


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
def test_palettes_store_classes_as_indices(tmp_path: Path, name: str) -> None:
    image = Image.fromarray(LABELS)
    image.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0, 128, 128, 0])
    image.save(tmp_path / name)
    np.testing.assert_array_equal(read_mask(tmp_path / name, (11, 7), 3), np.array([0, 1, 2, 4])[LABELS])


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
def test_one_bit_masks_are_one_class(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, LABELS > 1)
    np.testing.assert_array_equal(read_mask(path, (11, 7), 1), LABELS > 1)
    np.testing.assert_array_equal(read_mask(path, (11, 7), 1, {0: (255,)}), LABELS > 1)


def test_equal_channels_and_opaque_alpha_are_accepted(tmp_path: Path) -> None:
    rgba = np.stack([LABELS, LABELS, LABELS, np.full_like(LABELS, 255)], axis=2)
    np.testing.assert_array_equal(read_mask(write(tmp_path / "a.png", rgba), (11, 7), 1), LABELS > 0)
    rgba[0, 0, 3] = 7
    assert reason(write(tmp_path / "a.png", rgba)) == "transparency"
    rgba[0, 0] = (1, 2, 3, 255)
    assert reason(write(tmp_path / "b.png", rgba)) == "mask_colour"


def test_masks_that_would_have_to_be_guessed_are_refused(tmp_path: Path) -> None:
    assert reason(tmp_path / "absent.png") == "missing_file"
    assert reason(write(tmp_path / "a.png", LABELS.T.copy())) == "mask_size_differs"
    assert reason(write(tmp_path / "a.jpg", LABELS * np.uint8(85))) == "mask_lossy"
    assert read_mask(tmp_path / "a.jpg", (11, 7), 1, at_least=128).shape == (11, 7)
    tifffile.imwrite(tmp_path / "jpeg.tif", LABELS * np.uint8(85), compression="jpeg")
    assert reason(tmp_path / "jpeg.tif") == "mask_lossy"
    np.save(tmp_path / "a.npy", LABELS / 3)
    assert reason(tmp_path / "a.npy") == "mask_value_unknown"
    np.save(tmp_path / "a.npy", np.where(LABELS > 2, np.nan, 0.0))
    assert reason(tmp_path / "a.npy", at_least=0.5) == "not_finite"


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int16, np.int64, np.float64])
def test_labels_of_any_type_are_their_numbers(dtype: Any) -> None:
    stored = (LABELS % 2).astype(dtype)
    for classes in (1, 3):
        np.testing.assert_array_equal(class_bits(stored, classes), LABELS % 2)


def test_masks_of_one_class_each_become_one(tmp_path: Path) -> None:
    one, two = (LABELS == 1).astype(np.uint8), (LABELS >= 1).astype(np.uint8)
    np.testing.assert_array_equal(overlay([one, None, two]), one + 4 * two, strict=True)
    with pytest.raises(BadImage, match="mask_size_differs"):
        overlay([one, two.T])
    with pytest.raises(ValueError, match="1 to 8 masks"):
        overlay([None])


@pytest.mark.parametrize(
    ("classes", "values", "at_least", "text"),
    [
        (0, None, None, "1 to 8 classes"),
        (9, None, None, "1 to 8 classes"),
        (1, {0: (1,)}, 5, "not both"),
        (2, None, 5, "one class"),
        (2, {0: (1,)}, None, "every class"),
        (1, {0: (1,), 1: (2,)}, None, "every class"),
        (1, {0: ()}, None, "has values"),
        (1, {0: (0, 1)}, None, "no class"),
    ],
)
def test_mappings_that_contradict_themselves(
    classes: int, values: Values | None, at_least: float | None, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        class_bits(LABELS, classes, values, at_least)
