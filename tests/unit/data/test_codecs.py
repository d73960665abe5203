"""Pixel codecs: bit for bit, and nothing but an array or a DataError from damaged bytes."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from m4oe_ds.data import codecs
from m4oe_ds.errors import DataError

side = st.integers(1, 40)


def random_array(shape: tuple[int, ...], dtype: type, seed: int) -> np.ndarray:
    """Noise on a ramp: the extremes of the type occur, so differences of rows overflow."""
    random = np.random.default_rng(seed)
    top = int(np.iinfo(dtype).max)
    array = random.integers(0, top + 1, shape, dtype=np.int64)
    array[random.random(shape) < 0.2] = 0
    array[random.random(shape) < 0.2] = top
    return array.astype(dtype)


def equal(found: np.ndarray, expected: np.ndarray) -> bool:
    return found.dtype == expected.dtype and found.shape == expected.shape and bool((found == expected).all())


# --------------------------------------------------------------------------------------------------- round trip


@settings(max_examples=40, deadline=None)
@given(side, side, st.sampled_from([np.uint8, np.uint16]), st.sampled_from(codecs.CODECS), st.integers(0, 2**31))
def test_grey_images(height: int, width: int, dtype: type, codec: str, seed: int) -> None:
    array = random_array((height, width), dtype, seed)
    assert equal(codecs.decode(codecs.encode(array, codec), codec), array)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), side, side, st.sampled_from([np.uint8, np.uint16]), st.integers(0, 2**31))
def test_volumes(depth: int, height: int, width: int, dtype: type, seed: int) -> None:
    array = random_array((depth, height, width), dtype, seed)
    assert equal(codecs.decode(codecs.encode(array, "b2"), "b2"), array)


@settings(max_examples=30, deadline=None)
@given(side, side, st.sampled_from(codecs.CODECS), st.integers(0, 2**31))
def test_colour(height: int, width: int, codec: str, seed: int) -> None:
    array = random_array((height, width, 3), np.uint8, seed)
    assert equal(codecs.decode(codecs.encode(array, codec), codec), array)


@pytest.mark.parametrize("view", [np.s_[::2, ::3], np.s_[::-1], np.s_[:, 5:]])
@pytest.mark.parametrize("codec", codecs.CODECS)
def test_arrays_that_are_not_contiguous(view: tuple[slice, ...], codec: str) -> None:
    array = random_array((30, 20), np.uint16, 0)[view]
    before = array.copy()
    assert equal(codecs.decode(codecs.encode(array, codec), codec), before)
    assert equal(array, before)  # the input is left alone


def test_equal_arrays_give_equal_bytes() -> None:
    for codec in codecs.CODECS:
        assert len({codecs.encode(random_array((30, 20), np.uint16, 1), codec) for _ in range(3)}) == 1


def test_smooth_images_shrink() -> None:
    smooth = (np.add.outer(np.arange(256), np.arange(256)) * 64).astype(np.uint16)
    assert len(codecs.encode(smooth, "b2")) < smooth.nbytes / 10


def test_png_is_readable_by_any_image_library() -> None:
    array = random_array((12, 9), np.uint16, 2)
    with Image.open(io.BytesIO(codecs.encode(array, "png"))) as image:
        assert image.format == "PNG"
        assert (np.asarray(image).astype(np.uint16) == array).all()


# ------------------------------------------------------------------------------------------------------ refused


@pytest.mark.parametrize(
    "array", [np.zeros((4, 4)), np.zeros((4, 4), np.int16), np.zeros(4, np.uint8), np.zeros((2, 2, 2, 2), np.uint8)]
)
def test_other_types_and_dimensions_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="only uint8 and uint16"):
        codecs.encode(array)


@pytest.mark.parametrize("array", [np.zeros((4, 5, 6), np.uint8), np.zeros((4, 5, 3), np.uint16)])
def test_png_refuses_what_it_cannot_hold(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="use b2"):
        codecs.encode(array, "png")


def test_unknown_codecs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'jpg'.*b2, png"):
        codecs.encode(np.zeros((2, 2), np.uint8), "jpg")
    with pytest.raises(DataError, match="'jpg'"):
        codecs.decode(b"", "jpg")


# ------------------------------------------------------------------------------------------------------- damage

STREAMS = [
    (codec, codecs.encode(array, codec))
    for codec, array in [
        ("b2", random_array((17, 13), np.uint16, 3)),
        ("b2", random_array((5, 9, 7), np.uint8, 4)),
        ("b2", np.zeros((40, 40), np.uint16)),  # compressible: the stream is mostly structure
        ("png", random_array((17, 13), np.uint16, 5)),
        ("png", random_array((9, 7, 3), np.uint8, 6)),
        ("png", np.zeros((40, 40), np.uint8)),
    ]
]


def damage(data: bytes, random: np.random.Generator) -> bytes:
    """A truncation, a flipped bit, an overwritten stretch, or an insertion."""
    where = int(random.integers(len(data)))
    kind = int(random.integers(5))
    if kind == 0:
        return data[:where]
    changed = bytearray(data)
    if kind == 1:
        where = int(random.integers(min(64, len(data))))  # headers
    if kind in (1, 2):
        changed[where] ^= 1 << int(random.integers(8))
    elif kind == 3:
        stretch = random.bytes(int(random.integers(1, 9)))
        changed[where : where + len(stretch)] = stretch
    else:
        changed[where:where] = random.bytes(3)
    return bytes(changed)


@pytest.mark.parametrize("stream", range(len(STREAMS)))
def test_damaged_bytes_give_an_array_or_a_data_error_and_nothing_else(stream: int) -> None:
    codec, data = STREAMS[stream]
    random = np.random.default_rng(stream)
    refused = 0
    for _ in range(60):
        try:
            found = codecs.decode(damage(data, random), codec)
        except DataError:
            refused += 1
        else:
            assert isinstance(found, np.ndarray)
            assert found.dtype in (np.uint8, np.uint16)
    assert refused > 10


@pytest.mark.parametrize(
    ("codec", "kept"),
    [(codec, kept) for codec in codecs.CODECS for kept in (0, 1, 4, 19, 20, 30, 100, -100)]
    + [("b2", -1), ("b2", -13)],  # the last 12 bytes of a PNG hold no pixels
)
def test_truncation_is_noticed(codec: str, kept: int) -> None:
    data = codecs.encode(random_array((17, 13), np.uint16, 7), codec)
    with pytest.raises(DataError):
        codecs.decode(data[:kept], codec)


@pytest.mark.parametrize("codec", codecs.CODECS)
def test_random_bytes_are_refused(codec: str) -> None:
    random = np.random.default_rng(8)
    for length in (0, 5, 20, 100, 1000):
        with pytest.raises(DataError):
            codecs.decode(random.bytes(length), codec)


def peak_while_refusing(data: bytes, codec: str) -> int:
    codecs.encode(np.zeros((2, 2), np.uint8), codec)  # imports happen before memory is watched
    tracemalloc.start()
    try:
        with pytest.raises(DataError):
            codecs.decode(data, codec)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("shape", [(1, 1 << 14, 1 << 14), (2**32 - 1, 2**32 - 1, 2**32 - 1), (1, 1 << 20, 1 << 20)])
def test_a_header_that_claims_a_huge_image_is_refused_without_memory(shape: tuple[int, int, int]) -> None:
    data = bytearray(codecs.encode(np.zeros((8, 8), np.uint16), "b2"))
    assert data[:4] == b"M4B2"
    struct.pack_into("<III", data, 8, *shape)
    assert peak_while_refusing(bytes(data), "b2") < 1 << 20


def test_a_damaged_stream_whose_own_size_agrees_with_a_huge_header_is_refused_without_memory() -> None:
    data = bytearray(codecs.encode(np.zeros((8, 8), np.uint8), "b2"))
    struct.pack_into("<III", data, 8, 1, 1 << 14, 1 << 15)
    struct.pack_into("<i", data, 20 + 4, 1 << 29)  # the uncompressed size in the Blosc2 chunk header
    assert peak_while_refusing(bytes(data), "b2") < 1 << 20


@pytest.mark.parametrize("kind", [b"IHDR", b"tRNS", b"gAMA", b"cHRM", b"pHYs", b"fcTL"])
def test_a_png_chunk_cut_short_is_a_data_error(kind: bytes) -> None:
    data = codecs.encode(np.zeros((8, 8), np.uint8), "png")
    chunk = struct.pack(">I", 0) + kind + struct.pack(">I", zlib.crc32(kind))
    with pytest.raises(DataError, match="png data does not decode"):
        codecs.decode(data[:33] + chunk + data[33:], "png")  # after the signature and the header


def test_a_png_that_claims_a_huge_image_is_refused_without_memory() -> None:
    data = bytearray(codecs.encode(np.zeros((8, 8), np.uint8), "png"))
    struct.pack_into(">II", data, 16, 1 << 16, 1 << 16)
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    assert peak_while_refusing(bytes(data), "png") < 1 << 20
