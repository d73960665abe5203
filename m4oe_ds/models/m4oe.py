"""The paper's model: embedders, modality-specific MSoE towers, shared MToE block, fusion tower, task heads.

X_i = embedder_i(view_i);  Z_i = MSoE_i(X_i);  G_1..G_p = MToE([X_1; ..; X_m]);  H_k = [mean G_k; mean Z_1; ..];
prediction_k = head_k(fusion(H_k))                         (M4oE section 3; resolutions in docs/decisions/0001)
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from m4oe_ds.config import ModelConfig
from m4oe_ds.data.batch import Batch
from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.errors import ConfigError
from m4oe_ds.layers import MToE, MToEBlock, Routing, SoftMoE
from m4oe_ds.layers.experts import ExpertsFactory
from m4oe_ds.models.embedders import Embedders
from m4oe_ds.models.heads import ClassificationHead, SegmentationHead
from m4oe_ds.models.interface import Fused, ModelOutput, ModelSpec, MultiModalModel, Tokens
from m4oe_ds.models.missing_bank import MissingBank, count_tokens
from m4oe_ds.models.towers import ModalityTowers, SoftMoETower, call, index_of_segment, router_options


class M4oE(MultiModalModel):
    """Multi-modal multi-task mixture of experts.

    Args:
        spec: modalities, tasks, image size.
        config: widths, depths, expert counts and the switches ``use_mtoe``, ``use_msoe`` and ``missing_modality``.
        experts_factory: makes the expert executor of each mixture layer.
    """

    def __init__(self, spec: ModelSpec, config: ModelConfig, experts_factory: ExpertsFactory) -> None:
        super().__init__()
        self.spec, self.config = spec, config
        dim, hidden = config.dim, round(config.mlp_ratio * config.dim)
        router = router_options(config)

        def tower(num_experts: int, depth: int, num_heads: int) -> SoftMoETower:
            return SoftMoETower(
                lambda: SoftMoE(dim, num_experts, hidden=hidden, experts_factory=experts_factory, router=router),
                dim,
                depth,
                num_heads,
                config.activation_checkpointing,
            )

        self.embedders = Embedders(config.embedder, spec.inputs, spec.image_size, dim, spec.volume_size)
        self.missing_bank = self._missing_bank() if config.missing_modality == "bank" else None
        self.msoe = (
            ModalityTowers(
                {
                    name: tower(config.msoe.num_experts, config.msoe.depth, config.msoe.num_heads)
                    for name in spec.modalities
                }
            )
            if config.use_msoe
            else None
        )
        if config.use_mtoe:
            mtoe = MToE(
                dim,
                config.mtoe.num_experts,
                len(spec.tasks),
                hidden=hidden,
                experts_factory=experts_factory,
                task_embed_std=config.mtoe.task_embed_std,
                router=router,
            )
            self.mtoe: MToEBlock | None = MToEBlock(dim, config.mtoe.num_heads, mtoe)
            self.task_query = None
        else:
            self.mtoe = None
            # an embedding, like every vector of a model itself: ZeRO stage 3 gathers what a sub-module's forward reads
            self.task_query = nn.Embedding.from_pretrained(torch.randn(len(spec.tasks), dim) * 0.02, freeze=False)
        self.fusion = tower(config.fusion.num_experts, config.fusion.depth, config.fusion.num_heads)
        self.heads = nn.ModuleDict({task.name: self._head(task) for task in spec.tasks})
        self.dense_projection = nn.ModuleDict(
            {
                task.name: nn.ModuleDict({"shared": nn.Linear(dim, dim), "specific": nn.Linear(dim, dim, bias=False)})
                for task in spec.tasks
                if task.dense
            }
        )

    def _head(self, task: TaskSpec) -> nn.Module:
        if not task.dense:
            return ClassificationHead(self.config.dim, task.num_classes)
        owner = self.spec.owner(task.name)
        embedder = self.embedders.of(owner)
        if not embedder.is_transformer:
            raise ConfigError(f"task {task.name} needs a vision-transformer embedder", "model.embedder.backbone")
        size, channels = self.spec.shape(owner)[1:], self.config.mask_channels
        return SegmentationHead(self.config.dim, embedder.grid, size, task.num_classes, channels)

    def _missing_bank(self) -> MissingBank:
        spec = self.spec
        lengths = {name: count_tokens(self.embedders.of(name), spec.shape(name)) for name in spec.modalities}
        return MissingBank(lengths, self.config.dim)

    def encode(self, batch: Batch) -> Tokens:
        """Embedder tokens X_i ``{modality: [B, l_i, d]}``."""
        views = {name: batch.views[name] for name in self.spec.modalities}
        return Tokens(self.embedders(views), batch.present)

    def fuse(self, tokens: Tokens, batch: Batch) -> Fused:
        """Task features H_k after the fusion tower; the routing of every mixture layer."""
        by_modality, present = tokens.by_modality, tokens.present  # [B, m]
        if self.missing_bank is not None:
            by_modality, present = self.missing_bank(by_modality, present)
        x = [by_modality[name] for name in self.spec.modalities]
        routing: dict[str, Routing] = {}

        z = list(x)
        if self.msoe is not None:
            # An absent modality's zeros go through as well: every rank makes the same exchanges.
            z, steps = self.msoe(x)
            routing.update({f"msoe.{name}": step for name, step in steps.items()})
        pooled = torch.stack([tokens_i.mean(1) for tokens_i in z], dim=1)  # [B, m, d]

        lengths = [tokens_i.shape[1] for tokens_i in x]
        modality_of_token = index_of_segment(lengths, present.device)  # [M]
        token_mask = present[:, modality_of_token]  # [B, M]
        if self.mtoe is not None:
            g, routing["mtoe"] = call(
                self.mtoe, self.config.activation_checkpointing and self.training, torch.cat(x, 1), token_mask, lengths
            )  # [B, p, M, d]
            weight = token_mask.to(g.dtype)
            share = weight / weight.sum(1, keepdim=True).clamp_min(1.0)
            task_token = torch.einsum("bktd,bt->bkd", g, share)  # mean over present tokens
        else:
            assert self.task_query is not None
            g = None
            query = self.task_query(torch.arange(len(self.spec.tasks), device=pooled.device))  # [p, d]
            task_token = query.to(pooled.dtype).expand(len(present), -1, -1)
        features = self._fusion(task_token, pooled, present, g, z, routing)
        return Fused(features, routing, modality_of_token=modality_of_token)

    def _fusion(
        self,
        task_token: Tensor,
        pooled: Tensor,
        present: Tensor,
        g: Tensor | None,
        z: list[Tensor],
        routing: dict[str, Routing],
    ) -> dict[str, Tensor]:
        """H_k through the fusion tower: all tasks without masks as one batch, then each mask."""
        features: dict[str, Tensor] = {}
        classify = [k for k, task in enumerate(self.spec.tasks) if not task.dense]
        if classify:
            count = len(classify)
            h = torch.cat(
                [task_token[:, classify, None], pooled[:, None].expand(-1, count, -1, -1)], dim=2
            )  # [B, p, m+1, d]
            mask = torch.cat([present.new_ones(len(present), 1), present], 1)  # [B, m+1]
            mask = mask[:, None].expand(-1, count, -1).flatten(0, 1)
            h, steps = self.fusion(h.flatten(0, 1), mask)
            routing.update({f"fusion.{depth}": step for depth, step in enumerate(steps)})
            h = h.unflatten(0, (-1, count))
            features.update({self.spec.tasks[k].name: h[:, i] for i, k in enumerate(classify)})
        for k, task in enumerate(self.spec.tasks):
            if task.dense:
                features[task.name] = self._dense_fusion(k, task, task_token, pooled, present, g, z)
        return features

    def _dense_fusion(
        self,
        k: int,
        task: TaskSpec,
        task_token: Tensor,
        pooled: Tensor,
        present: Tensor,
        g: Tensor | None,
        z: list[Tensor],
    ) -> Tensor:
        """Patch tokens of the modality that owns the mask, fused with the pooled tokens of the others."""
        owner = self.spec.owner(task.name)
        s = self.spec.modalities.index(owner)
        prefix = self.embedders.of(owner).num_prefix_tokens
        start = sum(tokens.shape[1] for tokens in z[:s]) + prefix
        patches = z[s][:, prefix:]
        project = cast(nn.ModuleDict, self.dense_projection[task.name])
        h = project["specific"](patches)
        if g is not None:
            h = h + project["shared"](g[:, k, start : start + patches.shape[1]])
        else:
            h = h + project["shared"](task_token[:, k, None])
        h = h * present[:, s, None, None].to(h.dtype)  # an absent owner leaves the task token to decide, not its zeros
        others = [i for i in range(pooled.shape[1]) if i != s]
        sequence = torch.cat([h, task_token[:, k, None], pooled[:, others]], dim=1)
        mask = torch.cat(
            [present[:, s, None].expand(-1, h.shape[1]), present.new_ones(len(present), 1), present[:, others]], 1
        )
        sequence, _ = self.fusion(sequence, mask)
        return sequence[:, : h.shape[1]]

    def predict(self, fused: Fused) -> ModelOutput:
        """Logits of every task."""
        logits = {task.name: self.heads[task.name](fused.features[task.name]) for task in self.spec.tasks}
        return ModelOutput(logits, fused.routing, fused.aux, fused.modality_of_token)

    def shared_layer(self) -> nn.Module:
        """Experts of the last fusion block."""
        return self.fusion.last_experts()


def build(spec: ModelSpec, config: ModelConfig, experts_factory: ExpertsFactory) -> M4oE:
    """Registry entry."""
    return M4oE(spec, config, experts_factory)
