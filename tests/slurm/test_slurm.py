"""Every script of ``slurm/`` through ``sbatch`` to its end, on a real controller and two real nodes on loopback."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from m4oe_ds import config_loader
from m4oe_ds.config import to_dict
from m4oe_ds.training import records
from tests.integration import commands, shards
from tests.slurm.cluster import Cluster, unavailable

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.timeout(400),
    pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "a cluster can be started"),
]
SCRIPTS = commands.ROOT / "slurm"
SIZE = ("--cpus-per-task=1", "--gpus-per-node=2", "--ntasks-per-node=2")  # the loopback nodes count two GPUs each


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="m4oe-") as folder, Cluster(Path(folder)) as running:
        yield running


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shards.write(tmp_path_factory.mktemp("shards"), {"train": 96, "val": 16, "test": 16})


def variables(data: Path, output: Path, *settings: str) -> dict[str, str]:
    """What a user exports, for a small model on CPUs."""
    options = [*shards.SMALL, f"data.root={data}", "run.log_every_steps=1", *settings]
    config = output.parent / f"{output.name}.yaml"
    records.write_yaml(config, to_dict(config_loader.load(None, options)))
    return {
        "M4OE_HOME": str(commands.ROOT),
        "M4OE_VENV": str(Path(sys.executable).parents[1]),
        "DS_ACCELERATOR": "cpu",
        "OUTPUT": str(output),
        "CONFIG": str(config),
        "DS_CONFIG": "ds_configs/zero2.json",
        "ARGUMENTS": "--debug",
    }


def submit(cluster: Cluster, script: str, log: Path, *options: str, **exported: str) -> str:
    return cluster.submit(SCRIPTS / script, f"--output={log}", *options, **exported)


def explain(log: Path, run: Path) -> str:
    texts = [path.read_text(errors="replace")[-2000:] for path in (log, *sorted(run.glob("logs/*"))) if path.is_file()]
    return "\n".join(texts)


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.sbatch")))
def test_every_script_is_accepted(cluster: Cluster, script: str) -> None:
    done = subprocess.run(
        ["sbatch", "--test-only", *SIZE, str(SCRIPTS / script)], env=cluster.environment, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "to start at" in done.stderr


def test_one_node(cluster: Cluster, data: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "job.out"
    job = submit(cluster, "train.sbatch", log, *SIZE, **variables(data, run, "run.num_epochs=1"))
    assert cluster.wait(job) == ["COMPLETED"], explain(log, run)
    environment = json.loads((run / "environment.json").read_text())
    assert (environment["world"], environment["ep_size"], environment["launched_by"]) == (2, 2, "slurm")
    assert (run / "metrics.json").is_file()
    assert sorted(path.name for path in (run / "logs").iterdir()) == [f"{job}-rank0.out", f"{job}-rank1.out"]
    assert "report:" in (run / "logs" / f"{job}-rank0.out").read_text()


def test_two_nodes_share_experts_and_lose_what_one_process_loses(cluster: Cluster, data: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "job.out"
    exported = variables(data, run, "run.num_epochs=1", "parallel.ep_size=2")
    size = ("--nodes=2", "--cpus-per-task=1", "--gpus-per-node=1", "--ntasks-per-node=1", "--constraint=[a100*1&l40*1]")
    job = submit(cluster, "train_multinode.sbatch", log, *size, **exported, EP_SIZE="2")
    assert cluster.wait(job) == ["COMPLETED"], explain(log, run)
    assert "NodeList=n[1-2]" in cluster.run("scontrol", "show", "job", job)
    environment = json.loads((run / "environment.json").read_text())
    assert (environment["world"], environment["ep_size"]) == (2, 2)

    alone = tmp_path / "alone"
    options = ["--ds_config", "ds_configs/zero2.json", "--config", exported["CONFIG"], "--output", str(alone)]
    done = commands.train([*options, "--set=parallel.ep_size=1"])
    assert done.returncode == 0, done.stderr
    expected, found = commands.losses(alone), commands.losses(run)
    assert sorted(found) == sorted(expected) == [1, 2, 3]
    for step, figures in expected.items():
        assert found[step][0] == pytest.approx(figures[0], rel=1e-4)


def test_a_preempted_job_is_requeued_and_ends_as_if_nothing_had_happened(
    cluster: Cluster, data: Path, tmp_path: Path
) -> None:
    settings = ("run.num_epochs=14", "run.eval_every_epochs=0", "evaluation.splits=[test]")  # 42 steps
    whole, log = tmp_path / "whole", tmp_path / "whole.out"
    one = ("--cpus-per-task=2", "--gpus-per-node=1", "--ntasks-per-node=1", "--nodelist=n1")
    job = submit(cluster, "train.sbatch", log, *one, **variables(data, whole, *settings))
    assert cluster.wait(job) == ["COMPLETED"], explain(log, whole)

    run, log = tmp_path / "run", tmp_path / "run.out"
    job = submit(cluster, "train.sbatch", log, *one, **variables(data, run, *settings))
    until(
        lambda: (run / "log.jsonl").is_file() and len((run / "log.jsonl").read_text().splitlines()) >= 5, job, cluster
    )
    script = tmp_path / "urgent" / "urgent.sh"
    script.parent.mkdir()
    script.write_text("#!/bin/bash\nsleep 2\n")
    urgent = cluster.submit(
        script, "--partition=urgent", "--cpus-per-task=2", "--nodelist=n1", f"--output={tmp_path}/urgent.out"
    )
    assert cluster.wait(job) == ["COMPLETED"], explain(log, run)
    assert cluster.wait(urgent) == ["COMPLETED"]
    text = log.read_text()
    assert "requeueing job" in text, text
    assert "start 2:" in text
    assert "resuming from step-" in (run / "logs" / f"{job}-rank0.out").read_text()
    assert commands.losses(run) == commands.losses(whole)
    assert (run / "weights" / "model.safetensors").read_bytes() == (
        whole / "weights" / "model.safetensors"
    ).read_bytes()


def test_the_time_limit_is_survived(cluster: Cluster, data: Path, tmp_path: Path) -> None:
    """SLURM's own signal before the limit: a one-minute job signalled 58 s before its end."""
    settings = ("run.num_epochs=14", "run.eval_every_epochs=0", "evaluation.splits=[test]")
    run, log = tmp_path / "run", tmp_path / "run.out"
    one = ("--cpus-per-task=2", "--gpus-per-node=1", "--ntasks-per-node=1")
    job = submit(cluster, "train.sbatch", log, *one, **variables(data, run, *settings))
    until(
        lambda: (run / "log.jsonl").is_file() and len((run / "log.jsonl").read_text().splitlines()) >= 3, job, cluster
    )
    cluster.run("scancel", "--batch", "--signal=USR1", job, check=True)  # what --signal=B:USR1@300 sends
    assert cluster.wait(job) == ["COMPLETED"], explain(log, run)
    assert "time is nearly up" in log.read_text()
    assert "start 2:" in log.read_text()
    assert sorted(commands.losses(run)) == list(range(1, 43))


