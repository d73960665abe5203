"""From stored values to grey in 0..1 with bright tissue: modality LUT, VOI, inversion, padding.

Windows are applied here rather than by pydicom because real headers break its functions: one of centre and width
missing, several windows, empty or unknown functions, widths below one. Whatever is unusable falls back on
percentiles inside the breast, and the choice is reported.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.pixels.breast import CoarseMask, Unit, block_factor, block_mean, coarse_mask
from data_tools.pixels.dicom import BadImage

PERCENTILES = (0.5, 99.5)
ROWS_AT_ONCE = 64
SMALL = 1 << 20  # pixels; of larger images every fourth row and column tells which values occur, and how often
SEEN_PER_DIRECTION = 4
MAX_VALUES = 1 << 16  # entries of a table; mammograms have 10 to 16 bits
RAMP_ERROR = 2e-6  # a table this close to a ramp is one: an eighth of a step of the stored 16 bits
LEAST_RANGE = 0.05  # of the window that the image must use; below, the window is that of another image or depth


@dataclass(frozen=True)
class Graded:
    """How an image is graded: a table from stored values to grey, so that grey is made only where it is needed.

    Attributes:
        stored: integer [H, W] as decoded.
        low: the stored value of the first entry.
        table: float32 in 0..1, bright tissue: grey of the stored values ``low``, ``low + 1``, ...
        method: ``voi_lut``, ``window`` or ``percentile``.
        inverted: whether it was MONOCHROME1.
    """

    stored: NDArray[Any]
    low: int
    table: Unit
    method: str
    inverted: bool

    def part(self, top: int, left: int, height: int, width: int) -> Unit:
        """Grey values float32 [height, width] of a rectangle."""
        return _look_up(self.stored[top : top + height, left : left + width], self.low, self.table, self.ramp)

    def mask(self) -> CoarseMask:
        """The breast, found on some pixels of every block."""
        return _mask(self.stored, self.low, self.table, self.ramp)

    @cached_property
    def ramp(self) -> tuple[float, float] | None:
        """Slope and intercept if the table is a straight line cut at 0 and 1, as windows and percentiles make it."""
        return _ramp(self.table)


def _ramp(table: Unit) -> tuple[float, float] | None:
    between = np.flatnonzero((table > 0) & (table < 1))
    if len(between) < 2:
        return None
    first, last = int(between[0]), int(between[-1])
    slope = (float(table[last]) - float(table[first])) / (last - first)
    intercept = float(table[first]) - slope * first
    line = np.clip(slope * np.arange(len(table)) + intercept, 0.0, 1.0)
    return (slope, intercept) if float(np.abs(line - table).max()) <= RAMP_ERROR else None


def _look_up(stored: NDArray[Any], low: int, table: Unit, ramp: tuple[float, float] | None) -> Unit:
    """``table[stored - low]``; by arithmetic where the table is a ramp, which is several times faster."""
    if ramp is not None:
        grey = stored.astype(np.float32)
        grey *= np.float32(ramp[0])
        grey += np.float32(ramp[1] - ramp[0] * low)
        return np.clip(grey, 0.0, 1.0, out=grey)
    out = np.empty(stored.shape, np.float32)
    # some rows at a time: what numpy converts on the way then stays in the cache
    for row in range(0, len(stored), ROWS_AT_ONCE):
        part = stored[row : row + ROWS_AT_ONCE]
        part = part if low == 0 else part.astype(np.int64) - low
        np.take(table, part, mode="clip", out=out[row : row + ROWS_AT_ONCE])  # clip: nothing is out of range anyway
    return out


def _mask(stored: NDArray[Any], low: int, table: Unit, ramp: tuple[float, float] | None) -> CoarseMask:
    factor = block_factor(stored.shape)
    small = block_mean(stored, factor, partial(_look_up, low=low, table=table, ramp=ramp))
    return coarse_mask(small, factor, (stored.shape[0], stored.shape[1]))


def header_value(ds: Any, name: str) -> Any:
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
    function = str(header_value(ds, "VOILUTFunction") or "LINEAR").strip().upper() or "LINEAR"
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        return None
    least = 1.0 if function == "LINEAR" else 0.0
    pairs = zip(_numbers(header_value(ds, "WindowCenter")), _numbers(header_value(ds, "WindowWidth")), strict=False)
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
    from pydicom.pixels import apply_voi  # type: ignore[attr-defined]  # re-exported without __all__

    sequence = header_value(ds, "VOILUTSequence")
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


def padding_of(ds: Any, domain: NDArray[Any]) -> NDArray[np.bool_]:
    """Which stored values are padding (PixelPaddingValue to PixelPaddingRangeLimit)."""
    value = _numbers(header_value(ds, "PixelPaddingValue"))[0]
    if not math.isfinite(value):
        return np.zeros(domain.shape, bool)
    limit = _numbers(header_value(ds, "PixelPaddingRangeLimit"))[0]
    limit = limit if math.isfinite(limit) else value
    return np.asarray((domain >= min(value, limit)) & (domain <= max(value, limit)))


def _percentile_table(
    values: NDArray[Any],
    stored: NDArray[Any],
    low: int,
    occurs: NDArray[np.bool_],
    padding: NDArray[np.bool_],
    breast: bool,
) -> Unit:
    """Table between percentiles inside the breast.

    Args:
        values: one per entry, with bright tissue.
        stored: the image.
        low: stored value of the first entry.
        occurs: which entries the image holds.
        padding: which are padding.
        breast: False for an image of something else: percentiles of all that is not padding.
    """
    x = values.astype(np.float32)
    valid = x[occurs & ~padding]
    if valid.size == 0 or valid.max() <= valid.min():
        raise BadImage("constant")
    rough = np.clip((x - valid.min()) / (valid.max() - valid.min()), 0.0, 1.0).astype(np.float32)
    rough[padding] = 0.0
    stride = SEEN_PER_DIRECTION if stored.size > SMALL else 1
    seen = stored[::stride, ::stride]
    if breast:
        mask = _mask(stored, low, rough, _ramp(rough))
        if not mask.blocks.any():
            raise BadImage("no_breast")
        inside = seen[mask.every(stride)].astype(np.intp) - low
    else:
        inside = seen.astype(np.intp).ravel() - low
        inside = inside[~padding[inside]]
    below, above = _percentiles(x, np.bincount(inside, minlength=len(x)))
    if above <= below:
        raise BadImage("constant")
    return np.clip((x - below) / (above - below), 0.0, 1.0).astype(np.float32)


def _percentiles(values: Unit, counts: NDArray[np.intp]) -> tuple[float, float]:
    """``PERCENTILES`` of values with these counts: as ``np.percentile`` gives them, without sorting pixels."""
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(counts[order])
    found = []
    for share in PERCENTILES:
        place = share / 100 * (int(reached[-1]) - 1)
        low, high = (float(values[order[np.searchsorted(reached, n, "right")]]) for n in (int(place), math.ceil(place)))
        found.append(low + (high - low) * (place - int(place)))
    return found[0], found[1]


def modality_values(ds: Any, stored: NDArray[Any]) -> NDArray[Any]:
    """Stored values through the modality LUT or rescale; unchanged, and still integers, where that is the identity.

    Raises:
        BadImage: a damaged LUT.
    """
    from pydicom.pixels import apply_modality_lut  # type: ignore[attr-defined]  # re-exported without __all__

    slope, intercept = _numbers(header_value(ds, "RescaleSlope"))[0], _numbers(header_value(ds, "RescaleIntercept"))[0]
    if header_value(ds, "ModalityLUTSequence") is None and slope == 1 and intercept == 0:
        return stored  # what pydicom returns here are floats, to which no VOI LUT can be applied
    try:
        return np.asarray(apply_modality_lut(stored, ds))
    except (AttributeError, KeyError, TypeError, ValueError, NotImplementedError):
        raise BadImage("modality_lut") from None


def grade(ds: Any, stored: NDArray[Any], extremes: tuple[int, int] | None = None, breast: bool = True) -> Graded:
    """Grey values of a decoded image.

    All look-up tables and windows are applied to the stored values that can occur, not to the pixels: there are
    thousands of the first and millions of the second.

    Args:
        ds: header (a pydicom Dataset).
        stored: integer [H, W] as decoded.
        extremes: least and largest stored value, if known.
        breast: False for an image of something else: percentiles are then those of all that is not padding.

    Raises:
        BadImage: another photometric interpretation, more than 16 bits, or nothing to see.
    """
    photometric = str(header_value(ds, "PhotometricInterpretation") or "").strip().upper()
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise BadImage("photometric_interpretation")
    inverted = photometric == "MONOCHROME1"
    first, last = (int(stored.min()), int(stored.max())) if extremes is None else extremes
    low = min(first, 0) if first > -MAX_VALUES and last < MAX_VALUES else first
    if last - low >= MAX_VALUES:
        raise BadImage("more_than_16_bits")
    domain = np.arange(low, last + 1, dtype=stored.dtype)
    stride = SEEN_PER_DIRECTION if stored.size > SMALL else 1
    seen = stored[::stride, ::stride].astype(np.intp).ravel()
    occurs = np.bincount(seen - low if low else seen, minlength=len(domain)) > 0
    padding = padding_of(ds, domain)
    values = modality_values(ds, domain)
    method, table = "voi_lut", _voi_lut(ds, values)
    if table is None and (window := header_window(ds)) is not None:
        method, table = "window", apply_window(values, *window)
    table = None if table is None or not np.isfinite(table).all() else table
    if table is not None:
        table = np.float32(1.0) - table if inverted else table
        valid = table[occurs & ~padding]
        if valid.size == 0 or float(valid.max()) - float(valid.min()) < LEAST_RANGE:
            table = None  # the window lies outside the data, or is far too wide for it
    if table is None:
        method = "percentile"
        bright = -values.astype(np.float32) if inverted else values
        table = _percentile_table(bright, stored, low, occurs, padding, breast)
    return Graded(stored, low, np.where(padding, np.float32(0), table).astype(np.float32), method, inverted)
