"""One optimizer step: global label counts first, then one backward per micro-batch.

DeepSpeed averages the losses of the ranks with equal weight and divides by the accumulation steps. With missing labels
ranks hold different numbers of labels, so each task's loss sum is multiplied by (ranks * accumulation steps) and divided
by the global label count: what the engine then averages is exactly the mean over all labelled samples of the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from m4oe_ds.data.batch import Batch
from m4oe_ds.errors import UserError
from m4oe_ds.layers.statistics import routing_figures, routing_sums
from m4oe_ds.losses.objective import Objective
from m4oe_ds.models.interface import ModelOutput
from m4oe_ds.parallel import reduce
from m4oe_ds.training.finite import stop_if_bad
from m4oe_ds.training.gradient_policy import GradientPolicy
from m4oe_ds.training.profiling import BACKWARD, FORWARD, OPTIMIZER, phase
from m4oe_ds.training.shared_gradients import Conflict, gradient_conflict


@dataclass
class StepReport:
    """Figures of one optimizer step, still on the device and local to this rank; :meth:`collect` makes them global.

    Attributes:
        loss_sums: ``[p]`` sums of the task losses on this rank. counts: ``[p]`` labels over all ranks.
        information: ``[]`` mutual information in nats, averaged over the micro-batches, equal on all ranks.
        aux: ``[]`` weighted auxiliary losses of this rank.
        has_information: the model has task-slotted routing.
        conflict: agreement of the tasks' gradients, if it was asked for. task_weights: of the gradient policy.
        routing: sums of this rank by mixture layer (:func:`m4oe_ds.layers.statistics.routing_sums`), if asked for.
    """

    loss_sums: Tensor
    counts: Tensor
    information: Tensor
    aux: Tensor
    has_information: bool
    grad_norm: float | None
    conflict: Conflict | None = None
    task_weights: dict[str, float] | None = None
    routing: dict[str, Tensor] | None = None

    def collect(self, objective: Objective) -> dict[str, Any]:
        """Global figures: ``loss`` (the objective's value), ``losses`` per task (None without labels), ``mi``.

        Collectives: one all-reduce of p + 1 numbers over all ranks, and one of the routing sums.
        """
        packed = torch.cat([self.loss_sums, self.aux.reshape(1) / reduce.world_size()])
        packed = reduce.sum_over_ranks(packed.double()).cpu()
        counts = self.counts.double().cpu()
        losses: dict[str, float | None] = {}
        total = float(packed[-1])
        for k, task in enumerate(objective.tasks):
            losses[task.name] = float(packed[k] / counts[k]) if counts[k] > 0 else None
            total += losses[task.name] or 0.0
        information = float(self.information)
        total -= objective.information.alpha * information
        return {
            "loss": total,
            "losses": losses,
            "mi": information if self.has_information else None,
            "labels": {task.name: int(counts[k]) for k, task in enumerate(objective.tasks)},
            "grad_norm": self.grad_norm,
            **self.routing_statistics(),
            **({} if self.conflict is None else {"gradient_conflict": self.conflict.as_dict()}),
            **({} if self.task_weights is None else {"task_weights": self.task_weights}),
        }

    def routing_statistics(self) -> dict[str, Any]:
        """Spread of every mixture layer over all ranks, under ``routing`` (figures) and ``expert_share`` (per expert)."""
        if not self.routing:
            return {}
        lengths = [len(values) for values in self.routing.values()]
        total = reduce.sum_over_ranks(torch.cat(list(self.routing.values()))).cpu()
        sums = dict(zip(self.routing, total.split(lengths), strict=True))
        shares = {name: (values[3:] / values[0].clamp_min(1)).tolist() for name, values in sums.items()}
        return {"routing": routing_figures(sums), "expert_share": shares}


def train_step(
    engine: Any,
    batches: Sequence[Batch],
    objective: Objective,
    dtype: torch.dtype,
    *,
    policy: GradientPolicy | None = None,
    conflict: bool = False,
    observe: bool = False,
    where: str = "training step",
) -> StepReport:
    """Forward, backward and optimizer step over this rank's micro-batches of one step.

    Args:
        engine: DeepSpeed engine in training mode. batches: one per accumulation step, equal sizes on all ranks.
        objective: the loss. dtype: of the views.
        policy: how task gradients are put together; None = their sum. conflict: also measure their agreement.
            Both look at a forward of their own, so that what is trained does not depend on being measured.
        observe: also sum up how the mixture layers spread the last micro-batch. where: what errors call this step.

    Raises:
        UserError: the loss of any rank is not finite, raised on all ranks before the weights change; or the gradient
            norm is not. With fp16 the loss scaler skips such steps instead.

    Collectives: one all-reduce of the label counts, one of the modality masses per micro-batch, one of a flag, and the
        engine's own; every rank must call it, also one without any label.
    """
    device, world, accumulation = engine.device, reduce.world_size(), len(batches)
    counts = reduce.sum_over_ranks(objective.label_counts(batches).to(device))  # [p]
    scale = world * accumulation / counts.clamp_min(1.0)  # [p]
    sums = torch.zeros(len(objective.tasks), device=device)
    information, aux_total = torch.zeros((), device=device), torch.zeros((), device=device)
    has_information = False
    agreement, task_weights, routing = None, None, None
    losses: list[Tensor] = []
    scaled = bool(engine.fp16_enabled())
    for number, batch in enumerate(batches):
        batch = batch.to(device, dtype)
        probe = None
        if policy is not None or (conflict and number == 0):
            probe = engine.module(batch)
            task_losses = _scaled(objective, probe, batch, scale)
            if conflict and number == 0:
                agreement = gradient_conflict(task_losses, engine.module, counts)
            if policy is not None:
                task_weights = policy.weights(task_losses, engine.module, probe, counts)
        with phase(FORWARD), engine.module.inner_level(reduce.sum_over_ranks):
            output = engine(batch)
        if observe and number + 1 == accumulation:
            routing = {name: routing_sums(layer, batch.valid) for name, layer in output.routing.items()}
        local = torch.stack([part.sum for part in objective.task_parts(output, batch).values()])  # [p]
        weight = scale
        if policy is not None and probe is not None and task_weights is not None:
            left = policy.spread(task_weights, probe, output)
            weight = scale * torch.tensor([left[task.name] for task in objective.tasks], device=device)
            policy.calibrate(_total(task_losses, left), probe, output)
        loss = (local * weight).sum()
        # Skipping the term at alpha = 0 must not skip its collective: every rank has the same alpha, so all skip or none.
        with torch.set_grad_enabled(objective.information.alpha != 0):
            term = objective.mutual_information(output, batch, reduce.sum_over_ranks, world)
        if term is not None:
            has_information = True
            information += term.detach() / accumulation
            if objective.information.alpha != 0:
                loss = loss - objective.information.alpha * term
        for value in output.aux.values():
            aux_total += value.detach() / accumulation
            loss = loss + value
        losses.append(loss.detach())
        with phase(BACKWARD):
            engine.backward(loss)
        sums += local.detach()
        if number + 1 == accumulation and not scaled:
            stop_if_bad(engine.module, batches, losses, where)
        with phase(OPTIMIZER):
            engine.step()
    norm = engine.get_global_grad_norm()
    norm = None if norm is None else float(norm)
    if norm is not None and not math.isfinite(norm) and not scaled:
        raise UserError(
            f"the gradient norm is {norm} although every loss is finite",
            where,
            "resume from the last checkpoint with --set run.detect_anomaly=true, which names the operation",
        )
    return StepReport(
        sums,
        counts,
        information,
        aux_total,
        has_information,
        norm,
        agreement,
        task_weights,
        routing,
    )


def _scaled(objective: Objective, output: ModelOutput, batch: Batch, scale: Tensor) -> dict[str, Tensor]:
    """Task losses whose mean over the ranks is the global mean."""
    parts = objective.task_parts(output, batch)
    return {name: part.sum * scale[k] for k, (name, part) in enumerate(parts.items())}


def _total(losses: dict[str, Tensor], weights: dict[str, float]) -> Tensor:
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


def check_finite(figures: dict[str, Any], step: int) -> None:
    """Stops the run when a logged figure is not a number.

    Raises:
        UserError: names the step and the figure.
    """
    named = {"loss": figures["loss"], "mi": figures["mi"]}
    named.update({f"loss of {task}": value for task, value in figures["losses"].items()})
    for name, value in named.items():
        if value is not None and not math.isfinite(value):
            raise UserError(
                f"{name} is {value}", f"step {step}", "lower the learning rate, or resume from the last checkpoint"
            )
