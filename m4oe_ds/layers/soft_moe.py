"""Soft mixture of experts: every expert sees weighted averages of all tokens, every token gets one of all outputs."""

from __future__ import annotations

from torch import Tensor, nn

from m4oe_ds.layers.experts import ExpertsFactory, LocalExperts
from m4oe_ds.layers.routing import DEFAULT_ROUTER, Router, RouterOptions, Routing


class SoftMoE(nn.Module):
    """Soft-MoE layer (M4oE section 3.1; Puigcerver et al., 2024).

    slot[b,j,k] = sum_t D[b,t,j,k] x[b,t];   y[b,t] = sum_{j,k} C[b,t,j,k] f_j(slot[b,j,k])

    Args:
        dim: token width d.
        num_experts: n.
        slots_per_expert: slots each expert processes per sample.
        hidden: hidden width of an expert; default 4 d.
        experts_factory: makes the executor; default keeps all experts in this process.
        router: options of the layer's router.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        slots_per_expert: int = 1,
        *,
        hidden: int | None = None,
        experts_factory: ExpertsFactory = LocalExperts,
        router: RouterOptions = DEFAULT_ROUTER,
    ) -> None:
        super().__init__()
        self.router = Router(dim, num_experts, slots_per_expert, router)
        self.experts = experts_factory(num_experts, dim, hidden or 4 * dim)

    def forward(self, tokens: Tensor, token_mask: Tensor | None = None) -> tuple[Tensor, Routing]:
        """Output ``[B, M, d]`` in the dtype of the tokens, and the routing ``[B, M, n, slots]``.

        Args:
            tokens: ``[B, M, d]``.
            token_mask: ``[B, M]`` bool, True = token takes part.

        Raises:
            ShapeError: width or mask do not match.

        Numerics: weights are computed in float32; masked tokens neither contribute nor receive (exact zeros).
        """
        routing, slots, combine = self.router.mix(tokens, token_mask, None, joint_streams=True)
        outputs = self.experts(slots)  # [B, n, slots, d]
        return combine(outputs).squeeze(1), routing
