"""Which experts a task depends on, by a measure that needs no task slots: gradient times activation of expert outputs.

    a[k,j] = sum_b sum_s | sum_d  dL_k[b]/do[b,j,s,d]  o[b,j,s,d] |

o are the outputs of expert j, s its slots, L_k[b] the task's loss of sample b: to first order the change of the loss
when that slot's output is taken away. A plain Soft-MoE, whose slots serve all tasks, is judged by the same number as
M4oE.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from m4oe_ds.analysis.routing_statistics import expert_dependency
from m4oe_ds.data.batch import Batch
from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.errors import DataError
from m4oe_ds.layers import MToE, SoftMoE
from m4oe_ds.losses.discrete_time import discrete_time_likelihood
from m4oe_ds.models.interface import ModelOutput, ModelSpec


def mixture_of(model: nn.Module, layer: str) -> nn.Module:
    """The module that made ``ModelOutput.routing[layer]``.

    Raises:
        DataError: no such layer.
    """
    if layer == "mtoe":
        found: list[nn.Module] = [module for module in model.modules() if isinstance(module, MToE)]
    else:
        path, _, depth = layer.rpartition(".")
        found = [
            module
            for name, module in model.named_modules()
            if isinstance(module, SoftMoE) and name == f"{path}.blocks.{depth}.mlp"
        ]
    if not found:
        raise DataError(f"{type(model).__name__} has no mixture layer {layer!r}", fix="see ModelOutput.routing")
    return found[-1]


@contextmanager
def expert_outputs(mixture: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the outputs ``[rows, n, slots, d]`` of a mixture layer's experts in the forwards within."""
    layer: Any = mixture
    found: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        found.append(output)

    handle = layer.experts.register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


class ExpertTaskSums:
    """Running sum of a[k,j] over batches.

    Args:
        spec: specification of the model.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.labels = np.zeros(len(spec.tasks))
        self._sums: Tensor | None = None  # [p, n]

    def add(self, batch: Batch, output: ModelOutput, outputs: list[Tensor]) -> None:
        """Adds the labelled samples of a batch; the graph of ``output`` is kept.

        Args:
            outputs: what :func:`expert_outputs` noted in the forward that made ``output``.
        """
        experts = outputs[0].shape[1]
        if self._sums is None:
            self._sums = torch.zeros(len(self.spec.tasks), experts, dtype=torch.float64)
        for k, task in enumerate(self.spec.tasks):
            known = batch.label_mask[:, k] & batch.valid
            count = int(known.sum())
            if not count:
                continue
            loss = _loss(task, output.logits[task.name].float(), batch.labels[task.name], known)
            gradients = torch.autograd.grad(loss, outputs, retain_graph=True, allow_unused=True)
            for o, g in zip(outputs, gradients, strict=True):
                if g is not None:
                    self._sums[k] += (o.detach().double() * g.double()).sum(3).abs().sum((0, 2)).cpu()
            self.labels[k] += count

    def result(self) -> dict[str, Any]:
        """``dependency_jk`` (mean per labelled sample) and
        :func:`m4oe_ds.analysis.routing_statistics.expert_dependency`.

        Raises:
            DataError: no labelled sample was added.
        """
        if self._sums is None or not self.labels.any():
            raise DataError("no labelled sample", "expert-task dependency", "choose a split with labels")
        mean = self._sums.T.numpy() / np.maximum(self.labels, 1.0)  # [n, p]
        return {
            "tasks": self.spec.task_names,
            "labels_k": self.labels,
            "dependency_jk": mean,
            **expert_dependency(mean),
        }


def _loss(task: TaskSpec, logits: Tensor, labels: Tensor, known: Tensor) -> Tensor:
    """Sum over the known samples of the cross-entropy (for masks: mean over the pixels), or of the censored likelihood.

    For a number it is the standardised answer itself, which does not vanish where the answer happens to be right.
    """
    if task.kind == "number":
        return logits[known].sum()
    if task.kind == "survival":
        return discrete_time_likelihood(logits, labels, known, task.horizons).sum
    if task.dense:
        return (
            functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="none")
            .flatten(1)
            .mean(1)[known]
            .sum()
        )
    return functional.cross_entropy(logits[known], labels[known], reduction="sum")
