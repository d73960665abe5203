"""From values of any numeric type to the 8 or 16 bits of a shard: exactly, or over a range that was declared."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.pixels.dicom import BadImage

Range = tuple[float, float]
STEPS = 65535  # of the 16 bits over which a declared range is spread
AT_ONCE = 1 << 22  # values mapped together: a volume in float64 would be four times its size


def as_integers(values: NDArray[Any], value_range: Range | None = None, clip: bool = False) -> NDArray[Any]:
    """Integers for a shard: uint8 and uint16 as they are, everything else over a declared range.

    Args:
        values: numbers of any type and shape.
        value_range: the values that become 0 and 65535; then every type is mapped, linearly.
        clip: values outside the range become its ends; else they are refused.

    Returns:
        uint8 or uint16 in the byte order of this machine.

    Raises:
        BadImage: not real numbers, not finite, outside the range, or of another type without a range.
        ValueError: the range is empty.
    """
    check_numbers(values)
    if value_range is not None:
        return spread(values, value_range, clip)
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind == "u" and values.dtype.itemsize <= 2:
        return np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
    raise BadImage("float_without_range" if values.dtype.kind == "f" else "integers_without_range")


def check_numbers(values: NDArray[Any]) -> None:
    """Refuses what is no array of finite real numbers.

    Raises:
        BadImage: empty, of another type, or with NaN or infinity.
    """
    if values.dtype.kind not in "buif":
        raise BadImage("not_real_numbers")
    if values.size == 0:
        raise BadImage("empty")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise BadImage("not_finite")


def check_range(value_range: Range) -> None:
    """Refuses a range that is empty, reversed or endless.

    Raises:
        ValueError: with the range.
    """
    low, high = value_range
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError(f"a value range goes from a number to a larger one, got {low} to {high}")


def spread(values: NDArray[Any], value_range: Range, clip: bool = False) -> NDArray[np.uint16]:
    """``value_range`` over 0 to 65535.

    Raises:
        BadImage: values outside the range, unless they are to be clipped.
        ValueError: the range is empty.
    """
    check_range(value_range)
    low, high = value_range
    if not clip and (float(values.min()) < low or float(values.max()) > high):
        raise BadImage("outside_value_range")
    flat = np.ascontiguousarray(values).reshape(-1)
    out = np.empty(flat.shape, np.uint16)
    for start in range(0, len(flat), AT_ONCE):
        part = flat[start : start + AT_ONCE].astype(np.float64)
        np.clip(part, low, high, out=part)
        out[start : start + AT_ONCE] = np.rint((part - low) * (STEPS / (high - low)))
    return out.reshape(values.shape)


def check_varies(pixels: NDArray[Any]) -> None:
    """Refuses a picture or volume with nothing to see.

    Raises:
        BadImage: all pixels are equal (in every channel).
    """
    if pixels.ndim == 3 and pixels.shape[2] <= 4:  # channels last: a plain colour is as empty as a plain grey
        flat = pixels.reshape(-1, pixels.shape[2])
        if (flat == flat[0]).all():
            raise BadImage("constant")
    elif int(pixels.min()) == int(pixels.max()):
        raise BadImage("constant")
