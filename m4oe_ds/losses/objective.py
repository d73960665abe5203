"""The training objective: sum of the task losses minus alpha times I(M;E|T) (M4oE eq. 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.layers.routing import Routing
from m4oe_ds.losses.mutual_information import (
    Reduce,
    conditional_mutual_information,
    official_token_task_information,
)
from m4oe_ds.losses.tasks import LossParts, binary_cross_entropy_dice, cross_entropy, focal


class Output(Protocol):
    """What the objective reads from a model's output."""

    logits: dict[str, Tensor]
    routing: dict[str, Routing]
    aux: dict[str, Tensor]
    modality_of_token: Tensor | None


class Labels(Protocol):
    """What the objective reads from a batch."""

    @property
    def labels(self) -> dict[str, Tensor]: ...
    @property
    def label_mask(self) -> Tensor: ...
    @property
    def valid(self) -> Tensor: ...


@dataclass(frozen=True)
class TaskLoss:
    """Loss of one task: ``kind`` is cross_entropy, focal or bce_dice; the rest are its parameters."""

    kind: str
    weight: float = 1.0
    gamma: float = 2.0
    label_smoothing: float = 0.0
    class_weight: Tensor | None = None


@dataclass(frozen=True)
class InformationTerm:
    """Options of the mutual-information term, see :func:`conditional_mutual_information`."""

    alpha: float = 0.05
    source: str = "dispatch"
    aggregate: str = "batch"
    task_weight: str = "prior"
    task_prior: Tensor | None = None
    mask_by_label: bool = True
    layer: str = "mtoe"


@dataclass
class Objective:
    """Names the terms, computes them, leaves division and addition to the training step.

    Attributes:
        tasks: in the order of ``label_mask``. losses: by task name. information: the regulariser.
        num_modalities: m.
    """

    tasks: Sequence[TaskSpec]
    losses: Mapping[str, TaskLoss]
    information: InformationTerm
    num_modalities: int
    aux_weights: Mapping[str, float] = field(default_factory=dict)

    def task_parts(self, output: Output, batch: Labels) -> dict[str, LossParts]:
        """Weighted loss sum and label count of every task in this micro-batch.

        A task without any label gives sum 0 with a zero gradient, so every head takes part in every backward.
        """
        parts = {}
        for k, task in enumerate(self.tasks):
            loss, mask = self.losses[task.name], batch.label_mask[:, k]
            logits, labels = output.logits[task.name], batch.labels[task.name]
            if loss.kind == "cross_entropy":
                part = cross_entropy(logits, labels, mask, loss.class_weight, loss.label_smoothing)
            elif loss.kind == "focal":
                part = focal(logits, labels, mask, loss.gamma, loss.class_weight)
            elif loss.kind == "bce_dice":
                part = binary_cross_entropy_dice(logits, labels, mask)
            else:
                raise ValueError(f"unknown loss {loss.kind!r} of task {task.name}")
            parts[task.name] = LossParts(part.sum * loss.weight, part.count)
        return parts

    def mutual_information(
        self, output: Output, batch: Labels, reduce: Reduce | None = None, world: int = 1
    ) -> Tensor | None:
        """I(M;E|T) of this micro-batch over all ranks, in nats; None for a model without task-slotted routing."""
        term = self.information
        routing = output.routing.get(term.layer)
        if routing is None or output.modality_of_token is None:
            return None
        if term.source == "official":
            return official_token_task_information(routing.information_logits[batch.valid])  # a sum: no padding in it
        mask = batch.label_mask if term.mask_by_label else batch.valid[:, None].expand_as(batch.label_mask)
        return conditional_mutual_information(
            routing.information_logits,
            output.modality_of_token,
            label_mask=mask,
            task_prior=term.task_prior,
            source=term.source,  # type: ignore[arg-type]
            aggregate=term.aggregate,  # type: ignore[arg-type]
            task_weight=term.task_weight,  # type: ignore[arg-type]
            token_mask=routing.token_mask,
            num_modalities=self.num_modalities,
            reduce=reduce,
            world=world,
        )

    def label_counts(self, batches: Sequence[Labels]) -> Tensor:
        """Labels per task ``[p]`` in float32 over the given micro-batches of this rank."""
        return torch.stack([batch.label_mask.sum(0) for batch in batches]).sum(0).float()
