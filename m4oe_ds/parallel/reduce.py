"""Reductions over the data-parallel ranks; identities where there is one rank."""

from __future__ import annotations

import deepspeed.comm as dist
import torch
from torch import Tensor, nn


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum of a detached tensor over all ranks, on every rank.

    Collectives: one all-reduce of the tensor over all ranks; every rank must call it.
    """
    total = tensor.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def maximum_over_ranks(tensor: Tensor) -> Tensor:
    """Element-wise maximum over all ranks, on every rank (agreement on flags). Collectives: one all-reduce."""
    total = tensor.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total, op=dist.ReduceOp.MAX)
    return total


def average_running_statistics(model: nn.Module) -> None:
    """Gives the batch-norm statistics of a model their mean over the ranks, each of which saw other samples.

    Without it a checkpoint would hold those of one rank only, and ranks would evaluate with different ones.

    Collectives: one all-reduce per batch-norm layer, none for models without; every rank must call it.
    """
    if world_size() == 1:
        return
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            if not module.training and not any(parameter.requires_grad for parameter in module.parameters()):
                continue  # frozen: equal on all ranks already, and a sum divided by their number may round
            assert module.running_var is not None
            both = torch.cat([module.running_mean.double(), module.running_var.double()])
            mean, variance = (sum_over_ranks(both) / world_size()).chunk(2)
            module.running_mean.copy_(mean)
            module.running_var.copy_(variance)


def gather_rows(tensor: Tensor) -> Tensor:
    """Rows of all ranks ``[world * N, ...]``, rank-major; N must be equal on all ranks.

    Collectives: one all-gather over all ranks.
    """
    if world_size() == 1:
        return tensor.detach().clone()
    tensor = tensor.detach().contiguous()
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor)
    return torch.cat(parts)


def barrier() -> None:
    """Waits for all ranks."""
    if world_size() > 1:
        dist.barrier()


def broadcast_text(text: str, device: torch.device) -> str:
    """Rank 0's text on every rank. Collectives: two broadcasts."""
    if world_size() == 1:
        return text
    payload = torch.frombuffer(bytearray(text.encode() or b"\0"), dtype=torch.uint8).to(device)
    length = torch.tensor([len(payload)], device=device)
    dist.broadcast(length, 0)
    if rank() != 0:
        payload = torch.zeros(int(length), dtype=torch.uint8, device=device)
    dist.broadcast(payload, 0)
    return bytes(payload.cpu().tolist()).decode().rstrip("\0")


def agree(problems: list[str], device: torch.device) -> list[str]:
    """Every rank's problems on every rank: all stop together or none does. Collectives: two all-reduces and gathers."""
    if world_size() == 1:
        return problems
    data = "\n".join(problems).encode()
    longest = int(maximum_over_ranks(torch.tensor(len(data), device=device)))
    if longest == 0:
        return []
    row = torch.zeros(1, longest, dtype=torch.uint8, device=device)
    if data:
        row[0, : len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8).to(device)
    rows = gather_rows(row).cpu()
    texts = [bytes(item.tolist()).rstrip(b"\0").decode() for item in rows]
    return [line for text in texts for line in text.splitlines()]
