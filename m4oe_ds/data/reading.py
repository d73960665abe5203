"""A sample's bytes to tensors: decoded, resized, augmented, standardised."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from m4oe_ds.data import codecs
from m4oe_ds.data.augment import AugmentOptions, augment
from m4oe_ds.data.collate import Sample
from m4oe_ds.data.missing import dropped
from m4oe_ds.data.order import generator
from m4oe_ds.data.schema import ModalitySpec, TaskSpec
from m4oe_ds.errors import DataError

TABLE_CODEC = "json"  # last extension of the member of a table modality


@dataclass(frozen=True)
class _Described:
    """What a sample says of itself in ``meta.json``."""

    key: str
    group: str
    labels: dict[str, Any]
    modalities: list[str]
    exam: str = ""


@dataclass(frozen=True)
class Reading:
    """How a sample becomes tensors.

    Attributes:
        inputs: modalities to read, in the order of the batch.
        tasks: tasks to read, in the order of the batch.
        image_size: height and width of images in pixels.
        volume_size: depth, height and width of volumes in voxels; empty where there is none.
        normalise: ``{modality: (mean, std)}`` on the 0..1 scale; of a column of a table as ``modality.column``.
        augment: None = off.
        seed: seed of the run; augmentation and modality dropout of a sample follow from it.
        modality_dropout: probability with which each modality of a sample counts as absent; one always stays.
        contralateral: whether the other side of the same exam is read as well.
    """

    inputs: tuple[ModalitySpec, ...]
    tasks: tuple[TaskSpec, ...]
    image_size: tuple[int, int]
    volume_size: tuple[int, ...] = ()
    normalise: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    augment: AugmentOptions | None = None
    seed: int = 0
    modality_dropout: float = 0.0
    contralateral: bool = False

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in the order of the batch."""
        return tuple(one.name for one in self.inputs)

    def sample(self, members: Mapping[str, bytes], epoch: int, lost: frozenset[str] | None = None) -> Sample:
        """Decodes, resizes, augments and standardises one sample.

        Args:
            members: its files by name.
            epoch: number of the epoch.
            lost: modalities to leave out; None = those that modality dropout draws for this sample.

        Raises:
            DataError: members missing or damaged.
        """
        described = self._described(members)
        by_name = {name.split(".", 1)[0]: (name.rsplit(".", 1)[-1], data) for name, data in members.items()}
        there = [spec for spec in self.inputs if spec.name in described.modalities]
        if missing := [spec.name for spec in there if spec.name not in by_name]:
            raise DataError(f"member {missing[0]} is missing")
        if lost is None:
            present = [spec.name for spec in there]
            lost = dropped(present, self.modality_dropout, self.seed, epoch, described.key)
        views = {spec.name: self._view(spec, *by_name[spec.name]) for spec in there if spec.name not in lost}
        masks = {
            task.name: self._mask(task, *by_name[task.name])
            for task in self.tasks
            if self._has(task, by_name) and self._owner(task) not in lost
        }
        if self.augment is not None:
            state = torch.Generator()
            state.manual_seed(int(generator(self.seed, "augment", epoch, described.key).integers(2**62)))
            owners = {task.name: task.of for task in self.tasks}
            views, masks = augment(views, masks, self.inputs, owners, self.augment, state)
        for spec in self.inputs:
            if spec.name in views and spec.kind != "table":  # numbers of tables were standardised one by one
                mean, std = self.normalise.get(spec.name, (0.0, 1.0))
                views[spec.name] = (views[spec.name] - mean) / std
        return Sample(described.key, described.group, views, described.labels, masks, lost=lost, exam=described.exam)

    def _owner(self, task: TaskSpec) -> str:
        """The modality that answers a mask task; without it the question cannot be asked."""
        return task.of if task.of in self.modalities else self.modalities[0]

    def _has(self, task: TaskSpec, by_name: Mapping[str, object]) -> bool:
        """Whether the sample holds a mask of a task."""
        return task.dense and task.name in by_name

    def _described(self, members: Mapping[str, bytes]) -> _Described:
        """What ``meta.json`` says, its labels checked against the tasks."""
        if "meta.json" not in members:
            raise DataError("a sample has no meta.json")
        try:
            meta = json.loads(members["meta.json"])
            described = _Described(
                meta["key"], meta["group"], meta["labels"], meta["modalities"], str(meta.get("exam", ""))
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"a sample's meta.json is damaged ({type(error).__name__})") from None
        for task in self.tasks:
            if not task.dense and (problem := task.problem(described.labels.get(task.name, task.unknown))):
                raise DataError(problem)
        return described

    def _view(self, spec: ModalitySpec, codec: str, data: bytes) -> Tensor:
        """The tensor of a modality, of the shape that :meth:`ModalitySpec.shape` says; images float32 in [0, 1].

        Raises:
            DataError: damaged, or of another shape than the card says.
        """
        if spec.kind == "table":
            return self._row(spec, data)
        array = codecs.decode(data, codec)
        full = 65535.0 if array.dtype == np.uint16 else 255.0
        image = torch.from_numpy(array.astype(np.float32) / full)
        if spec.kind == "image":
            image = image[None] if image.ndim == 2 else image.permute(2, 0, 1)
        elif image.ndim != 3:
            raise DataError(f"{spec.name} is no volume: it has {image.ndim} dimensions")
        elif not spec.flat:
            image = image[None]
        if image.shape[0] != spec.planes:
            raise DataError(f"{spec.name} has {image.shape[0]} channels instead of {spec.planes}")
        return self._resized(image, self.image_size if spec.flat else self.volume_size)

    def _resized(self, image: Tensor, size: tuple[int, ...]) -> Tensor:
        """``[C, ...]`` at the wanted size: averages over what is shrunk, interpolates what grows."""
        if tuple(image.shape[1:]) == tuple(size):
            return image
        if len(size) == 2:
            return functional.interpolate(image[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
        smaller = all(have >= want for have, want in zip(image.shape[1:], size, strict=True))
        if smaller:
            return functional.adaptive_avg_pool3d(image[None], (size[0], size[1], size[2]))[0]
        return functional.interpolate(image[None], size, mode="trilinear", align_corners=False)[0]

    def _row(self, spec: ModalitySpec, data: bytes) -> Tensor:
        """``[columns, 2]`` of a table: the standardised number or the category's code, and 1 where it is known.

        Raises:
            DataError: damaged, or a value that its column cannot have.
        """
        try:
            row = json.loads(data)
            values = [row.get(column.name) for column in spec.columns]
        except (ValueError, AttributeError) as error:
            raise DataError(f"{spec.name} is damaged ({type(error).__name__})") from None
        out = torch.zeros(len(values), 2)
        for k, (column, value) in enumerate(zip(spec.columns, values, strict=True)):
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise DataError(f"{value!r} of {spec.name}.{column.name} is not a number")
            if column.kind == "category":
                if value not in range(len(column.values)):
                    raise DataError(f"{value!r} of {spec.name}.{column.name} is none of its categories")
            else:
                mean, std = self.normalise.get(f"{spec.name}.{column.name}", (0.0, 1.0))
                value = (value - mean) / std
            out[k, 0], out[k, 1] = float(value), 1.0
        return out

    def _mask(self, task: TaskSpec, codec: str, data: bytes) -> Tensor:
        """``[classes, H, W]`` or ``[classes, D, H, W]`` float32 in {0, 1}; one bit per class is stored."""
        array = codecs.decode(data, codec)
        planes = [array > 0] if task.num_classes == 1 else [array >> k & 1 for k in range(task.num_classes)]
        mask = torch.from_numpy(np.stack(planes).astype(np.float32))
        size = self.image_size if mask.ndim == 3 else self.volume_size
        return functional.interpolate(mask[None], size, mode="nearest")[0]
