"""Volumes of every format come out upright and exact, or are refused with a reason."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from data_tools.pixels.dicom import BadImage
from data_tools.pixels.volume import numbered, read_volume, read_volume_mask

SHAPE = (5, 6, 7)  # D, H, W: to the head, to the back, to the patient's left


def noise(dtype: Any = np.uint16, shape: tuple[int, ...] = SHAPE) -> NDArray[Any]:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def reason(path: Path, **options: Any) -> str:
    with pytest.raises(BadImage) as caught:
        read_volume(path, **options)
    return caught.value.reason


def write_nifti(path: Path, upright: NDArray[Any], codes: str = "RAS", **options: Any) -> Path:
    """``upright`` [D, H, W] as NIfTI whose voxel axes go in the directions of ``codes``; 0.5 x 0.75 x 2.5 mm."""
    lps = upright.transpose(2, 1, 0)
    affine = np.diag([-0.5, -0.75, 2.5, 1.0])
    affine[:3, 3] = (11.0, 13.0, 17.0)
    turn = nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt(("L", "P", "S")), nib.orientations.axcodes2ornt(tuple(codes))
    )
    stored = nib.orientations.apply_orientation(lps, turn)
    image = nib.Nifti1Image(stored, affine @ nib.orientations.inv_ornt_aff(turn, lps.shape))
    image.header["descrip"] = b"Doe^Jane"
    for name, value in options.items():
        getattr(image.header, name)(*value)
    nib.save(image, path)
    return path


ORIENTATIONS = [
    "".join(signs) for order in itertools.permutations(("RL", "AP", "SI")) for signs in itertools.product(*order)
]


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_every_orientation_comes_out_upright(tmp_path: Path, codes: str) -> None:
    upright = noise()
    volume = read_volume(write_nifti(tmp_path / "a.nii", upright, codes))
    np.testing.assert_array_equal(volume.pixels, upright, strict=True)
    assert volume.spacing == pytest.approx((2.5, 0.75, 0.5))
    assert volume.orientation == f"{codes} to LPS"
    assert volume.affine is not None
    np.testing.assert_allclose(volume.affine @ (0, 0, 0, 1), (11, 13, 17, 1), atol=1e-5)
    assert volume.mapping == {"kind": "exact", "low": None, "high": None}


def test_an_oblique_volume_keeps_its_values_and_spacing(tmp_path: Path) -> None:
    turn = np.eye(4)
    angle = np.deg2rad(20)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine = turn @ np.diag([-0.5, -0.75, 2.5, 1.0])
    nib.save(nib.Nifti1Image(noise().transpose(2, 1, 0), affine), tmp_path / "a.nii.gz")
    volume = read_volume(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(volume.pixels, noise())
    assert volume.spacing == pytest.approx((2.5, 0.75, 0.5))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti_without_scaling_is_kept(tmp_path: Path, name: str, dtype: Any) -> None:
    np.testing.assert_array_equal(
        read_volume(write_nifti(tmp_path / name, noise(dtype), "LAS")).pixels, noise(dtype), strict=True
    )


def test_slope_and_intercept_are_applied(tmp_path: Path) -> None:
    stored = noise() % 4096
    path = write_nifti(tmp_path / "a.nii.gz", stored.astype(np.int16), set_slope_inter=(0.5, -1024))
    values = stored * 0.5 - 1024
    volume = read_volume(path, (-1024, 1024))
    np.testing.assert_array_equal(volume.pixels, np.rint((values + 1024) * (65535 / 2048)).astype(np.uint16))
    assert volume.mapping == {"kind": "range", "low": -1024, "high": 1024}
    assert reason(path, value_range=(-1000, 1024)) == "outside_value_range"
    clipped = read_volume(path, (-500, 500), clip=True).pixels
    np.testing.assert_array_equal(clipped, np.rint((np.clip(values, -500, 500) + 500) * 65.535).astype(np.uint16))


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_other_numbers_without_a_range_are_spread_between_percentiles(tmp_path: Path, dtype: Any) -> None:
    values = (np.random.default_rng(0).normal(size=SHAPE) * 900).astype(dtype)
    volume = read_volume(write_nifti(tmp_path / "a.nii", values))
    low, high = np.percentile(values, (0.5, 99.5))
    assert volume.mapping == {"kind": "percentile", "low": pytest.approx(low), "high": pytest.approx(high)}
    expected = np.clip((values - low) / (high - low), 0, 1) * 65535
    assert np.abs(volume.pixels - expected).max() <= 0.51


def test_a_small_thing_in_a_large_empty_volume_is_seen(tmp_path: Path) -> None:
    values = np.zeros((20, 20, 20), np.float32)
    values[3, 4, 5] = 7.5
    np.save(tmp_path / "a.npy", values)
    volume = read_volume(tmp_path / "a.npy")
    assert volume.mapping == {"kind": "extremes", "low": 0.0, "high": 7.5}
    assert volume.pixels[3, 4, 5] == 65535


def test_units_are_brought_to_mm(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", noise(), set_xyzt_units=("micron", "sec"))
    assert read_volume(path).spacing == pytest.approx((0.0025, 0.00075, 0.0005))


def test_nifti_without_a_position_says_so(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", noise())
    data = bytearray(path.read_bytes())
    data[252:256] = bytes(4)  # codes of both transforms; nibabel's own writing sets one
    path.write_bytes(data)
    assert read_volume(path).notes == ("orientation_assumed",)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 3 // 4] ^= 16
    path.write_bytes(data)


@pytest.mark.parametrize(("name", "damage"), [("a.nii", _cut), ("a.nii.gz", _cut), ("a.nii.gz", _flip)])
def test_damaged_nifti_is_refused(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    path = write_nifti(tmp_path / name, noise(shape=(20, 20, 20)))
    damage(path)
    assert reason(path) == "undecodable_pixels"


def test_the_checksum_of_nifti_counts(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii.gz", noise())
    data = bytearray(path.read_bytes())
    data[-6] ^= 1  # of the checksum; every voxel is right
    path.write_bytes(data)
    assert reason(path) == "undecodable_pixels"


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (np.zeros((3, 4, 5, 2), np.uint8), "several_volumes"),
        (np.zeros((3, 4), np.uint8), "not_a_volume"),
        (np.full((3, 4, 5), np.nan, np.float32), "not_finite"),
        (np.zeros((3, 4, 5), np.complex64), "not_real_numbers"),
        (np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "colour"),
        (np.full((3, 4, 5), 7, np.uint8), "constant"),
        (np.full((3, 4, 5), 7, np.float32), "constant"),
    ],
)
def test_nifti_that_is_no_grey_volume_is_refused(tmp_path: Path, stored: NDArray[Any], expected: str) -> None:
    nib.save(nib.Nifti1Image(stored, np.eye(4)), tmp_path / "a.nii")
    assert reason(tmp_path / "a.nii") == expected


def test_a_last_axis_of_one_is_no_axis(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(noise().transpose(2, 1, 0)[..., None], np.diag([-1, -1, 1, 1])), tmp_path / "a.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii").pixels, noise())


def test_nifti_that_claims_too_much_allocates_nothing(tmp_path: Path) -> None:
    path = write_nifti(tmp_path / "a.nii", noise())
    data = bytearray(path.read_bytes())
    data[42:48] = np.array([32000, 32000, 32000], "<i2").tobytes()
    path.write_bytes(data)
    assert reason(path) == "too_large"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("kind", ["npy", "tiff", "tiff lzw", "imagej", "png slices", "tiff slices"])
def test_volumes_without_a_position_stay_as_they_are(tmp_path: Path, kind: str, dtype: Any) -> None:
    values, path = noise(dtype, (12, 6, 7)), tmp_path / "a"
    if kind == "npy":
        np.save(path.with_suffix(".npy"), values)
        path = path.with_suffix(".npy")
    elif "slices" in kind:
        path.mkdir()
        for number, plane in enumerate(values, 3):  # 10 would come before 3 by name
            name = path / f"scan7_{number}_x.{kind[:3]}"
            tifffile.imwrite(name, plane) if kind[0] == "t" else Image.fromarray(plane).save(name)
        (path / ".hidden").touch()
    else:
        options: dict[str, Any] = {"compression": "lzw"} if "lzw" in kind else {"imagej": kind == "imagej"}
        tifffile.imwrite(path, values, photometric="minisblack", **options)
    volume = read_volume(path)
    np.testing.assert_array_equal(volume.pixels, values, strict=True)
    assert volume.spacing is None
    assert volume.orientation == "unknown"
    assert volume.notes == ()


def _folder(root: Path, names: list[str], shapes: list[tuple[int, int]] | None = None) -> Path:
    root.mkdir()
    for number, name in enumerate(names):
        Image.fromarray(noise(np.uint8, shapes[number] if shapes else (6, 7))).save(root / name)
    return root


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["1.png", "2.png", "4.png"], "missing_slices"),
        (["1.png", "01.png", "2.png"], "duplicate_slices"),
        (["1.png", "1.tif"], "duplicate_slices"),
        (["a1.png", "b2.png"], "slice_names_differ"),
        (["1_1.png", "2_2.png"], "slice_names_differ"),
        (["a.png", "b.png"], "slice_names_differ"),
        (["1.png"], "one_slice"),
        ([], "no_slices"),
    ],
)
def test_slices_whose_order_is_unclear_are_refused(tmp_path: Path, names: list[str], expected: str) -> None:
    assert reason(_folder(tmp_path / "a", names)) == expected


def test_slices_have_numbers_not_names() -> None:
    assert numbered(["s10", "s9", "s011"]) == [1, 0, 2]


def test_folders_of_other_things_are_refused(tmp_path: Path) -> None:
    assert reason(_folder(tmp_path / "a", ["1.png", "2.png"], [(6, 7), (7, 6)])) == "slices_of_different_sizes"
    folder = _folder(tmp_path / "b", ["1.png", "2.png"])
    Image.fromarray(noise(np.uint16, (6, 7))).save(folder / "2.png")
    assert reason(folder) == "slices_of_different_depths"
    (folder / "2.png").write_bytes(b"Doe")
    assert reason(folder) == "unknown_format"
    folder = _folder(tmp_path / "c", ["1.png", "2.png"])
    (folder / "readme.txt").write_text("two slices")
    assert read_volume(folder).notes == ("other_files",)
    assert reason(folder / "1.png") == "one_slice"
    assert reason(tmp_path / "absent.nii.gz") == reason(tmp_path / "absent") == "missing_file"
    np.save(tmp_path / "a.npy", np.zeros((2, 3, 4, 5), np.uint8))
    assert reason(tmp_path / "a.npy") == "not_a_volume"


def test_pages_that_are_no_volume_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise(np.uint8, (6, 7)))
    assert reason(path) == "one_slice"
    tifffile.imwrite(path, noise(np.uint8, (4, 6, 7, 3)), photometric="rgb")
    assert reason(path) == "colour"
    with tifffile.TiffWriter(path) as file:
        for shape in ((6, 7), (7, 6)):
            file.write(noise(np.uint8, shape))
    assert reason(path) == "slices_of_different_sizes"


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("kind", ["lzw", "imagej", "one directory", "chain", "pillow"])
def test_truncated_stacks_are_refused(tmp_path: Path, kind: str, share: float) -> None:
    """Readers end at the last page they find: a third of the slices would be gone without a word."""
    path, stack = tmp_path / "a.tif", noise(np.uint8, (40, 60, 70))
    if kind == "pillow":
        first, *others = (Image.fromarray(plane) for plane in stack)
        first.save(path, save_all=True, append_images=others)
    elif kind == "chain":
        with tifffile.TiffWriter(path) as file:
            for plane in stack:
                file.write(plane, contiguous=False)
    else:
        options: dict[str, Any] = {"compression": "lzw"} if kind == "lzw" else {"imagej": kind == "imagej"}
        tifffile.imwrite(path, stack, photometric="minisblack", **options)
    np.testing.assert_array_equal(read_volume(path).pixels, stack)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert reason(path) == "undecodable_pixels"


def test_a_stack_of_one_directory(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise(), photometric="minisblack", metadata={"axes": "ZYX"}, volumetric=False)
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:  # as ImageJ writes stacks beyond 4 GiB
        place = file.pages[0].offset + 2 + 12 * len(file.pages[0].tags)
        file.filehandle.seek(place)
        file.filehandle.write(bytes(4))
    np.testing.assert_array_equal(read_volume(tmp_path / "a.tif").pixels, noise())


@pytest.mark.parametrize("codes", ["LPS", "RAS", "SLA"])
def test_masks_are_turned_with_their_volume(tmp_path: Path, codes: str) -> None:
    labels = (noise() % 4).astype(np.float64)  # as many tools write labels
    volume = read_volume(write_nifti(tmp_path / "a.nii.gz", noise(), "LAS"))
    mask = write_nifti(tmp_path / "m.nii.gz", labels, codes)
    bits = read_volume_mask(mask, volume.pixels.shape, 3, affine=volume.affine)
    np.testing.assert_array_equal(bits, np.array([0, 1, 2, 4], np.uint8)[noise() % 4], strict=True)
    one = read_volume_mask(mask, SHAPE, 1, {0: (1, 2, 3)})
    np.testing.assert_array_equal(one, noise() % 4 > 0)


def test_masks_of_another_place_are_refused(tmp_path: Path) -> None:
    volume = read_volume(write_nifti(tmp_path / "a.nii", noise()))
    image = nib.load(write_nifti(tmp_path / "m.nii", (noise() % 2).astype(np.uint8)))
    shifted = image.affine.copy()
    shifted[2, 3] += 2.5
    nib.save(nib.Nifti1Image(np.asanyarray(image.dataobj), shifted), tmp_path / "s.nii")
    assert read_volume_mask(tmp_path / "m.nii", SHAPE, 1, affine=volume.affine).any()
    for path, shape, expected in (
        ("s.nii", SHAPE, "mask_placed_differently"),
        ("m.nii", SHAPE[::-1], "mask_size_differs"),
    ):
        with pytest.raises(BadImage, match=expected):
            read_volume_mask(tmp_path / path, shape, 1, affine=volume.affine)
    with pytest.raises(BadImage, match="mask_value_unknown"):
        read_volume_mask(tmp_path / "a.nii", SHAPE, 2)
