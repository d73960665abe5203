"""Ordinal regression: one binary question per threshold, P(y >= c) (McCullagh 1980; cumulative logits)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from m4oe_ds.layers.extras import ORDINAL
from m4oe_ds.losses.inputs import Labels, Output
from m4oe_ds.losses.model_loss import Generic, ModelLoss
from m4oe_ds.losses.tasks import LossParts


def ordinal_loss(cumulative: Tensor, labels: Tensor) -> Tensor:
    """Mean over the thresholds of the binary cross-entropy of y >= c.

    Args:
        cumulative: logits of P(y >= 1) .. P(y >= K-1), ``[B, K-1]``.
        labels: ``[B]`` classes 0..K-1.

    Returns:
        ``[B]`` float32.
    """
    thresholds = torch.arange(1, cumulative.shape[1] + 1, device=labels.device)
    target = (labels[:, None] >= thresholds).float()
    return functional.binary_cross_entropy_with_logits(cumulative.float(), target, reduction="none").mean(1)


class OrdinalLoss(ModelLoss):
    """Ordinal loss of every task whose model gives ``extras["ordinal.<task>"]`` ``[B, K-1]``; class weights do not
    enter.
    """

    def parts(self, output: Output, batch: Labels, mask: Tensor, generic: Generic) -> dict[str, LossParts]:
        """See :class:`m4oe_ds.losses.model_loss.ModelLoss`."""
        found = {}
        for k, task in enumerate(self.tasks):
            cumulative = output.extras.get(ORDINAL.of(task.name))
            if cumulative is None:
                continue
            keep = mask[:, k]
            rows = ordinal_loss(cumulative, torch.where(keep, batch.labels[task.name], 0))
            found[task.name] = LossParts(torch.where(keep, rows, 0.0).sum(), keep.sum().to(rows.dtype))
        return found
