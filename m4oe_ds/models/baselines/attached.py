"""An MToE attached to a compared system: in place of its fusion (``replace``) or in addition (``append``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from m4oe_ds.config import ModelConfig
from m4oe_ds.layers import MToE, MToEBlock, Routing
from m4oe_ds.layers.experts import ExpertsFactory
from m4oe_ds.models.interface import ModelSpec
from m4oe_ds.models.towers import index_of_segment, router_options


class Attached(NamedTuple):
    """What an attached MToE adds. A tuple, since ZeRO stage 3 finds the tensors of a module's output in those only.

    Attributes:
        features: ``{task: [B, d]}`` mean over the present tokens of G_k.
        tokens: ``{task: {modality: [B, l_i, d]}}``.
        routing: ``[B, M, n, p]``.
        modality_of_token: ``[M]``.
    """

    features: dict[str, Tensor]
    tokens: dict[str, dict[str, Tensor]]
    routing: Routing
    modality_of_token: Tensor


class AttachedMToE(nn.Module):
    """Maps of all modalities to tokens, one MToE block over all of them.

    Args:
        spec: specification of the model.
        config: configuration of the model.
        widths: channels of the maps, per modality.
        experts_factory: makes the executor.
    """

    def __init__(
        self, spec: ModelSpec, config: ModelConfig, widths: Mapping[str, int], experts_factory: ExpertsFactory
    ) -> None:
        super().__init__()
        self.spec = spec
        self.project = nn.ModuleDict({name: nn.Linear(widths[name], config.dim) for name in spec.modalities})
        mtoe = MToE(
            config.dim,
            config.mtoe.num_experts,
            len(spec.tasks),
            hidden=round(config.mlp_ratio * config.dim),
            experts_factory=experts_factory,
            task_embed_std=config.mtoe.task_embed_std,
            router=router_options(config),
        )
        self.block = MToEBlock(config.dim, config.mtoe.num_heads, mtoe)

    def forward(self, maps: Mapping[str, Tensor], present: Tensor) -> Attached:
        """From ``{modality: [B, C_i, h_i, w_i]}`` and ``present [B, m]``."""
        x = [self.project[name](maps[name].flatten(2).transpose(1, 2)) for name in self.spec.modalities]
        lengths = [tokens.shape[1] for tokens in x]
        modality_of_token = index_of_segment(lengths, present.device)  # [M]
        token_mask = present[:, modality_of_token]  # [B, M]
        g, routing = self.block(torch.cat(x, 1), token_mask, lengths)  # [B, p, M, d]
        weight = token_mask.to(g.dtype)
        share = weight / weight.sum(1, keepdim=True).clamp_min(1.0)
        pooled = torch.einsum("bktd,bt->bkd", g, share)
        features = {task.name: pooled[:, k] for k, task in enumerate(self.spec.tasks)}
        tokens = {
            task.name: dict(zip(self.spec.modalities, g[:, k].split(lengths, 1), strict=True))
            for k, task in enumerate(self.spec.tasks)
        }
        return Attached(features, tokens, routing, modality_of_token)
