"""Task heads: class logits from the task token, mask logits from the patch tokens."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from m4oe_ds.errors import ConfigError


class ClassificationHead(nn.Module):
    """LayerNorm, Linear d -> d, token 0, Linear d -> classes (M4oE release; resolution A8)."""

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
    """Token grid to mask logits: four times (3x3 convolution, norm, ReLU, x2 bilinear), then a 1x1 convolution.

    Args:
        dim: token width d.
        grid: rows and columns of patches.
        image_size: height and width of the mask.
        channels: width of the decoder.
    """

    def __init__(self, dim: int, grid: tuple[int, int], image_size: tuple[int, int], channels: int = 256) -> None:
        super().__init__()
        if min(grid) < 1:
            raise ConfigError(f"a segmentation head needs a patch grid, got {grid}", "model.embedder.backbone")
        self.grid, self.image_size = grid, image_size
        self.stages = nn.ModuleList()
        for stage in range(4):
            self.stages.append(
                nn.Sequential(
                    nn.Conv2d(dim if stage == 0 else channels, channels, 3, padding=1, bias=False),
                    nn.GroupNorm(min(32, channels), channels),  # not BatchNorm: independent of batch and ranks
                    nn.ReLU(inplace=True),
                )
            )
        self.logits = nn.Conv2d(channels, 1, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[B, rows*cols, d] -> [B, 1, H, W]`` mask logits."""
        x = tokens.transpose(1, 2).unflatten(2, self.grid)  # [B, d, rows, cols]
        for stage in self.stages:
            x = functional.interpolate(stage(x), scale_factor=2, mode="bilinear", align_corners=False)
        x = self.logits(x)
        if tuple(x.shape[-2:]) != tuple(self.image_size):
            x = functional.interpolate(x, size=self.image_size, mode="bilinear", align_corners=False)
        return x
