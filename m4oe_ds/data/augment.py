"""Seeded augmentation of one sample's views: small affine changes, grey-scale changes, noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from m4oe_ds.data.schema import ModalitySpec


@dataclass(frozen=True)
class AugmentOptions:
    """Strengths; see ``data.augment`` in docs/reference/configuration.md. All zero = the identity."""

    rotation_degrees: float = 0.0
    translation: float = 0.0
    scale: float = 0.0
    gamma: float = 0.0
    contrast: float = 0.0
    noise: float = 0.0
    vertical_flip: bool = False
    horizontal_flip: bool = False
    colour: float = 0.0


def augment(
    views: dict[str, Tensor],
    masks: dict[str, Tensor],
    inputs: Sequence[ModalitySpec],
    owners: Mapping[str, str],
    options: AugmentOptions,
    generator: torch.Generator,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Augmented copies; a pure function of its arguments and the generator's state.

    Args:
        views: ``{modality: [C, H, W] or [C, D, H, W]}`` float32 in [0, 1]; all slices of a volume move alike. Tables
            stay as they are.
        masks: ``{task: [C, H, W] or [C, D, H, W]}`` float32 in {0, 1}.
        inputs: the modalities.
        owners: the modality that each mask lies over, whose geometry it follows.
        options: how much changes.
        generator: seeded per (run, epoch, sample), so that workers and ranks do not matter.
    """
    result, moved = dict(views), dict(masks)
    for spec in inputs:
        if spec.kind == "table" or spec.name not in views:
            continue
        view, theta = views[spec.name], _affine(options, generator)
        warped = _warp(view.flatten(0, -3), theta, "bilinear").view_as(view)
        result[spec.name] = _grey(warped, options, generator, colour=spec.kind == "image" and spec.channels == 3)
        for task, mask in masks.items():
            if owners[task] == spec.name:
                moved[task] = _warp(mask.flatten(0, -3), theta, "nearest").view_as(mask)
    return result, moved


def _uniform(limit: float, generator: torch.Generator) -> float:
    return (2.0 * float(torch.rand((), generator=generator)) - 1.0) * limit


def _affine(options: AugmentOptions, generator: torch.Generator) -> Tensor:
    """``[2, 3]`` map from output to input coordinates in [-1, 1]."""
    angle = math.radians(_uniform(options.rotation_degrees, generator))
    zoom = 1.0 + _uniform(options.scale, generator)
    shift_x = 2.0 * _uniform(options.translation, generator)
    shift_y = 2.0 * _uniform(options.translation, generator)
    flip = -1.0 if options.vertical_flip and float(torch.rand((), generator=generator)) < 0.5 else 1.0
    mirror = -1.0 if options.horizontal_flip and float(torch.rand((), generator=generator)) < 0.5 else 1.0
    cos, sin = math.cos(angle) / zoom, math.sin(angle) / zoom
    return torch.tensor([[cos * mirror, -sin * flip, shift_x], [sin * mirror, cos * flip, shift_y]])


def _warp(image: Tensor, theta: Tensor, mode: str) -> Tensor:
    grid = functional.affine_grid(theta[None], [1, *image.shape], align_corners=False)
    return functional.grid_sample(image[None], grid, mode=mode, padding_mode="zeros", align_corners=False)[0]


def _grey(view: Tensor, options: AugmentOptions, generator: torch.Generator, colour: bool) -> Tensor:
    exponent = 1.0 + _uniform(options.gamma, generator)
    contrast = 1.0 + _uniform(options.contrast, generator)
    tissue = view > 0  # background stays background
    changed = view.clamp_min(0).pow(exponent) * contrast
    if options.colour and colour:
        gains = [1.0 + _uniform(options.colour, generator) for _ in range(3)]
        changed = changed * torch.tensor(gains)[:, None, None]
    if options.noise:
        changed = changed + options.noise * torch.randn(view.shape, generator=generator)
    return torch.where(tissue, changed, view)
