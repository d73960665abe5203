"""A task of every kind on two ranks as in one process: losses, gradients and the predictions of a whole split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.order import Share
from m4oe_ds.data.reading import Reading
from m4oe_ds.data.stream import Sampling, ShardStream
from m4oe_ds.models import build, spec_for
from tests.distributed import problem
from tests.distributed.ranks import run_ranks
from tests.integration import six_kinds

pytestmark = pytest.mark.distributed


def steps(rank: int, world: int, card: str, folder: str) -> dict[str, Any]:
    """Losses of the first steps under ZeRO stage 2; answers of an untrained model to a split, by key."""
    from m4oe_ds.evaluation.inference import predict_split

    config = problem.config("data.modalities=[]", f"data.dataset={card}", "parallel.ep_size=1", "loss.alpha=0.0")
    found = problem.trajectory(config, problem.deepspeed_config(2, 8, 1, 0.5), 2, rank, world)
    spec = spec_for(config)
    goal, model = problem.objective_of_run(config, spec), build(config).eval()
    manifest = Manifest.load(folder)
    reading = Reading(spec.inputs, spec.tasks, spec.image_size, normalise=manifest.normalisation())
    stream = ShardStream(folder, manifest, reading, Share(rank, world, 4), Sampling())
    split = predict_split(model, stream.evaluation(), spec, goal, torch.device("cpu"), torch.float32).arrays()
    kept = {name: np.nan_to_num(value.astype(float), nan=-9).tolist() for name, value in split.items() if "_" in name}
    return {"losses": [step["losses"] for step in found], "keys": split["keys"].tolist(), **kept}


def test_two_ranks_answer_every_kind_as_one_process_does(tmp_path: Path) -> None:
    card, folder = six_kinds.write(tmp_path / "lamps", {"test": 13})
    one = run_ranks(steps, 1, str(card), str(folder / "test"), folder=tmp_path / "one")[0]
    for two in run_ranks(steps, 2, str(card), str(folder / "test"), folder=tmp_path / "two"):
        assert two["keys"] == one["keys"]
        assert two.keys() == one.keys()
        assert {"value_age", "risk_failure", "dice_parts", "area_parts", "label_failure"} < one.keys()
        for name in one.keys() - {"keys", "losses"}:
            np.testing.assert_allclose(two[name], one[name], atol=1e-4, rtol=1e-4, err_msg=name)
        for mine, theirs in zip(two["losses"], one["losses"], strict=True):
            assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5)
