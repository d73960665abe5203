"""What the adapter needs from DeepSpeed's internals; fails first when a new version changes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.distributed import problem
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.distributed


def test_pinned_version_and_constants() -> None:
    import deepspeed
    from deepspeed.checkpoint import constants

    from m4oe_ds.parallel.deepspeed_moe import PINNED_VERSION

    assert deepspeed.__version__.split("+")[0] == PINNED_VERSION
    for name in ("DS_AUTOEP_UC_META", "AUTOEP_EXPERT_PLACEMENT", "AFFINE_MAP", "AUTOEP_PARAM_LOGICAL_SHAPE"):
        assert isinstance(getattr(constants, name), str)


def inspect_engine(rank: int, world: int, stage: int) -> dict[str, Any]:
    """What the engine made of the small model at ep = world."""
    from m4oe_ds import deepspeed_json
    from m4oe_ds.parallel.deepspeed_moe import ExpertParallelExperts
    from m4oe_ds.training import engine as engines

    cfg = problem.config(f"parallel.ep_size={world}")
    ds = problem.deepspeed_config(stage, 4 * world, 1, 0.0)
    engine, place = engines.create(cfg, ds, deepspeed_json.batch_sizes(ds, world, "test"), world)
    layers = [m for m in engine.module.modules() if isinstance(m, ExpertParallelExperts)]
    experts = {id(p) for layer in layers for p in layer.experts.parameters()}
    groups = engine.optimizer.param_groups
    return {
        "layers": len(layers),
        "recognised": len(engine.num_experts),
        "group_bound": all(layer.ep_group is not None for layer in layers),
        "local": [layer.num_local_experts for layer in layers],
        "ids": [list(layer.experts.expert_ids) for layer in layers][:1],
        "ep_rank": place.ep_rank,
        "moe_groups": sum(bool(group.get("moe")) for group in groups),
        "dense_groups": sum(not group.get("moe") for group in groups),
        "expert_tensors": len(experts),
        "first_expert_sum": float(layers[0].experts.w1.detach().sum()) if stage < 3 else None,
    }


def test_engine_recognises_every_layer_and_shards_it(tmp_path: Path) -> None:
    results = run_ranks(inspect_engine, 2, 2, folder=tmp_path)
    for rank, found in enumerate(results):
        assert found["layers"] == found["recognised"] == 4  # two MSoE blocks, MToE, fusion
        assert found["group_bound"]
        assert found["local"] == [2, 2, 4, 2]
        assert found["ids"] == [[2 * rank, 2 * rank + 1]]
        assert found["ep_rank"] == rank
        assert found["moe_groups"] == found["dense_groups"] == 1
        assert found["expert_tensors"] == 12
    assert results[0]["first_expert_sum"] != results[1]["first_expert_sum"]  # not broadcast over different experts


def stage_zero(rank: int, world: int) -> str:
    """The refusal of ZeRO stage 0, from the adapter itself."""
    from m4oe_ds import deepspeed_json
    from m4oe_ds.errors import EnvironmentProblem
    from m4oe_ds.training import engine as engines

    ds = problem.deepspeed_config(0, 4, 1, 0.0)
    try:
        engines.create(problem.config(), ds, deepspeed_json.batch_sizes(ds, world, "test"), world)
    except EnvironmentProblem as error:
        return str(error)
    return ""


def test_stage_zero_is_refused(tmp_path: Path) -> None:
    assert "ZeRO stage 0" in run_ranks(stage_zero, 1, folder=tmp_path)[0]
