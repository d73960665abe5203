"""One optimizer step: global label counts first, then one backward per micro-batch.

DeepSpeed averages the losses of the ranks with equal weight and divides by the accumulation steps. With missing labels
ranks hold different numbers of labels, so each task's loss sum is multiplied by (ranks * accumulation steps) and
divided by the global label count: what the engine then averages is exactly the mean over all labelled samples of the
step.
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

PLAIN_SUM = GradientPolicy()


@dataclass
class StepReport:
    """Figures of one optimizer step, still on the device and local to this rank; :meth:`collect` makes them global.

    Attributes:
        loss_sums: ``[p]`` sums of the task losses on this rank.
        counts: ``[p]`` labels over all ranks.
        information: ``[]`` mutual information in nats, averaged over the micro-batches, equal on all ranks.
        aux: ``[]`` auxiliary losses of this rank.
        has_information: the model has task-slotted routing.
        grad_norm: norm of the whole gradient before clipping, None where the engine does not know it.
        conflict: agreement of the tasks' gradients, where it was measured.
        task_weights: task weights of a gradient policy that measures.
        routing: sums of this rank by mixture layer (:func:`m4oe_ds.layers.statistics.routing_sums`), if ``observe``.
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
        """Spread of every mixture layer over all ranks: ``routing`` (figures) and ``expert_share`` (per expert)."""
        if not self.routing:
            return {}
        lengths = [len(values) for values in self.routing.values()]
        total = reduce.sum_over_ranks(torch.cat(list(self.routing.values()))).cpu()
        sums = dict(zip(self.routing, total.split(lengths), strict=True))
        shares = {name: (values[3:] / values[0].clamp_min(1)).tolist() for name, values in sums.items()}
        return {"routing": routing_figures(sums), "expert_share": shares}


@dataclass(frozen=True)
class _Probe:
    """What a separate forward showed before the one that trains; empty where nothing is measured.

    Attributes:
        output: output of the unwrapped model.
        losses: task losses whose mean over the ranks is the global mean, with their graphs.
        agreement: agreement of the tasks' gradients.
        task_weights: task weights of the gradient policy.
    """

    output: ModelOutput | None = None
    losses: dict[str, Tensor] | None = None
    agreement: Conflict | None = None
    task_weights: dict[str, float] | None = None


@dataclass
class _Sums:
    """What the micro-batches of a step add up to on this rank: see :class:`StepReport`."""

    losses: Tensor
    information: Tensor
    aux: Tensor
    has_information: bool = False

    def report(
        self,
        counts: Tensor,
        grad_norm: float | None,
        conflict: Conflict | None,
        task_weights: dict[str, float] | None,
        routing: dict[str, Tensor] | None,
    ) -> StepReport:
        """The report of the step, once all its micro-batches are added."""
        return StepReport(
            loss_sums=self.losses,
            counts=counts,
            information=self.information,
            aux=self.aux,
            has_information=self.has_information,
            grad_norm=grad_norm,
            conflict=conflict,
            task_weights=task_weights,
            routing=routing,
        )


