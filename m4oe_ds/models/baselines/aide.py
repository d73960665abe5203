"""AIDE: view features through a transformer, fused adaptively or by cross-attention between image types, linear heads.

Yang et al., "AIDE: a vision-driven multi-view, multi-modal, multi-tasking dataset for assistive driving perception",
ICCV 2023. Fidelity: reconstructed. No model code is public; the abstract mentions two fusion strategies, which are
built here from what is known of such baselines: attention weights over the views, or queries of one image type on the
other. Hard parameter sharing, equally weighted tasks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from m4oe_ds.config import ModelConfig
from m4oe_ds.data.batch import Batch
from m4oe_ds.layers.experts import ExpertsFactory
from m4oe_ds.layers.extras import VIEW_WEIGHTS
from m4oe_ds.models.baselines.base import ComparedModel, masked_mean, parse_options
from m4oe_ds.models.baselines.encoders import mean_pool
from m4oe_ds.models.interface import Fused, ModelSpec, Tokens
from m4oe_ds.models.options import AideOptions as Options


class AdaptiveFusion(nn.Module):
    """F = sum_i w_i f_i with w = soft-max over the present views of u . tanh(W f_i).

    Args:
        width: width of f.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Linear(width, width)
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, f: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """``f [B, m, F]``, ``present [B, m]`` to F ``[B, F]`` and w ``[B, m]``, rows of present views summing to 1."""
        scores = self.score(torch.tanh(self.project(f)))[..., 0].float()  # [B, m]
        any_present = present.any(1, keepdim=True)
        w = scores.masked_fill(~present & any_present, torch.finfo(scores.dtype).min).softmax(1)
        w = torch.where(present, w, 0.0).to(f.dtype)
        return torch.einsum("bm,bmf->bf", w, f), w


class CrossAttentionFusion(nn.Module):
    """Every view asks the views of the other image types, the answers are added and averaged over the present views.

    Args:
        width: width of f.
        heads: number of attention heads.
        types: image type of every modality, in order. With one type only, views ask each other.
    """

    def __init__(self, width: int, heads: int, types: list[str]) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        one = len(set(types)) == 1
        # [m, m]: may i (query) look at j (key)?
        self.allowed = [[one or a != b for b in types] for a in types]

    def forward(self, f: Tensor, present: Tensor) -> Tensor:
        """``f [B, m, F]``, ``present [B, m]`` to ``[B, F]``; a view without anybody to ask stays as it is."""
        allowed = torch.tensor(self.allowed, device=f.device) & present[:, None]  # [B, m, m]
        nobody = ~allowed.any(2)  # [B, m]
        # where there is nobody a query looks at itself, so that no soft-max runs over nothing; its answer is not used
        allowed = allowed | (nobody[:, :, None] & torch.eye(f.shape[1], dtype=torch.bool, device=f.device))
        mask = (~allowed).repeat_interleave(self.attention.num_heads, 0)  # [B*h, m, m]
        answer, _ = self.attention(f, f, f, attn_mask=mask, need_weights=False)
        return masked_mean(f + torch.where(nobody[..., None], 0.0, answer), present)


class AIDE(ComparedModel):
    """View encoders, transformer over views, fusion, heads. See the module's first lines.

    Extras: ``view_weights [B, m]`` of the adaptive fusion.
    """

    def __init__(self, spec: ModelSpec, config: ModelConfig, experts_factory: ExpertsFactory) -> None:
        super().__init__(spec, config, experts_factory, native="resnet18", share=False)
        options = parse_options(Options, config.options, "aide")
        hidden, count = options.hidden, len(spec.modalities)
        self.options = options
        self.transformer: nn.TransformerEncoderLayer | None = None
        if self.own_fusion:
            self.project = nn.ModuleDict(
                {name: nn.Linear(self.encoders.widths[name], hidden) for name in spec.modalities}
            )
            # an embedding, not a parameter of the model itself, which ZeRO stage 3 would not gather in backward
            self.view_embedding = nn.Embedding.from_pretrained(torch.randn(count, hidden) * 0.02, freeze=False)
            self.transformer = nn.TransformerEncoderLayer(
                hidden, options.heads, options.feedforward, options.dropout, batch_first=True
            )
            if options.fusion == "adaptive":
                self.fusion: nn.Module = AdaptiveFusion(hidden)
            else:
                types = [one.type or one.name for one in spec.inputs]
                self.fusion = CrossAttentionFusion(hidden, options.heads, types)
            self.joint = nn.Linear((count + 1) * hidden, hidden)
            self.dropout = nn.Dropout(options.head_dropout)
        self.finish(hidden)

    def combine(self, tokens: Tokens, batch: Batch) -> Fused:
        """One vector for all tasks."""
        assert self.transformer is not None
        present = tokens.present
        pooled = [self.project[name](mean_pool(tokens.maps[name][-1])) for name in self.spec.modalities]
        f = torch.stack(pooled, 1) + self.view_embedding(torch.arange(len(pooled), device=present.device))  # [B, m, F]
        f = torch.where(present[..., None], f, 0.0)
        f = self.transformer(f, src_key_padding_mask=~present & present.any(1, keepdim=True))
        f = torch.where(present[..., None], f, 0.0)
        extras = {}
        if self.options.fusion == "adaptive":
            fused, extras[VIEW_WEIGHTS] = self.fusion(f, present)
        else:
            fused = self.fusion(f, present)
        joint = self.joint(torch.cat([fused, f.flatten(1)], 1))
        features = dict.fromkeys(self.spec.task_names, self.dropout(functional.relu(joint)))
        return Fused(features, extras=extras)

    def shared_layer(self) -> nn.Module:
        """The layer before the heads, or the experts of the MToE that replaces the fusion."""
        if self.transformer is not None:
            return self.joint
        assert self.mtoe is not None
        return self.mtoe.block.mtoe.experts


def build(spec: ModelSpec, config: ModelConfig, experts_factory: ExpertsFactory) -> AIDE:
    """Registry entry."""
    return AIDE(spec, config, experts_factory)
