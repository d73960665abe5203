"""Multi-modal Soft-MoE: the tokens of all modalities through one tower of Soft-MoE blocks, mean, one head per task.

Puigcerver et al., "From sparse to soft mixtures of experts", ICLR 2024, with the tokens of all modalities side by side:
what the M4oE paper compares with in its Fig. 3b and 6b. Fidelity: re-implemented; nothing copied. The routing is that of
``model.router`` (by default the reference implementation's: unit-norm logits, one learned scale, raw tokens dispatched),
one slot per expert. Experts: ``model.mtoe.num_experts``, so that a sweep over expert counts moves both systems.
``replace`` leaves the tower out; ``append`` merges g_k into its mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from m4oe_ds.config import ModelConfig
from m4oe_ds.data.batch import Batch
from m4oe_ds.errors import ConfigError
from m4oe_ds.layers import SoftMoE
from m4oe_ds.layers.experts import ExpertsFactory
from m4oe_ds.models.baselines.base import ComparedModel, parse_options
from m4oe_ds.models.interface import Fused, ModelSpec, Tokens
from m4oe_ds.models.m4oe import SoftMoETower, index_of_segment


@dataclass(frozen=True)
class Options:
    """Options of the multi-modal Soft-MoE: ``depth`` blocks of its tower."""

    depth: int = 2


class MultiModalSoftMoE(ComparedModel):
    """Encoders, one Soft-MoE tower, linear heads. See the module's first lines."""

    def __init__(self, spec: ModelSpec, config: ModelConfig, experts_factory: ExpertsFactory) -> None:
        super().__init__(spec, config, experts_factory, native="resnet18", share=False)
        options = parse_options(Options, config.options, "soft_moe")
        if options.depth < 1:
            raise ConfigError(f"depth must be at least 1, got {options.depth}", "model.options")
        dim = config.dim
        self.tower: SoftMoETower | None = None
        if self.own_fusion:
            self.project = nn.ModuleDict(
                {
                    name: nn.Identity()
                    if self.encoders.widths[name] == dim
                    else nn.Linear(self.encoders.widths[name], dim)
                    for name in spec.modalities
                }
            )
            self.modality = nn.Parameter(torch.randn(len(spec.modalities), dim) * 0.02)  # [m, d]
            self.tower = SoftMoETower(
                lambda: SoftMoE(
                    dim,
                    config.mtoe.num_experts,
                    hidden=round(config.mlp_ratio * dim),
                    experts_factory=experts_factory,
                    router_norm=config.router.norm,
                    scale_init=config.router.scale_init,
                    dispatch_normalized=config.router.dispatch_normalized,
                    combine=config.router.combine,
                ),
                dim,
                options.depth,
                config.mtoe.num_heads,
                config.activation_checkpointing,
            )
        self.finish(dim)

    def combine(self, tokens: Tokens, batch: Batch) -> Fused:
        """Mean of the present tokens after the tower, for every task."""
        assert self.tower is not None
        x = [
            self.project[name](tokens.by_modality[name]) + self.modality[i]
            for i, name in enumerate(self.spec.modalities)
        ]
        mask = tokens.present[:, index_of_segment([part.shape[1] for part in x], tokens.present.device)]  # [B, M]
        h, steps = self.tower(torch.cat(x, 1), mask)  # [B, M, d]
        weight = mask.to(h.dtype)
        mean = torch.einsum("btd,bt->bd", h, weight / weight.sum(1, keepdim=True).clamp_min(1.0))
        routing = {f"tower.{depth}": step for depth, step in enumerate(steps)}
        return Fused(dict.fromkeys(self.spec.task_names, mean), routing)

    def shared_layer(self) -> nn.Module:
        """Experts of the last block, or of the MToE that replaces the tower."""
        if self.tower is not None:
            return self.tower.blocks[-1].mlp.experts
        assert self.mtoe is not None
        return self.mtoe.block.mtoe.experts


def build(spec: ModelSpec, config: ModelConfig, experts_factory: ExpertsFactory) -> MultiModalSoftMoE:
    """Registry entry."""
    return MultiModalSoftMoE(spec, config, experts_factory)
