"""Reads masks: one file of labels, of one class, or a soft map, to bits of classes. Nothing is interpolated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.pixels.dicom import BadImage, read_stored
from data_tools.pixels.formats import decode_file, guarded, kind_of
from data_tools.pixels.values import check_numbers

MAX_CLASSES = 8  # bits of a byte
Values = Mapping[int, tuple[int, ...]]


def read_mask(
    path: Path,
    shape: tuple[int, ...],
    classes: int,
    values: Values | None = None,
    at_least: float | None = None,
) -> NDArray[np.uint8]:
    """The mask of a picture, in its native size: bit k of a pixel is set where it belongs to class k.

    Without ``values`` and ``at_least``: of one class, every pixel that is not zero belongs to it; of several, value
    k + 1 is class k. A palette with colours gives its indices, one of greys its greys.

    Args:
        path: a picture of one channel (or equal ones), in any format of :mod:`data_tools.pixels.formats`, or DICOM.
        shape: [H, W] of its picture, before that was fitted.
        classes: 1 to 8.
        values: per class the stored values that belong to it; one value may belong to several classes.
        at_least: of one class, the least value of a soft map that belongs to it.

    Raises:
        BadImage: missing, damaged, of another size, in colour, of values no class has, or compressed with loss where
            values are not thresholded.
        ValueError: classes, values and threshold that contradict each other.
    """
    check_mapping(classes, values, at_least)
    if kind_of(path) == "dicom":
        stored = guarded(lambda: read_stored(path)[1], "pydicom")
    else:
        decoded = decode_file(path, indices=True)
        if decoded.lossy and at_least is None:
            raise BadImage("mask_lossy")  # edges of JPEG swing: values near zero that nobody drew
        stored = _plane(decoded.values, decoded.alpha)
    if tuple(stored.shape) != tuple(shape[:2]):
        raise BadImage("mask_size_differs")
    return class_bits(stored, classes, values, at_least)


def _plane(values: NDArray[Any], alpha: bool) -> NDArray[Any]:
    """[H, W] of a mask that may be stored as equal colours, with transparency that hides nothing."""
    if alpha:
        if not (values[:, :, -1] == np.iinfo(values.dtype).max).all():
            raise BadImage("transparency")
        values = values[:, :, :-1]
    count = values.shape[2]
    if count not in (1, 3) or (count == 3 and not (values == values[:, :, :1]).all()):
        raise BadImage("mask_colour")
    return values[:, :, 0]


def check_mapping(classes: int, values: Values | None, at_least: float | None) -> None:
    """Refuses what no mask can mean.

    Raises:
        ValueError: says what.
    """
    if not 1 <= classes <= MAX_CLASSES:
        raise ValueError(f"a mask has 1 to {MAX_CLASSES} classes, not {classes}")
    if values is not None and at_least is not None:
        raise ValueError("a mask has values per class or a threshold, not both")
    if at_least is not None and classes != 1:
        raise ValueError("a threshold makes a mask of one class")
    if values is not None and set(values) != set(range(classes)):
        raise ValueError("values name every class once")
    if values is not None and any(not of_class or 0 in of_class for of_class in values.values()):
        raise ValueError("every class has values, and 0 is none of them: it is what belongs to no class")


def class_bits(
    stored: NDArray[Any], classes: int, values: Values | None = None, at_least: float | None = None
) -> NDArray[np.uint8]:
    """Stored values of any shape to bits of classes; see :func:`read_mask`.

    Raises:
        BadImage: values that no class has, or that are no finite numbers.
        ValueError: classes, values and threshold that contradict each other.
    """
    check_mapping(classes, values, at_least)
    check_numbers(stored)
    if at_least is not None:
        return (stored >= at_least).astype(np.uint8)
    if values is None and classes == 1:
        if stored.dtype.kind == "f" and (stored != np.rint(stored)).any():
            raise BadImage("mask_value_unknown")  # a soft map: where a class begins has to be said
        return (stored != 0).astype(np.uint8)
    known = values if values is not None else {k: (k + 1,) for k in range(classes)}
    bits = np.zeros(stored.shape, np.uint8)
    for k, of_class in known.items():
        for value in of_class:
            bits[stored == value] |= np.uint8(1 << k)
    if ((bits == 0) & (stored != 0)).any():
        raise BadImage("mask_value_unknown")
    return bits


def overlay(masks: Sequence[NDArray[np.uint8] | None]) -> NDArray[np.uint8]:
    """One mask of several classes from one mask of one class each; None where a class is nowhere in the picture.

    Raises:
        BadImage: of different sizes.
        ValueError: no mask, or more than eight.
    """
    found = [mask for mask in masks if mask is not None]
    if not found or len(masks) > MAX_CLASSES:
        raise ValueError(f"1 to {MAX_CLASSES} masks, not {len(found)} of {len(masks)}")
    if any(mask.shape != found[0].shape for mask in found):
        raise BadImage("mask_size_differs")
    bits = np.zeros(found[0].shape, np.uint8)
    for k, mask in enumerate(masks):
        if mask is not None:
            bits[mask != 0] |= np.uint8(1 << k)
    return bits
