"""Views to tokens, by kind of modality: images by any timm backbone, volumes in patches of voxels, tables by column."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from m4oe_ds.config import EmbedderConfig
from m4oe_ds.data.schema import ModalitySpec
from m4oe_ds.errors import ConfigError
from m4oe_ds.models.backbones import TokenEmbedder, create_backbone
from m4oe_ds.models.table_embedder import TableEmbedder
from m4oe_ds.models.volume_embedder import VolumeEmbedder


class Embedder(TokenEmbedder):
    """A timm backbone whose un-pooled output becomes tokens ``[B, l, d]``.

    A vision transformer gives its token sequence (class token first); a convolutional network its last feature map,
    row by row. Where the backbone's width differs from d a linear layer follows.

    Args:
        config: backbone name, its options, weights.
        channels: input channels.
        image_size: height and width.
        dim: token width d.

    Raises:
        ConfigError: unknown backbone, weights that do not exist, do not fit, or cannot be downloaded.
    """

    def __init__(self, config: EmbedderConfig, channels: int, image_size: tuple[int, int], dim: int) -> None:
        super().__init__()
        self.replicate = config.replicate_grey and channels == 1
        self.backbone = create_backbone(config, 3 if self.replicate else channels, image_size)
        width = int(self.backbone.num_features)
        self.project = nn.Identity() if width == dim else nn.Linear(width, dim)
        self.num_prefix_tokens = int(getattr(self.backbone, "num_prefix_tokens", 0))
        self.is_transformer = hasattr(self.backbone, "blocks") and hasattr(self.backbone, "patch_embed")

    @property
    def grid(self) -> tuple[int, ...]:
        """Rows and columns of patches of a vision transformer."""
        return tuple(self.backbone.patch_embed.grid_size) if self.is_transformer else ()

    def networks(self) -> tuple[nn.Module, ...]:
        """The backbone, without a projection."""
        return (self.backbone,)

    def forward(self, image: Tensor) -> Tensor:
        """``[B, C, H, W] -> [B, l, d]``."""
        features = self.backbone(image.expand(-1, 3, -1, -1) if self.replicate else image)
        if features.ndim == 4:  # convolutional: [B, C, h, w] -> [B, h*w, C], row by row
            features = features.flatten(2).transpose(1, 2)
        return self.project(features)


class Embedders(nn.Module):
    """One embedder per modality, or one for all of them plus a learned modality vector.

    Args:
        config: backbone and sharing.
        inputs: the modalities.
        image_size: height and width of images.
        dim: see :class:`Embedder`.
        volume_size: depth, height and width of volumes in 3-D.

    Raises:
        ConfigError: one embedder for modalities of several kinds, or of different channels or columns.
    """

    def __init__(
        self,
        config: EmbedderConfig,
        inputs: Sequence[ModalitySpec],
        image_size: tuple[int, int],
        dim: int,
        volume_size: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.shared = config.share
        if config.share:
            _check_alike(inputs)
        chosen = {"shared": inputs[0]} if config.share else {one.name: one for one in inputs}

        def embedder(spec: ModalitySpec) -> TokenEmbedder:
            if spec.kind == "table":
                return TableEmbedder(spec.columns, dim)
            if spec.flat:
                return Embedder(config, spec.planes, image_size, dim)
            return VolumeEmbedder(config, spec.planes, volume_size, dim)

        self.by_modality = nn.ModuleDict({name: embedder(spec) for name, spec in chosen.items()})
        if config.freeze:
            for name in chosen:
                cast(TokenEmbedder, self.by_modality[name]).freeze()
        embed = config.modality_embed or config.share
        self.modality_embed = (
            nn.ParameterDict({one.name: nn.Parameter(torch.randn(dim) * 0.02) for one in inputs}) if embed else None
        )

    def of(self, modality: str) -> TokenEmbedder:
        """The embedder of a modality, or the one that all of them share."""
        return cast(TokenEmbedder, self.by_modality["shared" if self.shared else modality])

    def forward(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        """``{modality: [B, ...]} -> {modality: [B, l_i, d]}``."""
        tokens = {}
        for name, view in views.items():
            tokens[name] = self.of(name)(view)
            if self.modality_embed is not None:
                tokens[name] = tokens[name] + self.modality_embed[name]
        return tokens


def _check_alike(inputs: Sequence[ModalitySpec]) -> None:
    """Raises a ConfigError unless one embedder can take every modality."""
    found: dict[str, dict[str, Any]] = {
        "kinds": {one.name: "image" if one.flat else one.kind for one in inputs},
        "channels": {one.name: one.planes for one in inputs},
        "columns": {one.name: one.columns for one in inputs},
    }
    for what, by_name in found.items():
        if len(set(by_name.values())) > 1:
            got = "different ones" if what == "columns" else by_name
            raise ConfigError(
                f"model.embedder.share needs equal {what}, got {got}", fix="set model.embedder.share: false"
            )
