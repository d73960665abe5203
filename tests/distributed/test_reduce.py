"""Reductions and the exchange with real ranks: values, gradients, and a strided input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.distributed


def exercise(rank: int, world: int) -> dict[str, Any]:
    """Everything that needs the same start-up."""
    from deepspeed.utils import groups

    from m4oe_ds.layers.experts import LocalExperts, initialise_experts
    from m4oe_ds.parallel import reduce, topology
    from m4oe_ds.parallel.exchange import run_on_owners

    device = torch.device("cpu")
    result: dict[str, Any] = {
        "sum": reduce.sum_over_ranks(torch.tensor([1.0, float(rank)])).tolist(),
        "maximum": int(reduce.maximum_over_ranks(torch.tensor(rank % 3))),
        "rows": reduce.gather_rows(torch.full((2, 1), rank)).flatten().tolist(),
        "text": reduce.broadcast_text(f"from {rank}", device),
        "empty": reduce.broadcast_text("", device),
        "agreed": reduce.agree([f"problem of {rank}"] if rank == 1 else [], device),
        "nothing": reduce.agree([], device),
    }
    place = topology.create(world)
    n, dim, hidden, batch, slots = 2 * world, 6, 8, 3, 2
    whole = LocalExperts(n, dim, hidden)
    initialise_experts(whole, 0)
    mine = list(place.local_experts(n))
    weights = [w.detach()[mine].clone().requires_grad_() for w in whole.experts.parameters()]

    def local(rows: torch.Tensor) -> torch.Tensor:
        w1, w2, w3 = weights
        return torch.baddbmm(w3[..., hidden:], torch.nn.functional.gelu(torch.baddbmm(w3[..., :hidden], rows, w1)), w2)

    generator = torch.Generator().manual_seed(rank)
    base = torch.randn(batch, slots, n, dim, generator=generator)
    x = base.transpose(1, 2).requires_grad_()  # [B, n, s, d], strided
    group = groups._get_expert_parallel_group(place.group_name)
    # with another layer that has more slots per expert's owner: both share the exchange and neither sees the other
    beside = torch.randn(batch, 2 * n, slots, dim, generator=generator)
    out, other = run_on_owners([x, beside], world, group, [local, lambda rows: 2 * rows])
    result["beside"] = float((other - 2 * beside).abs().max())
    target = torch.randn(out.shape, generator=generator).transpose(0, 1).contiguous().transpose(0, 1)
    grads = torch.autograd.grad((out * target).sum(), [x, *weights])
    y = x.detach().clone().requires_grad_()
    expected = whole(y)
    result["forward"] = float((out - expected).abs().max())
    expected_grads = torch.autograd.grad((expected * target).sum(), [y, *whole.experts.parameters()])
    result["input_gradient"] = float((grads[0] - expected_grads[0]).abs().max())
    # an owner's gradient is the sum over the ranks' losses
    result["weight_gradient"] = max(
        float((found - reduce.sum_over_ranks(wanted)[mine]).abs().max())
        for found, wanted in zip(grads[1:], expected_grads[1:], strict=True)
    )
    return result


@pytest.mark.parametrize("world", [2, 4])
def test_reductions_and_exchange(world: int, tmp_path: Path) -> None:
    for found in run_ranks(exercise, world, folder=tmp_path):
        assert found["sum"] == [world, sum(range(world))]
        assert found["maximum"] == min(world - 1, 2)
        assert found["rows"] == [rank for rank in range(world) for _ in range(2)]
        assert found["text"] == "from 0"
        assert found["empty"] == ""
        assert found["agreed"] == ["problem of 1"]
        assert found["nothing"] == []
        assert found["forward"] < 1e-6
        assert found["beside"] < 1e-6
        assert found["input_gradient"] < 1e-5
        assert found["weight_gradient"] < 1e-4  # sums over more rows in another order