def test_an_array_of_expert_counts(cluster: Cluster, tmp_path: Path) -> None:
    study, log = tmp_path / "study", tmp_path / "job-%a.out"
    exported = variables(tmp_path, study)
    exported["ARGUMENTS"] = "--steps 3 --warm-up 1"
    job = submit(cluster, "scaling_study.sbatch", log, *SIZE, "--array=0-1", **exported, EXPERTS="8 16", EP_SIZE="2")
    assert cluster.wait(job) == ["COMPLETED", "COMPLETED"], explain(tmp_path / "job-0.out", study)
    done = subprocess.run(
        [sys.executable, "-m", "m4oe_ds", "scale", "collect", str(study)], cwd=commands.ROOT, env=commands.environment(),
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = (study / "scaling.csv").read_text().splitlines()
    assert len(lines) == 3
    assert {line.split(",")[0] for line in lines[1:]} == {"8", "16"}


def test_an_archive_is_converted_in_parts(cluster: Cluster, tmp_path: Path) -> None:
    archive, whole, parts = tmp_path / "archive", tmp_path / "whole", tmp_path / "parts"
    for command in (
        ["data_tools.phantom", "--layout", "vindr", "--out", str(archive), "--patients", "6", "--seed", "0"],
        ["data_tools.convert", "--dataset", "vindr", "--root", str(archive), "--out", str(whole), "--rows", "64", "--cols", "52",
         "--samples-per-shard", "4", "--workers", "1"],
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=commands.ROOT,
            env=commands.environment(),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    exported = variables(tmp_path, parts)
    exported |= {"DATASET": "vindr", "ROOT": str(archive), "SHARDS": str(parts)}
    exported["ARGUMENTS"] = "--rows 64 --cols 52 --samples-per-shard 4"
    job = submit(
        cluster, "convert_array.sbatch", tmp_path / "job-%a.out", "--cpus-per-task=1", "--array=1-3", **exported
    )
    assert set(cluster.wait(job)) == {"COMPLETED"}, explain(tmp_path / "job-1.out", parts)
    made = sorted(path.relative_to(parts) for path in parts.rglob("*.tar"))
    assert made
    assert made == sorted(path.relative_to(whole) for path in whole.rglob("*.tar"))
    for path in made:
        assert (parts / path).read_bytes() == (whole / path).read_bytes()


def test_what_is_missing_is_said(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(cluster, "convert_array.sbatch", tmp_path / "a-%a.out", "--cpus-per-task=1", "--array=1-1")
    assert cluster.wait(job) == ["FAILED"]
    assert "error: DATASET is not set" in (tmp_path / "a-1.out").read_text()
    empty = tmp_path / "empty" / "slurm"
    shutil.copytree(SCRIPTS, empty)
    job = submit(cluster, "train.sbatch", tmp_path / "b.out", *SIZE, M4OE_HOME=str(empty.parent))
    assert cluster.wait(job) == ["FAILED"]
    assert "is not the repository" in (tmp_path / "b.out").read_text()


def until(ready: object, job: str, cluster: Cluster, seconds: float = 120) -> None:
    """Waits for a condition while a job runs."""
    import time

    deadline = time.monotonic() + seconds
    assert callable(ready)
    while not ready():
        assert time.monotonic() < deadline, cluster.state(job)
        assert cluster.state(job)[0] in ("PENDING", "RUNNING", "CONFIGURING"), cluster.state(job)
        time.sleep(0.2)
