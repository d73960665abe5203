"""Tensors of an embedder changed to fit another image: its grid of patches, its channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from m4oe_ds.compat import import_torchvision

import_torchvision()
from timm.models import adapt_input_conv  # noqa: E402  (needs the operators declared first)


def resample_positions(
    positions: Tensor, old: tuple[int, ...], new: tuple[int, ...], num_prefix_tokens: int = 0
) -> Tensor:
    """Position vectors interpolated to another grid of patches; those of prefix tokens stay as they are.

    Args:
        positions: ``[1, prefix + patches, d]``, the last axis of the grid running fastest.
        old: patches along each axis of the grid they are of: two of an image (bicubic), three of a volume (trilinear).
        new: the same of the grid they are for.
        num_prefix_tokens: tokens before the patches, which have no place in the grid.
    """
    prefix, places = positions[:, :num_prefix_tokens], positions[:, num_prefix_tokens:]
    grid = places.transpose(1, 2).unflatten(2, old).float()  # [1, d, *old]
    if len(new) == 2:
        grid = functional.interpolate(grid, new, mode="bicubic", align_corners=False, antialias=True)
    else:
        grid = functional.interpolate(grid, new, mode="trilinear", align_corners=False)
    return torch.cat([prefix, grid.flatten(2).transpose(1, 2).to(positions.dtype)], dim=1)


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """A first convolution ``[O, C, h, w]`` for other input channels: the same answer to a grey image.

    One channel gets the sum over the old ones; several get the old ones over and over, scaled by old / new count.
    """
    adapted: Tensor = adapt_input_conv(channels, weight, base_chans=weight.shape[1])
    return adapted


def first_weights(backbone: Any) -> tuple[str, ...]:
    """Names, seen from a timm backbone, of the convolutions that read the channels of the image."""
    first = backbone.pretrained_cfg.get("first_conv") or ()
    return tuple(f"{name}.weight" for name in ((first,) if isinstance(first, str) else first))
