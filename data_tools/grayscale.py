"""From stored values to grey in 0..1 with bright tissue: modality LUT, VOI, inversion, padding.

Windows are applied here rather than by pydicom because real headers break its functions: one of centre and width
missing, several windows, empty or unknown functions, widths below one. Whatever is unusable falls back on
percentiles inside the breast, and the choice is reported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.dicom import BadImage
from data_tools.geometry import Unit, breast_mask

PERCENTILES = (0.5, 99.5)
LEAST_RANGE = 0.05  # of the window that the image must use; below, the window is that of another image or depth


@dataclass(frozen=True)
class Graded:
    """A graded image.

    Attributes:
        image: float32 [H, W] in 0..1, bright tissue.
        method: ``voi_lut``, ``window`` or ``percentile``.
        inverted: whether it was MONOCHROME1.
    """

    image: Unit
    method: str
    inverted: bool


def _value(ds: Any, name: str) -> Any:
    """A header value; None where it is absent or cannot be read: pydicom converts, and fails, on access."""
    try:
        return ds.get(name)
    except (ValueError, TypeError, AttributeError, OverflowError, KeyError, NotImplementedError):
        return None


def _numbers(value: Any) -> list[float]:
    """Finite numbers of a header value that may be absent, single, several or damaged."""
    if value is None or isinstance(value, str | bytes | int | float):
        items: list[Any] = [value]
    else:
        try:
            items = list(value)
        except TypeError:
            items = [value]
    out = []
    for item in items:
        try:
            number = float(item)
        except (TypeError, ValueError):
            number = math.nan
        out.append(number)
    return out


def header_window(ds: Any) -> tuple[float, float, str] | None:
    """(centre, width, function) of the first usable window of a header; None if there is none.

    Functions: ``LINEAR`` (also where the header has none), ``LINEAR_EXACT``, ``SIGMOID``.
    """
    function = str(_value(ds, "VOILUTFunction") or "LINEAR").strip().upper() or "LINEAR"
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        return None
    least = 1.0 if function == "LINEAR" else 0.0
    pairs = zip(_numbers(_value(ds, "WindowCenter")), _numbers(_value(ds, "WindowWidth")), strict=False)
    for centre, width in pairs:
        if math.isfinite(centre) and math.isfinite(width) and width >= least and width > 0:
            return centre, width, function
    return None


def apply_window(values: NDArray[Any], centre: float, width: float, function: str) -> Unit:
    """Window of DICOM PS3.3 C.11.2.1 with output 0..1: float32, same shape."""
    x = values.astype(np.float32)
    if function == "SIGMOID":
        with np.errstate(over="ignore"):
            return (1.0 / (1.0 + np.exp(-4.0 * (x - centre) / width))).astype(np.float32)
    if function == "LINEAR":
        if width == 1:
            return (x > centre - 0.5).astype(np.float32)
        centre, width = centre - 0.5, width - 1
    return np.clip((x - np.float32(centre)) / np.float32(width) + np.float32(0.5), 0.0, 1.0).astype(np.float32)


def _voi_lut(ds: Any, values: NDArray[Any]) -> Unit | None:
    """The image through the first VOI LUT, scaled by the range of the table's own entries; None if unusable."""
    from pydicom.pixels import apply_voi  # type: ignore[attr-defined]

    sequence = _value(ds, "VOILUTSequence")
    if not sequence or not np.issubdtype(values.dtype, np.integer):
        return None
    try:
        data = sequence[0].LUTData
        entries = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.asarray(data, dtype=np.float64)
        out = apply_voi(values, ds, index=0).astype(np.float32)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, NotImplementedError):
        return None  # a damaged table: the window or the percentiles take over, and the method is reported
    # entries of a "16-bit" table may use 12 bits: the table's own extremes are the output range
    low, high = float(entries.min()), float(entries.max())
    return np.clip((out - low) / (high - low), 0.0, 1.0).astype(np.float32) if high > low else None


def padding_mask(ds: Any, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Where the stored values are padding (PixelPaddingValue to PixelPaddingRangeLimit); None without padding."""
    value = _numbers(_value(ds, "PixelPaddingValue"))[0]
    if not math.isfinite(value):
        return None
    limit = _numbers(_value(ds, "PixelPaddingRangeLimit"))[0]
    limit = limit if math.isfinite(limit) else value
    return (stored >= min(value, limit)) & (stored <= max(value, limit))


def percentile_scale(values: NDArray[Any], padding: NDArray[np.bool_] | None) -> Unit:
    """Scales between percentiles inside the breast; ``values`` already have bright tissue."""
    x = values.astype(np.float32)
    valid = x if padding is None or padding.all() else x[~padding]
    low, high = float(valid.min()), float(valid.max())
    if high <= low:
        raise BadImage("constant")
    rough = np.clip((x - low) / (high - low), 0.0, 1.0)
    if padding is not None:
        rough[padding] = 0.0
    mask = breast_mask(rough.astype(np.float32))
    if not mask.any():
        raise BadImage("no_breast")
    below, above = (float(p) for p in np.percentile(x[mask], PERCENTILES))
    if above <= below:
        raise BadImage("constant")
    return np.clip((x - below) / (above - below), 0.0, 1.0).astype(np.float32)


def _modality_values(ds: Any, stored: NDArray[Any]) -> NDArray[Any]:
    """Stored values through the modality LUT or rescale; unchanged, and still integers, where that is the identity.

    Raises:
        BadImage: a damaged LUT.
    """
    from pydicom.pixels import apply_modality_lut  # type: ignore[attr-defined]

    slope, intercept = _numbers(_value(ds, "RescaleSlope"))[0], _numbers(_value(ds, "RescaleIntercept"))[0]
    if _value(ds, "ModalityLUTSequence") is None and slope == 1 and intercept == 0:
        return stored  # what pydicom returns here are floats, to which no VOI LUT can be applied
    try:
        return np.asarray(apply_modality_lut(stored, ds))
    except (AttributeError, KeyError, TypeError, ValueError, NotImplementedError):
        raise BadImage("modality_lut") from None


def grade(ds: Any, stored: NDArray[Any]) -> Graded:
    """Grey values of a decoded image.

    Args:
        ds: header (a pydicom Dataset). stored: integer [H, W] as decoded.

    Raises:
        BadImage: another photometric interpretation, or nothing to see.
    """
    photometric = str(_value(ds, "PhotometricInterpretation") or "").strip().upper()
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise BadImage("photometric_interpretation")
    inverted = photometric == "MONOCHROME1"
    padding = padding_mask(ds, stored)
    values = _modality_values(ds, stored)
    method, image = "voi_lut", _voi_lut(ds, values)
    if image is None and (window := header_window(ds)) is not None:
        method, image = "window", apply_window(values, *window)
    image = None if image is None or not np.isfinite(image).all() else image
    if image is not None:
        image = np.float32(1.0) - image if inverted else image
        valid = image if padding is None else image[~padding]
        if valid.size == 0 or float(valid.max()) - float(valid.min()) < LEAST_RANGE:
            image = None  # the window lies outside the data, or is far too wide for it
    if image is None:
        method = "percentile"
        image = percentile_scale(-values.astype(np.float32) if inverted else values, padding)
    if padding is not None:
        image = np.where(padding, np.float32(0), image)
    return Graded(image.astype(np.float32), method, inverted)
