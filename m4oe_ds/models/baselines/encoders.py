"""View encoders of the compared systems: feature maps from our model's embedders, or from what the original used."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from m4oe_ds.config import ModelConfig
from m4oe_ds.errors import ConfigError
from m4oe_ds.models.embedders import Embedder, Embedders
from m4oe_ds.models.interface import ModelSpec


class ViewEncoders(nn.Module):
    """One encoder per modality, or one for all of them, whose output stays a map.

    Regime ``vit`` uses ``model.embedder`` exactly as our model does (a vision transformer; like for like), ``native``
    the convolutional network of the original, with grey images repeated to three channels.

    Args:
        spec: specification of the model.
        config: configuration of the model.
        native: timm name for every modality, or one per modality.
        share: one encoder for all modalities in the native regime (the vit regime follows ``model.embedder.share``).
        pictures_only: whether the system needs maps with rows and columns; others take volumes in 3-D and tables, whose
            maps are ``[B, C, d, h, w]`` and ``[B, C, columns]``, in the regime ``vit``.

    Attributes:
        widths: channels of the last map, per modality.
        pyramid_widths: channels of all maps, fine to coarse.

    Raises:
        ConfigError: regime vit with a backbone that is not a ViT; shared encoders for unequal channels; a kind of
            modality that the system does not take.
    """

    def __init__(
        self,
        spec: ModelSpec,
        config: ModelConfig,
        native: str | Mapping[str, str],
        share: bool,
        pictures_only: bool = True,
    ) -> None:
        super().__init__()
        _check_kinds(spec, config, pictures_only)
        self.modalities, self.regime = spec.modalities, config.regime
        self.pyramid_widths: dict[str, list[int]] = {}
        if config.regime == "vit":
            self.embedders = Embedders(config.embedder, spec.inputs, spec.image_size, config.dim, spec.volume_size)
            for name, embedder in self.embedders.by_modality.items():
                if isinstance(embedder, Embedder) and not embedder.is_transformer:
                    raise ConfigError(
                        f"regime vit needs a vision transformer, {config.embedder.backbone} of {name} is not one",
                        "model.embedder.backbone",
                        "set model.regime: native for convolutional encoders",
                    )
            self.pyramid_widths = {name: [config.dim] for name in spec.modalities}
        else:
            share = share and len(set(spec.channels)) == 1
            self.shared = share
            self.by_modality = nn.ModuleDict()
            for name, channels in zip(spec.modalities, spec.channels, strict=True):
                backbone = native if isinstance(native, str) else native[name]
                options = dataclasses.replace(config.embedder, backbone=backbone, options={}, replicate_grey=True)
                key = "shared" if share else name
                if key not in self.by_modality:
                    encoder = Embedder(options, channels, spec.image_size, config.dim)
                    encoder.project = nn.Identity()
                    if config.embedder.freeze:
                        encoder.requires_grad_(False)
                    self.by_modality[key] = encoder
                info = self.encoder(name).backbone.feature_info
                self.pyramid_widths[name] = [int(stage["num_chs"]) for stage in info]
        self.widths = {name: widths[-1] for name, widths in self.pyramid_widths.items()}

    def forward(self, views: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
        """``{modality: [B, C, H, W]} -> {modality: [[B, C_s, h_s, w_s], ...]}`` from fine to coarse (vit: one map)."""
        if self.regime == "vit":
            return self._patches({name: views[name] for name in self.modalities})
        if self.shared:  # one batch of all views: one pass instead of m
            stacked = torch.cat([views[name] for name in self.modalities])
            parts = [stage.chunk(len(self.modalities)) for stage in self._pyramid("shared", stacked)]
            return {name: [stage[i] for stage in parts] for i, name in enumerate(self.modalities)}
        return {name: self._pyramid(name, views[name]) for name in self.modalities}

    def one(self, name: str, image: Tensor) -> list[Tensor]:
        """As :meth:`forward`, of one view ``[B, C, H, W]`` of a modality."""
        if self.regime == "vit":
            return self._patches({name: image})[name]
        return self._pyramid("shared" if self.shared else name, image)

    def encoder(self, modality: str) -> Embedder:
        """The encoder of a modality, or the one that all of them share."""
        if self.regime == "vit":
            return cast(Embedder, self.embedders.of(modality))
        return cast(Embedder, self.by_modality["shared" if self.shared else modality])

    def _patches(self, views: dict[str, Tensor]) -> dict[str, list[Tensor]]:
        maps = {}
        for name, value in self.embedders(views).items():
            embedder = self.embedders.of(name)
            patches = value[:, embedder.num_prefix_tokens :].transpose(1, 2)
            maps[name] = [patches.unflatten(2, embedder.grid) if embedder.grid else patches]
        return maps

    def _pyramid(self, key: str, image: Tensor) -> list[Tensor]:
        encoder = self.encoder(key)
        image = image.expand(-1, 3, -1, -1) if encoder.replicate else image
        stages: list[Tensor] = encoder.backbone.forward_intermediates(image, intermediates_only=True)
        return stages


def _check_kinds(spec: ModelSpec, config: ModelConfig, pictures_only: bool) -> None:
    """Raises a ConfigError for the first modality of a kind that the system does not take."""
    for one in spec.inputs:
        if one.flat or not (pictures_only or config.regime == "native"):
            continue
        reads = f"{config.name} reads images" + ("" if pictures_only else " in the regime native")
        raise ConfigError(
            f"{reads}; {one.name} is a {one.kind}" + (" in 3-D" if one.kind == "volume" else ""),
            "model.name" if pictures_only else "model.regime",
            f"use {'m4oe' if pictures_only else 'vit'}, or leave it out with data.modalities",
        )


def mean_pool(maps: Tensor) -> Tensor:
    """``[B, C, h, w] -> [B, C]``."""
    return maps.flatten(2).mean(2)


def max_pool(maps: Tensor) -> Tensor:
    """``[B, C, h, w] -> [B, C]``."""
    return maps.flatten(2).amax(2)
