"""How the gradients of several tasks are put together.

``sum`` adds the task losses as they are. ``calibrated`` reconstructs the multi-level gradient calibration of FULLER
(Huang et al., ICCV 2023) from its abstract: the tasks' gradients at the last shared layer are brought to one level
(``norm``) or to equal projections (``imtl_g``; Liu et al., ICLR 2021), then the gradients that enter the modality
branches are brought to one level. The heads keep their own gradients: weights act from the shared layer down, where the
model shows its output for every task; else they multiply the losses. What is level is the branch gradient of a
micro-batch.

Gradients are measured as :mod:`m4oe_ds.training.shared_gradients` says, with the same demands on losses and parameters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from m4oe_ds import free_options
from m4oe_ds.config import CalibratedOptions
from m4oe_ds.errors import CheckpointError, ConfigError
from m4oe_ds.layers.extras import FEATURES, SHARED
from m4oe_ds.models.interface import ModelOutput, MultiModalModel
from m4oe_ds.parallel import reduce
from m4oe_ds.training.shared_gradients import shared_gradients

SCALE_RANGE = (0.1, 10.0)  # of the branch scales
_EPSILON = 1e-12

Rule = Literal["norm", "imtl_g"]


class GradientPolicy:
    """Task weights and branch scales of one micro-batch; the plain sum unless a subclass says otherwise.

    Attributes:
        measures: whether a separate forward, from which :meth:`weights` are found, is run before the one that trains.
    """

    measures = False

    def weights(
        self, task_losses: Mapping[str, Tensor], model: MultiModalModel, output: ModelOutput, counts: Tensor
    ) -> dict[str, float]:
        """Factor of every task's loss, equal on all ranks.

        Args:
            task_losses: scalar per task, in the order of ``counts``, scaled so that the mean over the ranks is the
                global mean; with their graphs.
            model: the model without the engine around it.
            output: output of ``model``.
            counts: ``[p]`` labels of the step over all ranks.
        """
        return dict.fromkeys(task_losses, 1.0)

    def spread(self, weights: Mapping[str, float], *outputs: ModelOutput) -> dict[str, float]:
        """Makes coming backwards from ``outputs`` weigh the tasks below their heads; returns what is left for the
        losses.
        """
        return dict(weights)

    def calibrate(self, loss: Tensor, output: ModelOutput, trained: ModelOutput | None = None) -> dict[str, float]:
        """Makes the coming backward of ``loss`` scale the gradient of each modality branch; returns the scales."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores :meth:`state_dict`.

        Raises:
            CheckpointError: the state is another policy's.
        """
        if state:
            raise CheckpointError(f"gradient policy 'sum' has no state, the checkpoint has {sorted(state)}")


class CalibratedPolicy(GradientPolicy):
    """FULLER's two levels of calibration.

    ``norm``: w_k = c / ||g_k|| with c the mean norm over the tasks, smoothed over the steps.
    ``imtl_g``: (w_2 .. w_p) = g_1 U^T (D U^T)^-1, w_1 = 1 - sum; D rows g_1 - g_k, U rows u_1 - u_k, u_k = g_k /
    ||g_k||.

    Args:
        rule: one of the two.
        momentum: momentum of the smoothing.
        normalise: rescale the ``norm`` weights to sum to the number of tasks; the smoothing then cancels.
        branches: calibrate the modality branches as well.
        weighted_heads: weigh the losses, and so the heads too.
    """

    measures = True

    def __init__(
        self,
        rule: Rule = "norm",
        *,
        momentum: float = 0.9,
        normalise: bool = True,
        branches: bool = True,
        weighted_heads: bool = False,
    ) -> None:
        self.rule, self.momentum, self.normalise, self.branches = rule, momentum, normalise, branches
        self.weighted_heads = weighted_heads
        self.mean_norm: float | None = None

    def weights(
        self, task_losses: Mapping[str, Tensor], model: MultiModalModel, output: ModelOutput, counts: Tensor
    ) -> dict[str, float]:
        """See :class:`GradientPolicy`; a task without labels anywhere, or without a gradient, keeps weight 1.

        Collectives: those of one backward per labelled task down to the shared layer (expert parallelism only), then
            one all-reduce of the stacked gradients. Every rank must call it with the same counts.
        """
        weights = dict.fromkeys(task_losses, 1.0)
        names, gradients = shared_gradients(task_losses, model, counts)
        if not names:
            return weights
        gram = (gradients.double() @ gradients.double().T).cpu()
        useful = [k for k in range(len(names)) if math.isfinite(float(gram[k, k])) and float(gram[k, k]) > _EPSILON**2]
        if not useful:
            return weights
        gram = gram[useful][:, useful]
        if self.rule == "imtl_g":
            found = equal_projection_weights(gram)
        else:
            norms = gram.diagonal().sqrt()
            level = float(norms.mean())
            self.mean_norm = (
                level if self.mean_norm is None else self.momentum * self.mean_norm + (1.0 - self.momentum) * level
            )
            found = self.mean_norm / norms
            if self.normalise:
                found = found * len(useful) / found.sum()
        weights.update({names[k]: float(weight) for k, weight in zip(useful, found, strict=True)})
        return weights

    def spread(self, weights: Mapping[str, float], *outputs: ModelOutput) -> dict[str, float]:
        """See :class:`GradientPolicy`; all weights are left for the losses of a model that does not show
        ``shared.<task>``.
        """
        if self.weighted_heads or any(SHARED.of(name) not in o.extras for o in outputs for name in weights):
            return dict(weights)
        for output in outputs:
            for name, weight in weights.items():
                output.extras[SHARED.of(name)].register_hook(_Scale(weight))
        return dict.fromkeys(weights, 1.0)

    def calibrate(self, loss: Tensor, output: ModelOutput, trained: ModelOutput | None = None) -> dict[str, float]:
        """Measures ||dL/dX_i|| over the global micro-batch and hangs the scales mean / own norm on the features X_i.

        The norms come from a separate backward; the hooks that act in the coming backward only multiply by a known
        number, so no collective depends on the order in which autograd reaches the branches.

        Args:
            loss: the loss about to be differentiated, after :meth:`spread`.
            output: a model output with ``extras["features.<modality>"]``.
            trained: the output whose backward is to be scaled, if it comes from another forward than ``output``.

        Collectives: those of one backward down to the features, then one all-reduce of m numbers.

        Raises:
            ConfigError: the model does not offer its features.
        """
        if not self.branches:
            return {}
        features = {name: value for name, value in FEATURES.read(output.extras).items() if value.requires_grad}
        if not features:
            raise ConfigError("this model offers no modality features to calibrate", fix="set branches: false")
        found = torch.autograd.grad(loss, list(features.values()), retain_graph=True, allow_unused=True)
        squares = torch.stack([loss.new_zeros(()).double() if g is None else g.double().square().sum() for g in found])
        scales = branch_scales(reduce.sum_over_ranks(squares).sqrt().tolist())
        for name, scale in zip(features, scales, strict=True):
            (trained or output).extras[FEATURES.of(name)].register_hook(_Scale(scale))
        return dict(zip(features, scales, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """The smoothed mean norm."""
        return {"rule": self.rule, "mean_norm": self.mean_norm}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores :meth:`state_dict`.

        Raises:
            CheckpointError: the state is another policy's.
        """
        if state.get("rule") != self.rule or "mean_norm" not in state:
            raise CheckpointError(f"gradient policy is calibrated/{self.rule}, the checkpoint's state is {dict(state)}")
        self.mean_norm = state["mean_norm"]


