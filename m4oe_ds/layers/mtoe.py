"""Modality-task mixture of experts: one slot per (expert, task), one output stream per task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from m4oe_ds.layers.experts import ExpertsFactory, LocalExperts
from m4oe_ds.layers.routing import DEFAULT_ROUTER, Router, RouterOptions, Routing


class MToE(nn.Module):
    """Modality-task Soft-MoE layer (M4oE section 3.2, eq. 1 and 2).

    slot[b,j,k] = sum_t D[b,t,j,k] x[b,t] + task_embed[k]
    y[b,k,t]    = sum_j C[b,t,j,k] f_j(slot[b,j,k])        slot k of every expert belongs to task k

    C is normalised over all n*p slots of a token, so the weights used for one task sum to less than 1 (about 1/p at
    initialisation); ``combine="per_task"`` renormalises them to 1 (resolution A5 in docs/decisions/0001).

    Args:
        dim: token width d.
        num_experts: n.
        num_tasks: p.
        hidden: hidden width of an expert; default 4 d.
        experts_factory: makes the executor; default keeps all experts in this process.
        task_embed_std: standard deviation of the initial task embeddings; 0 = zeros as in the authors' release.
        router: options of the layer's router.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        num_tasks: int,
        *,
        hidden: int | None = None,
        experts_factory: ExpertsFactory = LocalExperts,
        task_embed_std: float = 0.0,
        router: RouterOptions = DEFAULT_ROUTER,
    ) -> None:
        super().__init__()
        self.router = Router(dim, num_experts, num_tasks, router)
        self.task_embed = nn.Parameter(torch.zeros(num_tasks, dim))  # [p, d], shared by the experts
        if task_embed_std > 0:
            nn.init.normal_(self.task_embed, std=task_embed_std)
        self.experts = experts_factory(num_experts, dim, hidden or 4 * dim)

    def forward(
        self, tokens: Tensor, token_mask: Tensor | None = None, segments: Sequence[int] | None = None
    ) -> tuple[Tensor, Routing]:
        """Task outputs ``[B, p, M, d]`` in the dtype of the tokens, and the routing ``[B, M, n, p]``.

        Args:
            tokens: ``[B, M, d]``, the tokens of all modalities concatenated.
            token_mask: ``[B, M]`` bool, True = token takes part (False for tokens of an absent modality).
            segments: numbers of tokens of each modality, adjacent and in order; with them the routing carries the
                modality mass that I(M;E|T) is made of.

        Raises:
            ShapeError: width or mask do not match.

        Numerics: weights are computed in float32; masked tokens neither contribute nor receive (exact zeros).
        """
        routing, slots, combine = self.router.mix(tokens, token_mask, segments)
        return combine(self.experts(slots + self.task_embed)), routing
