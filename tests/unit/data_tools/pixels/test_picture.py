"""Pictures of every format, depth and number of channels come back bit for bit, or are refused with a reason."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import netpbmfile
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from data_tools.pixels.dicom import BadImage
from data_tools.pixels.picture import read_picture

DEPTHS = (np.uint8, np.uint16)


def noise(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """All bits in use, the lowest too: an image reduced to 8 bits differs."""
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max + 1, shape, dtype=dtype)


def shape_of(channels: int) -> tuple[int, ...]:
    return (11, 7) if channels == 1 else (11, 7, channels)


def reason(path: Path, channels: int = 1, **options: Any) -> str:
    with pytest.raises(BadImage) as caught:
        read_picture(path, channels, **options)
    return caught.value.reason


def write_png(path: Path, pixels: NDArray[Any]) -> Path:
    path.write_bytes(imagecodecs.png_encode(pixels))
    return path


def write_tiff(path: Path, pixels: NDArray[Any], **options: Any) -> Path:
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    alpha = {"extrasamples": ["unassalpha"]} if channels in (2, 4) else {}
    colour = "rgb" if channels >= 3 else "minisblack"
    tifffile.imwrite(path, pixels, photometric=colour, **({"planarconfig": "contig"} | alpha | options))
    return path


@pytest.mark.parametrize("dtype", DEPTHS)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", ["png", "tiff", "tiff lzw", "tiff deflate", "npy", "netpbm"])
def test_pixels_are_kept_bit_for_bit(tmp_path: Path, kind: str, channels: int, dtype: Any) -> None:
    pixels, path = noise(shape_of(channels), dtype), tmp_path / "picture"
    if kind == "png":
        write_png(path, pixels)
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(file, pixels.astype(pixels.dtype.newbyteorder(">")))
    elif kind == "netpbm":
        netpbmfile.imwrite(path, pixels, **({"magicnumber": "P7"} if channels in (2, 4) else {}))
    else:
        compression = kind.partition(" ")[2]
        write_tiff(path, pixels, **({"compression": compression, "predictor": True} if compression else {}))
    got = read_picture(path, channels)
    np.testing.assert_array_equal(got.pixels, pixels, strict=True)
    assert got.pixels.dtype.isnative
    assert got.notes == ()


@pytest.mark.parametrize("dtype", DEPTHS)
def test_planes_of_a_tiff_become_channels(tmp_path: Path, dtype: Any) -> None:
    pixels = noise((11, 7, 3), dtype)
    tifffile.imwrite(tmp_path / "a", np.moveaxis(pixels, -1, 0), photometric="rgb", planarconfig="separate")
    np.testing.assert_array_equal(read_picture(tmp_path / "a", 3).pixels, pixels, strict=True)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_and_bmp_are_what_pillow_decodes(tmp_path: Path, channels: int) -> None:
    image = Image.fromarray(noise(shape_of(channels), np.uint8))
    for name in ("picture.jpg", "picture.bmp"):
        image.save(tmp_path / name)
        np.testing.assert_array_equal(read_picture(tmp_path / name, channels).pixels, Image.open(tmp_path / name))


@pytest.mark.parametrize("maxval", [100, 4095])
def test_pgm_of_other_depths_is_not_rescaled(tmp_path: Path, maxval: int) -> None:
    pixels = np.random.default_rng(0).integers(0, maxval + 1, (11, 7))
    dtype = np.uint8 if maxval < 256 else np.dtype(">u2")
    header = f"P5\n# scanned by nobody\n7 11\n{maxval}\n".encode()
    (tmp_path / "a.pgm").write_bytes(header + pixels.astype(dtype).tobytes())
    np.testing.assert_array_equal(read_picture(tmp_path / "a.pgm", 1).pixels, pixels)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pbm", "a.bmp"])
def test_one_bit_becomes_black_and_white(tmp_path: Path, name: str) -> None:
    bits = np.random.default_rng(0).random((11, 7)) > 0.5
    Image.fromarray(bits).save(tmp_path / name)
    got = read_picture(tmp_path / name, 1).pixels
    np.testing.assert_array_equal(got, bits.astype(np.uint8) * np.uint8(255), strict=True)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
def test_palettes_become_their_colours(tmp_path: Path, name: str) -> None:
    colours = np.array([[9, 200, 30], [0, 0, 0], [255, 1, 2]], np.uint8)
    places = np.random.default_rng(0).integers(0, 3, (11, 7), dtype=np.uint8)
    image = Image.fromarray(places)
    image.putpalette(colours.ravel().tolist())
    image.save(tmp_path / name)
    got = read_picture(tmp_path / name, 3)
    np.testing.assert_array_equal(got.pixels, colours[places])
    assert got.notes == ("palette",)
    assert reason(tmp_path / name) == "colour"


def test_a_palette_of_greys_is_grey(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    image.putpalette([255 - n // 3 for n in range(18)])
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "a.png", 1).pixels, 255 - np.arange(6).reshape(2, 3))


def test_white_is_zero_is_turned_around(tmp_path: Path) -> None:
    for dtype in DEPTHS:
        pixels = noise((11, 7), dtype)
        tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="miniswhite")
        np.testing.assert_array_equal(
            read_picture(tmp_path / "a.tif", 1).pixels, np.iinfo(dtype).max - pixels, strict=True
        )


@pytest.mark.parametrize("dtype", DEPTHS)
def test_equal_channels_are_grey_and_grey_is_repeated(tmp_path: Path, dtype: Any) -> None:
    grey = noise((11, 7), dtype)
    got = read_picture(write_png(tmp_path / "a.png", np.repeat(grey[:, :, None], 3, axis=2)), 1)
    np.testing.assert_array_equal(got.pixels, grey, strict=True)
    assert got.notes == ("equal_channels",)
    got = read_picture(write_png(tmp_path / "b.png", grey), 3)
    np.testing.assert_array_equal(got.pixels, np.repeat(grey[:, :, None], 3, axis=2), strict=True)
    assert got.notes == ("grey_repeated",)
    off = np.repeat(grey[:, :, None], 3, axis=2)
    off[0, 0, 2] ^= 1
    assert reason(write_png(tmp_path / "c.png", off)) == "colour"


@pytest.mark.parametrize("dtype", DEPTHS)
@pytest.mark.parametrize("kind", [write_png, write_tiff])
def test_alpha_is_dropped_only_where_it_hides_nothing(tmp_path: Path, kind: Callable[..., Path], dtype: Any) -> None:
    rgba = noise((11, 7, 4), dtype)
    rgba[:, :, 3] = np.iinfo(dtype).max
    got = read_picture(kind(tmp_path / "a", rgba), 3)
    np.testing.assert_array_equal(got.pixels, rgba[:, :, :3], strict=True)
    assert got.notes == ("opaque_alpha_dropped",)
    rgba[3, 3, 3] -= 1
    assert reason(kind(tmp_path / "b", rgba), 3) == "transparency"
    np.testing.assert_array_equal(read_picture(tmp_path / "b", 4).pixels, rgba)


def test_transparent_colours_are_refused(tmp_path: Path) -> None:
    image = Image.fromarray(noise((11, 7), np.uint8))
    image.save(tmp_path / "a.png", transparency=int(np.asarray(image)[0, 0]))
    assert reason(tmp_path / "a.png") == "transparency"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "png", "png16", "tiff"])
def test_pictures_are_turned_upright(tmp_path: Path, kind: str, orientation: int) -> None:
    from PIL import ImageOps

    pixels, path = np.kron(noise((3, 4, 3), np.uint8), np.ones((8, 8, 1), np.uint8)), tmp_path / "a"
    exif = Image.Exif()
    exif[274] = orientation
    image = Image.fromarray(pixels)
    if kind == "tiff":
        write_tiff(path, pixels, extratags=[(274, "H", 1, orientation, True)])
    else:
        image.save(path, format="JPEG" if kind == "jpeg" else "PNG", exif=exif, quality=100)
    with Image.open(path) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    if kind == "png16":  # the EXIF chunk of one file before the pixels of another
        chunk = path.read_bytes()
        start = chunk.index(b"eXIf") - 4
        length = struct.unpack(">I", chunk[start : start + 4])[0] + 12
        wide = imagecodecs.png_encode(pixels.astype(np.uint16) * 257)
        path.write_bytes(wide[:33] + chunk[start : start + length] + wide[33:])
        expected = expected.astype(np.uint16) * 257
    got = read_picture(path, 3)
    np.testing.assert_array_equal(got.pixels, expected, strict=True)
    assert got.notes == (() if orientation == 1 else ("oriented",))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.int32, np.uint32])
@pytest.mark.parametrize("kind", ["npy", "tiff"])
def test_other_numbers_need_a_range(tmp_path: Path, kind: str, dtype: Any) -> None:
    values, path = (
        np.arange(-6 if np.dtype(dtype).kind != "u" else 0, 36).astype(dtype)[:36].reshape(6, 6),
        tmp_path / "a",
    )
    if kind == "npy":
        with path.open("wb") as file:
            np.save(file, values)
    else:
        tifffile.imwrite(path, values)
    expected = "float_without_range" if np.dtype(dtype).kind == "f" else "integers_without_range"
    assert reason(path) == expected
    got = read_picture(path, 1, (-10.0, 90.0))
    np.testing.assert_array_equal(
        got.pixels, np.rint((values.astype(float) + 10) * 655.35).astype(np.uint16), strict=True
    )
    assert got.notes == ("range",)
    assert reason(path, value_range=(-10.0, 20.0)) == "outside_value_range"
    assert reason(path, value_range=(5.0, 90.0)) == "outside_value_range"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(tmp_path: Path, bad: float) -> None:
    values = np.linspace(0, 1, 36).reshape(6, 6)
    values[2, 3] = bad
    np.save(tmp_path / "a.npy", values)
    assert reason(tmp_path / "a.npy", value_range=(0.0, 1.0)) == "not_finite"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.zeros((5, 5), complex), "not_real_numbers"),
        (np.zeros((5, 5), object), "undecodable_pixels"),  # would be unpickled
        (np.zeros((2, 3, 5, 5), np.uint8), "not_a_picture"),
        (np.zeros((3, 5, 5), np.uint8), "not_a_picture"),  # channels first
        (np.full((5, 5), 7, np.uint8), "constant"),
        (np.zeros((5, 5, 2), np.uint8), "channels_differ"),
        (np.zeros((0, 5), np.uint8), "undecodable_pixels"),
    ],
)
def test_arrays_that_are_no_pictures_are_refused(tmp_path: Path, value: NDArray[Any], expected: str) -> None:
    np.save(tmp_path / "a.npy", value, allow_pickle=True)
    assert reason(tmp_path / "a.npy") == expected


def test_a_plain_colour_is_constant(tmp_path: Path) -> None:
    path = write_png(tmp_path / "a.png", np.broadcast_to(np.array([9, 1, 77], np.uint8), (11, 7, 3)).copy())
    assert reason(path, 3) == "constant"


def test_files_that_are_no_picture_are_refused(tmp_path: Path) -> None:
    assert reason(tmp_path / "absent.png") == "missing_file"
    assert reason(tmp_path) == "not_a_file"
    (tmp_path / "empty.png").touch()
    assert reason(tmp_path / "empty.png") == "undecodable_pixels"
    (tmp_path / "text.png").write_text("Doe^John")
    assert reason(tmp_path / "text.png") == "unknown_format"
    Image.new("CMYK", (7, 11), (1, 2, 3, 4)).save(tmp_path / "a.jpg")
    assert reason(tmp_path / "a.jpg", 4) == "colour_space"  # four channels, none of them red
    Image.new("CMYK", (7, 11), (1, 2, 3, 4)).save(tmp_path / "a.tif")
    assert reason(tmp_path / "a.tif", 4) == "colour_space"


def test_several_images_in_one_file_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", noise((3, 11, 7), np.uint8), photometric="minisblack")
    assert reason(tmp_path / "a.tif") == "several_images"
    frames = [Image.fromarray(noise((11, 7), np.uint8) // n) for n in (1, 2)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    assert reason(tmp_path / "a.png") == "several_images"
    netpbmfile.imwrite(tmp_path / "a.pgm", noise((3, 11, 7), np.uint8))
    assert reason(tmp_path / "a.pgm") == "several_images"


WRITERS: dict[str, Callable[[Path, NDArray[Any]], Any]] = {
    "png": write_png,
    "tiff": write_tiff,
    "tiff lzw": lambda path, pixels: write_tiff(path, pixels, compression="lzw"),
    "tiff deflate": lambda path, pixels: write_tiff(path, pixels, compression="deflate"),
    "npy": lambda path, pixels: path.write_bytes(_npy(pixels)),
    "netpbm": netpbmfile.imwrite,
    "jpeg": lambda path, pixels: Image.fromarray((pixels >> 8).astype(np.uint8)).save(path, format="JPEG"),
    "bmp": lambda path, pixels: Image.fromarray((pixels >> 8).astype(np.uint8)).save(path, format="BMP"),
}


def _npy(pixels: NDArray[Any]) -> bytes:
    import io

    stream = io.BytesIO()
    np.save(stream, pixels)
    return stream.getvalue()


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("kind", WRITERS)
def test_truncated_files_are_refused(tmp_path: Path, kind: str, share: float) -> None:
    path = tmp_path / "a"
    WRITERS[kind](path, noise((64, 50, 3), np.uint16))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert reason(path, 3) == "undecodable_pixels"


def test_a_tiff_with_a_missing_part_is_refused(tmp_path: Path) -> None:
    """The format allows parts that were never written, and readers make them black."""
    for tag in ("StripOffsets", "StripByteCounts"):
        write_tiff(tmp_path / "a.tif", noise((64, 50, 3), np.uint8), rowsperstrip=16, compression="deflate")
        with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
            values = list(file.pages[0].tags[tag].value)
            file.pages[0].tags[tag].overwrite([*values[:2], 0, values[3]])
        assert reason(tmp_path / "a.tif", 3) == "undecodable_pixels"


def test_a_flipped_bit_in_a_png_is_refused(tmp_path: Path) -> None:
    for dtype in DEPTHS:
        data = bytearray(write_png(tmp_path / "a.png", noise((64, 50, 3), dtype)).read_bytes())
        data[len(data) // 2] ^= 4
        (tmp_path / "a.png").write_bytes(data)
        assert reason(tmp_path / "a.png", 3) == "undecodable_pixels"


def test_headers_that_claim_too_much_allocate_nothing(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 40000, 40000, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert reason(tmp_path / "a.png", 3) == "too_large"
    (tmp_path / "a.pgm").write_bytes(b"P5\n40000 40000\n255\n" + bytes(10))
    assert reason(tmp_path / "a.pgm") == "too_large"
    tifffile.imwrite(tmp_path / "a.tif", noise((64, 64), np.uint8), tile=(64, 64), compression="deflate")
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        for name in ("ImageWidth", "ImageLength"):
            file.pages[0].tags[name].overwrite(1 << 16)
    assert reason(tmp_path / "a.tif") == "too_large"
    np.lib.format.open_memmap(tmp_path / "a.npy", "w+", np.uint8, (20000, 20000)).flush()
    assert reason(tmp_path / "a.npy") == "too_large"


def test_numbers_of_channels_and_ranges_that_mean_nothing(tmp_path: Path) -> None:
    path = write_png(tmp_path / "a.png", noise((11, 7), np.uint8))
    for channels in (0, 5):
        with pytest.raises(ValueError, match="1 to 4 channels"):
            read_picture(path, channels)
    for bounds in ((1.0, 1.0), (2.0, 1.0), (0.0, np.inf), (np.nan, 1.0)):
        with pytest.raises(ValueError, match="value range"):
            read_picture(path, 1, bounds)
