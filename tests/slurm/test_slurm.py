"""Every script of ``slurm/`` through ``sbatch`` to its end, on a real controller and two real nodes on loopback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from m4oe_ds import config_loader
from m4oe_ds.config import to_dict
from m4oe_ds.runs import folder as runs_folder
from tests.integration import commands, shards
from tests.slurm.cluster import Cluster, unavailable

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(bool(unavailable()), reason=unavailable() or "a cluster can be started"),
]
SCRIPTS = commands.ROOT / "slurm"
VENV = str(Path(sys.executable).parents[1])
AGAIN = "[ ${SLURM_RESTART_COUNT:-0} -gt 0 ]"  # in a job: it was requeued
SIZE = ("--cpus-per-task=1", "--gpus-per-node=2", "--ntasks-per-node=2")  # the loopback nodes count two GPUs each


def variables(data: Path, output: Path, *settings: str) -> dict[str, str]:
    """What a user exports, for a small model on CPUs."""
    options = [*shards.SMALL, f"data.root={data}", "run.log_every_steps=1", *settings]
    config = output.parent / f"{output.name}.yaml"
    runs_folder.write_yaml(config, to_dict(config_loader.load(None, options)))
    return {
        "M4OE_HOME": str(commands.ROOT),
        "M4OE_VENV": VENV,
        "DS_ACCELERATOR": "cpu",
        "OUTPUT": str(output),
        "CONFIG": str(config),
        "DS_CONFIG": "ds_configs/zero2.json",
        "ARGUMENTS": "--debug",
    }


def submit(cluster: Cluster, script: str, log: Path, *options: str, **exported: str) -> str:
    return cluster.submit(SCRIPTS / script, f"--output={log}", *options, **exported)


def explain(log: Path, run: Path) -> str:
    texts = [
        path.read_text(errors="replace")[-2000:]
        for path in (log, *sorted(run.glob("logs/*")), *sorted(run.glob("*-rank*.out")))
        if path.is_file()
    ]
    return "\n".join(texts)


@pytest.mark.parametrize("script", sorted(path.name for path in SCRIPTS.glob("*.sbatch")))
def test_every_script_is_accepted(cluster: Cluster, script: str) -> None:
    done = subprocess.run(
        ["sbatch", "--test-only", *SIZE, str(SCRIPTS / script)],
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert "to start at" in done.stderr


@pytest.mark.parametrize(
    ("options", "accepted"),
    [
        (("--constraint=[a100*1&l40*1]",), True),
        (("--nodelist=n[1-2]",), True),
        (("--nodes=1", "--gpus-per-node=l40:2"), True),
        (("--gpus-per-node=l40:2",), False),  # only one node has them
    ],
)
def test_mixed_nodes_are_chosen_as_the_script_says(cluster: Cluster, options: tuple[str, ...], accepted: bool) -> None:
    done = subprocess.run(
        ["sbatch", "--test-only", *SIZE, *options, str(SCRIPTS / "train_multinode.sbatch")],
        env=cluster.environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert (done.returncode == 0) == accepted, done.stderr


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
    """Two nodes that share experts; losing one of them stops both ranks, which must save together."""
    settings = ("run.num_epochs=9", "run.eval_every_epochs=0", "evaluation.splits=[test]")  # 27 steps
    whole, log = tmp_path / "whole", tmp_path / "whole.out"
    two = ("--nodes=2", "--cpus-per-task=1", "--gpus-per-node=1", "--ntasks-per-node=1")
    job = submit(cluster, "train_multinode.sbatch", log, *two, EP_SIZE="2", **variables(data, whole, *settings))
    assert cluster.wait(job) == ["COMPLETED"], explain(log, whole)

    run, log = tmp_path / "run", tmp_path / "run.out"
    job = submit(cluster, "train_multinode.sbatch", log, *two, EP_SIZE="2", **variables(data, run, *settings))
    until(lambda: steps(run) >= 3, job, cluster)
    urgent = preempt(cluster, tmp_path)
    assert cluster.wait(job) == ["COMPLETED"], explain(log, run)
    assert cluster.wait(urgent) == ["COMPLETED"]
    text = log.read_text()
    assert "stopped and saved\nrequeueing job" in text, text
    assert "start 2:" in text
    assert "start 3:" not in text
    assert "resuming from step-" in (run / "logs" / f"{job}-rank0.out").read_text()
    assert commands.losses(run) == commands.losses(whole)
    assert (run / "weights" / "model.safetensors").read_bytes() == (
        whole / "weights" / "model.safetensors"
    ).read_bytes()


def test_the_time_limit_is_survived_and_a_cancelled_job_stays_cancelled(
    cluster: Cluster, data: Path, tmp_path: Path
) -> None:
    """SLURM's own signal five minutes before the limit, of a job that has five minutes."""
    run, log = tmp_path / "run", tmp_path / "run.out"
    one = ("--cpus-per-task=2", "--gpus-per-node=1", "--ntasks-per-node=1", "--time=5")
    settings = ("run.num_epochs=2000", "run.eval_every_epochs=0", "evaluation.splits=[test]")
    job = submit(cluster, "train.sbatch", log, *one, **variables(data, run, *settings))
    ranks = run / "logs" / f"{job}-rank0.out"
    until(lambda: ranks.is_file() and "resuming from step-" in ranks.read_text(), job, cluster)
    resumed = steps(run)
    until(lambda: steps(run) > resumed, job, cluster)
    text = log.read_text()
    assert "time is nearly up" in text, text
    assert "stopped and saved\nrequeueing job" in text, text
    assert "start 2:" in text
    cluster.run("scancel", job, check=True)
    assert cluster.wait(job) == ["CANCELLED"]
    until(lambda: not cluster.run("squeue", "-h", "-j", job), "", cluster)
    assert cluster.state(job) == ["CANCELLED"], log.read_text()
    found = sorted(commands.losses(run))
    assert found == list(range(1, len(found) + 1))


