"""Reads one DICOM image: header, checks, stored values. Errors name no file: paths of archives identify people."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m4oe_ds.data.codecs import MAX_PIXELS
from m4oe_ds.errors import EnvironmentProblem

# What decodes a transfer syntax best (package names); others may do too
_PACKAGES = {
    "1.2.840.10008.1.2.4.50": "python-gdcm",
    "1.2.840.10008.1.2.4.51": "python-gdcm",
    "1.2.840.10008.1.2.4.57": "python-gdcm",
    "1.2.840.10008.1.2.4.70": "python-gdcm",
    "1.2.840.10008.1.2.4.80": "pyjpegls",
    "1.2.840.10008.1.2.4.81": "pyjpegls",
    "1.2.840.10008.1.2.4.90": "pylibjpeg and pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.91": "pylibjpeg and pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.201": "pylibjpeg and pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.202": "pylibjpeg and pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.203": "pylibjpeg and pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.5": "pylibjpeg and pylibjpeg-rle",
}


class BadImage(Exception):
    """One image that cannot be used; ``reason`` is a fixed word for counts and the quarantine."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)

    def __reduce__(self) -> tuple[type[BadImage], tuple[str]]:
        return type(self), (self.reason,)


def syntax_name(uid: Any) -> str:
    """Name of a transfer syntax, ``private or unknown`` where it has none."""
    name = str(getattr(uid, "name", ""))
    return name if name and name != str(uid) else "private or unknown"


def _read(path: Path, **options: Any) -> Any:
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        return dcmread(path, **options)
    except FileNotFoundError:
        raise BadImage("missing_file") from None
    except InvalidDicomError:
        raise BadImage("not_dicom") from None
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError):
        raise BadImage("unreadable_header") from None


def transfer_syntax(path: Path) -> Any:
    """Transfer syntax UID of a file, read from its first few hundred bytes.

    Raises:
        BadImage: missing or not DICOM.
    """
    with quiet():
        uid = _read(path, stop_before_pixels=True, specific_tags=["Rows"]).file_meta.get("TransferSyntaxUID")
    if uid is None:
        raise BadImage("no_transfer_syntax")
    return uid


def lacking_decoders() -> set[str]:
    """UIDs of the documented transfer syntaxes that cannot be decoded here."""
    from pydicom.pixels import get_decoder  # type: ignore[attr-defined]  # re-exported without __all__
    from pydicom.uid import UID

    return {uid for uid in _PACKAGES if not get_decoder(UID(uid)).is_available}


def require_decoders(syntaxes: Iterable[Any]) -> None:
    """Checks that every transfer syntax can be decoded here.

    Raises:
        EnvironmentProblem: names the syntax and the package to install.
    """
    from pydicom.pixels import get_decoder  # type: ignore[attr-defined]  # re-exported without __all__
    from pydicom.uid import UID

    for uid in sorted({str(uid) for uid in syntaxes}):
        try:
            available = get_decoder(UID(uid)).is_available
        except NotImplementedError:
            continue  # a video or private syntax: its images are quarantined one by one
        if not available:
            package = _PACKAGES.get(uid, "numpy")
            raise EnvironmentProblem(
                f"no decoder for {syntax_name(UID(uid))} images", "DICOM files", f"install {package} with pip"
            )


@contextmanager
def quiet(library: str = "pydicom") -> Iterator[None]:
    """Silences the warnings and log lines of a library that reads images: they quote header values and paths."""
    chatty = logging.getLogger(library)
    level = chatty.level
    chatty.setLevel(logging.CRITICAL + 1)  # nibabel and tifffile report damaged files as critical
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        chatty.setLevel(level)


def read_header(path: Path, tags: Sequence[str]) -> Any:
    """The named attributes of a file and its file meta information; the pixels stay on the disk.

    Raises:
        BadImage: missing, not DICOM or damaged.
    """
    return _read(path, stop_before_pixels=True, specific_tags=list(tags))


def check_kind(ds: Any, colour: bool = False) -> None:
    """Rejects what is not a single image made for viewing, by its header alone.

    Args:
        ds: header (a pydicom Dataset).
        colour: whether a colour image will do too.

    Raises:
        BadImage: the image is for processing, has several frames, or is in colour where grey is wanted.
    """
    if "PROCESSING" in str(ds.get("PresentationIntentType") or "").upper():
        raise BadImage("for_processing")
    frames = str(ds.get("NumberOfFrames") or "1").strip()
    if frames != "1":
        raise BadImage("multi_frame")
    if not colour and ds.get("SamplesPerPixel", 1) != 1:
        raise BadImage("colour")


def read_stored(path: Path, colour: bool = False) -> tuple[Any, NDArray[Any], tuple[int, int]]:
    """Header and stored values of one file.

    Args:
        path: the file.
        colour: whether a colour image will do too; one in YBR comes back as RGB.

    Returns:
        ``(ds, stored, extremes)``: pydicom Dataset, an integer array [H, W] ([H, W, 3] of a colour image), its least
        and largest value.

    Raises:
        BadImage: missing, truncated, not a single image for presentation, or beyond BitsStored.
        EnvironmentProblem: no decoder for its transfer syntax.
    """
    with quiet():
        ds = _read(path)
        if "PixelData" not in ds:
            raise BadImage("no_pixels")
        check_kind(ds, colour)
        uid = ds.file_meta.get("TransferSyntaxUID")
        if uid is None:
            raise BadImage("no_transfer_syntax")
        require_decoders([uid])
        if int(ds.get("Rows") or 0) * int(ds.get("Columns") or 0) > MAX_PIXELS:
            raise BadImage("too_large")  # before anything is allocated for it
        stored = _pixels(ds)
    if stored.ndim != 2 and not (colour and stored.ndim == 3 and stored.shape[2] == 3):
        raise BadImage("multi_frame")
    bits = int(ds.get("BitsStored") or 16)
    signed = int(ds.get("PixelRepresentation") or 0) == 1
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    least, most = int(stored.min()), int(stored.max())
    if most >= high or least < low:
        raise BadImage("beyond_bits_stored")
    return ds, stored, (least, most)


def _pixels(ds: Any) -> NDArray[Any]:
    from pydicom.pixels import pixel_array  # type: ignore[attr-defined]  # re-exported without __all__

    try:
        # pydicom would cut values beyond BitsStored to their lower bits, which turns a wrong header into a wrong
        # image without a word; left as they are, the caller finds them
        return np.asarray(pixel_array(ds, correct_unused_bits=False))
    except (ValueError, RuntimeError, AttributeError, KeyError, TypeError, EOFError, OSError, IndexError):
        raise BadImage("undecodable_pixels") from None
    except NotImplementedError:
        raise BadImage("unsupported_transfer_syntax") from None
    except BaseException as error:
        # decoders written in Rust end in a panic, which is no Exception; found by mutated RLE files
        if type(error).__name__ != "PanicException":
            raise
        raise BadImage("undecodable_pixels") from None


def decode(path: Path) -> tuple[Any, NDArray[Any], tuple[int, int]]:
    """Header and stored values of one grey image.

    Returns:
        ``(ds, stored, extremes)``: pydicom Dataset, an integer array [H, W], its least and largest value.

    Raises:
        BadImage: missing, truncated, not a single grey image for presentation, constant, or beyond BitsStored.
        EnvironmentProblem: no decoder for its transfer syntax.
    """
    ds, stored, extremes = read_stored(path)
    if extremes[0] == extremes[1]:
        raise BadImage("constant")
    return ds, stored, extremes
