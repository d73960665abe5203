"""Dispatch and combine from one array of weights: the two softmaxes of the logits differ by a row and a column factor.

With the combine weights C = softmax of a token's logits over the slots, lse_t their log-sum-exp, r_t = exp(lse_t - max lse)
and c_s = sum_t r_t C_ts, the dispatch weights (softmax over tokens) are D_ts = r_t C_ts / c_s. D is never formed:

    slots = (C^T (r x)) / c          y = C out          mass_i = (sum of r C over the tokens of modality i) / c

Backward makes one more array of that size, into which all products accumulate before one multiplication:

    dL = C * (dy out^T - delta_t + r_t (x (ds/c)^T + (dmass_i - delta_s)/c)),  delta_t = <dy,y>,  delta_s = <ds,slots> + <dmass,mass>

Slots are ordered task-major here ([B, M, p*n], slot k*n + j), so that the slots of one task are adjacent columns. Equal
to the textbook form to rounding, unless a slot's logits lie more than 80 below the log-sum-exp of every token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _Dispatch(torch.autograd.Function):
    """(logits, tokens) to (slots, modality mass, C, r). The gradient of the last output carries -delta_t back."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, tokens: Tensor, mask: Tensor | None, segments: tuple[int, ...], groups: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        grouped = logits.unflatten(2, (groups, -1))  # [B, M, g, S/g]
        normal = grouped.softmax(3)
        total = grouped.amax(3) - normal.amax(3).log()  # log-sum-exp [B, M, g]
        weights = normal.flatten(2)
        if mask is not None:
            weights.mul_(mask[:, :, None])
            total = total.masked_fill(~mask[:, :, None], -torch.inf)
        # the clamp: a sample without any token has r = 0 instead of NaN
        rows = (total - total.amax(1, keepdim=True).clamp_min(torch.finfo(total.dtype).min)).exp()
        member = _member(segments, rows)  # [M, m]
        raw = torch.cat(
            [torch.bmm((member * rows[..., k, None]).transpose(1, 2), part) for k, part in _parts(weights, groups)], 2
        )  # [B, m, S]
        column = raw.sum(1).clamp_min(torch.finfo(raw.dtype).tiny)  # [B, S]
        cast, factor = weights.to(tokens.dtype), rows.to(tokens.dtype)
        slots = torch.cat(
            [torch.bmm(part.transpose(1, 2), tokens * factor[..., k, None]) for k, part in _parts(cast, groups)], 1
        ).div_(column[..., None].to(tokens.dtype))
        mass = raw / column[:, None]
        ctx.save_for_backward(weights, rows, tokens, slots, mass, column)
        ctx.segments, ctx.groups = segments, groups
        return slots, mass, weights, rows

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        d_slots, d_mass, total, minus_delta = gradients
        weights, rows, tokens, slots, mass, column = ctx.saved_tensors
        delta = (d_slots.to(column.dtype) * slots.to(column.dtype)).sum(2) + (d_mass * mass).sum(1)  # [B, S]
        scaled = d_slots / column[..., None].to(d_slots.dtype)  # [B, S, d]
        shift = (d_mass - delta[:, None]) / column[:, None]  # [B, m, S]
        member = _member(ctx.segments, rows)
        same = tokens.dtype == weights.dtype
        d_tokens = torch.zeros_like(tokens) if ctx.groups > 1 else None
        size = weights.shape[2] // ctx.groups
        for k, part in _parts(weights, ctx.groups):
            here, factor = slice(k * size, (k + 1) * size), rows[..., k, None]
            piece = torch.bmm(part.to(tokens.dtype), scaled[:, here]).mul_(factor.to(tokens.dtype))
            d_tokens = piece if d_tokens is None else d_tokens.add_(piece)
            # the terms of rank m + 1 ride along as extra columns of the product: no further pass over the large array
            left = [member * factor, minus_delta[..., k, None]]
            right = [shift[..., here].transpose(1, 2), torch.ones_like(column[:, here, None])]
            if same:
                left, right = [tokens * factor, *left], [scaled[:, here], *right]
            else:
                product = torch.bmm(tokens * factor.to(tokens.dtype), scaled[:, here].transpose(1, 2))
                total[..., here].add_(product)
            total[..., here].baddbmm_(torch.cat(left, 2), torch.cat(right, 2).transpose(1, 2))
        return total.mul_(weights), d_tokens, None, None, None


class _Combine(torch.autograd.Function):
    """(C, r, expert outputs ``[B, q, S/q, d]``) to ``[B, q, M, d]``: one product per output stream."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, rows: Tensor, outputs: Tensor) -> Tensor:
        streams = outputs.shape[1]
        y = outputs.new_empty(streams, len(outputs), weights.shape[1], outputs.shape[3])  # [q, B, M, d]
        for k, part in _parts(weights.to(outputs.dtype), streams):
            torch.bmm(part, outputs[:, k], out=y[k])
        ctx.save_for_backward(weights, rows, outputs, y)
        return y.transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights, rows, outputs, y = ctx.saved_tensors
        streams, groups = outputs.shape[1], rows.shape[2]
        d_weights, d_outputs = torch.empty_like(weights), torch.empty_like(outputs)
        minus_delta = torch.zeros_like(rows)
        targets = d_weights.chunk(streams, 2)
        for k, part in _parts(weights.to(outputs.dtype), streams):
            gradient = gradients[0][:, k].contiguous()
            minus_delta[..., k % groups] -= (gradient * y[k]).sum(2).to(rows.dtype)
            other = outputs[:, k].transpose(1, 2)
            if outputs.dtype == weights.dtype:
                torch.bmm(gradient, other, out=targets[k])
            else:
                targets[k].copy_(torch.bmm(gradient, other))
            torch.bmm(part.transpose(1, 2), gradient, out=d_outputs[:, k])
        return d_weights, minus_delta, d_outputs


def _parts(weights: Tensor, count: int) -> list[tuple[int, Tensor]]:
    """``count`` equal column blocks with their numbers."""
    return list(enumerate(weights.chunk(count, 2)))


def _member(segments: tuple[int, ...], like: Tensor) -> Tensor:
    """``[M, m]``: 1 where a token belongs to a modality, made without a copy from the host."""
    member = torch.zeros(sum(segments), len(segments), dtype=like.dtype, device=like.device)
    for i, part in enumerate(member.split(segments)):
        part[:, i] = 1.0
    return member


def dispatch(
    logits: Tensor, tokens: Tensor, mask: Tensor | None, segments: Sequence[int], per_task: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Slot inputs and what :func:`combine` needs.

    Args:
        logits: ``[B, M, S]`` float32 or float64, task-major. tokens: ``[B, M, d]``.
        mask: ``[B, M]`` bool or None. segments: numbers of adjacent tokens of each modality; they add up to M.
        per_task: p if combine weights are normalised within each task, 0 for all slots together.

    Returns:
        ``slots [B, S, d]`` in the dtype of the tokens; ``mass [B, m, S]``, the dispatch weight on each modality's tokens;
        ``weights [B, M, S]``, the combine weights C; ``rows [B, M, g]``, the factors r.
    """
    found: tuple[Tensor, Tensor, Tensor, Tensor] = _Dispatch.apply(
        logits, tokens, mask, tuple(segments), max(per_task, 1)
    )
    return found


def combine(weights: Tensor, rows: Tensor, outputs: Tensor) -> Tensor:
    """``[B, q, M, d]``: for each of q streams the weighted mean of its expert outputs ``[B, q, S/q, d]``."""
    y: Tensor = _Combine.apply(weights, rows, outputs)
    return y
