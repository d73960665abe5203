"""Every model on two ranks as in one process: parameters partitioned by ZeRO stage 3, experts of attached MToEs
sharded.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from m4oe_ds.models import available
from tests.distributed import problem
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.distributed

GAMMA = (
    "data.dataset=gamma",
    "data.modalities=[fundus, oct]",
    "data.tasks=[glaucoma, cup]",
    "data.image_size=[16, 16]",
)
OPTIONS = {
    "aide": ("model.options={dropout: 0.0, head_dropout: 0.0}",),  # ranks draw other dropout masks than one process
    "eyemost": GAMMA,
    "eyestar": GAMMA,
}
OURS = (
    ("model.use_mtoe=false",),
    ("model.missing_modality=bank",),
    ("model.name=soft_moe", "model.options={task_slots: true}"),
    ("model.name=mirai", "model.attach_mtoe=replace"),
    ("model.name=fuller", "model.attach_mtoe=append"),
    ("model.name=eyestar", *GAMMA, "model.attach_mtoe=append"),
)
VARIANTS = [(f"model.name={name}", *OPTIONS.get(name, ())) for name in available()] + [*OURS]
LOCAL = "model.name=evif"  # its contrastive losses compare the samples of one rank, so two ranks are not one process
# the rows of Table 1 with an MToE, in both modes, and the model that is all experts
SHARDED = [
    (f"model.name={name}", *OPTIONS.get(name, ()), f"model.attach_mtoe={mode}")
    for name, mode in itertools.product(("mirai", "asymmirai", "eyemost", "eyestar"), ("replace", "append"))
] + [("model.name=soft_moe",)]
STEPS = 2
TOLERANCE = 1e-4  # of float32 sums in another order, carried through a step of Adam


def losses(rank: int, world: int, stage: int) -> dict[str, list[float]]:
    """Loss and gradient norm of the first steps of every variant; ``reference`` is stage 1 of the local one."""
    found = {}
    cases = [(" ".join(overrides), overrides, stage) for overrides in VARIANTS] + [("reference", (LOCAL,), 1)]
    for name, overrides, level in cases:
        config = problem.config(*overrides, "parallel.ep_size=1")
        steps = problem.trajectory(config, problem.deepspeed_config(level, 8, 1, 0.5), STEPS, rank, world)
        found[name] = [step[key] for step in steps for key in ("loss", "grad_norm")]
    return found


def sharded(rank: int, world: int, stages: list[int]) -> dict[str, list[float]]:
    """Loss, gradient norm and information of every system with experts, those sharded over all ranks."""
    found = {}
    for stage, overrides in itertools.product(stages, SHARDED):
        config = problem.config(*overrides, f"parallel.ep_size={world}", "loss.alpha=0.5")
        steps = problem.trajectory(config, problem.deepspeed_config(stage, 8, 1, 0.5), STEPS, rank, world)
        values = [step[key] for step in steps for key in ("loss", "grad_norm", "mi")]
        found[f"{stage} {' '.join(overrides)}"] = [value for value in values if value is not None]
    return found


def two_levels(rank: int, world: int, folder: str) -> dict[str, Any]:
    """EVIF over four steps, and over two, a checkpoint, and two in a new engine; its estimators on this rank."""
    from m4oe_ds import deepspeed_json
    from m4oe_ds.models import spec_for
    from m4oe_ds.training import engine as engines
    from m4oe_ds.training.checkpoint import CheckpointStore, Position
    from m4oe_ds.training.step import train_step

    config = problem.config("model.name=evif")
    spec, ds = spec_for(config), problem.deepspeed_config(2, 8, 1, 0.5)
    sizes = deepspeed_json.batch_sizes(ds, world, "test")
    goal = problem.objective(spec)
    found: dict[str, Any] = {}

    def train(engine: Any, steps: range) -> list[float]:
        engine.train()
        losses = []
        for step in steps:
            rows = problem.part(problem.samples(spec, 8, seed=step), rank * sizes.micro, (rank + 1) * sizes.micro)
            losses.append(train_step(engine, [rows], goal, torch.float32).collect(goal)["loss"])
        return losses

    for name in ("whole", "parts"):
        engine, place = engines.create(config, ds, sizes, world)
        start = engine.module.collaboration.estimators.theta.clone()
        if name == "parts":
            store = CheckpointStore(Path(folder), {**place.stamp(), "zero_stage": 2}, keep_last=1)
            losses = train(engine, range(2))
            store.save(engine, Position(2, 0, 2, 16), {})
            store.finish()
            engine.destroy()
            engine, _ = engines.create(config, ds, sizes, world)
            store.load(engine, store.newest_valid())
            losses += train(engine, range(2, 4))
        else:
            losses = train(engine, range(4))
        theta = engine.module.collaboration.estimators.theta
        assert not torch.equal(theta, start)
        found[name] = {"losses": losses, "theta": theta.flatten().tolist()}
        engine.destroy()
    return found


def differing(found: dict[str, list[float]], expected: dict[str, list[float]]) -> dict[str, object]:
    """Cases that are not equal, with both sides."""
    assert found.keys() == expected.keys()
    return {
        name: (values, expected[name])
        for name, values in found.items()
        if any(abs(a - b) > TOLERANCE * abs(b) for a, b in zip(values, expected[name], strict=True))
    }


@pytest.mark.timeout(2400)
def test_stage_3_on_two_ranks_agrees_with_one_process(tmp_path: Path) -> None:
    one = run_ranks(losses, 1, 1, folder=tmp_path / "one")[0]
    two = run_ranks(losses, 2, 3, folder=tmp_path / "two")[0]
    one[LOCAL] = two["reference"]
    one["reference"] = two["reference"]
    assert len(two) == len(VARIANTS) + 1
    assert not differing(two, one)


@pytest.mark.timeout(2400)
def test_experts_of_attached_mtoes_may_be_sharded(tmp_path: Path) -> None:
    one = run_ranks(sharded, 1, [2], folder=tmp_path / "one")[0]
    two = run_ranks(sharded, 2, [2, 3], folder=tmp_path / "two")
    expected = {f"{stage}{name[1:]}": values for stage in (2, 3) for name, values in one.items()}
    assert len(expected) == 2 * len(SHARDED)
    for name, values in one.items():
        # loss and norm, and where slots have tasks the information, which is small but there
        assert len(values) == STEPS * (2 if "soft_moe" in name else 3)
        assert "soft_moe" in name or min(values[2::3]) > 0
    for found in two:
        assert not differing(found, expected)


def test_the_inner_level_is_equal_on_all_ranks_and_part_of_a_checkpoint(tmp_path: Path) -> None:
    found = run_ranks(two_levels, 2, str(tmp_path / "checkpoints"), folder=tmp_path / "two")
    for result in found:
        assert result["whole"] == result["parts"] == found[0]["whole"]  # bit for bit
