"""Dispatch and combine from one array of weights: the two softmaxes of the logits differ by a row and a column factor.

With the combine weights C = softmax of a token's logits over the slots, lse_t their log-sum-exp, r_t = exp(lse_t - max
lse) and c_s = sum_t r_t C_ts, the dispatch weights (softmax over tokens) are D_ts = r_t C_ts / c_s. D is never formed:

    slots = (C^T (r x)) / c          y = C out          mass_i = (sum of r C over the tokens of modality i) / c

Backward, with u the tokens as the router sees them (logits L = u phi):

    dL = C * (dy out^T - delta_t + r_t (x (ds/c)^T + (dmass_i - delta_s)/c)),
        delta_t = <dy,y>,  delta_s = <ds,slots> + <dmass,mass>
    du = dL phi^T        dphi = u^T dL        dx = r (C (ds/c))

Only C is kept; L and dL live for a few samples at a time (:mod:`m4oe_ds.layers.passes`), in a buffer that stays in the
cache. dL needs the gradient and the expert outputs that :func:`combine` sees: they come back as "gradients" of two
outputs without storage, so that one product makes both of its terms.

Slots are ordered task-major here ([B, M, p*n], slot k*n + j), so that the slots of one task are adjacent columns. Equal
to the textbook form to rounding, unless a slot's logits lie more than 80 below the log-sum-exp of every token.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from m4oe_ds.layers.passes import Pass, passes
from m4oe_ds.layers.products import one_by_one, product, product_into


class Mixed(NamedTuple):
    """What :func:`dispatch` hands to :func:`combine`.

    Attributes:
        rows: ``[B, M, g]``, the factors r.
        weights: C, one ``[b, M, S]`` per pass over the batch.
        returns: ``[B, q, M, d]`` and ``[B, q, S/q, d]`` without storage, whose gradients are dy and the expert outputs.
    """

    rows: Tensor
    weights: tuple[Tensor, ...]
    returns: tuple[Tensor, Tensor]


class _Dispatch(torch.autograd.Function):
    """(router tokens, phi, tokens) to (slots, modality mass, r, two :attr:`Mixed.returns`, C per pass)."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        phi: Tensor,
        tokens: Tensor,
        mask: Tensor | None,
        segments: tuple[int, ...],
        groups: int,
        streams: int,
    ) -> tuple[Tensor, ...]:
        batch, length, dim = tokens.shape
        size = phi.shape[1]
        plan = passes(x, batch, length * size, single=one_by_one(x, length, dim, size // max(groups, streams)))
        slots = tokens.new_empty(batch, size, dim)
        rows, raw = x.new_empty(batch, length, groups), x.new_empty(batch, len(segments), size)
        member = _member(segments, rows)  # [M, m]
        weights = []
        for here in plan:
            logits = _rows_times(here.of(x), phi)
            grouped = logits.unflatten(2, (groups, -1))  # [b, M, g, S/g]
            normal = grouped.softmax(3)
            total = grouped.amax(3) - normal.amax(3).log()  # log-sum-exp [b, M, g]
            part = normal.flatten(2)
            if mask is not None:
                kept = here.of(mask)[:, :, None]
                part.mul_(kept)
                total = total.masked_fill(~kept, -torch.inf)
            # the clamp: a sample without any token has r = 0 instead of NaN
            row = (total - total.amax(1, keepdim=True).clamp_min(torch.finfo(total.dtype).min)).exp()
            here.of(rows).copy_(row)
            cast, factor = part.to(tokens.dtype), row.to(tokens.dtype)
            for k, columns in _columns(size, groups):
                torch.bmm(
                    (member * row[..., k, None]).transpose(1, 2), part[..., columns], out=here.of(raw)[..., columns]
                )
                product_into(
                    here.of(slots)[:, columns],
                    cast[..., columns].transpose(1, 2),
                    here.of(tokens) * factor[..., k, None],
                )
            weights.append(part)
        column = raw.sum(1).clamp_min(torch.finfo(raw.dtype).tiny)  # [B, S]
        slots.div_(column[..., None].to(tokens.dtype))
        mass = raw / column[:, None]
        ctx.save_for_backward(x, phi, tokens, rows, slots, mass, column, *weights)
        ctx.plan, ctx.segments, ctx.groups = plan, segments, groups
        ctx.mark_non_differentiable(*weights)
        ctx.set_materialize_grads(False)
        empty = tokens.new_zeros(1, 1, 1, 1)
        return (
            slots,
            mass,
            rows,
            empty.expand(batch, streams, length, dim),
            empty.new_zeros(1, 1, 1, 1).expand(batch, streams, size // streams, dim),
            *weights,
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        d_slots, d_mass, minus_delta, dy, outputs = gradients[:5]
        x, phi, tokens, rows, slots, mass, column, *weights = ctx.saved_tensors
        groups, size, same = ctx.groups, phi.shape[1], tokens.dtype == rows.dtype
        d_slots = torch.zeros_like(slots) if d_slots is None else d_slots
        d_mass = torch.zeros_like(mass) if d_mass is None else d_mass
        minus_delta = torch.zeros_like(rows) if minus_delta is None else minus_delta
        delta = (d_slots.to(column.dtype) * slots.to(column.dtype)).sum(2) + (d_mass * mass).sum(1)  # [B, S]
        scaled = d_slots / column[..., None].to(d_slots.dtype)  # [B, S, d]
        shift = ((d_mass - delta[:, None]) / column[:, None]).transpose(1, 2)  # [B, S, m]
        member = _member(ctx.segments, rows)
        d_x = torch.empty_like(x, memory_format=torch.contiguous_format) if ctx.needs_input_grad[0] else None
        d_phi = torch.zeros_like(phi, memory_format=torch.contiguous_format)
        d_tokens = torch.empty(tokens.shape, dtype=tokens.dtype, device=tokens.device)
        streams = 0 if dy is None else dy.shape[1]
        for here, part in zip(ctx.plan, weights, strict=True):
            row, token = here.of(rows), here.of(tokens)
            factor, ones = row.to(tokens.dtype), row.new_ones(here.size, size // groups, 1)
            blocks = []
            for k, columns in _columns(size, groups):
                left, right = [token * factor[..., k, None]], [here.of(scaled)[:, columns]]
                if streams == groups:
                    left.append(here.of(dy)[:, k])
                    right.append(here.of(outputs)[:, k])
                # the terms of rank m + 1 ride along as extra columns of the product
                left_low = [member * row[..., k, None], here.of(minus_delta)[..., k, None]]
                right_low = [here.of(shift)[:, columns], ones]
                if same:
                    block = _product(left + left_low, right + right_low)
                else:
                    block = _product(left_low, right_low)
                    for a, b in zip(left, right, strict=True):
                        block.add_(torch.bmm(a, b.transpose(1, 2)))
                blocks.append(block)
                piece = product(part[..., columns].to(tokens.dtype), here.of(scaled)[:, columns])
                piece = piece.mul_(factor[..., k, None])
                here.of(d_tokens).add_(piece) if k else here.of(d_tokens).copy_(piece)
            total = blocks[0] if groups == 1 else torch.cat(blocks, 2)
            if streams not in (0, groups):
                for k, columns in _columns(size, streams):
                    total[..., columns].add_(product(here.of(dy)[:, k], here.of(outputs)[:, k].transpose(1, 2)))
            d_logits = total.mul_(part)
            if d_x is not None:
                here.of(d_x).copy_(_rows_times(d_logits, phi.T))
            d_phi.add_(_rows_times(here.of(x).flatten(0, 1).T[None], d_logits.flatten(0, 1))[0])
        return d_x, d_phi, d_tokens, None, None, None, None


class _Combine(torch.autograd.Function):
    """(r, expert outputs ``[B, q, S/q, d]``, returns, C) to ``[B, q, M, d]``: one product per output stream."""

    @staticmethod
    def forward(
        ctx: Any,
        plan: tuple[Pass, ...],
        rows: Tensor,
        outputs: Tensor,
        _first: Tensor,
        _second: Tensor,
        *weights: Tensor,
    ) -> Tensor:
        streams, size = outputs.shape[1], weights[0].shape[2]
        y = outputs.new_empty(streams, len(outputs), weights[0].shape[1], outputs.shape[3])  # [q, B, M, d]
        for here, part in zip(plan, weights, strict=True):
            cast = part.to(outputs.dtype)
            for k, columns in _columns(size, streams):
                product_into(here.of(y[k]), cast[..., columns], here.of(outputs)[:, k])
        ctx.save_for_backward(rows, outputs, y, *weights)
        ctx.plan = plan
        return y.transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, outputs, y, *weights = ctx.saved_tensors
        streams, groups, size = outputs.shape[1], rows.shape[2], weights[0].shape[2]
        d_outputs = torch.empty(outputs.shape, dtype=outputs.dtype, device=outputs.device)
        minus_delta = torch.zeros_like(rows)
        dy = gradients[0]
        for here, part in zip(ctx.plan, weights, strict=True):
            cast, gradient, delta = part.to(outputs.dtype), here.of(dy), here.of(minus_delta)
            for k, columns in _columns(size, streams):
                delta[..., k % groups] -= (gradient[:, k] * here.of(y[k])).sum(2).to(rows.dtype)
                product_into(here.of(d_outputs)[:, k], cast[..., columns].transpose(1, 2), gradient[:, k])
        return None, minus_delta, d_outputs, dy, outputs, *(None for _ in weights)


def _product(left: list[Tensor], right: list[Tensor]) -> Tensor:
    return product(torch.cat(left, 2), torch.cat(right, 2).transpose(1, 2))


def _rows_times(a: Tensor, b: Tensor) -> Tensor:
    """``[b, m, k]`` times ``[k, n]``, as one product of all rows."""
    return product(a.flatten(0, 1)[None], b[None])[0].unflatten(0, a.shape[:2])


def _columns(size: int, count: int) -> list[tuple[int, slice]]:
    """``count`` equal blocks of columns with their numbers."""
    width = size // count
    return [(k, slice(k * width, (k + 1) * width)) for k in range(count)]


def _member(segments: tuple[int, ...], like: Tensor) -> Tensor:
    """``[M, m]``: 1 where a token belongs to a modality, made without a copy from the host."""
    member = torch.zeros(sum(segments), len(segments), dtype=like.dtype, device=like.device)
    for i, part in enumerate(member.split(segments)):
        part[:, i] = 1.0
    return member


def dispatch(
    x: Tensor,
    phi: Tensor,
    tokens: Tensor,
    mask: Tensor | None,
    segments: Sequence[int],
    streams: int,
    per_task: int = 0,
) -> tuple[Tensor, Tensor, Mixed]:
    """Slot inputs and what :func:`combine` needs.

    Args:
        x: ``[B, M, d]`` float32 or float64, tokens as the router compares them.
        phi: ``[d, S]``, task-major.
        tokens: ``[B, M, d]``, what is dispatched.
        mask: ``[B, M]`` bool or None.
        segments: numbers of adjacent tokens of each modality; they add up to M.
        streams: q, outputs that :func:`combine` will make.
        per_task: p if combine weights are normalised within each task (then q = p), 0 for all slots together.

    Returns:
        ``slots [B, S, d]`` in the dtype of the tokens; ``mass [B, m, S]``, the dispatch weight on each modality's
        tokens; what goes into :func:`combine`, once.
    """
    slots, mass, rows, first, second, *weights = _Dispatch.apply(
        x, phi, tokens, mask, tuple(segments), max(per_task, 1), streams
    )
    return slots, mass, Mixed(rows, tuple(weights), (first, second))


def combine(mixed: Mixed, outputs: Tensor) -> Tensor:
    """``[B, q, M, d]``: for each of q streams the weighted mean of its expert outputs ``[B, q, S/q, d]``."""
    starts = [0]
    for part in mixed.weights:
        starts.append(starts[-1] + len(part))
    plan = tuple(Pass(a, b) for a, b in itertools.pairwise(starts))
    y: Tensor = _Combine.apply(plan, mixed.rows, outputs, *mixed.returns, *mixed.weights)
    return y
