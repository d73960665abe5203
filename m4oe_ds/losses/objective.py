"""The training objective: sum of the task losses minus alpha times I(M;E|T) (M4oE eq. 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.layers.reduction import Reduce, Reduction
from m4oe_ds.losses.discrete_time import discrete_time_likelihood
from m4oe_ds.losses.inputs import Labels, Output
from m4oe_ds.losses.model_loss import ModelLoss
from m4oe_ds.losses.mutual_information import (
    Aggregate,
    InformationOptions,
    Source,
    TaskWeight,
    information_given_task,
    modality_expert_probability,
    official_token_task_information,
)
from m4oe_ds.losses.number import huber, squared_error
from m4oe_ds.losses.tasks import LossParts, binary_cross_entropy_dice, cross_entropy, focal, ranked_probability


@dataclass(frozen=True)
class TaskLoss:
    """Loss of one task.

    Attributes:
        kind: one of :data:`m4oe_ds.data.schema.FITTING`.
        weight: factor of the loss.
        gamma: exponent of the focal loss.
        label_smoothing: of the cross-entropy.
        class_weight: ``[C]`` weights of the classes; None = equal ones.
        centre: mean of a number's training labels, in its unit.
        spread: standard deviation of a number's training labels, in its unit.
        horizons: of a survival, in the unit of its times.
    """

    kind: str
    weight: float = 1.0
    gamma: float = 2.0
    label_smoothing: float = 0.0
    class_weight: Tensor | None = None
    centre: float = 0.0
    spread: float = 1.0
    horizons: tuple[float, ...] = ()


@dataclass(frozen=True)
class InformationTerm:
    """The mutual-information term.

    Attributes:
        alpha: weight of the term, which is subtracted.
        source: see :class:`InformationOptions`; ``official`` is the authors' own term, whatever the other options say.
        aggregate: see :class:`InformationOptions`.
        task_weight: see :class:`InformationOptions`.
        task_prior: see :class:`InformationOptions`.
        mask_by_label: a sample counts for a task only if it has that label.
    """

    alpha: float = 0.05
    source: Source | Literal["official"] = "dispatch"
    aggregate: Aggregate = "batch"
    task_weight: TaskWeight = "prior"
    task_prior: Tensor | None = None
    mask_by_label: bool = True


@dataclass
class Objective:
    """Names the terms, computes them, leaves division and addition to the training step.

    Attributes:
        tasks: all tasks, in the order of ``label_mask``.
        losses: loss options by task name.
        information: the mutual-information term.
        num_modalities: m.
        model_loss: losses that come with the model and take the place of some generic ones.
    """

    tasks: Sequence[TaskSpec]
    losses: Mapping[str, TaskLoss]
    information: InformationTerm
    num_modalities: int
    model_loss: ModelLoss | None = None

    def label_mask(self, batch: Labels) -> Tensor:
        """Which labels count ``[B, p]``: those that exist, or fewer if the model's own losses leave some out."""
        return batch.label_mask if self.model_loss is None else self.model_loss.mask(batch)

    def task_parts(self, output: Output, batch: Labels) -> dict[str, LossParts]:
        """Weighted loss sum and label count of every task in this micro-batch.

        A task without any label gives sum 0 with a zero gradient, so every head takes part in every backward.
        """
        masks = self.label_mask(batch)
        own = {} if self.model_loss is None else self.model_loss.parts(output, batch, masks, self.generic)
        parts = {}
        for k, task in enumerate(self.tasks):
            part = own.get(task.name)
            if part is None:
                part = self.generic(task.name, output.logits[task.name], batch.labels[task.name], masks[:, k])
            parts[task.name] = LossParts(part.sum * self.losses[task.name].weight, part.count)
        return parts

    def generic(self, name: str, logits: Tensor, labels: Tensor, mask: Tensor) -> LossParts:
        """Unweighted configured loss of one task, ``mask [B]``."""
        loss = self.losses[name]
        if loss.kind == "cross_entropy":
            return cross_entropy(logits, labels, mask, loss.class_weight, loss.label_smoothing)
        if loss.kind == "focal":
            return focal(logits, labels, mask, loss.gamma, loss.class_weight)
        if loss.kind == "ranked_probability":
            return ranked_probability(logits, labels, mask, loss.class_weight)
        if loss.kind == "bce_dice":
            return binary_cross_entropy_dice(logits, labels, mask)
        if loss.kind == "huber":
            return huber(logits, labels, mask, loss.centre, loss.spread)
        if loss.kind == "mse":
            return squared_error(logits, labels, mask, loss.centre, loss.spread)
        if loss.kind == "hazard":
            return discrete_time_likelihood(logits, labels, mask, loss.horizons)
        raise ValueError(f"unknown loss {loss.kind!r} of task {name}")

    def mutual_information(
        self, output: Output, batch: Labels, reduce: Reduce | None = None, world: int = 1
    ) -> Tensor | None:
        """I(M;E|T) of this micro-batch over all ranks, in nats; None for a model without task-slotted routing."""
        term = self.information
        routing = output.routing.get("mtoe")
        if routing is None or output.modality_of_token is None:
            return None
        if term.source == "official":
            return official_token_task_information(routing.information_logits[batch.valid])  # a sum: no padding in it
        probability = modality_expert_probability(
            lambda: routing.information_logits,
            output.modality_of_token,
            self.num_modalities,
            source=term.source,
            token_mask=routing.token_mask,
            mass=routing.information_mass,
        )
        mask = batch.label_mask if term.mask_by_label else batch.valid[:, None].expand_as(batch.label_mask)
        options = InformationOptions(term.source, term.aggregate, term.task_weight, term.task_prior)
        return information_given_task(probability, mask, options, Reduction(reduce, world))

    def label_counts(self, batches: Sequence[Labels]) -> Tensor:
        """Labels per task ``[p]`` in float32 over the given micro-batches of this rank."""
        return torch.stack([self.label_mask(batch).sum(0) for batch in batches]).sum(0).float()
