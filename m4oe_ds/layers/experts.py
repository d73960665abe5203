"""Expert MLPs as stacked tensors, and the seam at which expert parallelism is handed to a layer."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from m4oe_ds.errors import ShapeError
from m4oe_ds.layers.passes import passes
from m4oe_ds.layers.products import one_by_one, product, product_into


class ExpertExecutor(Protocol):
    """Runs slot rows through their experts: ``[B, n, s, d] -> [B, n, s, d]``, wherever the weights live."""

    num_experts: int

    def __call__(self, slots: Tensor) -> Tensor: ...


ExpertsFactory = Callable[[int, int, int], nn.Module]  # (num_experts, dim, hidden) -> an ExpertExecutor module


class ExpertWeights(nn.Module):
    """Stacked two-layer MLPs d -> h -> d with GELU: the weights of ``len(expert_ids)`` experts.

    f_j(x) = gelu(x w1[j] + w3[j, :h]) w2[j] + w3[j, h:]

    Exactly three tensors, both biases packed in the third, because that is the form DeepSpeed's expert checkpoints
    take.

    Args:
        expert_ids: global ids of the experts held here, in order; they seed the initial values.
        dim: d.
        hidden: h.
    """

    def __init__(self, expert_ids: Sequence[int], dim: int, hidden: int) -> None:
        super().__init__()
        count = len(expert_ids)
        self.expert_ids, self.dim, self.hidden = tuple(expert_ids), dim, hidden
        self.w1 = nn.Parameter(torch.empty(count, dim, hidden))
        self.w2 = nn.Parameter(torch.empty(count, hidden, dim))
        self.w3 = nn.Parameter(torch.zeros(count, 1, hidden + dim))
        if not self.w1.is_meta:
            self.reset_parameters(0, "")

    @torch.no_grad()
    def reset_parameters(self, seed: int, name: str) -> None:
        """Xavier-uniform weights and zero biases; expert j depends on (seed, name, j) alone, not on who holds it."""
        bound = math.sqrt(6.0 / (self.dim + self.hidden))
        for row, expert_id in enumerate(self.expert_ids):
            digest = hashlib.sha256(f"{seed}/{name}/{expert_id}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") & (2**63 - 1))
            for weight in (self.w1, self.w2):
                values = torch.empty(weight.shape[1:]).uniform_(-bound, bound, generator=generator)
                weight[row].copy_(values)
        self.w3.zero_()

    def forward(self, rows: Tensor) -> Tensor:
        """``[n_local, rows, d] -> [n_local, rows, d]``."""
        if torch.compiler.is_compiling() or torch.is_autocast_enabled(rows.device.type):
            hidden = torch.baddbmm(self.w3[..., : self.hidden], rows, self.w1)  # [n_local, rows, h]
            return torch.baddbmm(self.w3[..., self.hidden :], functional.gelu(hidden), self.w2)
        out: Tensor = _Mlp.apply(rows, self.w1, self.w2, self.w3)
        return out

    def extra_repr(self) -> str:
        """Sizes shown by ``print(model)``."""
        return f"experts={len(self.expert_ids)}, dim={self.dim}, hidden={self.hidden}"


class _Mlp(torch.autograd.Function):
    """Experts a few at a time, so that hidden rows stay in the cache; backward recomputes the GELU instead of keeping
    it.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, w1: Tensor, w2: Tensor, w3: Tensor) -> Tensor:
        hidden = w1.shape[2]
        fast = one_by_one(rows, rows.shape[1], rows.shape[2], hidden)
        plan = passes(rows, len(rows), rows.shape[1] * hidden, single=fast)
        out = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
        kept = []
        for here in plan:
            bias = here.of(w3)
            if fast:
                before = product(here.of(rows), here.of(w1)).add_(bias[..., :hidden])  # [n, rows, h]
                here.of(out).copy_(product(functional.gelu(before), here.of(w2))).add_(bias[..., hidden:])
            else:
                before = torch.baddbmm(bias[..., :hidden], here.of(rows), here.of(w1))
                torch.baddbmm(bias[..., hidden:], functional.gelu(before), here.of(w2), out=here.of(out))
            kept.append(before)
        ctx.save_for_backward(rows, w1, w2, w3, *kept)
        ctx.plan = plan
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        rows, w1, w2, w3, *kept = ctx.saved_tensors
        hidden, dy = w1.shape[2], gradients[0]
        d_rows, d_w1, d_w2, d_w3 = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (rows, w1, w2, w3))
        for here, before in zip(ctx.plan, kept, strict=True):
            gradient, inputs = here.of(dy), here.of(rows)
            product_into(here.of(d_w2), functional.gelu(before).transpose(1, 2), gradient)
            inner = torch.ops.aten.gelu_backward(product(gradient, here.of(w2).transpose(1, 2)), before)
            product_into(here.of(d_w1), inputs.transpose(1, 2), inner)
            product_into(here.of(d_rows), inner, here.of(w1).transpose(1, 2))
            torch.sum(inner, 1, keepdim=True, out=here.of(d_w3)[..., :hidden])
            torch.sum(gradient, 1, keepdim=True, out=here.of(d_w3)[..., hidden:])
        return d_rows, d_w1, d_w2, d_w3


