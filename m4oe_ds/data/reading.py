"""A sample's bytes to tensors: decoded, resized, augmented, standardised."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from m4oe_ds.data import codecs
from m4oe_ds.data.augment import AugmentOptions, augment
from m4oe_ds.data.collate import Sample
from m4oe_ds.data.order import generator
from m4oe_ds.data.schema import MISSING, TaskSpec
from m4oe_ds.errors import DataError


@dataclass(frozen=True)
class _Described:
    """What a sample says of itself in ``meta.json``."""

    key: str
    group: str
    labels: dict[str, int]
    modalities: list[str]


@dataclass(frozen=True)
class Reading:
    """How a sample becomes tensors.

    Attributes:
        modalities: names of the modalities to read, in the order of the batch.
        channels: number of channels of each modality.
        tasks: tasks to read, in the order of the batch.
        image_size: height and width of the views.
        normalise: ``{modality: (mean, std)}`` on the 0..1 scale.
        augment: None = off.
        seed: seed of the run; the augmentation of a sample follows from it.
        contralateral: whether the other breast of the same exam is read as well.
    """

    modalities: tuple[str, ...]
    channels: tuple[int, ...]
    tasks: tuple[TaskSpec, ...]
    image_size: tuple[int, int]
    normalise: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    augment: AugmentOptions | None = None
    seed: int = 0
    contralateral: bool = False

    def sample(self, members: Mapping[str, bytes], epoch: int) -> Sample:
        """Decodes, resizes, augments and standardises one sample.

        Raises:
            DataError: members missing or damaged.
        """
        described = self._described(members)
        by_name = {name.split(".", 1)[0]: (name.rsplit(".", 1)[-1], data) for name, data in members.items()}
        views, masks = {}, {}
        for name, channels in zip(self.modalities, self.channels, strict=True):
            if name in described.modalities:
                if name not in by_name:
                    raise DataError(f"member {name} is missing")
                codec, data = by_name[name]
                views[name] = self._image(codecs.decode(data, codec))
                if views[name].shape[0] != channels:
                    raise DataError(f"{name} has {views[name].shape[0]} channels instead of {channels}")
        for task in self.tasks:
            if task.kind == "segmentation" and task.name in by_name:
                codec, data = by_name[task.name]
                mask = torch.from_numpy((codecs.decode(data, codec) > 0).astype(np.float32))[None, None]
                masks[task.name] = functional.interpolate(mask, self.image_size, mode="nearest")[0]
        if self.augment is not None:
            state = torch.Generator()
            state.manual_seed(int(generator(self.seed, "augment", epoch, described.key).integers(2**62)))
            views, masks = augment(views, masks, self.augment, state)
        for name, view in views.items():
            mean, std = self.normalise.get(name, (0.0, 1.0))
            views[name] = (view - mean) / std
        return Sample(described.key, described.group, views, described.labels, masks)

    def _described(self, members: Mapping[str, bytes]) -> _Described:
        """What ``meta.json`` says, its labels checked against the tasks."""
        if "meta.json" not in members:
            raise DataError("a sample has no meta.json")
        try:
            meta = json.loads(members["meta.json"])
            described = _Described(meta["key"], meta["group"], meta["labels"], meta["modalities"])
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"a sample's meta.json is damaged ({type(error).__name__})") from None
        for task in self.tasks:
            code = described.labels.get(task.name, MISSING)
            if task.kind == "classification" and not (isinstance(code, int) and MISSING <= code < task.num_classes):
                raise DataError(f"label {code!r} of {task.name} is outside its {task.num_classes} classes")
        return described

    def _image(self, array: np.ndarray) -> Tensor:
        """``[C, H, W]`` float32 in [0, 1] at the wanted size (area interpolation when shrinking)."""
        full = 65535.0 if array.dtype == np.uint16 else 255.0
        image = torch.from_numpy(array.astype(np.float32) / full)
        if image.ndim == 2:
            image = image[None]
        elif image.shape[-1] == 3:
            image = image.permute(2, 0, 1)
        if tuple(image.shape[-2:]) != self.image_size:
            image = functional.interpolate(
                image[None], self.image_size, mode="bilinear", antialias=True, align_corners=False
            )[0]
        return image