@dataclass(frozen=True)
class _Scale:
    """Gradient hook that multiplies."""

    factor: float

    def __call__(self, gradient: Tensor) -> Tensor:
        return gradient * self.factor


def equal_projection_weights(gram: Tensor) -> Tensor:
    """IMTL-G weights ``[q]`` from the tasks' Gram matrix ``[q, q]``: the projections of sum_k w_k g_k on all u_k are
    equal.

    Weights sum to 1 and may be negative; where gradients are parallel the smallest solution is taken.
    """
    if len(gram) == 1:
        return torch.ones_like(gram[0])
    gram = gram.double()
    inverse = 1.0 / gram.diagonal().sqrt()
    onto_unit = gram * inverse  # [q, q]: g_a . u_b
    difference = onto_unit[:, :1] - onto_unit[:, 1:]  # [q, q-1]: g_a . (u_1 - u_b)
    system = difference[:1] - difference[1:]  # D U^T
    rest = difference[0] @ torch.linalg.pinv(system)
    return torch.cat([1.0 - rest.sum(dim=0, keepdim=True), rest])


def branch_scales(norms: list[float]) -> list[float]:
    """Scales that bring branch gradients to their mean norm, within ``SCALE_RANGE``; one without gradient keeps 1."""
    used = [norm for norm in norms if math.isfinite(norm) and norm > _EPSILON]
    if not used:
        return [1.0] * len(norms)
    level = sum(used) / len(used)
    low, high = SCALE_RANGE
    return [min(max(level / norm, low), high) if math.isfinite(norm) and norm > _EPSILON else 1.0 for norm in norms]


def policy(name: str, **options: Any) -> GradientPolicy:
    """The policy ``sum`` or ``calibrated``; options of the latter: those of :class:`CalibratedPolicy`.

    Raises:
        ConfigError: unknown name, rule or option.
    """
    where = "loss.gradient_policy"
    if name == "sum":
        if options:
            raise ConfigError(f"gradient policy sum has no options, got {sorted(options)}", where)
        return GradientPolicy()
    if name != "calibrated":
        raise ConfigError(f"unknown gradient policy {name!r}", where, "known: calibrated, sum")
    for option, what in free_options.problems(CalibratedOptions, options):
        raise ConfigError(f"{option} {what}", "loss.gradient_options")
    return CalibratedPolicy(**options)
