"""Sums over the data-parallel ranks, handed in as a function: nothing here knows of process groups."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Reduce = Callable[[Tensor], Tensor]  # sum over the data-parallel ranks of a detached tensor


@dataclass(frozen=True)
class Reduction:
    """The data-parallel ranks whose micro-batches are one batch.

    The value is then that of the global batch on every rank, and the gradient is exact when the engine averages
    gradients over these ranks: local values carry it scaled by ``world``, the rest enters as a constant, so backward
    needs no collective.

    Attributes:
        reduce: sums a detached tensor over the ranks; None = this micro-batch is all there is.
        world: number of those ranks.
    """

    reduce: Reduce | None = None
    world: int = 1

    def total(self, local: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Both summed over the ranks; ``local`` keeps its gradient, times ``world``."""
        if self.reduce is None:
            return local, counts
        detached = torch.cat([local.detach().flatten(), counts])
        summed = self.reduce(detached)
        total = summed[: local.numel()].view_as(local)
        return self.world * local + (total - self.world * local.detach()), summed[local.numel() :]


ONE_RANK = Reduction()
