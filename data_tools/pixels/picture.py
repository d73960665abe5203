"""Reads one picture for a modality of kind ``image``: any usual format, 8 or 16 bit, 1 to 4 channels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.pixels.dicom import BadImage, read_stored
from data_tools.pixels.formats import decode_file, guarded, kind_of
from data_tools.pixels.grayscale import grade, header_value, header_window, modality_values
from data_tools.pixels.values import Range, as_integers, check_range, check_varies, spread

MAX_CHANNELS = 4


@dataclass(frozen=True)
class Picture:
    """One picture ready to be fitted into its stored size.

    Attributes:
        pixels: uint8 or uint16 [H, W] of one channel, [H, W, C] of two to four; upright, bright is more.
        notes: what was done to it, for counts: ``palette``, ``oriented``, ``equal_channels``, ``grey_repeated``,
            ``opaque_alpha_dropped``, ``range``, ``dicom_exact``, ``dicom_voi_lut``, ``dicom_window``,
            ``dicom_percentile``, ``dicom_inverted``.
    """

    pixels: NDArray[Any]
    notes: tuple[str, ...] = ()


def read_picture(path: Path, channels: int, value_range: Range | None = None, clip: bool = False) -> Picture:
    """A picture from PNG, JPEG, TIFF, PGM, PPM, BMP, DICOM or ``.npy``.

    8 and 16 bits are kept as they are stored, except in DICOM, whose header says how stored values are shown: there
    the look-up table or window (or percentiles, where it has neither) is applied and spread over 16 bits; 8-bit DICOM
    without either is kept.

    Args:
        path: the file.
        channels: 1 to 4 wanted.
        value_range: the values that become 0 and 65535, in the units of the file (of DICOM: after rescale). With it
            every type of number is accepted; without it 8 and 16 bits without sign only.
        clip: values outside the range become its ends (a window); else they are refused.

    Raises:
        BadImage: with its reason; nothing is converted that would change what the picture shows.
        EnvironmentProblem: no decoder for a DICOM transfer syntax.
        ValueError: number of channels or range that no picture can have.
    """
    if not 1 <= channels <= MAX_CHANNELS:
        raise ValueError(f"a picture has 1 to {MAX_CHANNELS} channels, not {channels}")
    if value_range is not None:
        check_range(value_range)
    pixels, notes = read_pixels(path, channels, value_range, clip)
    check_varies(pixels)
    return Picture(pixels, notes)


def read_pixels(
    path: Path, channels: int, value_range: Range | None = None, clip: bool = False
) -> tuple[NDArray[Any], tuple[str, ...]]:
    """What :func:`read_picture` gives, of a picture that may be constant: the outermost slices of volumes are.

    Raises:
        BadImage: with its reason.
    """
    if kind_of(path) == "dicom":
        values, notes = guarded(lambda: _dicom(path, value_range, clip), "pydicom")
        values, more = as_channels(values, False, channels)
        return values, (*notes, *more)
    decoded = decode_file(path)
    values, more = as_channels(decoded.values, decoded.alpha, channels)
    pixels = as_integers(values, value_range, clip)
    return pixels, (*decoded.notes, *more, *(() if value_range is None else ("range",)))


def as_channels(values: NDArray[Any], alpha: bool, wanted: int) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Values with the number of channels wanted, where that takes nothing away from the picture.

    Args:
        values: [H, W, C].
        alpha: whether the last channel is transparency.
        wanted: channels.

    Returns:
        ``(values, notes)``: [H, W] where one is wanted, else [H, W, wanted].

    Raises:
        BadImage: transparency, colour where grey is wanted, or another number of channels.
    """
    notes: tuple[str, ...] = ()
    count = values.shape[2]
    if alpha and count != wanted:
        if values.dtype.kind != "u" or not (values[:, :, -1] == np.iinfo(values.dtype).max).all():
            raise BadImage("transparency")
        values, count, notes = values[:, :, :-1], count - 1, ("opaque_alpha_dropped",)
    if count == 3 and wanted == 1:
        if not (values == values[:, :, :1]).all():
            raise BadImage("colour")
        values, notes = values[:, :, :1], (*notes, "equal_channels")
    elif count == 1 and wanted == 3:
        values, notes = np.repeat(values, 3, axis=2), (*notes, "grey_repeated")
    elif count != wanted:
        raise BadImage("channels_differ")
    return np.ascontiguousarray(values[:, :, 0] if wanted == 1 else values), notes


def _dicom(path: Path, value_range: Range | None, clip: bool) -> tuple[NDArray[Any], tuple[str, ...]]:
    """``(values [H, W, 1 or 3], notes)`` of a DICOM picture."""
    ds, stored, extremes = read_stored(path, colour=True)
    photometric = str(header_value(ds, "PhotometricInterpretation") or "").strip().upper()
    if photometric == "PALETTE COLOR":
        return _dicom_palette(ds, stored), ("palette",)
    if stored.ndim == 3:
        if photometric not in ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT"):
            raise BadImage("photometric_interpretation")
        return as_integers(stored, value_range, clip), ("dicom_exact",) if value_range is None else ("range",)
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise BadImage("photometric_interpretation")
    dark_is_more = photometric == "MONOCHROME1"
    turned = ("dicom_inverted",) if dark_is_more else ()
    if value_range is not None:
        pixels = spread(modality_values(ds, stored), value_range, clip)
        return (65535 - pixels if dark_is_more else pixels)[:, :, None], ("range", *turned)
    if stored.dtype == np.uint8 and _shown_as_stored(ds):
        return (255 - stored if dark_is_more else stored)[:, :, None], ("dicom_exact", *turned)
    if extremes[0] == extremes[1]:
        raise BadImage("constant")
    graded = grade(ds, stored, extremes, breast=False)
    table = np.rint(graded.table * np.float32(65535)).astype(np.uint16)
    return table[stored.astype(np.int64) - graded.low][:, :, None], (f"dicom_{graded.method}", *turned)


def _shown_as_stored(ds: Any) -> bool:
    """Whether a header changes nothing of an 8-bit image: no tables, no window, no rescale, no padding."""
    tables = ("ModalityLUTSequence", "VOILUTSequence", "PixelPaddingValue")
    if header_value(ds, "BitsStored") != 8 or any(header_value(ds, name) is not None for name in tables):
        return False
    rescale = (header_value(ds, "RescaleSlope"), header_value(ds, "RescaleIntercept"))
    return rescale in ((None, None), (1, 0)) and header_window(ds) is None


def _dicom_palette(ds: Any, stored: NDArray[Any]) -> NDArray[Any]:
    from pydicom.pixels import apply_color_lut  # type: ignore[attr-defined]  # re-exported without __all__

    try:
        colours = np.asarray(apply_color_lut(stored, ds))
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, NotImplementedError):
        raise BadImage("palette") from None
    return colours if colours.dtype == np.uint8 or (colours & 255).any() else (colours >> 8).astype(np.uint8)
