"""Converts one breast on scanned films: its views, and the outlines of their lesions as masks.

Masks lie beside cut-outs of the film, and neither names nor order nor header say which file is which: a mask has 8 bits
and two values, a cut-out 16 bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.archives.plan import Outline
from data_tools.convert.mammogram import convert_views
from data_tools.convert.sample import SampleJob, SampleResult
from data_tools.pixels.dicom import BadImage, decode, quiet, read_header
from data_tools.pixels.fit import fit_mask
from m4oe_ds.data.codecs import encode
from m4oe_ds.data.schema import MISSING
from m4oe_ds.errors import UserError

ON = 255  # value of a lesion in a mask
ASPECT_TOLERANCE = 0.01  # by which the scales of a mask's two sides may differ
MOST_SCALE = 2.0  # a mask is at most this much larger or smaller than its film


def _read_mask(path: Path) -> NDArray[np.uint8] | None:
    """The mask of a file, uint8 [H, W] in {0, 1}; None if it holds something else, such as a cut-out.

    Raises:
        BadImage: the file cannot be read, or is a mask of nothing.
    """
    with quiet():
        if int(read_header(path, ["BitsAllocated"]).get("BitsAllocated") or 16) != 8:
            return None
    try:
        _, stored, (least, most) = decode(path)
    except BadImage as bad:
        raise BadImage("mask_empty" if bad.reason == "constant" else bad.reason) from None
    if (least, most) != (0, ON):
        return None
    mask = stored == ON
    return None if (mask | (stored == 0)).sum() != stored.size else mask.astype(np.uint8)


def read_outline(files: Sequence[str]) -> NDArray[np.uint8]:
    """The one mask among the files of a lesion: uint8 [H, W] in {0, 1}.

    Raises:
        BadImage: none or several of them are masks, or one cannot be read.
    """
    masks = [mask for mask in (_read_mask(Path(path)) for path in files) if mask is not None]
    if len(masks) != 1:
        raise BadImage("several_masks" if masks else "no_mask")
    return masks[0]


def at_film_size(mask: NDArray[np.uint8], shape: Sequence[int], own: bool) -> tuple[NDArray[np.uint8], str]:
    """The mask at the size of its film, and what was done: ``as it is`` or ``scaled``.

    Args:
        mask: [H, W].
        shape: rows and columns of the film.
        own: whether it was drawn on this scan; on another one only a mask of the same size is known to fit.

    Raises:
        BadImage: it has another shape than the film.
    """
    if list(mask.shape) == list(shape):
        return mask, "as it is"
    if not own:
        raise BadImage("mask_of_another_scan")
    down, across = (film / drawn for film, drawn in zip(shape, mask.shape, strict=True))
    if abs(down / across - 1) > ASPECT_TOLERANCE or not 1 / MOST_SCALE <= down <= MOST_SCALE:
        raise BadImage("mask_size_differs")
    rows, cols = (
        ((np.arange(film) + 0.5) * drawn / film).astype(int) for film, drawn in zip(shape, mask.shape, strict=True)
    )
    return np.ascontiguousarray(mask[rows][:, cols]), "scaled"  # the pixel under the centre: nothing is interpolated


def convert_outlines(
    outlines: Sequence[Outline], geometry: Mapping[str, Any], result: SampleResult
) -> NDArray[np.uint8]:
    """Bit mask ``uint8 [rows, cols]`` of a film: bit k where a lesion of class k lies.

    Raises:
        BadImage: the mask of one of its lesions cannot be used: without it the others would say that nothing is there.
    """
    found = np.zeros(tuple(geometry["stored_shape"]), np.uint8)
    for outline in outlines:
        mask, how = at_film_size(read_outline(outline.files), geometry["original_shape"], outline.own)
        result.count("mask", how)
        placed = fit_mask(mask, geometry)
        if not placed.any():
            raise BadImage("mask_outside_the_breast")
        found |= placed << np.uint8(outline.code)
    return found


def convert_film(job: SampleJob) -> SampleResult:
    """Converts the views of a breast and the masks of those that are there; a bad one is noted and left out."""
    result = SampleResult({**job.meta, "labels": dict(job.meta["labels"])})
    convert_views(job, result)
    for task, outlines in job.outlines.items():
        result.meta["labels"][task] = MISSING
        geometry = result.meta["geometry"].get(outlines[0].of)
        if geometry is None:
            continue  # its film was bad, which is noted
        try:
            mask = convert_outlines(outlines, geometry, result)
        except BadImage as bad:
            result.bad.append((task, bad.reason))
            continue
        except UserError:
            raise
        except Exception as error:  # as for mammograms: one file may not end a conversion
            result.bad.append((task, f"unexpected_{type(error).__name__}"))
            continue
        result.members[f"{task}.{job.codec}"] = encode(mask, job.codec)
        result.meta["labels"][task] = 1  # a mask is there; what it shows is in its member
    return result
