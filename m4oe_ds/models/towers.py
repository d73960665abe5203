"""Towers of Soft-MoE blocks and what else our model shares with the compared systems that hold mixture layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from m4oe_ds.config import ModelConfig, to_dict
from m4oe_ds.layers import Block, RouterOptions, Routing, SoftMoE
from m4oe_ds.layers.block import run_in_step


def router_options(config: ModelConfig) -> RouterOptions:
    """The section ``model.router``, whose options are those of a router, name by name."""
    return RouterOptions(**to_dict(config.router))


class SoftMoETower(nn.Module):
    """Pre-norm blocks whose MLP is a Soft-MoE with one slot per expert.

    Args:
        make_mlp: makes the Soft-MoE of one block.
        dim: token width of the blocks.
        depth: number of blocks.
        num_heads: attention heads of the blocks.
        recompute: recompute activations in backward instead of storing them.
    """

    def __init__(
        self, make_mlp: Callable[[], SoftMoE], dim: int, depth: int, num_heads: int, recompute: bool = False
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, num_heads, make_mlp()) for _ in range(depth))
        self.recompute = recompute

    def forward(self, tokens: Tensor, token_mask: Tensor | None = None) -> tuple[Tensor, list[Routing]]:
        """``[B, l, d] -> [B, l, d]`` and the routing of every block."""
        routings = []
        for block in self.blocks:
            tokens, routing = call(block, self.recompute and self.training, tokens, token_mask)
            routings.append(routing)
        return tokens, routings

    def last_experts(self) -> nn.Module:
        """Experts of the last block."""
        return cast(Block, self.blocks[-1]).mlp.experts


class ModalityTowers(nn.ModuleDict):
    """One Soft-MoE tower per modality, all of equal depth, side by side.

    At every depth the slots of all modalities go to their experts in one exchange instead of one per modality.
    """

    def forward(self, tokens: list[Tensor]) -> tuple[list[Tensor], dict[str, Routing]]:
        """Per modality ``[B, l_i, d] -> [B, l_i, d]``, and the routing of ``<modality>.<depth>``."""
        towers = cast(list[SoftMoETower], list(self.values()))
        routing = {}
        for depth, blocks in enumerate(zip(*(cast(Iterable[Block], tower.blocks) for tower in towers), strict=True)):
            found = call(partial(run_in_step, blocks), towers[0].recompute and self.training, *tokens)
            tokens = [x for x, _ in found]
            routing.update({f"{name}.{depth}": step for name, (_, step) in zip(self, found, strict=True)})
        return tokens, routing


def call(block: Callable[..., Any], recompute: bool, tokens: Tensor, *more: Any) -> Any:
    """Calls a block, recomputing its activations in backward or not (non-re-entrant: gradients of routing pass too)."""
    if recompute:
        return checkpoint(block, tokens, *more, use_reentrant=False)
    return block(tokens, *more)


def index_of_segment(lengths: list[int], device: torch.device) -> Tensor:
    """``[M]`` int64: 0 for the first ``lengths[0]`` tokens, 1 for the next, and so on; no copy from the host."""
    return torch.cat([torch.full((length,), i, device=device) for i, length in enumerate(lengths)])
