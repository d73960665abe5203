"""Mirai: one image encoder for all views, a small transformer over views, an additive hazard layer for the risk tasks.

Yala et al., "Toward robust mammography-based models for breast cancer risk", Science Translational Medicine 2021.
Fidelity: re-implemented from public facts about the released network; nothing copied. Adapted: view and type (FFDM or
synthesised) tables instead of view, side and time tables, since a sample is one breast of one exam; risk factors and
the device adversary are left out, since the data sets here have neither.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from m4oe_ds.config import ModelConfig
from m4oe_ds.data.batch import Batch
from m4oe_ds.data.schema import TaskSpec, follow_ups
from m4oe_ds.errors import ConfigError
from m4oe_ds.layers.experts import ExpertsFactory
from m4oe_ds.layers.extras import HAZARD_LOGITS
from m4oe_ds.models.baselines.base import ComparedModel, parse_options
from m4oe_ds.models.baselines.encoders import max_pool
from m4oe_ds.models.fit import TYPES, VIEWS
from m4oe_ds.models.interface import Fused, ModelSpec, Tokens
from m4oe_ds.models.options import MiraiOptions as Options


class HazardLayer(nn.Module):
    """Cumulative risk with non-negative hazards: logit_t = base(z) + sum_{s<=t} ReLU(hazard_s(z)).

    Args:
        width: width of z.
        years: F, number of horizons.
    """

    def __init__(self, width: int, years: int) -> None:
        super().__init__()
        self.hazard = nn.Linear(width, years)
        self.base = nn.Linear(width, 1)

    def forward(self, z: Tensor) -> Tensor:
        """``[B, width] -> [B, F]`` logits that never decrease with the horizon."""
        return self.base(z) + functional.relu(self.hazard(z)).cumsum(1)


class ViewAggregator(nn.Module):
    """Post-norm transformer layer over the views' vectors, conditioned on which view and type each is.

    Args:
        width: length of a view's vector.
        options: options of Mirai.
    """

    TABLE = 48  # two tables instead of the original's three of 32, the same 96 in all

    def __init__(self, width: int, options: Options) -> None:
        super().__init__()
        hidden = options.hidden
        self.project = nn.Linear(width, hidden)
        self.view_table = nn.Embedding(len(VIEWS) + 1, self.TABLE, padding_idx=len(VIEWS))
        self.type_table = nn.Embedding(len(TYPES) + 1, self.TABLE, padding_idx=len(TYPES))
        self.scale = nn.Linear(2 * self.TABLE, hidden)
        self.shift = nn.Linear(2 * self.TABLE, hidden)
        nn.init.ones_(self.scale.bias)  # starts near the identity
        self.attention = nn.MultiheadAttention(hidden, options.heads, options.dropout, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.expand, self.contract = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(options.dropout)
        self.pool = options.pool

    def forward(self, x: Tensor, present: Tensor, view_ids: Tensor, type_ids: Tensor) -> Tensor:
        """``x [B, m, width]``, ``present [B, m]``, ids ``[m]`` or ``[B, m]`` to ``[B, hidden]``."""
        condition = torch.cat([self.view_table(view_ids), self.type_table(type_ids)], -1)
        x = self.scale(condition) * self.project(x) + self.shift(condition)
        absent = ~present
        # a sample without any view attends to zeros rather than to nothing, which would be NaN
        key_mask = absent & present.any(1, keepdim=True)
        attended, _ = self.attention(x, x, x, key_padding_mask=key_mask, need_weights=False)
        x = self.norm1(x + self.dropout(attended))
        x = self.norm2(x + self.dropout(self.contract(functional.relu(self.expand(x)))))
        if self.pool == "mean":
            weight = present.to(x.dtype)[..., None]
            return functional.relu((x * weight).sum(1) / weight.sum(1).clamp_min(1.0))
        x = x.masked_fill(key_mask[..., None], torch.finfo(x.dtype).min).amax(1)
        return functional.relu(x)


class Mirai(ComparedModel):
    """Encoder, view aggregator, hazard layer; linear heads for density and BI-RADS. See the module's first lines."""

    head_modules = ("heads", "decoders", "hazard")

    def __init__(self, spec: ModelSpec, config: ModelConfig, experts_factory: ExpertsFactory) -> None:
        super().__init__(spec, config, experts_factory, native="resnet18", share=True)
        options = parse_options(Options, config.options, "mirai")
        widths = set(self.encoders.widths.values())
        if len(widths) > 1:
            raise ConfigError("mirai needs views of equal width", "model.name")
        self.view_ids = [VIEWS.index(one.view) for one in spec.inputs]
        self.type_ids = [TYPES.index(one.type) for one in spec.inputs]
        first = next(iter(follow_ups(spec.tasks).values()), ())
        self.event_tasks = tuple(task.name for task in first)  # share one hazard layer
        self.aggregator = ViewAggregator(widths.pop(), options) if self.own_fusion else None
        self.finish(options.hidden)
        self.hazard = HazardLayer(self.feature_width, len(self.event_tasks)) if self.event_tasks else None

    def make_head(self, task: TaskSpec, width: int) -> nn.Module:
        """Risk is read from the hazard layer; everything else from a linear layer."""
        return nn.Identity() if task.name in self.event_tasks else super().make_head(task, width)

    def combine(self, tokens: Tokens, batch: Batch) -> Fused:
        """One vector for all tasks."""
        assert self.aggregator is not None
        x = torch.stack([max_pool(tokens.maps[name][-1]) for name in self.spec.modalities], 1)  # [B, m, C]
        device = x.device
        z = self.aggregator(
            x, tokens.present, torch.tensor(self.view_ids, device=device), torch.tensor(self.type_ids, device=device)
        )
        return Fused(dict.fromkeys(self.spec.task_names, z))

    def fuse(self, tokens: Tokens, batch: Batch) -> Fused:
        """Features of the risk tasks become their cumulative logits: the mean of g over the risk tasks is their z."""
        fused = super().fuse(tokens, batch)
        if self.hazard is not None:
            z = torch.stack([fused.features[name] for name in self.event_tasks]).mean(0)
            cumulative = self.hazard(z)  # [B, F]
            fused.extras[HAZARD_LOGITS] = cumulative
            for k, name in enumerate(self.event_tasks):
                fused.features[name] = torch.stack([torch.zeros_like(cumulative[:, k]), cumulative[:, k]], 1)
        return fused

    def shared_layer(self) -> nn.Module:
        """The aggregator's last linear layer, or the experts of the MToE that replaces it."""
        if self.aggregator is not None:
            return self.aggregator.contract
        assert self.mtoe is not None
        return self.mtoe.block.mtoe.experts


def build(spec: ModelSpec, config: ModelConfig, experts_factory: ExpertsFactory) -> Mirai:
    """Registry entry."""
    return Mirai(spec, config, experts_factory)
