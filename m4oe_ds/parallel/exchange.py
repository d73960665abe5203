"""Slots travel, tokens do not: one all-to-all to the owners of the experts and one back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import deepspeed.comm as dist
import torch
from torch import Tensor

_bytes_sent = 0  # by this process since it started


def bytes_sent() -> int:
    """Bytes that all-to-alls of this process have sent to other ranks so far, forward and backward."""
    return _bytes_sent


class _AllToAll(torch.autograd.Function):
    """Equal-split all-to-all over dim 0; its adjoint is the same exchange."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return _all_to_all(tensor, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return _all_to_all(gradients[0], ctx.group), None


def _all_to_all(tensor: Tensor, group: Any) -> Tensor:
    # Both buffers must be contiguous. empty_like would copy the strides of a permuted input and the received rows would
    # be permuted without an error (seen in backward, where the gradient arrives strided).
    global _bytes_sent
    tensor = tensor.contiguous()
    ranks = dist.get_world_size(group)
    _bytes_sent += tensor.nbytes * (ranks - 1) // ranks
    received = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
    dist.all_to_all_single(received, tensor, group=group)
    return received


def run_on_owners(slots: Tensor, ep_size: int, group: Any, experts: Callable[[Tensor], Tensor]) -> Tensor:
    """Sends slots to the ranks that own their experts, runs them there and brings the outputs back.

    Args:
        slots: ``[B, n, s, d]``, this rank's samples, all experts; B must be equal on all ranks of the group.
        ep_size: ranks in the group. group: the expert-parallel group.
        experts: ``[n_local, rows, d] -> [n_local, rows, d]``, this rank's experts.

    Returns:
        ``[B, n, s, d]``.

    Collectives: forward and backward make two all-to-alls each of ``B n s d`` elements over ``group``, of which
    (ep_size - 1) / ep_size leave the rank; every rank of the group must call this equally often. None if ep_size is 1.
    """
    batch, num_experts, count, dim = slots.shape
    local = num_experts // ep_size
    x = slots.view(batch, ep_size, local, count, dim).permute(1, 2, 0, 3, 4)  # [N, n_local, B, s, d], to owner N
    if ep_size > 1:
        x = _AllToAll.apply(x, group)  # [N, n_local, B, s, d], from sender N, this rank's experts
    rows = x.transpose(0, 1).reshape(local, ep_size * batch * count, dim)
    y = experts(rows).view(local, ep_size, batch, count, dim).transpose(0, 1)  # [N, n_local, B, s, d]
    if ep_size > 1:
        y = _AllToAll.apply(y, group)  # [N, n_local, B, s, d], outputs of owner N for this rank's samples
    return y.permute(2, 0, 1, 3, 4).reshape(batch, num_experts, count, dim)
