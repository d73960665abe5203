"""Censored loss of cumulative risks: binary cross-entropy up to the event (Mirai; Yala et al., 2021)."""

from __future__ import annotations

import torch
from torch import Tensor

from m4oe_ds.data.schema import follow_ups
from m4oe_ds.losses.inputs import Labels
from m4oe_ds.losses.model_loss import ModelLoss


def until_event(labels: Tensor, known: Tensor) -> Tensor:
    """Which horizons count: all known ones up to and including the first with a positive label.

    Args:
        labels: ``[B, F]`` in {-1, 0, 1}, horizons ascending.
        known: ``[B, F]`` bool.

    Returns:
        ``[B, F]`` bool. Cancer in the third year: 1, 1, 1, 0, 0; three years of negative follow-up: 1, 1, 1, 0, 0.
    """
    positive = (labels == 1) & known
    earlier = positive.cumsum(1) - positive.long()
    return known & (earlier == 0)


class HazardLoss(ModelLoss):
    """Leaves out risk labels after the event: the additive hazards make later horizons follow.

    The loss of a horizon stays the cross-entropy of [0, logit_t], which is the binary cross-entropy of logit_t. Each
    horizon is averaged over its own labelled samples, as for every model here; the original averages over all horizons
    at once.
    """

    def mask(self, batch: Labels) -> Tensor:
        """See :class:`m4oe_ds.losses.model_loss.ModelLoss`."""
        names = [task.name for task in self.tasks]
        mask = batch.label_mask
        for several in follow_ups(self.tasks).values():
            columns = [names.index(task.name) for task in several]
            labels = torch.stack([batch.labels[task.name] for task in several], 1)
            mask = mask.clone()
            mask[:, columns] = until_event(labels, mask[:, columns])
        return mask
