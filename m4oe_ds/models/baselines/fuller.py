"""FULLER: one transformer block over the tokens of all modalities, light heads; its gradients are calibrated in
training.

Huang et al., "FULLER: unified multi-modality multi-task 3D object detection via multi-level gradient calibration", ICCV
2023. Fidelity: reconstructed from the abstract; no code is public and the network here is our own, of two-dimensional
views instead of point clouds and cameras. What makes it FULLER is the gradient policy ``calibrated`` of the training
(``m4oe_ds.training.gradient_policy``); with the plain sum it is ordinary early fusion.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

from m4oe_ds.config import ModelConfig
from m4oe_ds.data.batch import Batch
from m4oe_ds.errors import ConfigError
from m4oe_ds.layers.experts import ExpertsFactory
from m4oe_ds.layers.extras import SHARED
from m4oe_ds.models.baselines.base import ComparedModel, note_maps, parse_options
from m4oe_ds.models.interface import Fused, ModelSpec, Tokens
from m4oe_ds.models.options import FullerOptions as Options


class FusionTrunk(nn.Module):
    """Tokens of all modalities through one pre-norm transformer block, their mean through a last linear layer.

    Args:
        widths: channels of the maps, per modality.
        dim: width d.
        options: options of FULLER.
    """

    def __init__(self, widths: Mapping[str, int], dim: int, options: Options) -> None:
        super().__init__()
        self.project = nn.ModuleDict({name: nn.Linear(width, dim) for name, width in widths.items()})
        self.modality_embed = nn.Parameter(torch.randn(len(widths), dim) * 0.02)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, options.heads, batch_first=True)
        hidden = round(options.mlp_ratio * dim)
        self.expand, self.contract = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.last = nn.Linear(dim, dim)

    def forward(self, maps: Mapping[str, Tensor], present: Tensor) -> Tensor:
        """``{modality: [B, C_i, h_i, w_i]}`` and ``present [B, m]`` to ``[B, d]``; absent tokens get no attention."""
        x, mask = [], []
        for i, (name, project) in enumerate(self.project.items()):
            here = present[:, i, None]
            tokens = project(maps[name].flatten(2).transpose(1, 2)) + self.modality_embed[i]
            x.append(torch.where(here[..., None], tokens, 0.0))
            mask.append(here.expand(-1, tokens.shape[1]))
        z, kept = torch.cat(x, 1), torch.cat(mask, 1)  # [B, M, d], [B, M]
        # a sample without any modality attends to zeros rather than to nothing, which would be NaN
        ignore = ~kept & present.any(1, keepdim=True)
        y = self.norm1(z)
        z = z + self.attention(y, y, y, key_padding_mask=ignore, need_weights=False)[0]
        z = z + self.contract(functional.gelu(self.expand(self.norm2(z))))
        weight = kept.to(z.dtype)[..., None]
        pooled = (self.norm3(z) * weight).sum(1) / weight.sum(1).clamp_min(1.0)
        return functional.gelu(self.last(pooled))


class Fuller(ComparedModel):
    """Encoders, fusion trunk, one linear head per task. See the module's first lines.

    Extras: ``features.<modality>``: the maps that enter the trunk (and the attached MToE, and the mask decoders);
    ``shared.<task> [B, d]``: what the trunk gives to a task's head, without an attached MToE.
    """

    def __init__(self, spec: ModelSpec, config: ModelConfig, experts_factory: ExpertsFactory) -> None:
        super().__init__(spec, config, experts_factory, native="resnet18", share=False)
        options = parse_options(Options, config.options, "fuller")
        if config.dim % options.heads:
            raise ConfigError(f"heads {options.heads} does not divide model.dim {config.dim}", "model.options")
        self.trunk = FusionTrunk(self.encoders.widths, config.dim, options) if self.own_fusion else None
        self.finish(config.dim)

    def combine(self, tokens: Tokens, batch: Batch) -> Fused:
        """One vector for all tasks."""
        assert self.trunk is not None
        z = self.trunk({name: stages[-1] for name, stages in tokens.maps.items()}, tokens.present)
        features = {name: z.view_as(z) for name in self.spec.task_names}  # a node each, for the gradients of its task
        return Fused(features, extras=SHARED.write(features))

    def fuse(self, tokens: Tokens, batch: Batch) -> Fused:
        """As the base class, with the maps that enter the fusion noted."""
        fused = super().fuse(tokens, batch)
        if self.mtoe is not None:  # it is shared as well: what the trunk gives is not all that reaches the heads
            fused.extras = {}
        note_maps(fused, tokens)
        return fused

    def shared_layer(self) -> nn.Module:
        """The trunk's last layer, or the experts of the MToE that replaces it."""
        if self.trunk is not None:
            return self.trunk.last
        assert self.mtoe is not None
        return self.mtoe.block.mtoe.experts


def build(spec: ModelSpec, config: ModelConfig, experts_factory: ExpertsFactory) -> Fuller:
    """Registry entry."""
    return Fuller(spec, config, experts_factory)
