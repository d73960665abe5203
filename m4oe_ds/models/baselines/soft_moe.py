"""Multi-modal Soft-MoE: the tokens of all modalities through one tower of Soft-MoE blocks, mean, one head per task.

Puigcerver et al., "From sparse to soft mixtures of experts", ICLR 2024, with the tokens of all modalities side by side:
what the M4oE paper compares with in its Fig. 3b and 6b. Fidelity: re-implemented; nothing copied. The routing is that
of ``model.router`` (by default the reference implementation's: unit-norm logits, one learned scale, raw tokens
dispatched), one slot per expert. Experts: ``model.mtoe.num_experts``, so that a sweep over expert counts moves both
systems. ``replace`` leaves the tower out; ``append`` merges g_k into its mean. With ``task_slots`` the last block has
one slot per expert and task, of which task k reads the k-th, so that experts and tasks can be set against each other
(Fig. 6b); it has no task embeddings, and ``loss.alpha`` should be 0, since an information term is not part of it. In
the regime ``vit`` it takes volumes in 3-D and tables as our model does.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from m4oe_ds.config import ModelConfig
from m4oe_ds.data.batch import Batch
from m4oe_ds.errors import ConfigError
from m4oe_ds.layers import MToE, MToEBlock, SoftMoE
from m4oe_ds.layers.experts import ExpertsFactory
from m4oe_ds.models.baselines.base import ComparedModel, parse_options
from m4oe_ds.models.interface import Fused, ModelSpec, Tokens
from m4oe_ds.models.options import SoftMoEOptions as Options
from m4oe_ds.models.towers import SoftMoETower, call, index_of_segment, router_options


class MultiModalSoftMoE(ComparedModel):
    """Encoders, one Soft-MoE tower, linear heads. See the module's first lines.

    Routing: ``tower.0``, .. by depth; with task slots that of the last block is called ``mtoe``, like that of our
    model.
    """

    def __init__(self, spec: ModelSpec, config: ModelConfig, experts_factory: ExpertsFactory) -> None:
        super().__init__(spec, config, experts_factory, native="resnet18", share=False, pictures_only=False)
        options = parse_options(Options, config.options, "soft_moe")
        if options.depth < 1:
            raise ConfigError(f"depth must be at least 1, got {options.depth}", "model.options")
        if options.task_slots and self.mode != "none":
            raise ConfigError(
                "task_slots and an attached MToE exclude each other", "model.attach_mtoe", "set it to none"
            )
        dim, hidden = config.dim, round(config.mlp_ratio * config.dim)
        # the information term is not part of this system: nothing to detach it from
        router = replace(router_options(config), detach_information=False)
        self.tower: SoftMoETower | None = None
        self.last: MToEBlock | None = None
        if self.own_fusion:
            self.project = nn.ModuleDict(
                {
                    name: nn.Identity()
                    if self.encoders.widths[name] == dim
                    else nn.Linear(self.encoders.widths[name], dim)
                    for name in spec.modalities
                }
            )
            # an embedding, not a parameter of the model itself, which ZeRO stage 3 would not gather in backward
            self.modality = nn.Embedding.from_pretrained(torch.randn(len(spec.modalities), dim) * 0.02, freeze=False)
            self.tower = SoftMoETower(
                lambda: SoftMoE(
                    dim, config.mtoe.num_experts, hidden=hidden, experts_factory=experts_factory, router=router
                ),
                dim,
                options.depth - options.task_slots,
                config.mtoe.num_heads,
                config.activation_checkpointing,
            )
            if options.task_slots:
                slots = MToE(
                    dim,
                    config.mtoe.num_experts,
                    len(spec.tasks),
                    hidden=hidden,
                    experts_factory=experts_factory,
                    router=router,
                )
                slots.task_embed.requires_grad_(False)  # stays zero: a plain Soft-MoE knows no task
                self.last = MToEBlock(dim, config.mtoe.num_heads, slots)
        self.finish(dim)

    def combine(self, tokens: Tokens, batch: Batch) -> Fused:
        """Mean of the present tokens after the tower: the same for every task, or each task's own stream."""
        assert self.tower is not None
        names, device = self.spec.modalities, tokens.present.device
        vectors = self.modality(torch.arange(len(names), device=device))  # [m, d]
        x = [self.project[name](tokens.by_modality[name]) + vectors[i] for i, name in enumerate(names)]
        lengths = [part.shape[1] for part in x]
        modality_of_token = index_of_segment(lengths, device)  # [M]
        mask = tokens.present[:, modality_of_token]  # [B, M]
        h, steps = self.tower(torch.cat(x, 1), mask)  # [B, M, d]
        routing = {f"tower.{depth}": step for depth, step in enumerate(steps)}
        weight = mask.to(h.dtype)
        share = weight / weight.sum(1, keepdim=True).clamp_min(1.0)
        if self.last is None:
            return Fused(dict.fromkeys(self.spec.task_names, torch.einsum("btd,bt->bd", h, share)), routing)
        recompute = self.config.activation_checkpointing and self.training
        g, routing["mtoe"] = call(self.last, recompute, h, mask, lengths)  # [B, p, M, d]
        mean = torch.einsum("bktd,bt->bkd", g, share)
        features = {name: mean[:, k] for k, name in enumerate(self.spec.task_names)}
        return Fused(features, routing, modality_of_token=modality_of_token)

    def shared_layer(self) -> nn.Module:
        """Experts of the last block, or of the MToE that replaces the tower."""
        if self.last is not None:
            return self.last.mtoe.experts
        if self.tower is not None:
            return self.tower.last_experts()
        assert self.mtoe is not None
        return self.mtoe.block.mtoe.experts


def build(spec: ModelSpec, config: ModelConfig, experts_factory: ExpertsFactory) -> MultiModalSoftMoE:
    """Registry entry."""
    return MultiModalSoftMoE(spec, config, experts_factory)
