"""Task heads: logits of classes, a number or hazards from the task token, mask logits from the patch tokens."""

from __future__ import annotations

import math

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
    """Token grid to mask logits: several times (3x3 convolution, norm, ReLU, x2), then a 1x1 convolution.

    In a plane four doublings, bilinear, whatever the patch; in a volume, whose voxels grow with the cube, as many as
    reach its size, trilinear.

    Args:
        dim: token width d.
        grid: rows and columns of patches; in a volume planes, rows and columns.
        size: height and width of the mask, or depth, height and width.
        classes: masks that are given.
        channels: width of the decoder; 0 = 256 in a plane, 64 in a volume.
    """

    def __init__(
        self, dim: int, grid: tuple[int, ...], size: tuple[int, ...], classes: int = 1, channels: int = 0
    ) -> None:
        super().__init__()
        if min(grid) < 1 or len(grid) not in (2, 3) or len(grid) != len(size):
            raise ConfigError(f"a segmentation head needs a patch grid, got {grid}", "model.embedder.backbone")
        flat = len(grid) == 2
        self.grid, self.size = tuple(grid), tuple(size)
        self.mode = "bilinear" if flat else "trilinear"
        convolution = nn.Conv2d if flat else nn.Conv3d
        channels = channels or (256 if flat else 64)
        growth = max(whole / patches for whole, patches in zip(size, grid, strict=True))
        self.stages = nn.ModuleList()
        for stage in range(4 if flat else max(1, round(math.log2(growth)))):
            self.stages.append(
                nn.Sequential(
                    convolution(dim if stage == 0 else channels, channels, 3, padding=1, bias=False),
                    nn.GroupNorm(min(32, channels), channels),  # not BatchNorm: independent of batch and ranks
                    nn.ReLU(inplace=True),
                )
            )
        self.logits = convolution(channels, classes, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, l, d] -> [B, classes, H, W]`` or ``[B, classes, D, H, W]`` mask logits, l the patches of the grid."""
        x = tokens.transpose(1, 2).unflatten(2, self.grid)  # [B, d, rows, cols]
        for stage in self.stages:
            x = functional.interpolate(stage(x), scale_factor=2, mode=self.mode, align_corners=False)
        x = self.logits(x)
        if tuple(x.shape[2:]) != self.size:
            x = functional.interpolate(x, size=self.size, mode=self.mode, align_corners=False)
        return x
