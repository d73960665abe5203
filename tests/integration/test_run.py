"""A whole run under the deepspeed launcher: its folder, and the same predictions at another topology."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.integration import commands, shards

pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]
FILES = (
    "config.yaml",
    "ds_config.json",
    "environment.json",
    "log.jsonl",
    "metrics.json",
    "report.html",
    "weights/model.safetensors",
    "predictions/val.npz",
    "predictions/test.npz",
    "predictions/examples.npz",
)
RECORD = {
    "step",
    "epoch",
    "samples",
    "loss",
    "losses",
    "mi",
    "router_scale",
    "lr",
    "grad_norm",
    "samples_per_s",
    "max_memory_bytes",
}


@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_run_folder_and_evaluation_at_another_world_size(stage: str, tmp_path: Path) -> None:
    data, run = shards.write(tmp_path / "shards"), tmp_path / "run"
    options = (*shards.SMALL, "run.num_epochs=2", "run.log_every_steps=1", "run.tensorboard=true")
    settings = [f"--set={item}" for item in options]
    result = commands.train(
        ["--ds_config", f"ds_configs/{stage}.json", "--output", str(run), f"--set=data.root={data}", *settings], ranks=2
    )
    assert result.returncode == 0, result.stdout + result.stderr
    for name in FILES:
        assert (run / name).is_file(), name
    environment = json.loads((run / "environment.json").read_text())
    assert (environment["world"], environment["ep_size"], environment["synthetic"]) == (2, 2, True)
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert all(set(r) >= RECORD for r in records if r.get("event") != "validation")

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard" / "run" / "validation"), {"images": 0})
    events.Reload()
    assert {"roc", "fig3c_utilisation"} <= set(events.Tags()["images"])

    stored = np.load(run / "predictions" / "test.npz", allow_pickle=False)
    manifest = json.loads((data / "test" / "manifest.json").read_text())
    assert len(set(stored["keys"].tolist())) == manifest["num_samples"] == 30  # each once, 30 is not a multiple of 32
    metrics = json.loads((run / "metrics.json").read_text())

    # one process holds all experts; the predictions are those of two ranks with half of them each
    again = commands.m4oe("evaluate", str(run), "--split", "test")
    assert again.returncode == 0, again.stdout + again.stderr
    repeated = np.load(run / "predictions" / "test.npz", allow_pickle=False)
    assert repeated["keys"].tolist() == stored["keys"].tolist()
    for name in stored.files:
        if name.startswith(("prob_", "contribution")):
            np.testing.assert_allclose(repeated[name], stored[name], atol=2e-5)
    assert json.loads((run / "metrics.json").read_text())["test"]["loss"] == pytest.approx(
        metrics["test"]["loss"], rel=1e-4
    )


def test_without_validation_the_last_weights_are_evaluated(tmp_path: Path) -> None:
    data, run = shards.write(tmp_path / "shards"), tmp_path / "run"
    settings = [f"--set={item}" for item in (*shards.SMALL, "run.num_epochs=2", "run.eval_every_epochs=0")]
    result = commands.train(
        ["--ds_config", "ds_configs/zero2.json", "--output", str(run), f"--set=data.root={data}", *settings]
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads((run / "metrics.json").read_text())["checkpoint"]["tag"] == "step-00000006"


def test_an_error_of_another_rank_is_shown(tmp_path: Path) -> None:
    data = shards.write(tmp_path / "shards", {"train": 64, "val": 16, "test": 16})
    manifest = json.loads((data / "train" / "manifest.json").read_text())
    for shard in manifest["shards"]:  # every sample is unreadable, and only sizes are verified: the readers notice
        path = data / "train" / shard["name"]
        path.write_bytes(b"x" * path.stat().st_size)
    settings = [f"--set={item}" for item in (*shards.SMALL, "run.num_epochs=1", "data.verify=size")]
    result = commands.train(
        [
            "--ds_config",
            "ds_configs/zero2.json",
            "--output",
            str(tmp_path / "run"),
            f"--set=data.root={data}",
            *settings,
        ],
        ranks=2,
    )
    assert result.returncode != 0
    assert "samples are unreadable" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("every", [0, 5])
def test_a_run_that_ends_inside_an_epoch_keeps_its_weights(every: int, tmp_path: Path) -> None:
    data, run = shards.write(tmp_path / "shards"), tmp_path / "run"
    options = (*shards.SMALL, "run.max_steps=2", f"run.eval_every_epochs={every}", "run.tensorboard=false")
    settings = [f"--set={item}" for item in options]
    result = commands.train(
        ["--ds_config", "ds_configs/zero1.json", "--output", str(run), f"--set=data.root={data}", *settings]
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert (run / "weights" / "model.safetensors").is_file()
    assert "test" in json.loads((run / "metrics.json").read_text())
