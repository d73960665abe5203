"""DICOM series: the position in the body alone orders slices, and what is missing or twice is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray

from data_tools.pixels.dicom import BadImage
from data_tools.pixels.volume import read_volume, read_volume_mask
from tests.unit.data_tools.pixels.dicom_cases import SECRET, write_dicom, write_series

SHAPE = (12, 6, 7)


def noise(dtype: Any = np.uint16) -> NDArray[Any]:
    values = np.random.default_rng(0).integers(0, 4096, SHAPE).astype(dtype)
    values[0] = 0  # the outermost slice of a real volume shows air alone
    return values


def reason(folder: Path, **options: Any) -> str:
    with pytest.raises(BadImage) as caught:
        read_volume(folder, **options)
    assert SECRET not in repr(caught.value)
    return caught.value.reason


def change(path: Path, **values: Any) -> None:
    ds = pydicom.dcmread(path)
    for name, value in values.items():
        setattr(ds, name, value)
    ds.save_as(path)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_positions_order_slices_whatever_files_are_called(tmp_path: Path, seed: int) -> None:
    write_series(tmp_path / "s", noise(), seed=seed)
    volume = read_volume(tmp_path / "s")
    np.testing.assert_array_equal(volume.pixels, noise(), strict=True)
    assert volume.spacing == pytest.approx((2.5, 0.5, 0.75))
    assert volume.orientation == "LPS to LPS"
    assert volume.mapping["kind"] == "exact"


def test_other_planes_come_out_upright(tmp_path: Path) -> None:
    """A sagittal series: columns to the back, rows to the feet, slices to the patient's left or right."""
    stack = noise()
    write_series(tmp_path / "s", stack, orientation=(0, 1, 0, 0, 0, -1))
    volume = read_volume(tmp_path / "s")
    # normal = (0,1,0) x (0,0,-1) = (-1,0,0): the first slice is the left one
    np.testing.assert_array_equal(volume.pixels, stack.transpose(1, 2, 0)[::-1, :, ::-1])
    assert volume.spacing == pytest.approx((0.5, 0.75, 2.5))


def test_a_series_and_its_copy_as_nifti_are_the_same(tmp_path: Path) -> None:
    """The affine of the series, written into a NIfTI file, leads back to the same volume."""
    import nibabel as nib

    angle = np.deg2rad(15)
    oblique = (np.cos(angle), np.sin(angle), 0, -np.sin(angle), np.cos(angle), 0)
    write_series(tmp_path / "s", noise(), orientation=oblique)
    volume = read_volume(tmp_path / "s")
    nib.save(nib.Nifti1Image(volume.pixels.transpose(2, 1, 0), volume.affine), tmp_path / "a.nii")
    again = read_volume(tmp_path / "a.nii")
    np.testing.assert_array_equal(again.pixels, volume.pixels)
    assert again.affine is not None
    assert volume.affine is not None
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-4)