class LocalExperts(nn.Module):
    """Executor with all n experts in this process.

    Args:
        num_experts: n.
        dim: d.
        hidden: h.
    """

    def __init__(self, num_experts: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.experts = ExpertWeights(range(num_experts), dim, hidden)

    def forward(self, slots: Tensor) -> Tensor:
        """``[B, n, s, d] -> [B, n, s, d]``; slot rows of expert j go through f_j.

        Raises:
            ShapeError: n differs from ``num_experts``.
        """
        if slots.ndim != 4 or slots.shape[1] != self.num_experts:
            raise ShapeError(f"{self.num_experts} experts got slots of shape {tuple(slots.shape)}")
        batch, experts, count, dim = slots.shape
        rows = slots.transpose(0, 1).reshape(experts, batch * count, dim)  # [n, B*s, d]
        return self.experts(rows).view(experts, batch, count, dim).transpose(0, 1)


def run_each(executors: Sequence[ExpertExecutor], slots: Sequence[Tensor]) -> list[Tensor]:
    """Outputs of several executors for their slots; in one exchange, where their class has ``run_together``."""
    together = getattr(executors[0], "run_together", None)
    if together is not None:
        outputs: list[Tensor] = together(executors, slots)
        return outputs
    return [executor(x) for executor, x in zip(executors, slots, strict=True)]


def sharded(
    slots: Sequence[Tensor],
    ep_size: int,
    experts: Sequence[Callable[[Tensor], Tensor]],
    exchange: Callable[[Tensor], Tensor],
) -> list[Tensor]:
    """Layers whose experts are split over ``ep_size`` owners: arranges slots for one exchange there and one back.

    Args:
        slots: per layer ``[B, n_i, s, d]``.
        experts: per layer ``[n_local, rows, d] -> [n_local, rows, d]``.
        exchange: ``[N, n_local, B, s, d] -> [N, n_local, B, s, d]``, rows of dim 0 to owner N and from sender N,
            n_local over all layers; not called if ``ep_size`` is 1.

    Returns:
        per layer ``[B, n_i, s, d]``.
    """
    batch, _, count, dim = slots[0].shape
    local = [x.shape[1] // ep_size for x in slots]

    def travel(parts: list[Tensor]) -> list[Tensor]:
        if ep_size == 1:
            return parts
        return list(exchange(parts[0] if len(parts) == 1 else torch.cat(parts, 1)).split(local, 1))

    parts = travel(
        [x.view(batch, ep_size, n, count, dim).permute(1, 2, 0, 3, 4) for x, n in zip(slots, local, strict=True)]
    )
    outputs = []
    for run, x, n in zip(experts, parts, local, strict=True):
        rows = x.transpose(0, 1).reshape(n, ep_size * batch * count, dim)
        outputs.append(run(rows).view(n, ep_size, batch, count, dim).transpose(0, 1))
    return [
        y.permute(2, 0, 1, 3, 4).reshape(batch, ep_size * n, count, dim)
        for y, n in zip(travel(outputs), local, strict=True)
    ]


def initialise_experts(model: nn.Module, seed: int) -> None:
    """Draws every expert of ``model`` from (seed, module path, global expert id), so any sharding starts equal."""
    for name, module in model.named_modules():
        if isinstance(module, ExpertWeights) and not module.w1.is_meta:
            module.reset_parameters(seed, name)
