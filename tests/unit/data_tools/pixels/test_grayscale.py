"""Windows, LUTs, inversion and padding, against pydicom where it can do them and by hand where it cannot."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels import apply_windowing

from data_tools.pixels import grayscale
from data_tools.pixels.breast import Unit
from data_tools.pixels.dicom import BadImage


def header(**values: object) -> Dataset:
    ds = Dataset()
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsStored, ds.PixelRepresentation = 12, 0
    for name, value in values.items():
        setattr(ds, name, value)
    return ds


def ramp(top: int = 4095) -> NDArray[np.uint16]:
    """Every stored value once, as an image."""
    return np.arange(top + 1, dtype=np.uint16).reshape(64, -1)


def whole(graded: grayscale.Graded) -> Unit:
    """Grey values of all pixels."""
    return graded.part(0, 0, *graded.stored.shape)


def breast_values() -> NDArray[np.uint16]:
    rng = np.random.default_rng(0)
    values = np.zeros((200, 160), np.uint16)
    values[30:170, :90] = rng.integers(900, 2500, (140, 90))
    return values


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(2047, 4096), (1800, 700), (540, 580), (100.5, 1)])
def test_window_equals_pydicom(function: str, centre: float, width: float) -> None:
    values = ramp()
    ds = header(WindowCenter=centre, WindowWidth=width, VOILUTFunction=function)
    expected = apply_windowing(values, ds) / 4095
    np.testing.assert_allclose(grayscale.apply_window(values, centre, width, function), expected, atol=1e-5)
    assert grayscale.header_window(ds) == (centre, width, function)


@pytest.mark.parametrize(
    "values",
    [
        {"WindowCenter": 500},
        {"WindowWidth": 500},
        {"WindowCenter": None, "WindowWidth": None},
        {"WindowCenter": 500, "WindowWidth": 0.5},
        {"WindowCenter": 500, "WindowWidth": -3},
        {"WindowCenter": 500, "WindowWidth": 900, "VOILUTFunction": "CURVED"},
        {"WindowCenter": 90000, "WindowWidth": 10},  # beyond all values: the image would be one grey
        {},
    ],
)
def test_unusable_windows_fall_back_on_percentiles(values: dict[str, object]) -> None:
    stored = breast_values()
    graded = grayscale.grade(header(**values), stored)
    assert graded.method == "percentile"
    inside = stored[stored > 0]
    low, high = np.percentile(inside, (0.5, 99.5))
    expected = np.clip((stored - low) / (high - low), 0, 1)
    assert np.abs(whole(graded) - expected)[40:160, 5:85].max() < 0.02
    assert whole(graded)[:20].max() == 0


def test_numbers_that_are_no_numbers_are_no_window() -> None:
    """pydicom fails on such values when they are read, not when the file is."""
    from pydicom.dataelem import RawDataElement
    from pydicom.tag import Tag

    ds = header(WindowWidth=400)
    tag = Tag("WindowCenter")
    ds._dict[tag] = RawDataElement(tag, "DS", 4, b"abc ", 0, False, True)
    assert grayscale.header_window(ds) is None


@pytest.mark.parametrize("function", ["", None])
def test_empty_function_is_linear(function: str | None) -> None:
    ds = header(WindowCenter=[2047, 1500], WindowWidth=[4096, 800], VOILUTFunction=function)
    assert grayscale.header_window(ds) == (2047, 4096, "LINEAR")
    assert grayscale.grade(ds, ramp()).method == "window"


TABLES = {
    "window": np.clip((np.arange(4096) - 300) / 1800, 0, 1),
    "falling": np.clip(1 - (np.arange(4096) - 300) / 1800, 0, 1),
    "curve": (np.arange(4096) / 4095) ** 2,
    "step": (np.arange(4096) > 1000).astype(float),
    "padding": np.where(np.arange(4096) > 4000, 0.0, np.arange(4096) / 4095),
}


def test_percentiles_of_a_large_image_are_those_of_all_its_pixels() -> None:
    rng = np.random.default_rng(1)
    stored = np.zeros((1600, 1300), np.uint16)
    stored[200:1400, :800] = rng.integers(900, 2500, (1200, 800))
    graded = grayscale.grade(header(), stored)
    assert graded.method == "percentile"
    low, high = np.percentile(stored[stored > 0], (0.5, 99.5))
    expected = np.clip((stored - low) / (high - low), 0, 1)
    assert np.abs(whole(graded) - expected)[220:1380, :780].max() < 0.02


@pytest.mark.parametrize("low", [0, -1000])
@pytest.mark.parametrize("name", TABLES)
def test_arithmetic_and_look_up_give_the_same_grey(name: str, low: int) -> None:
    """Only a table that is a ramp everywhere is replaced by arithmetic; the others are looked up."""
    table = TABLES[name].astype(np.float32)
    stored = (ramp().astype(np.int32) + low).astype(np.int16 if low else np.uint16)
    graded = grayscale.Graded(stored, low, table, "window", False)
    assert (graded.ramp is not None) is (name in ("window", "falling"))
    np.testing.assert_allclose(whole(graded).ravel(), table, atol=2e-6)
    np.testing.assert_array_equal(graded.part(3, 5, 20, 30), whole(graded)[3:23, 5:35])


@pytest.mark.parametrize("size", [3, 200, 9999])
def test_percentiles_of_counts_are_numpys(size: int) -> None:
    rng = np.random.default_rng(size)
    values = rng.permutation(np.arange(500, dtype=np.float32) * 1.7 - 60)  # in no order, as a modality LUT may be
    drawn = rng.integers(500, size=size)
    found = grayscale._percentiles(values, np.bincount(drawn, minlength=500))
    np.testing.assert_allclose(found, np.percentile(values[drawn], grayscale.PERCENTILES), rtol=1e-6)


def test_monochrome1_is_the_negative() -> None:
    stored = breast_values()
    ds = header(WindowCenter=2048, WindowWidth=4096)
    plain = grayscale.grade(ds, stored)
    negative = header(PhotometricInterpretation="MONOCHROME1", WindowCenter=2048, WindowWidth=4096)
    inverted = grayscale.grade(negative, (4095 - stored).astype(np.uint16))
    np.testing.assert_allclose(whole(inverted), whole(plain), atol=1e-5)
    assert (plain.inverted, inverted.inverted) == (False, True)
    without = [
        whole(grayscale.grade(header(), stored)),
        whole(grayscale.grade(header(PhotometricInterpretation="MONOCHROME1"), (4095 - stored).astype(np.uint16))),
    ]
    np.testing.assert_allclose(without[0], without[1], atol=1e-5)


def test_lut_wins_over_window_and_is_scaled_by_its_own_entries() -> None:
    table = Dataset()
    entries = (np.arange(4096) ** 2 // 4095).astype(np.uint16)  # 12 bits used of 16
    table.LUTDescriptor, table.LUTData = [4096, 0, 16], entries.tolist()
    ds = header(WindowCenter=100, WindowWidth=10)
    ds.VOILUTSequence = [table]
    graded = grayscale.grade(ds, ramp())
    assert graded.method == "voi_lut"
    np.testing.assert_allclose(whole(graded).ravel(), entries / 4095, atol=1e-6)


def test_damaged_lut_leaves_the_window() -> None:
    ds = header(WindowCenter=2048, WindowWidth=4096)
    ds.VOILUTSequence = [Dataset()]
    assert grayscale.grade(ds, ramp()).method == "window"


def test_rescale_comes_before_the_window() -> None:
    ds = header(RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=1000.5, WindowWidth=2001)
    image = whole(grayscale.grade(ds, ramp())).ravel()
    assert image[500] == pytest.approx(0.0, abs=1e-3)  # 2 * 500 - 1000 = 0
    assert image[1000] == pytest.approx(0.5, abs=1e-3)
    assert image[1500] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("window", [{}, {"WindowCenter": 2048, "WindowWidth": 4096}])
def test_padding_is_background_and_outside_the_statistics(window: dict[str, int]) -> None:
    stored = breast_values()
    clean = whole(grayscale.grade(header(**window), stored))
    padded = stored.copy()
    padded[:, 150:] = 4090
    ds = header(PixelPaddingValue=4085, PixelPaddingRangeLimit=4095, **window)
    image = whole(grayscale.grade(ds, padded))
    assert image[:, 150:].max() == 0
    np.testing.assert_allclose(image[:, :150], clean[:, :150], atol=1e-5)


@pytest.mark.parametrize("photometric", ["RGB", "", "PALETTE COLOR"])
def test_other_photometric_interpretations_are_rejected(photometric: str) -> None:
    with pytest.raises(BadImage, match="photometric"):
        grayscale.grade(header(PhotometricInterpretation=photometric), ramp())