def behaviour(cluster: Cluster, folder: Path, command: str, *options: str, before: str = "") -> tuple[str, Path]:
    """Job id and output of a job whose ranks run a shell command under ``until_done``; the repository is a stand-in.

    ``before`` is run by the script between ``env.sh`` and that.
    """
    home = folder / "home"
    (home / "slurm").mkdir(parents=True)
    shutil.copy(SCRIPTS / "env.sh", home / "slurm")
    script = home / "slurm" / "job.sbatch"
    script.write_text(
        f"""#!/bin/bash
#SBATCH --requeue --open-mode=append
set -uo pipefail
. {home}/slurm/env.sh
{before}
until_done {folder}/logs bash -c '{command}'
"""
    )
    log = folder / "job-%a.out"
    return cluster.submit(
        script, f"--output={log}", *options, M4OE_HOME=str(home), M4OE_VENV=VENV
    ), folder / "job-0.out"


def test_ranks_that_end_one_after_the_other_are_requeued(cluster: Cluster, tmp_path: Path) -> None:
    command = f"{AGAIN} && exit 0; sleep $((1 + 2 * SLURM_PROCID)); exit 75"
    job, log = behaviour(cluster, tmp_path, command, "--nodes=2", "--ntasks-per-node=1", "--array=0")
    assert cluster.wait(job) == ["COMPLETED"], log.read_text()
    assert "start 2:" in log.read_text()


def test_a_preemption_during_start_up_is_requeued_but_a_crash_is_not(cluster: Cluster, tmp_path: Path) -> None:
    command = f"{AGAIN} && kill -SEGV $$; exec sleep 60"
    job, log = behaviour(cluster, tmp_path, command, "--nodelist=n1", "--ntasks=1", "--cpus-per-task=2", "--array=0")
    until(lambda: (tmp_path / "logs").is_dir() and any((tmp_path / "logs").iterdir()), job, cluster)
    preempt(cluster, tmp_path)
    assert cluster.wait(job) == ["FAILED"], log.read_text()
    assert "stopped before anything could be saved\nrequeueing job" in log.read_text()
    assert "start 2:" in log.read_text()
    assert "start 3:" not in log.read_text()


