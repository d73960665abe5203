"""A run killed in the middle of an epoch continues as if nothing had happened; a broken checkpoint is passed over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from m4oe_ds import config_loader
from m4oe_ds.errors import CheckpointError
from m4oe_ds.models import build
from m4oe_ds.runs import weights
from tests.integration import commands, shards

pytestmark = [pytest.mark.integration, pytest.mark.timeout(5400)]

SETTINGS = [f"--set={item}" for item in (*shards.SMALL, "run.num_epochs=3", "run.log_every_steps=1")]


def arguments(data: Path, output: Path, *more: str) -> list[str]:
    config = f"--set=data.root={data}"
    json = "ds_configs/zero2.json"
    extra = ["--set=run.checkpoint.every_steps=3", "--set=run.checkpoint.keep_last=3", "--set=loss.alpha=0.05"]
    return ["--ds_config", json, "--output", str(output), config, *SETTINGS, *extra, *more]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # 260 samples = 9 steps of 32, the last one filled up: checkpoints after steps 3 and 6 of an epoch lie inside it
    return shards.write(tmp_path_factory.mktemp("shards"), {"train": 260, "val": 16, "test": 16})


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 900
    while time.monotonic() < deadline:
        log = run / "log.jsonl"
        if log.is_file() and any(f'"step": {step},' in line for line in log.read_text().splitlines()):
            return
        assert process.poll() is None, f"training ended early:\n{process.communicate()[0][-3000:]}"
        time.sleep(0.05)
    pytest.fail(f"step {step} was not reached")


def kill_group(process: subprocess.Popen[str], number: int) -> None:
    os.killpg(process.pid, number)
    process.wait(900)


def test_killed_run_resumes_bit_for_bit(data: Path, tmp_path: Path) -> None:
    whole = commands.train(arguments(data, tmp_path / "whole"), ranks=2)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    expected = commands.losses(tmp_path / "whole")
    assert sorted(expected) == list(range(1, 28))

    # killed without warning once step 14 is logged, so the checkpoint of step 12, inside the second epoch, is there
    killed = subprocess.Popen(
        commands.command(arguments(data, tmp_path / "cut"), ranks=2),
        env=commands.environment(),
        cwd=commands.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_for_step(tmp_path / "cut", 14, killed)
    kill_group(killed, signal.SIGKILL)
    before = sorted(path.parent.name for path in (tmp_path / "cut" / "checkpoints").glob("step-*/manifest.json"))
    assert before, "no checkpoint was written before the kill"
    last = int(before[-1].removeprefix("step-"))
    assert last % 9 != 0, "the kill must fall inside an epoch for this test to mean something"

    again = commands.train(arguments(data, tmp_path / "cut", "--resume", "auto"), ranks=2)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"resuming from {before[-1]}" in again.stdout
    assert commands.losses(tmp_path / "cut") == expected

    # a damaged newest checkpoint: reported, the one before is used, and the end is the same
    newest = sorted((tmp_path / "cut" / "checkpoints").glob("step-*"))[-1]
    victim = newest / "state-00001.safetensors"
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    third = commands.train(arguments(data, tmp_path / "cut", "--resume", "auto"), ranks=2)
    assert third.returncode == 0, third.stdout + third.stderr
    assert f"checkpoint {newest.name} does not verify" in third.stdout + third.stderr
    assert commands.losses(tmp_path / "cut") == expected


def test_run_goes_on_with_other_ranks_and_its_weights_are_exported(data: Path, tmp_path: Path) -> None:
    whole = commands.train(arguments(data, tmp_path / "whole", "--set=run.num_epochs=2"))
    assert whole.returncode == 0, whole.stdout + whole.stderr
    first = commands.train(
        arguments(data, tmp_path / "cut", "--set=run.num_epochs=2", "--set=run.max_steps=12"), ranks=2
    )
    assert first.returncode == 0, first.stdout + first.stderr
    then = commands.train(arguments(data, tmp_path / "cut", "--set=run.num_epochs=2"))
    assert then.returncode == 0, then.stdout + then.stderr
    assert "was written with world=2" in then.stderr
    expected, found = commands.losses(tmp_path / "whole"), commands.losses(tmp_path / "cut")
    assert sorted(found) == sorted(expected) == list(range(1, 19))
    for step, figures in expected.items():
        assert found[step][0] == pytest.approx(figures[0], rel=1e-4), step

    before = (tmp_path / "cut" / "weights" / "model.safetensors").read_bytes()
    (tmp_path / "cut" / "weights" / "model.safetensors").unlink()
    for options in ([], ["--max-file-gb", "0.0002"]):
        done = subprocess.run(
            [sys.executable, "-m", "m4oe_ds", "export", str(tmp_path / "cut"), *options],
            cwd=commands.ROOT,
            env=commands.environment(),
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr
        if not options:
            assert (tmp_path / "cut" / "weights" / "model.safetensors").read_bytes() == before
    assert done.stdout.count("-of-") > 1
    model = build(config_loader.load(tmp_path / "cut" / "config.yaml"))
    assert weights.load(model, tmp_path / "cut" / "weights" / "model.safetensors") == []
    other = build(config_loader.load(tmp_path / "cut" / "config.yaml", ["model.use_msoe=false"]))
    with pytest.raises(CheckpointError, match=r"unexpected msoe\.ffdm_cc.blocks.0.attention.proj.bias"):
        weights.load(other, tmp_path / "cut" / "weights" / "model.safetensors")
    differences = weights.load(other, tmp_path / "cut" / "weights" / "model.safetensors", strict=False)
    assert all(line.startswith("unexpected msoe.") for line in differences)


def test_signal_saves_and_resume_goes_on(data: Path, tmp_path: Path) -> None:
    whole = commands.train(arguments(data, tmp_path / "whole"))
    assert whole.returncode == 0, whole.stdout + whole.stderr
    asked = subprocess.Popen(
        commands.command(arguments(data, tmp_path / "cut")),
        env=commands.environment(),
        cwd=commands.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    wait_for_step(tmp_path / "cut", 4, asked)
    os.kill(asked.pid, signal.SIGUSR1)
    text, _ = asked.communicate(timeout=900)
    assert asked.returncode == 75, text
    assert "stopped by signal" in text
    again = commands.train(arguments(data, tmp_path / "cut"))
    assert again.returncode == 0, again.stdout + again.stderr
    assert commands.losses(tmp_path / "cut") == commands.losses(tmp_path / "whole")
