"""A run ends when validations stop improving: at the same step on every rank, and whether or not it was interrupted.

Engine, loop, checkpoints and ranks are real; the validation losses are given, so that the step is known.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import problem
from tests.distributed.ranks import run_ranks
from tests.distributed.test_best_checkpoint import BATCH, SIZES, STEPS, predictions, tag
from tests.integration import shards

pytestmark = pytest.mark.distributed

LOSSES = [0.5, 0.4, 0.45, 0.41, 0.42, 0.1, 0.1, 0.1]  # the best before the sixth is the second


def legs(rank: int, world: int, folder: str, data: str, runs: list[dict[str, Any]]) -> Any:
    """Trains in several runs that continue each other.

    Args:
        runs: per run ``patience``, and ``steps`` after which it is cut off (0 = it is not).

    Returns:
        per run: last step, why it ended, what ``BEST`` names, validations that it made.
    """
    from m4oe_ds import config_loader, deepspeed_json
    from m4oe_ds.models import spec_for
    from m4oe_ds.runs import assemble
    from m4oe_ds.training import engine as engines
    from m4oe_ds.training.checkpoint import CheckpointStore
    from m4oe_ds.training.loop import Loop

    found, given = [], iter(LOSSES)
    for number, leg in enumerate(runs):
        settings = (f"data.root={data}", f"run.num_epochs={len(LOSSES)}", f"run.patience={leg['patience']}")
        cfg = config_loader.load(None, (*shards.SMALL, *settings, "data.tasks=[density, risk1]"))
        ds = problem.deepspeed_config(2, BATCH, 1, 0.0)
        sizes = deepspeed_json.batch_sizes(ds, world, "test")
        engine, place = engines.create(cfg, ds, sizes, world)
        spec = spec_for(cfg)
        store = CheckpointStore(Path(folder) / "checkpoints", {**place.stamp(), "model": "same"}, keep_last=2)
        manifests = assemble.load_manifests(cfg, ("train", "val"))
        loop = Loop(
            cfg, engine, spec, problem.objective_of_run(cfg, spec), manifests, store, Path(folder), sizes.micro, 1
        )
        if number:
            loop.resume(store.newest_valid() or "none")
        made: list[float] = []

        def predict(split: str, *, observe: Any, made: list[float] = made) -> Any:
            made.append(next(given))
            return predictions(made[-1], 1.0)

        loop.validation.predict = predict
        if leg["steps"]:
            loop.total_steps = leg["steps"]
        outcome = loop.run()
        found.append([outcome.position.step, outcome.early, outcome.best_tag, made])
        engine.destroy()
    return found


def test_it_ends_where_it_should_whether_or_not_it_was_cut_off(tmp_path: Path) -> None:
    data = str(shards.write(tmp_path / "shards", SIZES))
    why = "stopped early after epoch 5 of 8: validation loss was not better for 3 validations (run.patience=3)"
    cases = {
        "whole": [{"patience": 3, "steps": 0}],
        # the count comes from the checkpoint, also of a run that had no patience; then nothing is left to do
        "cut": [{"patience": 0, "steps": 4 * STEPS}, {"patience": 3, "steps": 0}, {"patience": 3, "steps": 0}],
        "more patience": [{"patience": 3, "steps": 0}, {"patience": 4, "steps": 0}],
    }
    found = {}
    for name, runs in cases.items():
        (tmp_path / name).mkdir()
        results = run_ranks(legs, 2, str(tmp_path / name), data, runs, folder=tmp_path / f"{name}-ranks")
        assert results[0] == results[1]
        found[name] = results[0]
    assert found["whole"] == [[5 * STEPS, why, tag(2), LOSSES[:5]]]
    assert found["cut"] == [
        [4 * STEPS, "", tag(2), LOSSES[:4]],
        [5 * STEPS, why, tag(2), LOSSES[4:5]],
        [5 * STEPS, why, tag(2), []],
    ]
    assert found["more patience"][1] == [8 * STEPS, "", tag(6), LOSSES[5:]]
    log = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert [entry["without_improvement"] for entry in log if entry.get("event") == "validation"] == [0, 0, 1, 2, 3]
