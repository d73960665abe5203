"""The tasks' gradients at the last layer they share, and how much they disagree there.

Every gradient here comes from ``torch.autograd.grad`` and leaves ``.grad`` and the engine's hooks alone. The losses
must therefore come from a forward through ``engine.module``: the engine marks the outputs of its own forward for its
own backward. Parameters may be whole, experts sharded over the expert-parallel group, or partitioned by ZeRO-3: the
gradients that autograd hands out are whole there too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from m4oe_ds.errors import ConfigError
from m4oe_ds.layers.experts import ExpertWeights
from m4oe_ds.models.interface import MultiModalModel
from m4oe_ds.parallel import reduce

CONFLICT_THRESHOLD = 0.01  # on the cosine, as in the paper's figure


@dataclass(frozen=True)
class Conflict:
    """Agreement of the tasks' gradients at the shared layer.

    Attributes:
        tasks: tasks that had labels.
        cosines: ``[q, q]`` of their gradients averaged over the ranks; NaN for a zero one.
        conflict: share of the pairs with cosine < -t; NaN without a pair.
        neutral: share with -t <= cosine <= t, likewise.
        enhance: share with cosine > t, likewise.
        dimension: D of the gradients; those of unrelated tasks have cosines of standard deviation 1 / sqrt(D).
    """

    tasks: tuple[str, ...]
    cosines: Tensor
    conflict: float
    neutral: float
    enhance: float
    dimension: int

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON; undefined values are None."""
        rows = [[None if math.isnan(value) else value for value in row] for row in self.cosines.tolist()]
        shares = {name: getattr(self, name) for name in ("conflict", "neutral", "enhance")}
        return {
            "tasks": list(self.tasks),
            "cosines": rows,
            **{name: None if math.isnan(value) else value for name, value in shares.items()},
            "dimension": self.dimension,
        }


def gradient_conflict(
    task_losses: Mapping[str, Tensor], model: MultiModalModel, counts: Tensor, threshold: float = CONFLICT_THRESHOLD
) -> Conflict:
    """Pairwise cosines of the tasks' gradients at ``model.shared_layer()``; training is not disturbed.

    Args:
        task_losses: see :meth:`m4oe_ds.training.gradient_policy.GradientPolicy.weights`.
        model: see :meth:`m4oe_ds.training.gradient_policy.GradientPolicy.weights`.
        counts: see :meth:`m4oe_ds.training.gradient_policy.GradientPolicy.weights`.
        threshold: t, on the cosine.

    Collectives: those of :func:`shared_gradients`.
    """
    names, gradients = shared_gradients(task_losses, model, counts, partitioned=True)
    unit = gradients.double().cpu()
    unit = unit / unit.norm(dim=1, keepdim=True)  # 0 / 0 = NaN marks a task that does not reach the layer
    cosines = unit @ unit.T
    rows, columns = torch.triu_indices(len(names), len(names), 1)
    pairs = cosines[rows, columns]
    pairs = pairs[~pairs.isnan()]

    def share(chosen: Tensor) -> float:
        return float(chosen.double().mean()) if len(pairs) else math.nan

    shares = share(pairs < -threshold), share(pairs.abs() <= threshold), share(pairs > threshold)
    return Conflict(tuple(names), cosines, *shares, gradients.shape[1])


def shared_gradients(
    task_losses: Mapping[str, Tensor], model: MultiModalModel, counts: Tensor, *, partitioned: bool = False
) -> tuple[list[str], Tensor]:
    """Global gradient of every labelled task at the shared layer.

    Args:
        task_losses: see :meth:`m4oe_ds.training.gradient_policy.GradientPolicy.weights`.
        model: see :meth:`m4oe_ds.training.gradient_policy.GradientPolicy.weights`.
        counts: see :meth:`m4oe_ds.training.gradient_policy.GradientPolicy.weights`.
        partitioned: parameters may be partitioned by ZeRO-3; false for whoever goes on to change their gradients.

    Gradients are averaged before any norm or product is taken: the norm of a mean is not a mean of norms.

    Returns:
        Names of the q tasks with a label on any rank and their gradients ``[q, P]`` in float32; an expert's entries
        stand at its global id, whoever holds it.

    Raises:
        ConfigError: parameters partitioned by ZeRO-3 unless ``partitioned``, or a shared layer without trainable
            parameters.

    Collectives: one backward per task, one all-reduce of q * P numbers.
    """
    layer = model.shared_layer()
    places = _places(layer, partitioned)
    names = [name for name, count in zip(task_losses, counts.tolist(), strict=True) if count > 0]
    parameters = [parameter for parameter, _ in places]
    rows = []
    for name in names:
        found = torch.autograd.grad(task_losses[name], parameters, retain_graph=True, allow_unused=True)
        parts = []
        for gradient, (parameter, experts) in zip(found, places, strict=True):
            shape = getattr(parameter, "ds_shape", parameter.shape)  # a partitioned parameter is empty between its uses
            value = parameter.new_zeros(shape) if gradient is None else gradient
            value = value.float()
            if experts is not None:
                total, mine = experts
                whole = value.new_zeros(total, *value.shape[1:])
                whole[list(mine)] = value
                value = whole
            parts.append(value.flatten())
        rows.append(torch.cat(parts))
    if not rows:
        return [], torch.zeros(0, 0)
    return names, reduce.sum_over_ranks(torch.stack(rows)) / reduce.world_size()


def _places(layer: nn.Module, partitioned: bool) -> list[tuple[nn.Parameter, tuple[int, tuple[int, ...]] | None]]:
    """Trainable parameters of the layer; for sharded experts also (number of experts, global ids held here)."""
    experts: dict[int, tuple[int, tuple[int, ...]]] = {}
    for module in layer.modules():
        total = getattr(module, "num_experts", None)
        for child in module.children():
            if isinstance(child, ExpertWeights) and isinstance(total, int):
                experts.update({id(parameter): (total, child.expert_ids) for parameter in child.parameters()})
    places = [(p, experts.get(id(p))) for p in layer.parameters() if p.requires_grad]
    if not places:
        raise ConfigError("the shared layer has no trainable parameter", "loss.gradient_policy")
    if not partitioned and any(hasattr(parameter, "ds_id") for parameter, _ in places):
        raise ConfigError(
            "gradient calibration needs whole parameters", "zero_optimization.stage", "use ZeRO stage 0, 1 or 2"
        )
    return places
