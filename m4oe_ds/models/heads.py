"""Task heads: logits of classes, a number or hazards from the task token, mask logits from the patch tokens."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional

from m4oe_ds.errors import ConfigError


class ClassificationHead(nn.Module):
    """LayerNorm, Linear d -> d, token 0, Linear d -> classes (M4oE release; resolution A8).

    A number is one such logit on the standardised scale, a survival has one per horizon: those of the hazards.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.project = nn.Linear(dim, dim)
        self.classify = nn.Linear(dim, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, l, d] -> [B, classes]``."""
        # Token 0 is picked first: the other rows of the norm and projection would be computed and dropped.
        return self.classify(self.project(self.norm(tokens[:, 0])))


class SegmentationHead(nn.Module):
    """Token grid to mask logits: four times (3x3 convolution, norm, ReLU, x2), then a 1x1 convolution.

    In a plane four doublings, bilinear, whatever the patch. In a volume the convolutions are 3x3x3, an axis grows no
    further than the mask, and the width halves from stage to stage down to 32 channels: eight times as many places at
    each would not fit otherwise.

    Args:
        dim: token width d.
        grid: patches along every axis of the image (2) or volume (3).
        size: size of the mask along the same axes.
        classes: logits per pixel.
        channels: width of the decoder.
    """

    def __init__(
        self, dim: int, grid: tuple[int, ...], size: tuple[int, ...], classes: int = 1, channels: int = 256
    ) -> None:
        super().__init__()
        if min(grid) < 1 or len(grid) not in (2, 3) or len(grid) != len(size):
            raise ConfigError(f"a segmentation head needs a patch grid, got {grid}", "model.embedder.backbone")
        self.grid, self.size = tuple(grid), tuple(size)
        solid = len(self.grid) == 3
        convolution: type[nn.Conv2d | nn.Conv3d] = nn.Conv3d if solid else nn.Conv2d
        widths = [dim, *(max(channels >> stage, 32) if solid else channels for stage in range(4))]
        self.stages = nn.ModuleList()
        for before, width in pairwise(widths):
            self.stages.append(
                nn.Sequential(
                    convolution(before, width, 3, padding=1, bias=False),
                    nn.GroupNorm(min(32, width), width),  # not BatchNorm: independent of batch and ranks
                    nn.ReLU(inplace=True),
                )
            )
        self.logits = convolution(widths[-1], classes, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """Mask logits: ``[B, rows*cols, d] -> [B, classes, H, W]``; of a volume with depth and D before these."""
        x = tokens.transpose(1, 2).unflatten(2, self.grid)  # [B, d, rows, cols]
        for stage in self.stages:
            x = stage(x)
            if len(self.grid) == 2:
                x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
            else:
                x = _resized(x, tuple(min(2 * have, want) for have, want in zip(x.shape[2:], self.size, strict=True)))
        return _resized(self.logits(x), self.size)


def _resized(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Linearly interpolated to ``size``, if it is another one."""
    if tuple(x.shape[2:]) == size:
        return x
    return functional.interpolate(x, size=size, mode="trilinear" if len(size) == 3 else "bilinear", align_corners=False)
