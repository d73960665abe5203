"""Decoded samples to a :class:`~m4oe_ds.data.batch.Batch` with presence, label and validity masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from m4oe_ds.data.batch import Batch
from m4oe_ds.data.schema import MISSING, TaskSpec


@dataclass
class Sample:
    """One decoded sample; ``None`` in its place stands for padding or an unreadable one.

    Attributes:
        contralateral: views of the other breast of the same exam, if they are asked for and there.
    """

    key: str
    group: str
    views: dict[str, Tensor]
    labels: dict[str, int]
    masks: dict[str, Tensor]
    contralateral: dict[str, Tensor] = field(default_factory=dict)


def collate(
    samples: Sequence[Sample | None],
    modalities: Sequence[str],
    channels: Sequence[int],
    tasks: Sequence[TaskSpec],
    image_size: tuple[int, int],
    contralateral: bool = False,
) -> Batch:
    """Batch of B samples. Absent views are zeros with ``present`` False; padding has ``valid`` False.

    Padding counts every modality as present, so that no softmax runs over nothing; it has no labels. With
    ``contralateral`` the extras hold ``contralateral.<modality> [B, C, H, W]`` and ``contralateral_present [B, m]``.
    """
    count = len(samples)
    height, width = image_size
    views = {name: torch.zeros(count, c, height, width) for name, c in zip(modalities, channels, strict=True)}
    present = torch.ones(count, len(modalities), dtype=torch.bool)
    valid = torch.tensor([sample is not None for sample in samples])
    labels: dict[str, Tensor] = {}
    for task in tasks:
        if task.kind == "classification":
            labels[task.name] = torch.full((count,), MISSING, dtype=torch.int64)
        else:
            labels[task.name] = torch.zeros(count, 1, height, width)
    label_mask = torch.zeros(count, len(tasks), dtype=torch.bool)
    for b, sample in enumerate(samples):
        if sample is None:
            continue
        for i, name in enumerate(modalities):
            if name in sample.views:
                views[name][b] = sample.views[name]
            else:
                present[b, i] = False
        for k, task in enumerate(tasks):
            if task.kind == "classification":
                code = sample.labels.get(task.name, MISSING)
                labels[task.name][b] = code
                label_mask[b, k] = code != MISSING
            elif task.name in sample.masks:
                labels[task.name][b] = sample.masks[task.name]
                label_mask[b, k] = True
    extras: dict[str, Tensor] = {}
    if contralateral:
        there = torch.zeros(count, len(modalities), dtype=torch.bool)
        for i, name in enumerate(modalities):
            other = torch.zeros_like(views[name])
            for b, sample in enumerate(samples):
                if sample is not None and name in sample.contralateral:
                    other[b], there[b, i] = sample.contralateral[name], True
            extras[f"contralateral.{name}"] = other
        extras["contralateral_present"] = there
    return Batch(
        views=views,
        present=present,
        labels=labels,
        label_mask=label_mask,
        valid=valid,
        keys=tuple(sample.key if sample else "" for sample in samples),
        groups=tuple(sample.group if sample else "" for sample in samples),
        modalities=tuple(modalities),
        tasks=tuple(task.name for task in tasks),
        extras=extras,
    )
