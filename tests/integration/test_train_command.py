"""``m4oe train``: starts the ranks itself, becomes the launcher, and is a rank where one has started it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from m4oe_ds.coordinates import free_port
from tests.integration import commands, shards

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shards.write(tmp_path_factory.mktemp("shards"), {"train": 40, "val": 8, "test": 8})


@pytest.fixture(scope="module")
def options(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Configuration and JSON of a global batch of 8, two steps; not in the checkout."""
    folder = tmp_path_factory.mktemp("settings")
    content = json.loads((commands.ROOT / "ds_configs" / "zero2.json").read_text())
    (folder / "ds.json").write_text(json.dumps(content | {"train_batch_size": 8}))
    more = [f"--set={item}" for item in (*shards.SMALL, f"data.root={data}", "run.max_steps=2")]
    return ["--config", "demo", "--ds_config", str(folder / "ds.json"), *more]


def train(
    options: list[str], output: Path, *more: str, cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs the command in a folder that is not the checkout."""
    path = os.pathsep.join([str(commands.ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "m4oe_ds", "train", *options, "--output", str(output), *more],
        env=commands.environment(PYTHONPATH=path, **environment),
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def two(options: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of two ranks that the command started, and what it printed."""
    folder = tmp_path_factory.mktemp("runs")
    done = train(options, folder / "two", "--ranks", "2", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "two", done.stdout


def test_two_ranks_train_evaluate_and_report(two: tuple[Path, str]) -> None:
    run, printed = two
    environment = json.loads((run / "environment.json").read_text())
    assert (environment["world"], environment["launched_by"]) == (2, "launcher")
    assert [step for step in commands.losses(run)] == [1, 2]  # noqa: C416
    assert {"val", "test"} <= set(json.loads((run / "metrics.json").read_text()))
    assert (run / "report.html").is_file()
    assert "trained 2 steps" in printed


def test_one_rank_gives_the_same_losses(two: tuple[Path, str], options: list[str], tmp_path: Path) -> None:
    done = train(options, tmp_path / "one", "--ranks", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "one" / "environment.json").read_text())["launched_by"] == "single"
    first, second = commands.losses(two[0]), commands.losses(tmp_path / "one")
    for step in (1, 2):
        assert first[step][0] == pytest.approx(second[step][0], abs=1e-5)


def test_what_is_wrong_with_two_ranks_is_one_line_before_any_is_started(options: list[str], tmp_path: Path) -> None:
    done = train(options, tmp_path / "run", "--ranks", "3", cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr.startswith("error: ")
    assert "is not a multiple of 3 ranks" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_rank_that_something_else_started(options: list[str], tmp_path: Path) -> None:
    """Under srun or another launcher the command is a rank; ``--gpus`` would start them twice."""
    here = {
        "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    twice = train(options, tmp_path / "run", "--gpus", "2", cwd=tmp_path, **here)
    assert twice.returncode == 3
    assert "--gpus: 1 ranks were started already" in twice.stderr
    done = train(options, tmp_path / "run", cwd=tmp_path, **here)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["launched_by"] == "launcher"


def test_a_failure_of_a_rank_is_the_status_of_the_command(options: list[str], data: Path, tmp_path: Path) -> None:
    """Found by the ranks, because the shards themselves are looked at by them."""
    other = shards.write(tmp_path / "data", {"train": 40, "val": 8, "test": 8}, seed=1)
    shard = next((other / "train").glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-1000])
    done = train([*options, f"--set=data.root={other}"], tmp_path / "run", "--ranks", "2", cwd=tmp_path)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr[-2000:]
    assert shard.name in lines[0]
    assert "Traceback" not in done.stderr
