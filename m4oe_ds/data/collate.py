"""Decoded samples to a :class:`~m4oe_ds.data.batch.Batch` with presence, label and validity masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from m4oe_ds.data.batch import Batch
from m4oe_ds.data.schema import MISSING, TaskSpec


@dataclass
class Sample:
    """One decoded sample; ``None`` in its place stands for padding or an unreadable one.

    Attributes:
        contralateral: views of the other breast of the same exam, if they are to be read and exist.
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
    planes = dict(zip(modalities, channels, strict=True))
    views, there = _views([sample.views if sample else {} for sample in samples], planes, image_size)
    valid = torch.tensor([sample is not None for sample in samples])
    labels, label_mask = _labels(samples, tasks, image_size)
    return Batch(
        views=views,
        present=there | ~valid[:, None],
        labels=labels,
        label_mask=label_mask,
        valid=valid,
        keys=tuple(sample.key if sample else "" for sample in samples),
        groups=tuple(sample.group if sample else "" for sample in samples),
        modalities=tuple(modalities),
        tasks=tuple(task.name for task in tasks),
        extras=_other_breast(samples, planes, image_size) if contralateral else {},
    )


def _views(
    found: Sequence[Mapping[str, Tensor]], planes: Mapping[str, int], image_size: tuple[int, int]
) -> tuple[dict[str, Tensor], Tensor]:
    """``{modality: [B, C, H, W]}`` of each sample's views, zeros where there is none; ``[B, m]``: where there is."""
    views = {name: torch.zeros(len(found), count, *image_size) for name, count in planes.items()}
    there = torch.zeros(len(found), len(planes), dtype=torch.bool)
    for i, name in enumerate(planes):
        for b, one in enumerate(found):
            if name in one:
                views[name][b], there[b, i] = one[name], True
    return views, there


def _labels(
    samples: Sequence[Sample | None], tasks: Sequence[TaskSpec], image_size: tuple[int, int]
) -> tuple[dict[str, Tensor], Tensor]:
    """Labels by task as :class:`Batch` has them, and ``[B, p]``: which exist."""
    count = len(samples)
    labels: dict[str, Tensor] = {}
    label_mask = torch.zeros(count, len(tasks), dtype=torch.bool)
    for k, task in enumerate(tasks):
        if task.kind == "classification":
            codes = [sample.labels.get(task.name, MISSING) if sample else MISSING for sample in samples]
            labels[task.name] = torch.tensor(codes, dtype=torch.int64)
            label_mask[:, k] = labels[task.name] != MISSING
            continue
        labels[task.name] = torch.zeros(count, 1, *image_size)
        for b, sample in enumerate(samples):
            if sample is not None and task.name in sample.masks:
                labels[task.name][b], label_mask[b, k] = sample.masks[task.name], True
    return labels, label_mask


def _other_breast(
    samples: Sequence[Sample | None], planes: Mapping[str, int], image_size: tuple[int, int]
) -> dict[str, Tensor]:
    views, there = _views([sample.contralateral if sample else {} for sample in samples], planes, image_size)
    return {**{f"contralateral.{name}": view for name, view in views.items()}, "contralateral_present": there}
