"""How a mixture layer spreads its tokens, in a handful of numbers that can be summed over micro-batches and ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from m4oe_ds.layers.routing import Routing


@torch.no_grad()
def routing_sums(routing: Routing, valid: Tensor) -> Tensor:
    """Sums over the valid samples of one layer: ``[n + 3]`` float32, ready for an all-reduce.

    Args:
        routing: ``[B, M, n, p]``, or ``[B*k, M, n, p]`` of a layer that sees every sample k times, sample-major.
        valid: ``[B]`` bool, False for padding.

    Returns:
        Samples; entropy of the dispatch weights over the tokens of a slot, and of the combine weights over the n*p
        slots of a token, each as a share of its largest possible value; then the share of the combine weight that each
        of the n experts gets. :func:`routing_figures` divides by the first number.
    """
    dispatch, combine = routing.dispatch.float(), routing.combine.float()
    tokens = torch.full_like(dispatch[:, 0, 0, 0], dispatch.shape[1])
    if routing.token_mask is not None:
        tokens = routing.token_mask.sum(1).to(dispatch.dtype)
    largest = tokens.clamp_min(2).log()  # [B]
    over_tokens = torch.special.entr(dispatch).sum(1).mean((1, 2)) / largest  # [B]
    # combine rows of masked tokens are zero and add nothing
    slots = combine.shape[2] * (combine.shape[3] if routing.combine_mode == "joint" else 1)
    rows = combine.shape[3] if routing.combine_mode == "per_task" else 1
    over_slots = torch.special.entr(combine).sum((1, 2, 3)) / (tokens.clamp_min(1) * rows * math.log(max(slots, 2)))
    share = combine.sum((1, 3))  # [B, n]
    share = share / share.sum(1, keepdim=True).clamp_min(torch.finfo(share.dtype).tiny)
    kept = valid.repeat_interleave(len(share) // len(valid)).to(share.dtype)
    sums = [kept.sum()[None], (over_tokens * kept).sum()[None], (over_slots * kept).sum()[None], kept @ share]
    return torch.cat(sums)


def routing_figures(sums: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Per layer: ``dispatch_entropy``, ``combine_entropy`` (1 = uniform), and of the combine weight per expert
    ``effective_experts`` (exponential of its entropy: n if all are used equally) and the ``largest_share``."""
    figures = {}
    for name, values in sums.items():
        samples = float(values[0])
        if samples == 0:
            continue
        share = values[3:].double() / samples
        figures[name] = {
            "dispatch_entropy": float(values[1]) / samples,
            "combine_entropy": float(values[2]) / samples,
            "effective_experts": float(torch.special.entr(share).sum().exp()),
            "largest_share": float(share.max()),
        }
    return figures
