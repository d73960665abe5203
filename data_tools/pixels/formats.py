"""Decodes picture files of any usual format to the values they store, without loss of bits.

The format is told by the first bytes, never by the name. Pillow decodes 8-bit pictures and checks their sums; it
would reduce 16-bit colour to 8 bits and rescale PGM of 10 or 12 bits without a word, so these are the work of
imagecodecs (libpng), tifffile and netpbmfile. Errors name no file and quote no text of one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.pixels.dicom import BadImage, quiet
from m4oe_ds.data.codecs import MAX_PIXELS
from m4oe_ds.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".pgm", ".ppm", ".pbm", ".pnm", ".bmp", ".npy")
_ORIENTATION = 274  # tag of EXIF and TIFF
_LOSSY = (6, 7, 33007, 34892)  # the JPEG compressions of TIFF
_PILLOW = {"png": "PNG", "jpeg": "JPEG", "bmp": "BMP"}
_MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"\xff\xd8\xff", "jpeg"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
    (b"\x93NUMPY", "npy"),
    (b"BM", "bmp"),
    *((b"P%d" % n, "netpbm") for n in range(1, 8)),
)


@dataclass(frozen=True)
class Decoded:
    """What one file stores.

    Attributes:
        values: [H, W, C] of any type, upright.
        alpha: whether the last channel is transparency.
        notes: what was done to it on the way: ``palette``, ``oriented``.
        lossy: whether the compression changed values (JPEG).
    """

    values: NDArray[Any]
    alpha: bool = False
    notes: tuple[str, ...] = ()
    lossy: bool = False


def kind_of(path: Path) -> str:
    """``png``, ``jpeg``, ``tiff``, ``netpbm``, ``bmp``, ``npy`` or ``dicom``, by the first bytes of a file.

    Raises:
        BadImage: missing, a folder, empty or none of these.
    """
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except FileNotFoundError:
        raise BadImage("missing_file") from None
    except OSError:
        raise BadImage("not_a_file") from None
    if not start:
        raise BadImage("undecodable_pixels")
    if start[128:132] == b"DICM":
        return "dicom"
    for magic, kind in _MAGIC:
        if start.startswith(magic):
            return kind
    raise BadImage("unknown_format")


def decode_file(path: Path, indices: bool = False) -> Decoded:
    """Values of a picture that is not DICOM.

    Args:
        path: the file.
        indices: a palette with colours gives its indices, as label maps store their classes, and not the colours.

    Raises:
        BadImage: missing, damaged, several images in one file, a colour space that is neither grey nor RGB, too large.
    """
    kind = kind_of(path)
    if kind == "dicom":
        raise BadImage("unknown_format")
    readers: dict[str, Callable[[], Decoded]] = {
        "tiff": lambda: _tiff(path, indices),
        "netpbm": lambda: _netpbm(path),
        "npy": lambda: _npy(path),
    }
    return guarded(readers.get(kind, lambda: _pillow(path, kind, indices)))


def guarded(read: Callable[[], Any], library: str = "tifffile") -> Any:
    """The result of a reader; whatever its library raises becomes one reason.

    Decoders raise nearly every exception there is on damaged files, and quote headers in their texts.

    Raises:
        BadImage: the reader's own, or ``undecodable_pixels``.
    """
    try:
        with quiet(library):
            return read()
    except (BadImage, UserError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ in ("DecompressionBombError", "DecompressionBombWarning"):
            raise BadImage("too_large") from None
        raise BadImage("undecodable_pixels") from None


def check_size(*shape: int) -> None:
    """Refuses what claims more pixels than any shard holds, before anything is allocated for it.

    Raises:
        BadImage: too large, or without pixels.
    """
    pixels = 1
    for side in shape:
        pixels *= int(side)
    if pixels > MAX_PIXELS:
        raise BadImage("too_large")
    if pixels <= 0:
        raise BadImage("undecodable_pixels")


def _turned(values: NDArray[Any], orientation: int) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Upright values: the eight orientations of EXIF and TIFF are a transposition and two reflections."""
    if orientation not in range(2, 9):
        return values, ()
    if orientation >= 5:
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values, ("oriented",)


def _channels_last(values: NDArray[Any]) -> NDArray[Any]:
    if values.ndim == 2:
        return values[:, :, None]
    if values.ndim != 3 or values.shape[2] > 4:
        raise BadImage("not_a_picture")
    return values


def _pillow(path: Path, kind: str, indices: bool) -> Decoded:
    from PIL import Image

    with Image.open(path, formats=[_PILLOW[kind]]) as opened:
        check_size(opened.height, opened.width)
        if getattr(opened, "n_frames", 1) != 1:
            raise BadImage("several_images")
        opened.load()
        image: Image.Image = opened
        orientation = int(image.getexif().get(_ORIENTATION, 1))
        notes: tuple[str, ...] = ()
        keyed = "transparency" in image.info  # one colour, or entries of the palette, stand for transparency
        if kind == "png" and (values := _png16(path)) is not None:
            if keyed:
                raise BadImage("transparency")
            alpha = values.ndim == 3 and values.shape[2] in (2, 4)
        else:
            if image.mode == "P":
                colours = np.asarray(image.getpalette("RGB")).reshape(-1, 3)
                grey = bool((colours == colours[:, :1]).all())
                notes = ("palette",)
                if grey or not indices:
                    image = image.convert("RGBA" if keyed else "L" if grey else "RGB")
            elif keyed and image.mode in ("1", "L", "RGB"):
                image = image.convert("RGBA" if image.mode == "RGB" else "LA")
            if image.mode == "1":
                image = image.convert("L")
            if image.mode not in ("L", "LA", "P", "RGB", "RGBA", "I;16", "I;16B"):
                raise BadImage("colour_space")
            alpha = image.mode in ("LA", "RGBA")
            values = np.asarray(image)
    values, turned = _turned(_channels_last(values), orientation)
    return Decoded(values, alpha, (*notes, *turned), lossy=kind == "jpeg")


