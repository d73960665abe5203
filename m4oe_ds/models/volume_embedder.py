"""Volumes to tokens: patches in 3-D, then the transformer blocks of the configured vision transformer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from m4oe_ds.compat import import_torchvision
from m4oe_ds.config import EmbedderConfig
from m4oe_ds.errors import ConfigError
from m4oe_ds.models.backbones import TokenEmbedder, create_backbone

import_torchvision()
from timm.layers import resample_patch_embed  # type: ignore[attr-defined]  # noqa: E402  (no __all__)
from timm.models import VisionTransformer  # noqa: E402


class VolumeEmbedder(TokenEmbedder):
    """A convolution over patches of voxels, a learned position for each, and the blocks of a vision transformer.

    Width, depth, heads and prefix tokens (the class token) are those of ``model.embedder``. Where weights are loaded,
    the blocks come from them, and patches and positions start from those for images: the same kernel at every depth of
    a patch, divided by that depth, so that a volume of equal slices gives what its slice would.

    Args:
        config: backbone, its options, weights and ``volume_patch``.
        channels: input channels.
        volume_size: depth, height and width in voxels.
        dim: token width d.

    Raises:
        ConfigError: patches that do not divide the volume, or a backbone that is no plain vision transformer.
    """

    def __init__(self, config: EmbedderConfig, channels: int, volume_size: Sequence[int], dim: int) -> None:
        super().__init__()
        check_patch(config.volume_patch, volume_size)
        patch = (config.volume_patch[0], config.volume_patch[1], config.volume_patch[2])
        self._grid = tuple(side // step for side, step in zip(volume_size, patch, strict=True))
        rows, columns = _image_patch(config, channels)
        # positions of an image whose patches lie as those of one layer do; its own patches are not used
        network = create_backbone(config, channels, (self._grid[1] * rows, self._grid[2] * columns))
        width = int(network.embed_dim)
        self.patch = nn.Conv3d(channels, width, patch, stride=patch)
        self.position = nn.Parameter(torch.empty(1, math.prod(self._grid), width))
        nn.init.trunc_normal_(self.position, std=0.02)
        prefix = [token for token in (network.cls_token, getattr(network, "reg_token", None)) if token is not None]
        self.prefix = nn.Parameter(torch.cat([token.detach() for token in prefix], 1)) if prefix else None
        self.num_prefix_tokens = 0 if self.prefix is None else self.prefix.shape[1]
        self.norm_pre, self.blocks, self.norm = network.norm_pre, network.blocks, network.norm
        if config.weights:
            self.loaded = network.loaded
            self._inflate(network)
        self.project = nn.Identity() if width == dim else nn.Linear(width, dim)
        self.is_transformer = True

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along depth, height and width."""
        return self._grid

    def networks(self) -> tuple[nn.Module, ...]:
        """The blocks and their norms; not patches, positions and prefix tokens."""
        return self.norm_pre, self.blocks, self.norm

    @torch.no_grad()
    def _inflate(self, network: Any) -> None:
        """Patches and positions from those for images."""
        depth, high, wide = self.patch.kernel_size
        kernel, bias = network.patch_embed.proj.weight, network.patch_embed.proj.bias
        if kernel.shape[:2] == self.patch.weight.shape[:2]:  # not so behind a convolutional stem
            kernel = resample_patch_embed(kernel, [high, wide])
            self.patch.weight.copy_(kernel[:, :, None].expand(-1, -1, depth, -1, -1) / depth)
            if bias is not None and self.patch.bias is not None:
                self.patch.bias.copy_(bias)
        if network.pos_embed is None:
            return
        count = network.pos_embed.shape[1] - self._grid[1] * self._grid[2]
        if self.prefix is not None and count:  # prefix tokens may have positions as well
            self.prefix[:, :count] += network.pos_embed[:, :count]
        self.position.copy_(network.pos_embed[:, count:].repeat(1, self._grid[0], 1))

    def forward(self, volume: Tensor) -> Tensor:
        """``[B, C, D, H, W] -> [B, l, d]``: prefix tokens, then patches in the order depth, row, column."""
        tokens = self.patch(volume).flatten(2).transpose(1, 2) + self.position
        if self.prefix is not None:
            tokens = torch.cat([self.prefix.expand(len(tokens), -1, -1), tokens], 1)
        tokens = self.norm(self.blocks(self.norm_pre(tokens)))
        return self.project(tokens)


def _image_patch(config: EmbedderConfig, channels: int) -> tuple[int, int]:
    """Rows and columns of a patch of the backbone, which need not be built for that.

    Raises:
        ConfigError: it is no plain vision transformer.
    """
    with torch.device("meta"):
        network = create_backbone(dataclasses.replace(config, weights=""), channels, (224, 224))
    if not isinstance(network, VisionTransformer):
        raise ConfigError(
            f"{config.backbone} takes no volumes: it is a {type(network).__name__}, not a plain vision transformer",
            "model.embedder.backbone",
            "choose a vit_*, or leave volumes out with data.modalities",
        )
    rows, columns = network.patch_embed.patch_size
    return rows, columns


def check_patch(patch: Sequence[int], volume_size: Sequence[int]) -> None:
    """Raises a ConfigError unless ``patch`` divides ``volume_size``, both depth, height and width."""
    fits = len(patch) == len(volume_size) == 3
    if not fits or any(step < 1 or side % step for side, step in zip(volume_size, patch, strict=True)):
        raise ConfigError(
            f"model.embedder.volume_patch={list(patch)} does not divide data.volume_size={list(volume_size)}",
            fix="both are [depth, height, width]; change one of them",
        )
