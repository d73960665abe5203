"""Expert parallelism moves the slots and nothing else: bytes counted at the transport, against ``2 B n p d`` per layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import problem
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.distributed
BATCH = 4  # per rank


def counted(rank: int, world: int) -> dict[str, Any]:
    """Every all-to-all of one training step as torch.distributed sees it, and what the layers should have sent."""
    from m4oe_ds import deepspeed_json
    from m4oe_ds.layers.mtoe import MToE
    from m4oe_ds.layers.soft_moe import SoftMoE
    from m4oe_ds.models import spec_for
    from m4oe_ds.parallel import exchange
    from m4oe_ds.training import engine as engines
    from m4oe_ds.training.step import train_step

    cfg = problem.config(f"parallel.ep_size={world}")
    ds = problem.deepspeed_config(2, BATCH * world, 1, 0.0)
    engine, _ = engines.create(cfg, ds, deepspeed_json.batch_sizes(ds, world, "test"), world)
    spec = spec_for(cfg)

    minimum = 0  # bytes of all slots, one direction of one pass, of every call of every mixture layer

    def expect(layer: Any, inputs: tuple[Any, ...], _: Any) -> None:
        nonlocal minimum
        _, experts, slots = layer.router.phi.shape
        minimum += inputs[0].shape[0] * experts * slots * inputs[0].shape[2] * inputs[0].element_size()

    for module in engine.module.modules():
        if isinstance(module, (MToE, SoftMoE)):
            module.register_forward_hook(expect)

    seen: list[int] = []
    original = torch.distributed.all_to_all_single

    def watch(output: Any, input: Any, *args: Any, **kwargs: Any) -> Any:  # DeepSpeed passes them by name
        seen.append(input.numel() * input.element_size())
        return original(output, input, *args, **kwargs)

    torch.distributed.all_to_all_single = watch  # type: ignore[assignment]
    try:
        before = exchange.bytes_sent()
        batch = problem.part(problem.samples(spec, BATCH * world, seed=1), rank * BATCH, (rank + 1) * BATCH)
        train_step(engine, [batch], problem.objective(spec), torch.float32)
    finally:
        torch.distributed.all_to_all_single = original
    return {"seen": sum(seen), "calls": len(seen), "minimum": minimum, "counter": exchange.bytes_sent() - before}


@pytest.mark.parametrize("world", [2, 4])
def test_no_byte_more_than_the_slots_twice_per_direction(world: int, tmp_path: Path) -> None:
    results = run_ranks(counted, world, folder=tmp_path)
    for result in results:
        assert result["minimum"] > 0
        # slots to their experts and outputs back, in the forward pass and in the backward pass: 4 B n p d per layer and step
        assert result["seen"] == 4 * result["minimum"]
        # of which a rank's own experts get their share without a wire
        assert result["counter"] == result["seen"] * (world - 1) // world
    assert len({result["calls"] for result in results}) == 1
    assert results[0]["calls"] % 4 == 0


def test_one_rank_exchanges_nothing(tmp_path: Path) -> None:
    (result,) = run_ranks(counted, 1, folder=tmp_path)
    assert (result["seen"], result["calls"], result["counter"]) == (0, 0, 0)