def train_step(
    engine: Any,
    batches: Sequence[Batch],
    objective: Objective,
    dtype: torch.dtype,
    *,
    policy: GradientPolicy = PLAIN_SUM,
    conflict: bool = False,
    observe: bool = False,
    where: str = "training step",
) -> StepReport:
    """Forward, backward and optimizer step over this rank's micro-batches of one step.

    Args:
        engine: DeepSpeed engine in training mode.
        batches: one per accumulation step, equal sizes on all ranks.
        objective: the loss that is trained.
        dtype: dtype of the views.
        policy: how task gradients are put together.
        conflict: also measure the agreement of the tasks' gradients. For this, as for a policy that measures, a
            separate forward is run, so that what is trained does not depend on being measured.
        observe: also sum up how the mixture layers spread the last micro-batch.
        where: what errors call this step.

    Raises:
        UserError: the loss of any rank is not finite, raised on all ranks before the weights change; or the gradient
            norm is not. With fp16 the loss scaler skips such steps instead.

    Collectives: one all-reduce of the label counts, one of the modality masses per micro-batch, one of a flag, and the
        engine's own; every rank must call it, also one without any label.
    """
    device, world, accumulation = engine.device, reduce.world_size(), len(batches)
    counts = reduce.sum_over_ranks(objective.label_counts(batches).to(device))  # [p]
    scale = world * accumulation / counts.clamp_min(1.0)  # [p]
    zero = torch.zeros((), device=device)
    sums = _Sums(torch.zeros(len(objective.tasks), device=device), zero.clone(), zero.clone())
    agreement, task_weights, routing = None, None, None
    losses: list[Tensor] = []
    for number, batch in enumerate(batches):
        batch = batch.to(device, dtype)
        last = number + 1 == accumulation
        probe = _probe(engine, objective, batch, scale, counts, policy, conflict and number == 0)
        agreement, task_weights = probe.agreement or agreement, probe.task_weights
        with phase(FORWARD), engine.module.inner_level(reduce.sum_over_ranks):
            output = engine(batch)
        if observe and last:
            routing = {name: routing_sums(layer, batch.valid) for name, layer in output.routing.items()}
        loss = _micro_loss(objective, output, batch, _task_scale(policy, probe, output, scale), sums, accumulation)
        losses.append(loss.detach())
        with phase(BACKWARD):
            engine.backward(loss)
        if last and not engine.fp16_enabled():
            stop_if_bad(engine.module, batches, losses, where)
        with phase(OPTIMIZER):
            engine.step()
    return sums.report(counts, _gradient_norm(engine, where), agreement, task_weights, routing)


def _probe(
    engine: Any,
    objective: Objective,
    batch: Batch,
    scale: Tensor,
    counts: Tensor,
    policy: GradientPolicy,
    conflict: bool,
) -> _Probe:
    """Measures the task gradients of a micro-batch, if the policy or the log asks for it."""
    if not (policy.measures or conflict):
        return _Probe()
    output = engine.module(batch)
    losses = _scaled(objective, output, batch, scale)
    agreement = gradient_conflict(losses, engine.module, counts) if conflict else None
    weights = policy.weights(losses, engine.module, output, counts) if policy.measures else None
    return _Probe(output, losses, agreement, weights)


def _task_scale(policy: GradientPolicy, probe: _Probe, output: ModelOutput, scale: Tensor) -> Tensor:
    """Factors ``[p]`` of the task loss sums: those of the mean, times what the policy leaves for the losses."""
    if probe.task_weights is None or probe.output is None or probe.losses is None:
        return scale
    left = policy.spread(probe.task_weights, probe.output, output)
    policy.calibrate(_total(probe.losses, left), probe.output, output)
    return scale * torch.tensor([left[name] for name in probe.losses], device=scale.device)


def _micro_loss(
    objective: Objective, output: ModelOutput, batch: Batch, scale: Tensor, sums: _Sums, accumulation: int
) -> Tensor:
    """The scalar that one micro-batch sends backward; its detached parts are added to ``sums``."""
    local = torch.stack([part.sum for part in objective.task_parts(output, batch).values()])  # [p]
    sums.losses += local.detach()
    loss = (local * scale).sum()
    # Skipping the term at alpha = 0 must not skip its collective: every rank has the same alpha, so all skip or none.
    with torch.set_grad_enabled(objective.information.alpha != 0):
        term = objective.mutual_information(output, batch, reduce.sum_over_ranks, reduce.world_size())
    if term is not None:
        sums.has_information = True
        sums.information += term.detach() / accumulation
        if objective.information.alpha != 0:
            loss = loss - objective.information.alpha * term
    for value in output.aux.values():
        sums.aux += value.detach() / accumulation
        loss = loss + value
    return loss


def _gradient_norm(engine: Any, where: str) -> float | None:
    """Norm of the whole gradient before clipping, None where the engine does not know it.

    Raises:
        UserError: it is not finite, and no loss scaler deals with that.
    """
    norm = engine.get_global_grad_norm()
    norm = None if norm is None else float(norm)
    if norm is not None and not math.isfinite(norm) and not engine.fp16_enabled():
        raise UserError(
            f"the gradient norm is {norm} although every loss is finite",
            where,
            "resume from the last checkpoint with --set run.detect_anomaly=true, which names the operation",
        )
    return norm


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
