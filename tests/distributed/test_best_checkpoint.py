"""Which checkpoint ``BEST`` names and which are kept, through the loop, the store and a resumed run.

Engine, loop, checkpoints and ranks are real; only the validation losses are given, so that the best epoch is known.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.distributed import problem
from tests.distributed.ranks import run_ranks
from tests.integration import shards

pytestmark = pytest.mark.distributed

WORLD = 2
BATCH = 8
SIZES = {"train": 16, "val": 8, "test": 8}
STEPS = SIZES["train"] // BATCH  # per epoch


def tag(epoch: int) -> str:
    """Name of the checkpoint at the end of an epoch, counted from 1."""
    return f"step-{epoch * STEPS:08d}"


def predictions(loss: float, auroc: float) -> Any:
    """Four patients with this validation loss, and risk1 in an order with this AUROC: 1, 0.25 or undefined."""
    from m4oe_ds.evaluation.inference import Predictions

    names = np.array([f"k{i}" for i in range(4)])
    risk = np.array([0.1, 0.2, 0.8, 0.9] if auroc == 1 else [0.9, 0.2, 0.8, 0.1])
    return Predictions(
        keys=names,
        groups=names,
        labels={"density": np.full(4, -1), "risk1": np.array([0, 0, 0, 0] if math.isnan(auroc) else [0, 0, 1, 1])},
        probabilities={"density": np.full((4, 4), 0.25), "risk1": np.stack([1 - risk, risk], axis=1)},
        dice={},
        contribution=None,
        token_share=np.zeros(0),
        losses={"density": None, "risk1": loss},
    )


def legs(rank: int, world: int, folder: str, data: str, metric: str, runs: list[list[list[float]]]) -> Any:
    """Trains in several runs that continue each other; ``[loss, AUROC]`` of every validation are given.

    Returns:
        per run: what ``BEST`` names at its end, and the checkpoints that are left.
    """
    from m4oe_ds import config_loader, deepspeed_json
    from m4oe_ds.models import spec_for
    from m4oe_ds.runs import assemble
    from m4oe_ds.training import engine as engines
    from m4oe_ds.training.checkpoint import CheckpointStore
    from m4oe_ds.training.loop import Loop

    found, epochs = [], 0
    for number, figures in enumerate(runs):
        epochs += len(figures)
        settings = (f"data.root={data}", f"run.num_epochs={epochs}", f"run.checkpoint.metric={metric}")
        cfg = config_loader.load(None, (*shards.SMALL, *settings, "data.tasks=[density, risk1]"))
        ds = problem.deepspeed_config(2, BATCH, 1, 0.0)
        sizes = deepspeed_json.batch_sizes(ds, world, "test")
        engine, place = engines.create(cfg, ds, sizes, world)
        spec = spec_for(cfg)
        store = CheckpointStore(Path(folder) / "checkpoints", {**place.stamp(), "model": "same"}, keep_last=1)
        manifests = assemble.load_manifests(cfg, ("train", "val"))
        loop = Loop(
            cfg, engine, spec, problem.objective_of_run(cfg, spec), manifests, store, Path(folder), sizes.micro, 1
        )
        if number:
            loop.resume(store.newest_valid() or "none")
        given = iter([predictions(*pair) for pair in figures])
        loop.validation.predict = lambda split, *, observe, given=given: next(given)
        outcome = loop.run()
        found.append([outcome.best_tag, store.tags()])
        engine.destroy()
    return found


NAN = math.nan


@pytest.mark.parametrize(
    ("metric", "runs", "expected"),
    [
        # the second epoch is the best; the resumed run remembers it, a tie does not replace it, a smaller loss does
        (
            "loss",
            [[[0.5, 1.0], [0.4, 0.25], [0.6, 1.0]], [[0.45, 1.0], [0.4, 1.0]], [[0.3, 0.25]]],
            [[tag(2), [tag(2), tag(3)]], [tag(2), [tag(2), tag(5)]], [tag(6), [tag(6)]]],
        ),
        # undefined first: the newest; then the largest AUROC, whatever the loss; undefined again never replaces it
        (
            "auroc",
            [[[0.1, NAN], [0.2, NAN]], [[0.9, 1.0], [0.1, 0.25], [0.0, NAN]]],
            [[tag(2), [tag(2)]], [tag(3), [tag(3), tag(5)]]],
        ),
    ],
)
def test_best_names_the_best_epoch_and_keeps_it(metric: str, runs: Any, expected: Any, tmp_path: Path) -> None:
    data, folder = shards.write(tmp_path / "shards", SIZES), tmp_path / "run"
    folder.mkdir()
    results = run_ranks(legs, WORLD, str(folder), str(data), metric, runs, folder=tmp_path / "ranks")
    assert results[0] == expected
    assert results[1] == expected  # the ranks agree
