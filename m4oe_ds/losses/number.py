"""Losses of numbers, on the scale of the training labels: (label - centre) / spread."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from m4oe_ds.losses.tasks import LossParts, at_least_float32, masked_sum


def huber(logits: Tensor, values: Tensor, mask: Tensor, centre: float, spread: float) -> LossParts:
    """Huber loss with delta 1 (Huber 1964): z^2 / 2 up to |z| = 1, |z| - 1/2 beyond, z the standardised error.

    Args:
        logits: ``[B, 1]`` answers on the standardised scale.
        values: ``[B]`` labels in their unit.
        mask: ``[B]`` bool, True = the label exists.
        centre: mean of the training labels.
        spread: standard deviation of the training labels.
    """
    answer, target = _standardised(logits, values, mask, centre, spread)
    return masked_sum(functional.huber_loss(answer, target, reduction="none", delta=1.0), mask)


def squared_error(logits: Tensor, values: Tensor, mask: Tensor, centre: float, spread: float) -> LossParts:
    """Squared standardised error; arguments as :func:`huber`."""
    answer, target = _standardised(logits, values, mask, centre, spread)
    return masked_sum((answer - target).square(), mask)


def _standardised(logits: Tensor, values: Tensor, mask: Tensor, centre: float, spread: float) -> tuple[Tensor, Tensor]:
    answer = torch.where(mask, at_least_float32(logits)[:, 0], 0.0)
    # the difference before the cast: a date-like number of many digits keeps those that differ
    target = (torch.where(mask, values, centre).double() - centre) / spread
    return answer, target.to(answer.dtype)
