"""Converts one sample of a card's table: pictures, volumes, masks and rows of numbers; runs in worker processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.convert.sample import ExamJob, SampleJob, SampleResult
from data_tools.pixels.dicom import BadImage, quiet
from data_tools.pixels.fit import fit, fit_mask
from data_tools.pixels.masks import overlay, read_mask
from data_tools.pixels.picture import read_picture
from data_tools.pixels.resample import resample_isotropic, resample_mask
from data_tools.pixels.volume import Volume, read_volume, read_volume_mask
from m4oe_ds.data.cards import MaskFile
from m4oe_ds.data.codecs import encode
from m4oe_ds.data.schema import MISSING, ModalitySpec, TaskSpec
from m4oe_ds.errors import UserError

TABLE_MEMBER = "json"


@dataclass(frozen=True)
class _Owner:
    """What a mask needs of the picture or volume it lies over."""

    geometry: dict[str, Any]
    volume: Volume | None


def convert_exam(job: SampleJob) -> SampleResult:
    """Converts everything of a sample; what is bad is noted and left out."""
    exam = job.exam
    assert exam is not None
    result = SampleResult({**job.meta, "labels": dict(job.meta["labels"])})
    owners: dict[str, _Owner] = {}
    for spec in exam.inputs:
        if spec.name in job.images:
            owner = _guarded(spec.name, result, partial(_pixels, spec, job, exam, result))
            if owner is not None:
                owners[spec.name] = owner
        elif spec.name in exam.tables:
            _add_row(spec, exam, result)
    for task in exam.masks:
        result.meta["labels"][task.name] = MISSING
        if task.name in exam.layers and task.of in owners:
            mask = _guarded(task.name, result, partial(_mask, task, exam.layers[task.name], owners[task.of]))
            if mask is not None:
                codec = codec_for(mask, job.codec)
                result.members[f"{task.name}.{codec}"] = encode(mask, codec)
                result.meta["labels"][task.name] = 1  # a mask is there; what it shows is in its member
    present = {*owners, *(name.split(".")[0] for name in result.members if name.endswith(f".{TABLE_MEMBER}"))}
    result.meta["modalities"] = [spec.name for spec in exam.inputs if spec.name in present]
    result.meta["geometry"] = {name: owner.geometry for name, owner in owners.items()}
    return result


def _guarded(what: str, result: SampleResult, work: Callable[[], Any]) -> Any:
    """What the work gives; None, and noted, where a file is bad."""
    try:
        with quiet():
            return work()
    except BadImage as bad:
        result.bad.append((what, bad.reason))
    except UserError:
        raise  # concerns every file, such as a missing decoder
    except Exception as error:  # one file may not end a conversion; no text, which may quote a header
        result.bad.append((what, f"unexpected_{type(error).__name__}"))
    return None


def _pixels(spec: ModalitySpec, job: SampleJob, exam: ExamJob, result: SampleResult) -> _Owner:
    """Reads, fits and stores one picture or volume."""
    path = Path(job.images[spec.name][0])
    values = exam.ranges.get(spec.name)
    volume: Volume | None = None
    if spec.kind == "image":
        picture = read_picture(path, spec.channels, values, clip=values is not None)
        source, notes = picture.pixels, picture.notes
        pixels, geometry = fit(source, job.rows, job.cols)
    else:
        volume = read_volume(path, values, clip=values is not None)
        source, notes = volume.pixels, volume.notes
        pixels, geometry = fit_volume(volume, spec, exam.volume_size, (job.rows, job.cols))
        result.count(f"{spec.name}_values", volume.mapping.get("kind", "exact"))
        result.count(f"{spec.name}_orientation", volume.orientation)
    shape = source.shape if spec.kind == "volume" else source.shape[:2]
    result.count(f"{spec.name}_size", "x".join(map(str, shape)))
    result.count(f"{spec.name}_bits", 8 * source.dtype.itemsize)
    for note in notes:
        result.count(f"{spec.name}_notes", note.replace("_", " "))
    result.add(spec.name, pixels, codec_for(pixels, job.codec))
    return _Owner(geometry, volume)


def codec_for(pixels: NDArray[Any], wanted: str) -> str:
    """The codec wanted, or ``b2`` where PNG cannot hold the pixels: volumes, 16-bit colour, two and four channels."""
    colour = pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.dtype == np.uint8
    return wanted if pixels.ndim == 2 or colour else "b2"


def fit_volume(
    volume: Volume, spec: ModalitySpec, size: tuple[int, int, int], image_size: tuple[int, int]
) -> tuple[NDArray[Any], dict[str, Any]]:
    """A volume in its stored size, with cubic voxels; one whose slices are channels with as many as there are channels.

    Args:
        volume: as read.
        spec: its modality.
        size: depth, rows and columns of stored volumes.
        image_size: rows and columns of stored images, which slices that are channels get.
    """
    if not spec.slices:
        return resample_isotropic(volume, size)
    rows, cols = image_size
    _, across, along = volume.spacing or (1.0, 1.0, 1.0)
    depth, height, width = volume.pixels.shape
    voxel = max(height * across / rows, width * along / cols)
    # slices as thick as makes them as many as wanted: they are not stretched within
    told = replace(volume, spacing=(voxel * spec.slices / depth, across, along))
    pixels, geometry = resample_isotropic(told, (spec.slices, rows, cols))
    spacing = None if volume.spacing is None else [float(n) for n in volume.spacing]
    return pixels, {**geometry, "spacing": spacing}


def _mask(task: TaskSpec, files: tuple[MaskFile | None, ...], owner: _Owner) -> NDArray[np.uint8]:
    """Bits of classes in the stored size of the picture or volume."""
    one_file = len(files) == 1
    found = [None if file is None else _read_mask(file, task.num_classes if one_file else 1, owner) for file in files]
    bits = found[0] if one_file and found[0] is not None else overlay(found)
    stored = fit_mask(bits, owner.geometry) if owner.volume is None else resample_mask(bits, owner.geometry)
    return np.ascontiguousarray(stored, dtype=np.uint8)


def _read_mask(file: MaskFile, classes: int, owner: _Owner) -> NDArray[np.uint8]:
    values = dict(enumerate(file.values)) or None
    shape = tuple(owner.geometry["original_shape"])
    path = Path(file.pattern)
    if owner.volume is None:
        return read_mask(path, shape, classes, values, file.at_least)
    return read_volume_mask(path, shape, classes, values, file.at_least, owner.volume.affine)


def _add_row(spec: ModalitySpec, exam: ExamJob, result: SampleResult) -> None:
    """Stores a row of numbers and codes, always in the same bytes."""
    row = exam.tables[spec.name]
    text = json.dumps({column.name: row.get(column.name) for column in spec.columns}, separators=(",", ":"))
    result.members[f"{spec.name}.{TABLE_MEMBER}"] = text.encode()
    for column in spec.columns:
        value = row.get(column.name)
        if column.kind == "number" and value is not None:
            result.numbers[f"{spec.name}.{column.name}"] = float(value)
