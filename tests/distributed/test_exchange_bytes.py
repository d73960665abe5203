"""Expert parallelism moves the slots and nothing else: bytes at the transport, against ``2 B n p d`` per layer."""

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
    from m4oe_ds.models.towers import ModalityTowers
    from m4oe_ds.parallel import exchange
    from m4oe_ds.training import engine as engines
    from m4oe_ds.training.step import train_step

    cfg = problem.config(f"parallel.ep_size={world}")
    ds = problem.deepspeed_config(2, BATCH * world, 1, 0.0)
    engine, _ = engines.create(cfg, ds, deepspeed_json.batch_sizes(ds, world, "test"), world)
    spec = spec_for(cfg)

    slots: list[int] = []  # bytes of all slots of every call of every mixture layer, from its own parameters

    def size(layer: Any, tokens: Any) -> int:
        _, experts, count = layer.router.phi.shape
        return int(len(tokens) * experts * count * tokens.shape[2] * tokens.element_size())

    def expect(layer: Any, inputs: tuple[Any, ...], _: Any) -> None:
        slots.append(size(layer, inputs[0]))

    def expect_together(towers: Any, inputs: tuple[Any, ...], _: Any) -> None:
        """At every depth the layers of all modalities share one exchange."""
        for blocks in zip(*(tower.blocks for tower in towers.values()), strict=True):
            slots.append(sum(size(block.mlp, x) for block, x in zip(blocks, inputs[0], strict=True)))

    for module in engine.module.modules():
        if isinstance(module, (MToE, SoftMoE)):
            module.register_forward_hook(expect)
        elif isinstance(module, ModalityTowers):
            module.register_forward_hook(expect_together)

    seen: dict[str, list[int]] = {"forward": [], "backward": []}
    direction = "forward"
    original, backward = torch.distributed.all_to_all_single, engine.backward

    def watch(output: Any, input: Any, *args: Any, **kwargs: Any) -> Any:  # DeepSpeed passes them by name
        seen[direction].append(input.numel() * input.element_size())
        return original(output, input, *args, **kwargs)

    def turn(loss: Any) -> Any:
        nonlocal direction
        direction = "backward"
        return backward(loss)

    torch.distributed.all_to_all_single = watch  # type: ignore[assignment]
    engine.backward = turn
    try:
        before = exchange.bytes_sent()
        batch = problem.part(problem.samples(spec, BATCH * world, seed=1), rank * BATCH, (rank + 1) * BATCH)
        train_step(engine, [batch], problem.objective(spec), torch.float32)
    finally:
        torch.distributed.all_to_all_single = original
    return {"slots": slots, **seen, "counter": exchange.bytes_sent() - before}


@pytest.mark.parametrize("world", [2, 4])
def test_no_byte_more_than_the_slots_twice_per_direction(world: int, tmp_path: Path) -> None:
    results = run_ranks(counted, world, folder=tmp_path)
    for result in results:
        # every layer by itself, in its order: its slots to their experts and as many outputs back, 2 B n p d elements
        # in the forward pass; their gradients the same way in the backward pass, last layer first or next to a branch
        twice = [size for size in result["slots"] for _ in range(2)]
        assert len(result["slots"]) >= 3  # MSoE, MToE and fusion
        assert result["forward"] == twice
        assert sorted(result["backward"]) == sorted(twice)
        # what crosses to other ranks: 1/ep of the slots belong to this rank's own experts and stay
        everything = sum(result["forward"]) + sum(result["backward"])
        assert result["counter"] * world == everything * (world - 1)
    assert len({str(result["forward"]) for result in results}) == 1


def test_one_rank_exchanges_nothing(tmp_path: Path) -> None:
    (result,) = run_ranks(counted, 1, folder=tmp_path)
    assert result["slots"]
    assert (result["forward"], result["backward"], result["counter"]) == ([], [], 0)