def test_each_slice_has_its_own_rescale(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", noise(), RescaleIntercept=-1000, RescaleSlope=1)
    change(paths[4], RescaleSlope=2)
    values = noise().astype(float) - 1000
    values[4] = noise()[4] * 2.0 - 1000
    volume = read_volume(tmp_path / "s", (-1000, 8000))
    np.testing.assert_array_equal(volume.pixels, np.rint((values + 1000) * (65535 / 9000)).astype(np.uint16))
    low, high = np.percentile(values, (0.5, 99.5))
    mapping = read_volume(tmp_path / "s").mapping
    assert mapping == {"kind": "percentile", "low": pytest.approx(low), "high": pytest.approx(high)}


def test_padding_is_not_part_of_the_range(tmp_path: Path) -> None:
    values = (noise(np.int16) - 1000).astype(np.int16)
    values[:, :2] = -20000
    write_series(tmp_path / "s", values, PixelPaddingValue=-20000)
    volume = read_volume(tmp_path / "s", (-1000, 4000))
    assert not volume.pixels[:, :2].any()
    np.testing.assert_array_equal(volume.pixels[:, 2:], np.rint((values[:, 2:] + 1000.0) * 13.107).astype(np.uint16))
    assert volume.notes == ("padding",)


def test_two_series_are_counted(tmp_path: Path) -> None:
    write_series(tmp_path / "s", noise())
    other = write_series(tmp_path / "o", noise())
    for number in (0, 1):
        other[number].rename(tmp_path / "s" / f"other{number}.dcm")
    assert reason(tmp_path / "s") == "2_series_in_folder"


def test_gaps_and_repeated_positions_are_refused(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "gap", noise())
    paths[5].unlink()
    assert reason(tmp_path / "gap") == "missing_slices"
    paths = write_series(tmp_path / "twice", noise())
    change(paths[5], ImagePositionPatient=pydicom.dcmread(paths[6]).ImagePositionPatient)
    assert reason(tmp_path / "twice") == "duplicate_positions"
    paths = write_series(tmp_path / "uneven", noise())
    position = pydicom.dcmread(paths[-1]).ImagePositionPatient
    change(paths[-1], ImagePositionPatient=[*position[:2], position[2] + 1])
    assert reason(tmp_path / "uneven") == "uneven_slices"
    paths = write_series(tmp_path / "tilt", noise())
    for number, path in enumerate(paths):
        x, y, z = pydicom.dcmread(path).ImagePositionPatient
        change(path, ImagePositionPatient=[x, y + 0.3 * number, z])
    assert reason(tmp_path / "tilt") == "tilted_slices"


def test_rounded_positions_are_no_gap(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", noise())
    for number, path in enumerate(paths):
        x, y, z = pydicom.dcmread(path).ImagePositionPatient
        change(path, ImagePositionPatient=[x, y, z + 0.01 * (number % 2)])
    assert read_volume(tmp_path / "s").pixels.shape == SHAPE


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"Rows": 7, "Columns": 6}, "slices_of_different_sizes"),
        ({"PixelSpacing": [0.5, 0.8]}, "slices_of_different_sizes"),
        ({"ImageOrientationPatient": [0, 1, 0, 1, 0, 0]}, "slices_of_different_orientations"),
        ({"ImagePositionPatient": None}, "no_slice_positions"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "photometric_interpretation"),
        ({"NumberOfFrames": 2}, "multi_frame"),
        ({"PixelData": bytes(10)}, "undecodable_pixels"),
    ],
)
def test_a_slice_that_does_not_fit_is_refused(tmp_path: Path, values: dict[str, Any], expected: str) -> None:
    change(write_series(tmp_path / "s", noise())[3], **values)
    assert reason(tmp_path / "s") == expected


def test_folders_with_more_than_a_series(tmp_path: Path) -> None:
    paths = write_series(tmp_path / "s", noise())
    (tmp_path / "s" / "notes.txt").write_text("CT")
    (tmp_path / "s" / "DICOMDIR").write_bytes(b"")
    assert read_volume(tmp_path / "s").notes == ("other_files",)
    paths[-1].write_bytes(b"x" * 500)  # the last slice lost its header: no gap would show it
    assert reason(tmp_path / "s") == "unknown_format"
    write_dicom(tmp_path / "one.dcm", noise()[3])
    assert reason(tmp_path / "one.dcm") == "multi_frame"


def test_a_series_of_one_slice_is_no_volume(tmp_path: Path) -> None:
    write_series(tmp_path / "s", noise()[3:4])
    assert reason(tmp_path / "s") == "one_slice"


def test_a_series_of_labels_is_a_mask(tmp_path: Path) -> None:
    labels = (noise() % 3).astype(np.uint8)
    write_series(tmp_path / "s", labels)
    np.testing.assert_array_equal(
        read_volume_mask(tmp_path / "s", SHAPE, 2), np.array([0, 1, 2], np.uint8)[labels], strict=True
    )
