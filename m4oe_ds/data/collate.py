"""Decoded samples to a :class:`~m4oe_ds.data.batch.Batch` with presence, label and validity masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from m4oe_ds.data.batch import Batch
from m4oe_ds.data.schema import ModalitySpec, TaskSpec


@dataclass
class Sample:
    """One decoded sample; ``None`` in its place stands for padding or an unreadable one.

    Attributes:
        key: key of the sample.
        group: pseudonym of the patient.
        views: ``{modality: tensor}`` of those that are there, as :meth:`ModalitySpec.shape` says.
        labels: answers by task, as :class:`TaskSpec` describes labels.
        masks: ``{task: [classes, H, W] or [classes, D, H, W]}`` float32 of those that are there.
        contralateral: views of the other side of the same exam, if they are to be read and exist.
        lost: modalities that exist and were left out.
        exam: pseudonym of the exam; empty if it is not known.
    """

    key: str
    group: str
    views: dict[str, Tensor]
    labels: dict[str, Any]
    masks: dict[str, Tensor]
    contralateral: dict[str, Tensor] = field(default_factory=dict)
    lost: frozenset[str] = frozenset()
    exam: str = ""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the pictures of a batch.

    Attributes:
        image: height and width in pixels.
        volume: depth, height and width in voxels; empty where there is no volume.
    """

    image: tuple[int, int]
    volume: tuple[int, ...] = ()

    def of(self, spec: ModalitySpec) -> tuple[int, ...]:
        """Size of the pictures of a modality without channels; of a mask over it too."""
        return self.image if spec.flat else self.volume


def collate(
    samples: Sequence[Sample | None],
    inputs: Sequence[ModalitySpec],
    tasks: Sequence[TaskSpec],
    sizes: Sizes,
    contralateral: bool = False,
) -> Batch:
    """Batch of B samples. Absent views are zeros with ``present`` False; padding has ``valid`` False.

    Padding counts every modality as present, so that no softmax runs over nothing; it has no labels. With
    ``contralateral`` the extras hold ``contralateral.<modality> [B, C, H, W]`` and ``contralateral_present [B, m]``.
    """
    shapes = {spec.name: spec.shape(sizes.image, sizes.volume) for spec in inputs}
    views, there = _views([sample.views if sample else {} for sample in samples], shapes)
    valid = torch.tensor([sample is not None for sample in samples])
    by_name = {spec.name: spec for spec in inputs}
    labels: dict[str, Tensor] = {}
    label_mask = torch.zeros(len(samples), len(tasks), dtype=torch.bool)
    for k, task in enumerate(tasks):
        if task.dense:
            owner = by_name.get(task.of)
            size = sizes.image if owner is None else sizes.of(owner)
            found = [sample.masks.get(task.name) if sample else None for sample in samples]
            labels[task.name], label_mask[:, k] = _stacked(found, (task.num_classes, *size))
        else:
            known = [sample.labels.get(task.name, task.unknown) if sample else task.unknown for sample in samples]
            labels[task.name], label_mask[:, k] = _answers(task, known)
    return Batch(
        views=views,
        present=there | ~valid[:, None],
        labels=labels,
        label_mask=label_mask,
        valid=valid,
        keys=tuple(sample.key if sample else "" for sample in samples),
        groups=tuple(sample.group if sample else "" for sample in samples),
        exams=tuple(sample.exam if sample else "" for sample in samples),
        modalities=tuple(by_name),
        tasks=tuple(task.name for task in tasks),
        extras=_other_side(samples, shapes) if contralateral else {},
    )


def _views(
    found: Sequence[Mapping[str, Tensor]], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[dict[str, Tensor], Tensor]:
    """``{modality: [B, ...]}`` of each sample's views, zeros where there is none; ``[B, m]``: where there is."""
    views, there = {}, torch.zeros(len(found), len(shapes), dtype=torch.bool)
    for i, (name, shape) in enumerate(shapes.items()):
        views[name], there[:, i] = _stacked([one.get(name) for one in found], shape)
    return views, there


def _stacked(found: Sequence[Tensor | None], shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """``[B, *shape]`` float32 with zeros where there is none, and ``[B]``: where there is one."""
    stacked = torch.zeros(len(found), *shape)
    for b, one in enumerate(found):
        if one is not None:
            stacked[b] = one
    return stacked, torch.tensor([one is not None for one in found], dtype=torch.bool)


def _answers(task: TaskSpec, answers: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Codes ``[B]`` int64, numbers ``[B]`` or times and events ``[B, 2]`` float32; ``[B]``: which are known."""
    known = torch.tensor([task.known(answer) for answer in answers], dtype=torch.bool)
    if task.coded:
        return torch.tensor(answers, dtype=torch.int64), known
    nothing: Any = [0.0, 0.0] if task.kind == "survival" else 0.0
    values = [answer if task.known(answer) else nothing for answer in answers]
    return torch.tensor(values, dtype=torch.float32), known


def _other_side(samples: Sequence[Sample | None], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    views, there = _views([sample.contralateral if sample else {} for sample in samples], shapes)
    return {**{f"contralateral.{name}": view for name, view in views.items()}, "contralateral_present": there}