def _png16(path: Path) -> NDArray[np.uint16] | None:
    """A 16-bit PNG in grey and alpha, RGB or RGBA, which Pillow would reduce to 8 bits; None of any other."""
    with path.open("rb") as file:
        start = file.read(26)
        if start[24] != 16 or start[25] not in (2, 4, 6):
            return None
        from imagecodecs import png_decode

        return np.asarray(png_decode(start + file.read()))


def _netpbm(path: Path) -> Decoded:
    from netpbmfile import NetpbmFile

    with NetpbmFile(path) as file:
        check_size(file.height, file.width)
        values = np.asarray(file.asarray())
        bits, alpha = file.magicnumber in ("P1", "P4"), "ALPHA" in str(file.tupltype)
        if file.axes not in ("YX", "YXS"):
            raise BadImage("several_images")
    if bits:  # a set bit is black
        values = ~values.astype(bool)
    return Decoded(_channels_last(_of_bits(values)), alpha)


def _npy(path: Path) -> Decoded:
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    if mapped.ndim not in (2, 3):
        raise BadImage("not_a_picture")
    check_size(*mapped.shape)
    return Decoded(_channels_last(np.array(mapped)))


def tiff_pages(file: Any) -> list[Any]:
    """The pages of an open TIFF that are pictures of their own, without small copies of them.

    Raises:
        BadImage: the chain of pages is broken: tifffile ends at the last one it finds, and slices would be lost.
    """
    import struct

    pages = [page.aspage() for page in file.pages if not page.is_reduced]
    place = file.pages.next_page_offset  # where the last page found names its successor
    if place is not None:
        file.filehandle.seek(place)
        if struct.unpack(file.tiff.offsetformat, file.filehandle.read(file.tiff.offsetsize)) != (0,):
            raise BadImage("undecodable_pixels")
    return pages


def tiff_page(page: Any, size: int, indices: bool = False) -> Decoded:
    """One page of tifffile, upright.

    Args:
        page: the page.
        size: bytes of its file.
        indices: a palette with colours gives its indices.

    Raises:
        BadImage: parts that are not there or beyond the end of the file, which tifffile would fill with zeros; a
            colour space that is neither grey nor RGB; too large.
    """
    check_size(*page.shape)
    places, counts = page.dataoffsets, page.databytecounts
    if not places or len(places) != len(counts):
        raise BadImage("undecodable_pixels")
    if any(count <= 0 or place <= 0 or place + count > size for place, count in zip(places, counts, strict=True)):
        raise BadImage("undecodable_pixels")
    values, notes = _tiff_values(page, indices)
    alpha = any(int(extra) in (1, 2) for extra in page.extrasamples)
    tag = page.tags.get(_ORIENTATION)
    values, turned = _turned(_of_bits(values), int(tag.value) if tag is not None else 1)
    return Decoded(values, alpha, (*notes, *turned), lossy=int(page.compression) in _LOSSY)


def _of_bits(values: NDArray[Any]) -> NDArray[Any]:
    """Pictures of one bit as 0 and 255; all others as they are."""
    return values.astype(np.uint8) * np.uint8(255) if values.dtype.kind == "b" else values


def _tiff(path: Path, indices: bool) -> Decoded:
    from tifffile import TiffFile

    with TiffFile(path) as file:
        pages = tiff_pages(file)
        if len(pages) != 1:
            raise BadImage("several_images")
        return tiff_page(pages[0], path.stat().st_size, indices)


def _tiff_values(page: Any, indices: bool) -> tuple[NDArray[Any], tuple[str, ...]]:
    """``(values [H, W, C], notes)``: bright is more, palettes expanded."""
    photometric = int(page.photometric)
    if photometric not in (0, 1, 2, 3, 6) or (photometric == 6 and int(page.compression) not in _LOSSY):
        raise BadImage("colour_space")
    if page.axes not in ("YX", "YXS", "SYX"):
        raise BadImage("several_images")
    values = page.asarray()
    if page.axes == "SYX":
        values = np.moveaxis(values, 0, -1)
    if photometric == 0:  # white is zero
        if values.dtype.kind not in "bu":
            raise BadImage("colour_space")
        values = ~values if values.dtype.kind == "b" else (2 ** int(page.bitspersample) - 1 - values)
    if photometric != 3:
        return _channels_last(values), ()
    colours = np.moveaxis(np.asarray(page.colormap), 0, -1)  # [entries, 3] of 16 bits
    grey = bool((colours == colours[:, :1]).all())
    if indices and not grey:
        return _channels_last(values), ("palette",)
    for factor in (257, 256):  # 8-bit colours are written times one of these
        if not (colours % factor).any():
            colours = (colours // factor).astype(np.uint8)
            break
    return _channels_last(colours[values.astype(np.intp)][:, :, : 1 if grey else 3]), ("palette",)