def test_a_signal_before_there_are_ranks_reaches_them(cluster: Cluster, tmp_path: Path) -> None:
    """The script has it before it can pass it on, and srun has started nobody yet when it does."""
    command, alone = f"{AGAIN} && exit 0; exec sleep 280", ("--ntasks=1", "--array=0")
    job, log = behaviour(cluster, tmp_path, command, *alone, before="kill -USR1 $$")
    assert cluster.wait(job) == ["COMPLETED"], log.read_text()
    assert "time is nearly up" in log.read_text()
    assert "stopped before anything could be saved\nrequeueing job" in log.read_text()
    assert "start 2:" in log.read_text()


def test_requeueing_one_task_of_an_array_leaves_the_others_alone(cluster: Cluster, tmp_path: Path) -> None:
    """The task that has the number of the whole array is the one that stops."""
    command = f"{AGAIN} && exit 0; [ $SLURM_JOB_ID = $SLURM_ARRAY_JOB_ID ] && exit 75; sleep 15"
    job, log = behaviour(cluster, tmp_path, command, "--array=0-1", "--ntasks=1")
    assert cluster.wait(job) == ["COMPLETED", "COMPLETED"], log.read_text()
    texts = [(tmp_path / f"job-{task}.out").read_text() for task in (0, 1)]
    assert sorted(text.count("start 2:") for text in texts) == [0, 1], texts


def test_requeues_have_an_end(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cluster.environment, "MAX_RESTARTS", "0")
    job, log = behaviour(cluster, tmp_path, "exit 75", "--ntasks=1", "--array=0")
    assert cluster.wait(job) == ["FAILED"], log.read_text()
    assert "already restarted 0 times: submit again to continue" in log.read_text()


def contained(cluster: Cluster, folder: Path, **variables: str) -> tuple[list[str], list[str], str]:
    """State, calls and output of a job in a container, with stand-ins for ``apptainer`` and an ``srun`` with pyxis.

    They write down their arguments, one a line, and start what would run inside.
    """
    (folder / "bin").mkdir()
    note = f"""#!/bin/bash\nprintf '%s\\n' "${{0##*/}}" "$@" >>{folder}/calls\n"""
    (folder / "bin" / "srun").write_text(
        f"""{note}for word in "$@"; do [[ $word == --container-* ]] || kept+=("$word"); done
exec {shutil.which("srun")} "${{kept[@]}}"
"""
    )
    (folder / "bin" / "apptainer").write_text(
        f"""{note}while [ "$1" != /images/m4oe.sif ]; do shift; done
exec "${{@:2}}"
"""
    )
    for path in (folder / "bin").iterdir():
        path.chmod(0o755)
    path_variable = f"{folder / 'bin'}:{os.environ['PATH']}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**variables, "CONTAINER": "/images/m4oe.sif", "PATH": path_variable}.items():
            patch.setitem(cluster.environment, name, value)
        job, log = behaviour(cluster, folder, "echo in the container", "--ntasks=1", "--array=0")
    states, calls = cluster.wait(job), folder / "calls"
    return states, calls.read_text().splitlines() if calls.is_file() else [], explain(log, folder)


def test_apptainer_runs_every_rank(cluster: Cluster, tmp_path: Path) -> None:
    states, calls, text = contained(cluster, tmp_path, CONTAINER_OPTIONS="--bind /scratch")
    assert states == ["COMPLETED"], text
    assert "\nin the container\n" in text
    home, start = str(tmp_path / "home"), calls.index("apptainer")
    assert calls[0] == "srun"
    expected = ["apptainer", "exec", "--pwd", home, "--bind", home, "--bind", "/scratch", "/images/m4oe.sif"]
    assert [word for word in calls[start : start + 10] if word != "--nv"][:9] == expected


def test_pyxis_is_told_the_image_and_the_folders(cluster: Cluster, tmp_path: Path) -> None:
    given = {"CONTAINER_MOUNTS": "/scratch:/scratch", "CONTAINER_OPTIONS": "--container-readonly"}
    states, calls, text = contained(cluster, tmp_path, CONTAINER_BY="pyxis", **given)
    assert states == ["COMPLETED"], text
    assert "\nin the container\n" in text
    home = tmp_path / "home"
    assert {word for word in calls if word.startswith("--container-")} == {
        "--container-image=/images/m4oe.sif",
        f"--container-workdir={home}",
        f"--container-mounts={home}:{home},/scratch:/scratch",
        "--container-readonly",
    }
    assert "apptainer" not in calls


