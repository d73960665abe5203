"""Small 3-D network for OCT: a depth-wise stack of B-scans ``[B, D, H, W]`` is one volume, not D colours.

A ResNet-10 with 3-D kernels as used for medical volumes (Chen et al., "Med3D", 2019): last two stages dilated, so the
output stride is 8. Registered with timm as ``volume_resnet10``, where the other encoders of the compared systems come
from. Starts from random values: its published weights are in no hub.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional

logger = logging.getLogger(__name__)

# of the pooled map. The published volume of 128 x 256 x 128 becomes 8192 features; behind a stride of 8 that is a pool
# of 8 in every direction: 512 channels at 2 x 4 x 2 positions
GRID = (2, 4, 2)
VOLUME_CHANNELS = 4  # an image with at least this number of channels is a volume

default_cfgs = generate_default_cfgs({"volume_resnet10.untrained": {"input_size": (256, 256, 256)}})


class BasicBlock3d(nn.Module):
    """Two 3 x 3 x 3 convolutions around a shortcut, projected where shape changes.

    Args:
        inputs: channels that go in.
        outputs: channels that come out.
        stride: stride of the first convolution.
        dilation: dilation of both convolutions.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, 3, stride, dilation, dilation, bias=False)
        self.norm1 = nn.BatchNorm3d(outputs)
        self.conv2 = nn.Conv3d(outputs, outputs, 3, 1, dilation, dilation, bias=False)
        self.norm2 = nn.BatchNorm3d(outputs)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and inputs == outputs
            else nn.Sequential(nn.Conv3d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm3d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[B, inputs, D, H, W] -> [B, outputs, D', H', W']``."""
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class VolumeResNet10(nn.Module):
    """One channel in, stages of 64, 128, 256 and 512 channels with one block each; the last map pooled to ``GRID``.

    ``num_features`` and ``feature_info`` are what timm's networks have.
    """

    num_features = 512

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 64, 7, 2, 3, bias=False)
        self.norm = nn.BatchNorm3d(64)
        self.stages = nn.ModuleList(
            [
                BasicBlock3d(64, 64),
                BasicBlock3d(64, 128, stride=2),
                BasicBlock3d(128, 256, dilation=2),
                BasicBlock3d(256, 512, dilation=4),
            ]
        )
        self.feature_info = [{"num_chs": 512, "reduction": 0, "module": "pooled"}]
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image: Tensor) -> Tensor:
        """``[B, D, H, W] -> [B, 512, 8, 2]``: depth and height of the grid share the rows."""
        x = functional.relu(self.norm(self.conv(image[:, None])))
        x = functional.max_pool3d(x, 3, 2, 1)
        for stage in self.stages:
            x = stage(x)
        return functional.adaptive_avg_pool3d(x, GRID).flatten(2, 3)

    def forward_intermediates(self, image: Tensor, intermediates_only: bool = False) -> list[Tensor]:
        """The one map that is read, as timm's networks give theirs."""
        return [self.forward(image)]


@register_model
def volume_resnet10(
    pretrained: bool = False, in_chans: int = 256, pretrained_cfg_overlay: dict[str, Any] | None = None, **_: Any
) -> VolumeResNet10:
    """timm entry: any depth; ``num_classes`` and ``global_pool`` do not apply to an encoder.

    Raises:
        RuntimeError: a weights file is given; there is no agreed format to read.
    """
    if pretrained_cfg_overlay:
        raise RuntimeError("volume_resnet10 reads no weights file")
    if pretrained:
        logger.warning("volume_resnet10 has no weights in the hub: it starts from random values")
    return VolumeResNet10()


def is_volume(channels: int) -> bool:
    """Whether a view with this number of channels is a volume."""
    return channels >= VOLUME_CHANNELS


def flatten_grid(maps: Tensor) -> Tensor:
    """``[B, 512, 8, 2] -> [B, 8192]``."""
    return torch.flatten(maps, 1)
