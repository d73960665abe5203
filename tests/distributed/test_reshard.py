"""A run continues in another layout: other numbers of ranks, other ``ep_size``, other ZeRO stage, other precision.

The loss trajectory of every chain equals that of one process that never stopped. The fp32 masters of every expert are
bit for bit those of the checkpoint, also after a step of length zero, which writes them back through DeepSpeed's own
path and would show experts in a wrong place.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import problem
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.distributed

STEPS = 3  # per leg
# relative, of a loss: sums in another order change the last of 24 bits per step
TOLERANCE = 1e-4
CHAINS = {
    "world and ep": [(1, 1, 2), (2, 2, 2), (4, 4, 2), (2, 2, 2)],
    "ep alone": [(4, 2, 1), (4, 4, 1), (2, 1, 1), (1, 1, 1)],
    "stages": [(2, 2, 1), (4, 2, 3), (2, 2, 2), (2, 1, 3)],
}


def leg(rank: int, world: int, folder: str, ep: int, stage: int, first: int, steps: int, extra: dict[str, Any]) -> Any:
    """Loads the newest checkpoint of ``folder`` if there is one, trains, saves; losses and fingerprints of experts."""
    from m4oe_ds import deepspeed_json
    from m4oe_ds.models import spec_for
    from m4oe_ds.training import engine as engines
    from m4oe_ds.training.checkpoint import CheckpointStore, Position
    from m4oe_ds.training.step import train_step

    cfg = problem.config(f"parallel.ep_size={ep}")
    ds = problem.deepspeed_config(stage, 8, 1, 0.5, **extra)
    sizes = deepspeed_json.batch_sizes(ds, world, "test")
    engine, place = engines.create(cfg, ds, sizes, world)
    engine.train()
    stamp = {**place.stamp(), "zero_stage": stage, "model": "same"}
    store = CheckpointStore(Path(folder), stamp, keep_last=2)
    spec = spec_for(cfg)
    goal = problem.objective(spec, cfg.loss.alpha)
    before = after = {}
    tag = store.newest_valid()
    if tag is not None:
        position, _ = store.load(engine, tag)
        assert position.step == first
        before = fingerprints(engine)
        rates = [group["lr"] for group in engine.optimizer.param_groups]
        state = capture(engine)
        for group in engine.optimizer.param_groups:
            group["lr"] = 0.0
        train_step(engine, local(spec, sizes, rank, world, first), goal, engines.compute_dtype(engine))
        after = fingerprints(engine)
        for group, rate in zip(engine.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        release(engine, state)
    losses = []
    for step in range(first, first + steps):
        batches = local(spec, sizes, rank, world, step)
        losses.append(train_step(engine, batches, goal, engines.compute_dtype(engine)).collect(goal)["loss"])
    store.save(engine, Position(first + steps, 0, first + steps, 8 * (first + steps)), {})
    store.finish()
    return {"losses": losses, "before": before, "after": after}


def local(spec: Any, sizes: Any, rank: int, world: int, step: int) -> list[Any]:
    """This rank's samples of a step; together they do not depend on the layout."""
    everything = problem.samples(spec, sizes.train, seed=1000 + step)
    return [problem.part(everything, rank * sizes.micro, (rank + 1) * sizes.micro)]


def capture(engine: Any) -> Any:
    """Optimizer states before the step of length zero, which moves Adam's moments."""
    from m4oe_ds.parallel import engine_state as state

    return [(p.kind, p.name, p.start, p.values.clone()) for p in state.pieces(engine)], state.counters(engine)


def release(engine: Any, captured: Any) -> None:
    """Puts :func:`capture` back."""
    from m4oe_ds.parallel import engine_state as state

    kept = {(kind, name, start): values for kind, name, start, values in captured[0]}
    for piece in state.pieces(engine):
        piece.values.data.copy_(kept[piece.kind, piece.name, piece.start])
    state.set_counters(engine, captured[1])


def fingerprints(engine: Any) -> dict[str, str]:
    """Hash of every piece of an expert's or other master that this rank holds, by name and global interval."""
    from m4oe_ds.parallel import engine_state as state

    return {
        f"{piece.name}|{piece.start}|{piece.values.numel()}": digest(piece.values)
        for piece in state.pieces(engine)
        if piece.kind == state.MASTER
    }


def digest(values: torch.Tensor) -> str:
    return hashlib.sha256(values.detach().cpu().numpy().tobytes()).hexdigest()


def run_leg(folder: Path, number: int, layout: tuple[int, int, int], steps: int, work: Path, **extra: Any) -> list[Any]:
    world, ep, stage = layout
    return run_ranks(leg, world, str(folder), ep, stage, number * STEPS, steps, extra, folder=work / f"leg{number}")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Losses of one process that never stops."""
    folder = tmp_path_factory.mktemp("whole")
    return run_leg(folder / "checkpoints", 0, (1, 1, 2), 4 * STEPS, folder)[0]["losses"]


@pytest.mark.timeout(5400)
@pytest.mark.parametrize("name", CHAINS)
def test_chain_of_layouts_continues_the_trajectory(name: str, reference: list[float], tmp_path: Path) -> None:
    from m4oe_ds.runs.state_files import StateReader

    checkpoints = tmp_path / "checkpoints"
    found: list[float] = []
    for number, layout in enumerate(CHAINS[name]):
        written = sorted(checkpoints.glob("step-*"))
        reader = StateReader(written[-1]) if written else None
        results = run_leg(checkpoints, number, layout, STEPS, tmp_path)
        found += results[0]["losses"]
        for result in results:
            assert result["losses"] == results[0]["losses"]
            assert result["after"] == result["before"]  # a step of length zero leaves every master where it was
            if reader is None:
                continue
            assert any(".experts." in key for key in result["before"])
            for key, value in result["before"].items():
                parameter, start, size = key.split("|")
                stored = reader.read("master", parameter, int(start), int(start) + int(size))
                assert digest(stored) == value, key
    assert len(found) == len(reference)
    worst = max(abs(a - b) / abs(b) for a, b in zip(found, reference, strict=True))
    assert worst < TOLERANCE, f"{worst:.1e}"


def test_masters_survive_a_change_of_precision(tmp_path: Path) -> None:
    """fp32 to bf16 and back: the masters stay fp32, so the first loss after the return is that of the bf16 end."""
    checkpoints = tmp_path / "checkpoints"
    bf16 = {"bf16": {"enabled": True}}
    run_leg(checkpoints, 0, (2, 2, 2), STEPS, tmp_path)
    middle = run_leg(checkpoints, 1, (2, 2, 2), STEPS, tmp_path, **bf16)[0]
    last = run_leg(checkpoints, 2, (1, 1, 1), STEPS, tmp_path)[0]
    assert middle["after"] == middle["before"]
    assert last["after"] == last["before"]
    manifest = json.loads((checkpoints / f"step-{3 * STEPS:08d}" / "manifest.json").read_text())
    assert manifest["engine"]["optimizer_steps"] == 3 * STEPS
    assert abs(last["losses"][0] - middle["losses"][-1]) < 1.0