def test_an_unknown_container_runtime_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    states, calls, text = contained(cluster, tmp_path, CONTAINER_BY="docker")
    assert states == ["FAILED"]
    assert not calls
    assert "error: CONTAINER_BY=docker is not apptainer, singularity or pyxis" in text


def test_an_array_of_expert_counts(cluster: Cluster, tmp_path: Path) -> None:
    study, log = tmp_path / "study", tmp_path / "job-%a.out"
    exported = variables(tmp_path, study)
    exported["ARGUMENTS"] = "--steps 3 --warm-up 1"
    job = submit(cluster, "scaling_study.sbatch", log, *SIZE, "--array=0-1", **exported, EXPERTS="8 16", EP_SIZE="2")
    assert cluster.wait(job) == ["COMPLETED", "COMPLETED"], explain(tmp_path / "job-0.out", study)
    done = subprocess.run(
        [sys.executable, "-m", "m4oe_ds", "scale", "collect", str(study)],
        cwd=commands.ROOT,
        env=commands.environment(),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    lines = (study / "scaling.csv").read_text().splitlines()
    assert len(lines) == 3
    assert {line.split(",")[0] for line in lines[1:]} == {"8", "16"}


def test_an_array_of_compared_systems(cluster: Cluster, data: Path, tmp_path: Path) -> None:
    """Two cells of a comparison, each on two ranks, and their table."""
    comparison = tmp_path / "comparison"
    exported = variables(data, comparison)
    cells = "--datasets embed --methods mirai,ours --seeds 0 --settings multi"
    sizes = "--set run.num_epochs=1 --set schedule.warmup_steps=0 --set data.image_size=[32,32]"
    exported["ARGUMENTS"] = f"{cells} --set data.root={data} --set data.phantom.patients=0 {sizes}"
    exported["PRESET"] = "smoke"
    job = submit(cluster, "compare_array.sbatch", tmp_path / "job-%a.out", *SIZE, "--array=0-1", **exported)
    assert cluster.wait(job) == ["COMPLETED", "COMPLETED"], explain(tmp_path / "job-0.out", comparison)
    for cell in ("embed-multi-mirai-seed0", "embed-multi-ours-seed0"):
        facts = json.loads((comparison / "cells" / cell / "environment.json").read_text())
        assert (facts["world"], facts["launched_by"]) == (2, "slurm")
    collect = ["--preset", "smoke", "--output", str(comparison), "--ds_config", exported["DS_CONFIG"], "--collect"]
    done = subprocess.run(
        [sys.executable, "-m", "m4oe_ds", "compare", *collect, *exported["ARGUMENTS"].split()],
        cwd=commands.ROOT,
        env=commands.environment(),
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 cells" in done.stdout


def test_an_archive_is_converted_in_parts(cluster: Cluster, tmp_path: Path) -> None:
    archive, whole, parts = tmp_path / "archive", tmp_path / "whole", tmp_path / "parts"
    make = f"data_tools.phantom --layout vindr --out {archive} --patients 6 --seed 0"
    convert = f"data_tools.convert --dataset vindr --root {archive} --out {whole} --rows 64 --cols 52"
    for command in (make.split(), [*convert.split(), "--samples-per-shard", "4", "--workers", "1"]):
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
    assert set(cluster.wait(job)) == {"COMPLETED"}, explain(tmp_path / "job-1.out", parts.with_name("parts.logs"))
    made = sorted(path.relative_to(parts) for path in parts.rglob("*.tar"))
    assert made
    assert made == sorted(path.relative_to(whole) for path in whole.rglob("*.tar"))
    for path in made:
        assert (parts / path).read_bytes() == (whole / path).read_bytes()


def test_own_data_is_converted_in_parts(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = "".join(f"r{k},{k / 7},{k % 2}\n" for k in range(20))
    (tmp_path / "data" / "cases.csv").write_text(f"id,n,answer\n{rows}")
    (tmp_path / "data" / "card.yaml").write_text(
        "name: own\nmodalities: {m: {kind: table, columns: {n: {kind: number}}}}\ntasks: {answer: {kind: binary}}\n"
        "source: {table: cases.csv, sample: id, labels: {answer: answer}}\n"
    )
    exported = variables(tmp_path, tmp_path / "own")
    exported |= {"CARD": str(tmp_path / "data" / "card.yaml"), "ROOT": str(tmp_path / "data")}
    exported |= {"SHARDS": str(tmp_path / "own"), "ARGUMENTS": "--samples-per-shard 4"}
    job = submit(
        cluster, "convert_array.sbatch", tmp_path / "job-%a.out", "--cpus-per-task=1", "--array=1-2", **exported
    )
    assert set(cluster.wait(job)) == {"COMPLETED"}, explain(tmp_path / "job-1.out", tmp_path / "own.logs")
    assert len(list((tmp_path / "own").rglob("*.tar"))) == 6


def test_what_is_missing_is_said(cluster: Cluster, tmp_path: Path) -> None:
    job = submit(cluster, "convert_array.sbatch", tmp_path / "a-%a.out", "--cpus-per-task=1", "--array=1-1")
    assert cluster.wait(job) == ["FAILED"]
    assert "error: DATASET is not set" in (tmp_path / "a-1.out").read_text()
    empty = tmp_path / "empty" / "slurm"
    shutil.copytree(SCRIPTS, empty)
    job = submit(cluster, "train.sbatch", tmp_path / "b.out", *SIZE, M4OE_HOME=str(empty.parent))
    assert cluster.wait(job) == ["FAILED"]
    assert "has no m4oe_ds; install it, or set M4OE_VENV" in (tmp_path / "b.out").read_text()
    job = submit(cluster, "train.sbatch", tmp_path / "c.out", *SIZE, M4OE_HOME=str(tmp_path))
    assert cluster.wait(job) == ["FAILED"]
    assert "error: submit from the folder that holds slurm/" in (tmp_path / "c.out").read_text()


def test_nodes_are_looked_at_before_a_job(cluster: Cluster, tmp_path: Path) -> None:
    """Both nodes say what they are; their ranks meet, exchange bytes and train a step."""
    log, output = tmp_path / "doctor.out", tmp_path / "runs"
    exported = {"M4OE_HOME": str(commands.ROOT), "M4OE_VENV": VENV, "OUTPUT": str(output), "ARGUMENTS": "--seconds 1"}
    size = ("--nodes=2", "--cpus-per-task=1", "--gpus-per-node=1", "--ntasks-per-node=1")
    job = submit(cluster, "doctor.sbatch", log, *size, DS_ACCELERATOR="cpu", **exported)
    states, text = cluster.wait(job), log.read_text()
    assert states == ["COMPLETED"], explain(log, output)
    assert text.count("ok    host memory") == 2
    assert "2 met in" in text
    assert "experts over 2 of 2 ranks: loss" in text


def steps(run: Path) -> int:
    """Training steps logged so far."""
    path = run / "log.jsonl"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def preempt(cluster: Cluster, folder: Path) -> str:
    """Submits a job that takes all of ``n1`` from whoever has it."""
    script = folder / "urgent" / "urgent.sh"
    script.parent.mkdir()
    script.write_text("#!/bin/bash\nsleep 2\n")
    return cluster.submit(
        script, "--partition=urgent", "--cpus-per-task=2", "--nodelist=n1", f"--output={folder}/urgent.out"
    )


def until(ready: Callable[[], bool], job: str, cluster: Cluster, seconds: float = 900) -> None:
    """Waits for a condition while a job, if one is named, waits or runs."""
    deadline = time.monotonic() + seconds
    while not ready():
        states = cluster.state(job) if job else []
        assert time.monotonic() < deadline, states
        assert set(states) <= {"PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "REQUEUED", "SIGNALING"}, states
        time.sleep(0.2)
