"""A bad tensor on one rank stops all before the weights change; figures of a step are those of all ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed import problem
from tests.distributed.ranks import run_ranks
from tests.integration import commands, shards

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(2400)]


def poisoned(rank: int, world: int) -> dict[str, Any]:
    """The last sample of the last rank holds a NaN; what the error says, and whether any weight changed."""
    from m4oe_ds import deepspeed_json
    from m4oe_ds.errors import UserError
    from m4oe_ds.models import spec_for
    from m4oe_ds.training import engine as engines
    from m4oe_ds.training.step import train_step

    cfg = problem.config()
    ds = problem.deepspeed_config(2, 8, 1, 1.0)
    engine, _ = engines.create(cfg, ds, deepspeed_json.batch_sizes(ds, world, "test"), world)
    spec = spec_for(cfg)
    everything = problem.samples(spec, 8, seed=1)
    everything.views["ffdm_cc"][7, 0, 0, 0] = float("nan")
    size = 8 // world
    before = [parameter.detach().clone() for parameter in engine.module.parameters()]
    message = ""
    try:
        batch = problem.part(everything, rank * size, (rank + 1) * size)
        train_step(engine, [batch], problem.objective(spec), torch.float32, where="step 1")
    except UserError as error:
        message = str(error)
    unchanged = all(
        torch.equal(old, new) for old, new in zip(before, engine.module.parameters(), strict=True)
    )  # a NaN in a weight is not equal to itself
    return {"message": message, "unchanged": unchanged}


def observed(rank: int, world: int) -> list[dict[str, Any]]:
    """Routing figures of two steps."""
    cfg = problem.config()
    figures = problem.trajectory(cfg, problem.deepspeed_config(2, 8, 1, 1.0), 2, rank, world, observe=True)
    return [{"routing": f["routing"], "share": f["expert_share"], "loss": f["loss"]} for f in figures]


def averaged(rank: int, world: int) -> list[list[float]]:
    """Batch-norm statistics after averaging, of ranks that saw different samples."""
    from m4oe_ds.parallel import reduce

    layer = torch.nn.Sequential(torch.nn.BatchNorm2d(2), torch.nn.BatchNorm1d(3, track_running_stats=False))
    layer[0].running_mean += rank
    layer[0].running_var *= 2 * rank + 1
    reduce.average_running_statistics(layer)
    return [layer[0].running_mean.tolist(), layer[0].running_var.tolist()]


def test_a_bad_sample_of_one_rank_stops_all_before_the_weights_change(tmp_path: Path) -> None:
    for result in run_ranks(poisoned, 2, folder=tmp_path):
        assert "step 1" in result["message"]
        assert "rank 1, input ffdm_cc of sample k7: 1 nan" in result["message"]
        assert result["unchanged"]


def test_routing_figures_do_not_depend_on_the_ranks(tmp_path: Path) -> None:
    one = run_ranks(observed, 1, folder=tmp_path / "one")[0]
    for result in run_ranks(observed, 2, folder=tmp_path / "two"):
        for found, expected in zip(result, one, strict=True):
            assert set(found["routing"]) == set(expected["routing"]) >= {"mtoe"}
            for layer, figures in expected["routing"].items():
                assert found["routing"][layer] == pytest.approx(figures, rel=1e-4)
                assert found["share"][layer] == pytest.approx(expected["share"][layer], rel=1e-4)
                assert sum(found["share"][layer]) == pytest.approx(1.0, rel=1e-4)


def test_batch_norm_statistics_are_averaged(tmp_path: Path) -> None:
    for mean, variance in run_ranks(averaged, 2, folder=tmp_path):
        assert mean == [0.5, 0.5]
        assert variance == [2.0, 2.0]


def test_profile_of_a_run(tmp_path: Path) -> None:
    data, run = shards.write(tmp_path / "shards"), tmp_path / "run"
    settings = [f"--set={item}" for item in (*shards.SMALL, "run.num_epochs=2", "run.log_every_steps=2")]
    result = commands.train(
        [
            "--ds_config",
            "ds_configs/zero2.json",
            "--output",
            str(run),
            "--profile",
            "2",
            f"--set=data.root={data}",
            *settings,
        ],
        ranks=2,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert (run / "profile" / "trace-rank0.json.gz").stat().st_size > 1000
    assert (run / "profile" / "trace-rank1.json.gz").stat().st_size > 1000
    summary = json.loads((run / "profile" / "summary.json").read_text())
    assert summary["steps"] == 2
    assert set(summary["split_ms"]) == {"data", "forward", "backward", "optimizer", "other"}
    assert sum(summary["split_ms"].values()) == pytest.approx(summary["step_ms"], rel=1e-6)
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    logged = [r["all_to_all_bytes_per_step"] for r in records if "all_to_all_bytes_per_step" in r]
    # of what a rank hands to the all-to-all, half stays on it
    assert logged[-1] * 2 == summary["communication"]["all_to_all_single"]["bytes_per_step"]
    assert all(r["tflops_per_s"] > 0 for r in records if "samples_per_s" in r)
    assert "profile of 2 steps" in result.stdout
