"""Slots travel, tokens do not: one all-to-all to the owners of the experts and one back, for all layers of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import deepspeed.comm as dist
import torch
from torch import Tensor

from m4oe_ds.layers.experts import sharded

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


def run_on_owners(
    slots: Sequence[Tensor], ep_size: int, group: Any, experts: Sequence[Callable[[Tensor], Tensor]]
) -> list[Tensor]:
    """Sends slots to the ranks that own their experts, runs them there and brings the outputs back.

    Several mixture layers that do not depend on each other share the two exchanges; their products stay apart, since
    putting their weights side by side would read and write all of them.

    Args:
        slots: per layer ``[B, n_i, s, d]``, this rank's samples, all experts; B must be equal on all ranks of the
            group.
        ep_size: ranks in the group.
        group: the expert-parallel group.
        experts: per layer ``[n_local, rows, d] -> [n_local, rows, d]``, this rank's experts.

    Returns:
        per layer ``[B, n_i, s, d]``.

    Collectives: forward and backward make two all-to-alls each of ``B s d sum(n_i)`` elements over ``group``, of which
    (ep_size - 1) / ep_size leave the rank; every rank of the group must call this equally often. None if ep_size is 1.
    """
    return sharded(slots, ep_size, experts, lambda x: _AllToAll.apply(x, group))
