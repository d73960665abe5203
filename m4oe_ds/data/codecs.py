"""Lossless pixel codecs of the shards. A codec's name is the last extension of its tar members.

``b2``   row delta + Blosc2 (bit shuffle, zstd): several times faster to decode than PNG at no larger size
         (docs/decisions/0004)
``png``  16-bit PNG, the portable option: any image library reads it
"""

from __future__ import annotations

import io
import itertools
import struct

import numpy as np

from m4oe_ds.errors import DataError

CODECS = ("b2", "png")
_BLOCK_BYTES = (
    1 << 18
)  # large blocks at level 1 are smaller than the default ones at level 3, and made in a quarter of the time
MAX_PIXELS = 1 << 28  # a header that claims more is damaged; nothing is allocated for it
_MAGIC = b"M4B2"
_HEADER = struct.Struct("<4sBBBxIII")  # magic, version, dtype code, dimensions, shape (leading 1s if fewer than 3)
_DTYPES: dict[int, np.dtype] = {1: np.dtype("<u1"), 2: np.dtype("<u2")}


def encode(array: np.ndarray, codec: str = "b2") -> bytes:
    """Bytes of a uint8 or uint16 array ``[H, W]``, ``[H, W, 3]`` or ``[D, H, W]``.

    Raises:
        ValueError: unknown codec, another dtype or number of dimensions.
    """
    if array.dtype not in (np.uint8, np.uint16) or array.ndim not in (2, 3):
        raise ValueError(f"only uint8 and uint16 arrays of 2 or 3 dimensions, got {array.dtype} {array.shape}")
    if codec == "b2":
        return _encode_b2(array)
    if codec == "png":
        return _encode_png(array)
    raise ValueError(f"unknown codec {codec!r}; known: {', '.join(CODECS)}")


def decode(data: bytes, codec: str) -> np.ndarray:
    """The array, bit for bit.

    Raises:
        DataError: damaged data or unknown codec.
    """
    if codec == "b2":
        return _decode_b2(data)
    if codec == "png":
        return _decode_png(data)
    raise DataError(f"unknown codec {codec!r}", fix=f"known: {', '.join(CODECS)}")


def _encode_b2(array: np.ndarray) -> bytes:
    import blosc2

    array = np.ascontiguousarray(array)
    # Differences of neighbouring rows (modulo 2^bits) are small; the first row stays. Undone by a cumulative sum.
    delta = array.copy()
    axis = 0 if array.ndim == 2 or array.shape[2] == 3 else 1
    upper, lower = _neighbours(array, axis)
    view = delta[1:] if axis == 0 else delta[:, 1:]
    np.subtract(lower, upper, out=view)
    payload = blosc2.compress2(
        delta,
        codec=blosc2.Codec.ZSTD,
        clevel=1,
        typesize=array.itemsize,
        filters=[blosc2.Filter.BITSHUFFLE],
        blocksize=_BLOCK_BYTES,
        nthreads=1,
    )
    shape = (1,) * (3 - array.ndim) + array.shape
    code = 1 if array.dtype == np.uint8 else 2
    return _HEADER.pack(_MAGIC, 1, code, array.ndim, *shape) + payload


def _decode_b2(data: bytes) -> np.ndarray:
    import blosc2

    if len(data) < _HEADER.size:
        raise DataError(f"pixel data of {len(data)} bytes is too short for a header")
    magic, version, code, dimensions, *shape = _HEADER.unpack_from(data)
    pixels = shape[0] * shape[1] * shape[2]
    if (
        magic != _MAGIC
        or version != 1
        or code not in _DTYPES
        or dimensions not in (2, 3)
        or not 0 < pixels <= MAX_PIXELS
    ):
        raise DataError("pixel data has a damaged header")
    dtype = _DTYPES[code]
    payload = data[_HEADER.size :]
    try:
        # the chunk states its own sizes: they must agree with the header before anything is allocated for them
        size, stored, _ = blosc2.get_cbuffer_sizes(payload)
        if size != pixels * dtype.itemsize or stored != len(payload):
            raise DataError(f"pixel data unpacks to {size} bytes, {pixels * dtype.itemsize} expected")
        array = np.empty(shape[3 - dimensions :], dtype=dtype)
        blosc2.decompress2(payload, dst=array, nthreads=1)
    except (RuntimeError, ValueError, TypeError) as error:
        raise DataError(f"pixel data does not decompress ({type(error).__name__})") from None
    axis = 0 if dimensions == 2 or array.shape[2] == 3 else 1
    rows = array if axis == 0 else array.swapaxes(0, 1)
    # cumulative sum modulo 2^bits, row by row in place: a third of the time of numpy's, which walks down the columns
    for upper, lower in itertools.pairwise(rows):
        np.add(upper, lower, out=lower)
    return array


def _neighbours(array: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    return (array[:-1], array[1:]) if axis == 0 else (array[:, :-1], array[:, 1:])


def _encode_png(array: np.ndarray) -> bytes:
    from PIL import Image

    if array.ndim == 3 and (array.shape[2] != 3 or array.dtype != np.uint8):
        raise ValueError("png holds grey images and 8-bit colour only; use b2 for volumes")
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, format="PNG", compress_level=6)
    return stream.getvalue()


def _decode_png(data: bytes) -> np.ndarray:
    import zlib

    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"image of {image.width} x {image.height} pixels is larger than any shard holds")
            image.load()
            array = np.asarray(image)
    except (
        OSError,
        SyntaxError,
        ValueError,
        UnidentifiedImageError,
        Image.DecompressionBombError,
        zlib.error,
    ) as error:
        raise DataError(f"png data does not decode ({type(error).__name__})") from None
    if array.dtype == np.int32:  # Pillow's mode I: 16-bit grey in some versions
        array = array.astype(np.uint16)
    return array if array.dtype in (np.uint8, np.uint16) else array.astype(np.uint8)
