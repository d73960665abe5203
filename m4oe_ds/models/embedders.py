"""Images to tokens: any timm backbone by name, one per modality or shared, from random, local or hub weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from m4oe_ds.compat import declare_torchvision_operators
from m4oe_ds.config import EmbedderConfig
from m4oe_ds.errors import ConfigError

declare_torchvision_operators()
import timm  # noqa: E402  (needs the operators declared first)


class Embedder(nn.Module):
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
        self.backbone = _create_backbone(config, 3 if self.replicate else channels, image_size)
        width = int(self.backbone.num_features)
        self.project = nn.Identity() if width == dim else nn.Linear(width, dim)
        self.num_prefix_tokens = int(getattr(self.backbone, "num_prefix_tokens", 0))
        self.is_transformer = hasattr(self.backbone, "blocks") and hasattr(self.backbone, "patch_embed")

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
        modalities: names of the data set's modalities.
        channels: number of channels of each modality.
        image_size: see :class:`Embedder`.
        dim: see :class:`Embedder`.
    """

    def __init__(
        self,
        config: EmbedderConfig,
        modalities: Sequence[str],
        channels: Sequence[int],
        image_size: tuple[int, int],
        dim: int,
    ) -> None:
        super().__init__()
        self.shared = config.share
        if config.share and len(set(channels)) > 1:
            raise ConfigError(
                f"model.embedder.share needs equal channels, got {dict(zip(modalities, channels, strict=True))}",
                fix="set model.embedder.share: false",
            )
        names = ["shared"] if config.share else list(modalities)
        self.by_modality = nn.ModuleDict(
            {name: Embedder(config, channels[i], image_size, dim) for i, name in enumerate(names)}
        )
        if config.freeze:
            for name in names:
                self.of(name).backbone.requires_grad_(False)
        embed = config.modality_embed or config.share
        self.modality_embed = (
            nn.ParameterDict({name: nn.Parameter(torch.randn(dim) * 0.02) for name in modalities}) if embed else None
        )

    def of(self, modality: str) -> Embedder:
        """The embedder of a modality, or the one that all of them share."""
        return cast(Embedder, self.by_modality["shared" if self.shared else modality])

    def forward(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        """``{modality: [B, C, H, W]} -> {modality: [B, l_i, d]}``."""
        tokens = {}
        for name, image in views.items():
            tokens[name] = self.of(name)(image)
            if self.modality_embed is not None:
                tokens[name] = tokens[name] + self.modality_embed[name]
        return tokens


def _create_backbone(config: EmbedderConfig, channels: int, image_size: tuple[int, int]) -> Any:
    """A network of timm, which gives them no typed base."""
    if not timm.is_model(config.backbone):
        near = timm.list_models(f"*{config.backbone.split('_')[0]}*")[:5]
        raise ConfigError(
            f"timm has no model {config.backbone!r}",
            "model.embedder.backbone",
            f"near: {', '.join(near)}" if near else "see timm.list_models()",
        )
    options = dict(config.options, num_classes=0, global_pool="", in_chans=channels)
    known = timm.get_pretrained_cfg(config.backbone)
    if known is not None and known.fixed_input_size:
        options["img_size"] = tuple(image_size)
    if config.weights and config.weights != "hub":
        if not Path(config.weights).is_file():
            raise ConfigError(f"no such weights file {config.weights}", "model.embedder.weights")
        options["pretrained_cfg_overlay"] = {"file": config.weights}
    try:
        return timm.create_model(config.backbone, pretrained=bool(config.weights), **options)
    except (TypeError, AssertionError) as error:
        raise ConfigError(f"timm refuses these options: {error}", "model.embedder.options") from error
    except (OSError, RuntimeError, EOFError, SafetensorError) as error:
        if not config.weights:
            raise
        cause = next(iter(str(error).splitlines()), type(error).__name__)
        fix = (
            "the hub needs a network: download the weights elsewhere and give their path"
            if config.weights == "hub"
            else "the file must hold a state dict of this backbone (safetensors or weights-only .pth)"
        )
        raise ConfigError(
            f"cannot load {config.weights} for {config.backbone}: {cause}", "model.embedder.weights", fix
        ) from error
