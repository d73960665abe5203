"""Masked task losses. Each returns a sum over labelled samples and their count; the trainer divides once, globally."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class LossParts(NamedTuple):
    """Numerator and denominator of a mean that may run over several micro-batches and ranks.

    Attributes:
        sum: scalar, sum of the per-sample losses; carries the gradient, also (as zero) when ``count`` is 0.
        count: scalar float, number of samples summed.
    """

    sum: Tensor
    count: Tensor  # type: ignore[assignment]  # tuple.count is not missed


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor, in float32 if it has fewer bits."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def masked_sum(per_sample: Tensor, mask: Tensor) -> LossParts:
    """Sum of ``per_sample [B]`` where ``mask [B]`` is True, and how many there are."""
    # where, not multiplication: a masked sample's inf or NaN must not leak into the sum
    kept = torch.where(mask, per_sample, torch.zeros_like(per_sample))
    return LossParts(kept.sum(), mask.sum().to(per_sample.dtype))


def cross_entropy(
    logits: Tensor, labels: Tensor, mask: Tensor, class_weight: Tensor | None = None, label_smoothing: float = 0.0
) -> LossParts:
    """Cross-entropy of ``logits [B, C]`` against ``labels [B]`` where ``mask [B]`` is True, in float32.

    ``class_weight [C]`` multiplies a sample's loss; the count stays the number of samples.
    """
    logits = torch.where(mask[:, None], logits, 0.0).float()
    targets = torch.where(mask, labels, torch.zeros_like(labels))
    weight = None if class_weight is None else class_weight.to(logits)
    per_sample = functional.cross_entropy(
        logits, targets, weight=weight, reduction="none", label_smoothing=label_smoothing
    )
    return masked_sum(per_sample, mask)


def focal(
    logits: Tensor, labels: Tensor, mask: Tensor, gamma: float = 2.0, class_weight: Tensor | None = None
) -> LossParts:
    """Focal loss -w_y (1 - p_y)^gamma log p_y (Lin et al., 2017) of ``logits [B, C]``, in float32."""
    log_probability = functional.log_softmax(torch.where(mask[:, None], logits, 0.0).float(), dim=-1)
    targets = torch.where(mask, labels, torch.zeros_like(labels))
    log_p = log_probability.gather(1, targets[:, None]).squeeze(1)  # [B]
    per_sample = -((1.0 - log_p.exp()).clamp_min(torch.finfo(log_p.dtype).tiny) ** gamma) * log_p
    if class_weight is not None:
        per_sample = per_sample * class_weight.to(per_sample)[targets]
    return masked_sum(per_sample, mask)


def ranked_probability(logits: Tensor, labels: Tensor, mask: Tensor, class_weight: Tensor | None = None) -> LossParts:
    """Ranked probability score (Epstein 1969) of ``logits [B, C]`` of ordered classes, between 0 and 1.

    sum_{c < C-1} (P(y <= c) - 1[label <= c])^2 / (C - 1): a class further off costs more.
    """
    probability = torch.where(mask[:, None], at_least_float32(logits), 0.0).softmax(-1)
    targets = torch.where(mask, labels, torch.zeros_like(labels))
    below = probability.cumsum(-1)[:, :-1]
    steps = torch.arange(logits.shape[1] - 1, device=logits.device)
    per_sample = (below - (targets[:, None] <= steps).to(below.dtype)).square().mean(1)
    if class_weight is not None:
        per_sample = per_sample * class_weight.to(per_sample)[targets]
    return masked_sum(per_sample, mask)


def binary_cross_entropy_dice(logits: Tensor, target: Tensor, mask: Tensor, smooth: float = 1.0) -> LossParts:
    """Per picture: mean over the classes of (mean binary cross-entropy + 1 - soft Dice) (A16 in docs/decisions/0001).

    Args:
        logits: ``[B, C, H, W]`` or ``[B, C, D, H, W]``, one mask per class; classes may overlap.
        target: of the same shape, in {0, 1}.
        mask: ``[B]`` bool.
        smooth: added to numerator and denominator of the Dice ratio, in pixels.
    """
    keep = mask.view(-1, *[1] * (logits.ndim - 1))
    logits = torch.where(keep, at_least_float32(logits), 0.0).flatten(2)
    truth = torch.where(keep, target, 0.0).to(logits.dtype).flatten(2)
    entropy = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none").mean(2)  # [B, C]
    probability = logits.sigmoid()
    overlap = (probability * truth).sum(2)
    dice = (2 * overlap + smooth) / (probability.sum(2) + truth.sum(2) + smooth)
    return masked_sum((entropy + 1.0 - dice).mean(1), mask)
