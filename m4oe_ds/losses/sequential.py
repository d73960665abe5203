"""Loss of a model that answers after every step: the mean over the steps (MultiModN; Swamy et al., NeurIPS 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from m4oe_ds.layers.extras import STEP_LOGITS, STEPS
from m4oe_ds.losses.inputs import Labels, Output
from m4oe_ds.losses.model_loss import Generic, ModelLoss
from m4oe_ds.losses.tasks import LossParts


class SequentialLoss(ModelLoss):
    """Configured loss of a task, averaged over the steps that a sample took, the state before any step included.

    Reads ``extras["step_logits.<task>"] [m+1, B, C]`` and ``extras["steps"] [m+1, B]``, True where a step was taken.
    Without them (an MToE in place of the sequence) the configured loss stays. Adapted: a sample is averaged over its
    own steps, where the original divides by m + 1 whatever is missing; tasks add up as for every model here, where the
    original divides by their number too.
    """

    def parts(self, output: Output, batch: Labels, mask: Tensor, generic: Generic) -> dict[str, LossParts]:
        """See :class:`m4oe_ds.losses.model_loss.ModelLoss`."""
        found: dict[str, LossParts] = {}
        for k, task in enumerate(self.tasks):
            steps = output.extras.get(STEP_LOGITS.of(task.name))
            if steps is None:
                continue
            labels, keep, taken = batch.labels[task.name], mask[:, k], output.extras[STEPS]
            number = taken.sum(0)  # [B]
            total = steps.new_zeros((), dtype=torch.float32)
            # the configured loss gives sums over samples, so samples of equal step number share one factor
            for count in range(1, len(taken) + 1):
                rows = keep & (number == count)
                for step in range(len(taken)):
                    part = generic(task.name, steps[step], labels, rows & taken[step])
                    total = total + part.sum / count
            found[task.name] = LossParts(total, keep.sum().to(total.dtype))
        return found
