"""A run started from a trained model and a backbone's file, both of which are gone when it goes on or is judged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file

from m4oe_ds.config import EmbedderConfig
from m4oe_ds.models.embedders import Embedder
from m4oe_ds.runs.folder import RunFolder
from tests.integration import commands, shards

pytestmark = [pytest.mark.integration, pytest.mark.timeout(5400)]

SETTINGS = [f"--set={item}" for item in (*shards.SMALL, "run.log_every_steps=1", "evaluation.splits=[test]")]
TWO_VIEWS = ["--set=data.modalities=[ffdm_cc, ffdm_mlo]", "--set=data.tasks=[density, birads]"]


def arguments(data: Path, output: Path, *more: str) -> list[str]:
    config = ["--ds_config", "ds_configs/zero2.json", "--output", str(output), f"--set=data.root={data}"]
    return [*config, *SETTINGS, *more]


def test_a_run_outlives_what_it_started_from(tmp_path: Path) -> None:
    data = shards.write(tmp_path / "shards", {"train": 64, "val": 16, "test": 16})
    source, run = tmp_path / "source", RunFolder(tmp_path / "run")
    first = commands.train(arguments(data, source, "--set=run.num_epochs=1"))
    assert first.returncode == 0, first.stdout + first.stderr

    backbone = tmp_path / "vit.safetensors"
    options = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    vit = Embedder(EmbedderConfig(backbone="vit_tiny_patch16_224", options=options), 1, (32, 32), 16).backbone
    save_file({name: value.contiguous() for name, value in vit.state_dict().items()}, str(backbone))
    starts = [
        *TWO_VIEWS,
        f"--set=model.init_from={source}",
        f"--set=model.embedder.weights={backbone}",
        "--set=run.num_epochs=2",
    ]
    begun = commands.train(arguments(data, run.path, *starts, "--set=run.max_steps=2"), ranks=2)
    assert begun.returncode == 0, begun.stdout + begun.stderr
    assert begun.stdout.count("started from source: 83 of 85 tensors taken, 100.0 % of the values") == 1  # by rank 0
    assert "mtoe.mtoe.router.phi: task slots birads, density" in begun.stdout
    recorded = json.loads(run.environment.read_text())["init_from"]
    assert recorded["name"] == "source"
    assert len(recorded["sha256"]) == 64
    assert (recorded["new"], recorded["values"]) == (0, recorded["total_values"])
    assert str(tmp_path) not in run.environment.read_text()

    shutil.rmtree(source)
    backbone.unlink()
    resumed = commands.train(arguments(data, run.path, *starts), ranks=2)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "resuming from step-00000002" in resumed.stdout
    assert "model.init_from is ignored: the run continues from its own checkpoint" in resumed.stdout
    assert sorted(commands.losses(run.path)) == [1, 2, 3, 4]
    assert json.loads(run.environment.read_text())["init_from"] == recorded

    for command in (["evaluate", str(run.path), "--split", "val"], ["analyze", str(run.path), "--split", "test"]):
        done = commands.m4oe(*command)
        assert done.returncode == 0, done.stdout + done.stderr

    again = commands.train(arguments(data, tmp_path / "another", *starts))
    assert again.returncode != 0
    assert "no such file or folder" in again.stderr
