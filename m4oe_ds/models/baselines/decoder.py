"""Mask decoder of the compared systems: up-sampling with skip connections, conditioned on the fused vector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from m4oe_ds.errors import ConfigError


class MaskDecoder(nn.Module):
    """U-Net-like decoder (Ronneberger et al., 2015): four up-stages, skips where the encoder has finer maps.

    Args:
        widths: channels of the encoder's maps, fine to coarse; one entry (a vision transformer) means no skips.
        fused_width: width of the fused vector, added at the coarsest map after a linear layer.
        image_size: height and width of the mask.
        classes: masks that are given.
        channels: width of the first stage, halved from stage to stage.
    """

    STAGES = 4

    def __init__(
        self,
        widths: Sequence[int],
        fused_width: int,
        image_size: tuple[int, int],
        classes: int = 1,
        channels: int = 128,
    ) -> None:
        super().__init__()
        if not widths:
            raise ConfigError("a mask decoder needs at least one feature map", "model.embedder.backbone")
        self.image_size = image_size
        self.condition = nn.Linear(fused_width, widths[-1])
        skips = list(reversed(widths[:-1]))
        self.stages = nn.ModuleList()
        below = widths[-1]
        for stage in range(self.STAGES):
            out = max(channels >> stage, 16)
            skip = skips[stage] if stage < len(skips) else 0
            self.stages.append(
                nn.Sequential(
                    nn.Conv2d(below + skip, out, 3, padding=1, bias=False),
                    nn.GroupNorm(min(8, out), out),  # not BatchNorm: independent of batch and ranks
                    nn.ReLU(inplace=True),
                )
            )
            below = out
        self.logits = nn.Conv2d(below, classes, 1)

    def forward(self, maps: Sequence[Tensor], fused: Tensor) -> Tensor:
        """Mask logits ``[B, classes, H, W]`` from the maps of the owning modality and the fused vector ``[B, F]``."""
        x = maps[-1] + self.condition(fused)[:, :, None, None]
        skips = list(reversed(maps[:-1]))
        for stage, block in enumerate(self.stages):
            size = skips[stage].shape[-2:] if stage < len(skips) else tuple(2 * side for side in x.shape[-2:])
            x = functional.interpolate(x, size=size, mode="bilinear", align_corners=False)
            if stage < len(skips):
                x = torch.cat([x, skips[stage]], 1)
            x = block(x)
        return functional.interpolate(self.logits(x), size=self.image_size, mode="bilinear", align_corners=False)
