"""Rates by part and frozen parts in real engines: every ZeRO stage, two ranks, a checkpoint between two groupings."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import problem
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.distributed

BATCH = 8
BY_PART = (
    "optim.parts={backbone: {lr_factor: 0.1}, router: {lr_factor: 3.0}, experts: {lr_factor: 0.5, decay_factor: 0.0}}",
    "optim.no_decay=[norms, biases, scales, embeddings]",
)
DECAY = {
    "type": "AdamW",
    "params": {"lr": 1e-3, "weight_decay": 0.1, "torch_adam": True, "adam_w_mode": True},
}


def values(engine: Any) -> dict[str, str]:
    """Hash of every master, frozen parameter and buffer that this rank holds."""
    from m4oe_ds.parallel import engine_state as state

    found = [(piece.name, piece.start, piece.values) for piece in [*state.pieces(engine), *state.frozen(engine)]]
    found += [(name, 0, buffer) for name, buffer in engine.module.named_buffers()]
    return {
        f"{name}|{start}": hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
        for name, start, value in found
    }


def train(rank: int, world: int, stage: int, optimizer: dict[str, Any], legs: list[list[str]], folder: str) -> Any:
    """Two steps per leg; a leg goes on from the checkpoint of the one before.

    Returns:
        per leg: losses, the table of groups, rates in force, and what moved in its steps by part of the model.
    """
    from m4oe_ds import deepspeed_json
    from m4oe_ds.models import spec_for
    from m4oe_ds.models.parts import part_of
    from m4oe_ds.training import engine as engines
    from m4oe_ds.training import schedule
    from m4oe_ds.training.checkpoint import CheckpointStore, Position
    from m4oe_ds.training.step import train_step

    found, step = [], 0
    for overrides in legs:
        cfg = problem.config(*overrides)
        ds = problem.deepspeed_config(stage, BATCH, 1, 0.5)
        ds["optimizer"] = optimizer
        sizes = deepspeed_json.batch_sizes(ds, world, "test")
        engine, place = engines.create(cfg, ds, sizes, world)
        store = CheckpointStore(Path(folder), {**place.stamp(), "model": "same"}, keep_last=2)
        if step:
            store.load(engine, store.newest_valid() or "none")
        engine.train()
        before, spec = values(engine), spec_for(cfg)
        goal = problem.objective_of_run(cfg, spec)
        losses = []
        schedule.apply(engine, [group["lr"] for group in engine.optimizer.param_groups], 0.5)
        for _ in range(2):
            everything = problem.samples(spec, BATCH, seed=step)
            batch = problem.part(everything, rank * sizes.micro, (rank + 1) * sizes.micro)
            losses.append(train_step(engine, [batch], goal, engines.compute_dtype(engine)).collect(goal)["loss"])
            step += 1
        after, parts = values(engine), part_of(engine.module)
        moved = {key.split("|")[0] for key in before if after[key] != before[key]}
        store.save(engine, Position(step, 0, 0, 0), {})
        store.finish()
        found.append(
            {
                "losses": losses,
                "table": [group.as_dict() for group in engine.parameter_table],
                "rates": sorted({round(group["lr"], 9) for group in engine.optimizer.param_groups}),
                "decays": sorted({round(group["weight_decay"], 9) for group in engine.optimizer.param_groups}),
                "moved": sorted({parts.get(name, "buffers") for name in moved}),
                "held": sorted({parts[n] for n, p in engine.module.named_parameters() if not p.requires_grad}),
            }
        )
        engine.destroy()
    return found


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Rates by part in one process."""
    folder = tmp_path_factory.mktemp("one")
    return run_ranks(train, 1, 1, DECAY, [list(BY_PART), list(BY_PART)], str(folder / "c"), folder=folder / "r")[0]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_rates_by_part_in_every_stage(stage: int, one_rank: Any, tmp_path: Path) -> None:
    results = run_ranks(
        train, 2, stage, DECAY, [list(BY_PART), list(BY_PART)], str(tmp_path / "c"), folder=tmp_path / "r"
    )
    for found, single in zip(results[0], one_rank, strict=True):
        assert found["losses"] == pytest.approx(single["losses"], rel=2e-4)  # sums in another order, through Adam
        assert found["rates"] == single["rates"] == [5e-5, 2.5e-4, 5e-4, 1.5e-3]  # with the factor of the schedule
        assert found["decays"] == single["decays"] == [0.0, 0.1]
        assert found["table"] == single["table"]
    assert results[0] == [{**one, "moved": results[0][i]["moved"]} for i, one in enumerate(results[1])]


def test_the_decay_of_a_part_is_felt(one_rank: Any, tmp_path: Path) -> None:
    """Otherwise the comparison of stages above would hold for factors that nobody reads."""
    plain = run_ranks(train, 1, 1, DECAY, [[], []], str(tmp_path / "c"), folder=tmp_path / "r")[0]
    assert plain[0]["rates"] == [5e-4]
    assert plain[0]["losses"][0] == one_rank[0]["losses"][0]  # before the first step
    assert plain[1]["losses"] != pytest.approx(one_rank[1]["losses"], rel=1e-5)


def test_a_checkpoint_goes_on_with_other_groups_and_back(tmp_path: Path) -> None:
    """Groups are not in it: masters and states are kept by parameter, so only the rates change."""
    legs = [[], list(BY_PART), []]
    results = run_ranks(train, 2, 2, DECAY, legs, str(tmp_path / "c"), folder=tmp_path / "r")[0]
    plain = run_ranks(train, 1, 3, DECAY, [[], [], []], str(tmp_path / "d"), folder=tmp_path / "q")[0]
    assert results[0]["losses"] == pytest.approx(plain[0]["losses"], rel=2e-4)
    assert results[1]["losses"][0] == pytest.approx(plain[1]["losses"][0], rel=2e-4)  # same weights, same states
    assert [len(one["rates"]) for one in results] == [1, 4, 1]


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("part", ["backbone", "experts"])
def test_a_frozen_part_stays_where_it_is(part: str, stage: int, tmp_path: Path) -> None:
    legs = [[f"model.freeze=[{part}]"], [f"model.freeze=[{part}]"]]
    results = run_ranks(train, 2, stage, DECAY, legs, str(tmp_path / "c"), folder=tmp_path / "r")
    for rank in results:
        for leg in rank:
            assert leg["held"] == [part]
            assert part not in leg["moved"]
            assert [row["name"] for row in leg["table"] if not row["trained"]] == [part]
    assert "heads" in results[0][0]["moved"] + results[1][0]["moved"]  # a rank holds some of the masters
    single = run_ranks(train, 1, 2, DECAY, legs, str(tmp_path / "d"), folder=tmp_path / "q")[0]
    assert [leg["losses"] for leg in results[0]] == [pytest.approx(leg["losses"], rel=2e-4) for leg in single]


def test_batch_norms_of_a_frozen_backbone_do_not_move_on_two_ranks(tmp_path: Path) -> None:
    options = ["model.name=mirai", "model.regime=native", "data.image_size=[32, 32]"]
    frozen, free = [*options, "model.freeze=[backbone]"], options
    for name, overrides in (("frozen", frozen), ("free", free)):
        legs = [overrides]
        results = run_ranks(train, 2, 2, DECAY, legs, str(tmp_path / name), folder=tmp_path / f"{name}-ranks")
        for rank in results:
            assert ("buffers" in rank[0]["moved"]) is (name == "free")
            assert ("backbone" in rank[0]["moved"]) is (name == "free")
