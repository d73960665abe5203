"""Samples kept for the report are the same at any number of ranks, also where one rank has none of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.order import Share
from m4oe_ds.data.reading import Reading
from m4oe_ds.data.stream import Sampling, ShardStream
from m4oe_ds.evaluation.examples import exam_of
from m4oe_ds.models import build, spec_for
from tests.distributed import problem
from tests.distributed.ranks import run_ranks
from tests.integration import shards

pytestmark = pytest.mark.distributed


def kept(rank: int, world: int, folder: str, exams: list[str]) -> dict[str, Any]:
    """Keys, exams and pictures of the samples that an untrained model keeps."""
    from m4oe_ds.evaluation.inference import predict_split

    config = problem.config("data.modalities=[]")
    spec = spec_for(config)
    manifest = Manifest.load(folder)
    reading = Reading(spec.inputs, spec.tasks, (16, 16), normalise=manifest.normalisation())
    stream = ShardStream(folder, manifest, reading, Share(rank, world, 4), Sampling())
    model, goal = build(config).eval(), problem.objective(spec)
    device = torch.device("cpu")
    found = predict_split(model, stream.evaluation(), spec, goal, device, torch.float32, exams=exams)
    return {name: value.tolist() for name, value in found.examples.items()}


@pytest.mark.parametrize("places", [(0, 1, 2), (0, 5, 12)])
def test_two_ranks_keep_what_one_process_keeps(tmp_path: Path, places: tuple[int, ...]) -> None:
    folder = shards.write(tmp_path / "shards", {"test": 13}) / "test"
    names = [name for shard in Manifest.load(folder).shards for name in shard.exams]
    exams = [exam_of(names[place]) for place in places]  # batches of four: the first three are all of rank 0
    one = run_ranks(kept, 1, str(folder), exams, folder=tmp_path / "one")[0]
    assert sorted(one["exams"]) == sorted(exams)
    for two in run_ranks(kept, 2, str(folder), exams, folder=tmp_path / "two"):
        assert two == one
