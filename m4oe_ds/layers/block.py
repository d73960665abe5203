"""Pre-norm vision-transformer blocks whose MLP is a mixture: Soft-MoE or MToE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from m4oe_ds.compat import import_torchvision
from m4oe_ds.layers.experts import ExpertExecutor, run_each
from m4oe_ds.layers.mtoe import MToE
from m4oe_ds.layers.routing import Routing
from m4oe_ds.layers.soft_moe import SoftMoE

import_torchvision()
from timm.layers.attention import Attention  # noqa: E402  (needs the operators declared first)


def _attend(attention: Attention, tokens: Tensor, token_mask: Tensor | None) -> Tensor:
    """Self-attention in which masked tokens are not attended to (their own rows are computed and ignored)."""
    mask = (
        None if token_mask is None else (token_mask | ~token_mask.any(1, keepdim=True))[:, None, None, :]
    )  # [B, 1, 1, M], broadcast over heads and queries
    return attention(tokens, attn_mask=mask)


class Block(nn.Module):
    """Pre-norm block: u = x + MSA(LN(x)); y = u + mlp(LN(u)).

    Args:
        dim: width d.
        num_heads: attention heads.
        mlp: the mixture.
    """

    def __init__(self, dim: int, num_heads: int, mlp: SoftMoE) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attention = Attention(dim, num_heads=num_heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = mlp

    def forward(self, tokens: Tensor, token_mask: Tensor | None = None) -> tuple[Tensor, Routing]:
        """``[B, M, d] -> [B, M, d]`` and the routing of the MLP."""
        tokens = tokens + _attend(self.attention, self.norm1(tokens), token_mask)
        update, routing = self.mlp(self.norm2(tokens), token_mask)
        return tokens + update, routing


def run_in_step(blocks: Sequence[Block], *tokens: Tensor) -> list[tuple[Tensor, Routing]]:
    """Blocks that do not depend on each other: the slots of all of them travel in one exchange.

    Args:
        *tokens: per block ``[B, l_i, d]``, none masked.

    Returns:
        per block what its forward would return.
    """
    attended = [x + _attend(block.attention, block.norm1(x), None) for block, x in zip(blocks, tokens, strict=True)]
    mixed = [
        block.mlp.router.mix(block.norm2(x), None, None, joint_streams=True)
        for block, x in zip(blocks, attended, strict=True)
    ]
    outputs = run_each([cast(ExpertExecutor, block.mlp.experts) for block in blocks], [slots for _, slots, _ in mixed])
    return [
        (x + combine(y).squeeze(1), routing)
        for x, y, (routing, _, combine) in zip(attended, outputs, mixed, strict=True)
    ]


class MToEBlock(nn.Module):
    """Pre-norm block that splits into one stream per task: u = x + MSA(LN(x)); g_k = u + MToE(LN(u))_k.

    The authors' block is not released; this is resolution A7 in docs/decisions/0001.
    """

    def __init__(self, dim: int, num_heads: int, mtoe: MToE) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attention = Attention(dim, num_heads=num_heads, qkv_bias=True)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mtoe = mtoe

    def forward(
        self, tokens: Tensor, token_mask: Tensor | None = None, segments: Sequence[int] | None = None
    ) -> tuple[Tensor, Routing]:
        """``[B, M, d] -> [B, p, M, d]`` and the routing ``[B, M, n, p]``; arguments as :meth:`MToE.forward`."""
        tokens = tokens + _attend(self.attention, self.norm1(tokens), token_mask)
        update, routing = self.mtoe(self.norm2(tokens), token_mask, segments)  # [B, p, M, d]
        return tokens.unsqueeze(1) + update, routing
