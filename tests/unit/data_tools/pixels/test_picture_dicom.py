"""DICOM pictures of anything: grey scale as the header says, colours as RGB, no breast looked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data_tools.pixels.dicom import BadImage
from data_tools.pixels.picture import read_picture
from tests.unit.data_tools.pixels.dicom_cases import SECRET, write_dicom


def ramp(dtype: Any = np.uint16, most: int = 4095) -> NDArray[Any]:
    return np.linspace(0, most, 64 * 48).astype(dtype).reshape(64, 48)


def reason(path: Path, channels: int = 1, **options: Any) -> str:
    with pytest.raises(BadImage) as caught:
        read_picture(path, channels, **options)
    assert SECRET not in repr(caught.value)
    return caught.value.reason


def test_a_window_is_applied_over_16_bits(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a", ramp(), WindowCenter=1000.5, WindowWidth=1001)
    got = read_picture(path, 1)
    expected = np.clip((ramp().astype(float) - 500) / 1000, 0, 1) * 65535
    assert got.pixels.dtype == np.uint16
    assert np.abs(got.pixels - expected).max() <= 1
    assert got.notes == ("dicom_window",)


def test_hounsfield_units_go_through_rescale_and_window(tmp_path: Path) -> None:
    stored = ramp() - np.uint16(0)
    path = write_dicom(
        tmp_path / "a", stored, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40.5, WindowWidth=401
    )
    expected = np.clip((stored.astype(float) - 1024 + 160) / 400, 0, 1) * 65535
    assert np.abs(read_picture(path, 1).pixels - expected).max() <= 1
    got = read_picture(path, 1, (-1024, 3071))
    np.testing.assert_array_equal(got.pixels, np.rint(stored * (65535 / 4095)).astype(np.uint16))
    assert got.notes == ("range",)
    assert reason(path, value_range=(-1000, 3071)) == "outside_value_range"


def test_without_a_window_percentiles_of_everything_count(tmp_path: Path) -> None:
    """A mammogram's percentiles would be taken inside the breast, and an image without one refused."""
    values = np.random.default_rng(0).permutation(ramp().ravel()).reshape(64, 48)
    got = read_picture(write_dicom(tmp_path / "a", values), 1)
    low, high = np.percentile(values, (0.5, 99.5))
    expected = np.clip((values - low) / (high - low), 0, 1) * 65535
    assert np.abs(got.pixels - expected).max() <= 1
    assert got.notes == ("dicom_percentile",)
    padded = values.copy()
    padded[:20] = 60000
    again = read_picture(write_dicom(tmp_path / "b", padded, PixelPaddingValue=60000), 1).pixels
    low, high = np.percentile(values[20:], (0.5, 99.5))
    assert not again[:20].any()
    assert np.abs(again[20:] - np.clip((values[20:] - low) / (high - low), 0, 1) * 65535).max() <= 1


def test_8_bits_without_a_window_are_kept(tmp_path: Path) -> None:
    stored = ramp(np.uint8, 200)
    got = read_picture(write_dicom(tmp_path / "a", stored), 1)
    np.testing.assert_array_equal(got.pixels, stored, strict=True)
    assert got.notes == ("dicom_exact",)
    got = read_picture(write_dicom(tmp_path / "b", stored, PhotometricInterpretation="MONOCHROME1"), 1)
    np.testing.assert_array_equal(got.pixels, 255 - stored, strict=True)
    assert got.notes == ("dicom_exact", "dicom_inverted")
    got = read_picture(write_dicom(tmp_path / "c", stored, WindowCenter=100, WindowWidth=50), 1)
    assert got.notes == ("dicom_window",)


def test_monochrome1_is_turned_around(tmp_path: Path) -> None:
    plain = read_picture(write_dicom(tmp_path / "a", ramp(), WindowCenter=2000, WindowWidth=3000), 1).pixels
    facts = {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 2000, "WindowWidth": 3000}
    turned = read_picture(write_dicom(tmp_path / "b", ramp(), **facts), 1).pixels
    assert np.abs(turned.astype(int) + plain - 65535).max() <= 1
    plain = read_picture(tmp_path / "a", 1, (0, 4095)).pixels
    np.testing.assert_array_equal(read_picture(tmp_path / "b", 1, (0, 4095)).pixels, 65535 - plain)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_colours_are_rgb(tmp_path: Path, dtype: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (64, 48, 3), dtype=dtype)
    path = write_dicom(tmp_path / "a", pixels)
    np.testing.assert_array_equal(read_picture(path, 3).pixels, pixels, strict=True)
    assert reason(path) == "colour"


def test_ybr_is_converted(tmp_path: Path) -> None:
    ybr = np.broadcast_to(np.array([76, 85, 255], np.uint8), (64, 48, 3)).copy()  # pure red
    ybr[:9] = (0, 128, 128)
    got = read_picture(write_dicom(tmp_path / "a", ybr, PhotometricInterpretation="YBR_FULL"), 3).pixels
    assert np.abs(got[20, 20].astype(int) - (254, 0, 0)).max() <= 2


def test_palettes_become_their_colours(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (256, 3)).astype(np.uint16)
    tables = {
        f"{name}PaletteColorLookupTable{part}": [256, 0, 16] if part == "Descriptor" else data.tobytes()
        for name, data in zip(("Red", "Green", "Blue"), (colours << 8).T, strict=True)
        for part in ("Descriptor", "Data")
    }
    stored = ramp(np.uint8, 255)
    path = write_dicom(tmp_path / "a", stored, PhotometricInterpretation="PALETTE COLOR", **tables)
    got = read_picture(path, 3)
    np.testing.assert_array_equal(got.pixels, colours[stored].astype(np.uint8), strict=True)
    assert got.notes == ("palette",)
    path = write_dicom(tmp_path / "b", stored, PhotometricInterpretation="PALETTE COLOR")
    assert reason(path, 3) == "palette"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"NumberOfFrames": 2}, "multi_frame"),
        ({"PixelData": None}, "no_pixels"),
        ({"PixelData": bytes(64 * 48 * 2)}, "constant"),
        ({"PixelData": bytes(100)}, "undecodable_pixels"),
        ({"PhotometricInterpretation": "HSV"}, "photometric_interpretation"),
        ({"PresentationIntentType": "FOR PROCESSING"}, "for_processing"),
        ({"BitsStored": 10, "HighBit": 9}, "beyond_bits_stored"),
        ({"Rows": 65535, "Columns": 65535}, "too_large"),
    ],
)
def test_what_is_no_picture_is_refused(tmp_path: Path, values: dict[str, Any], expected: str) -> None:
    assert reason(write_dicom(tmp_path / "a", ramp(), **values)) == expected


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    data = write_dicom(tmp_path / "a", ramp()).read_bytes()
    (tmp_path / "a").write_bytes(data[:-2000])
    assert reason(tmp_path / "a") in ("undecodable_pixels", "unreadable_header")
    (tmp_path / "a").write_bytes(data[:300])
    assert reason(tmp_path / "a") in ("no_pixels", "unreadable_header")
