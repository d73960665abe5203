"""Bad input: one clear line on standard error and a non-zero exit, before anything expensive starts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration import commands, shards

pytestmark = pytest.mark.integration

DS = "ds_configs/zero2.json"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shards.write(tmp_path_factory.mktemp("shards"))


def one_line(arguments: list[str], ranks: int = 1) -> str:
    result = commands.train(arguments, ranks)
    assert result.returncode != 0, result.stdout
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr[-2000:]
    assert "Traceback" not in result.stderr
    return lines[0]


def small(data: Path, output: Path) -> list[str]:
    return ["--output", str(output), f"--set=data.root={data}", *(f"--set={item}" for item in shards.SMALL)]


def test_unknown_key_names_the_nearest(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("model:\n  mtoe: {num_expert: 4}\n")
    line = one_line(["--ds_config", DS, "--config", str(config)])
    assert "mine.yaml:2: unknown key model.mtoe.num_expert; did you mean num_experts?" in line


def test_conflicting_batch_sizes_name_both_files(tmp_path: Path) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("run:\n  expects: {train_batch_size: 64}\n")
    line = one_line(["--ds_config", DS, "--config", str(config)])
    assert "train_batch_size is 32" in line
    assert "64" in line
    assert DS in line
    assert "mine.yaml" in line


def test_experts_not_divisible_by_ep_size(tmp_path: Path) -> None:
    line = one_line(["--ds_config", DS, "--set=model.msoe.num_experts=3", "--set=parallel.ep_size=2"], ranks=2)
    assert "ep_size=2 does not divide 3 experts" in line
    assert "choose 1" in line


def test_missing_data_folder(tmp_path: Path) -> None:
    line = one_line(
        ["--ds_config", DS, *small(tmp_path / "nowhere", tmp_path / "run"), "--set=data.phantom.patients=0"]
    )
    assert "nowhere" in line
    assert "m4oe convert" in line


def test_wrong_checksum_names_the_shard(data: Path, tmp_path: Path) -> None:
    manifest = json.loads((data / "train" / "manifest.json").read_text())
    shard = data / "train" / manifest["shards"][1]["name"]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(content)
    try:
        line = one_line(["--ds_config", DS, *small(data, tmp_path / "run")])
    finally:
        content[len(content) // 2] ^= 0xFF
        shard.write_bytes(content)
    assert shard.name in line
    assert "sha256 differs" in line


def test_too_large_a_batch_names_the_numbers(data: Path, tmp_path: Path) -> None:
    config = json.loads((commands.ROOT / DS).read_text())
    config["train_batch_size"] = 128
    (tmp_path / "ds.json").write_text(json.dumps(config))
    line = one_line(["--ds_config", str(tmp_path / "ds.json"), *small(data, tmp_path / "run")])
    assert "72 samples do not fill one global batch of 128" in line


def test_existing_run_is_not_overwritten(data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "log.jsonl").write_text("")
    line = one_line(["--ds_config", DS, *small(data, run), "--resume", "never"])
    assert "already holds a run" in line


@pytest.mark.parametrize("rank", ["0", "x"])
def test_incomplete_launch_environment(rank: str) -> None:
    import subprocess

    result = subprocess.run(
        commands.command(["--ds_config", DS]),
        env=commands.environment(RANK=rank, WORLD_SIZE="2"),
        cwd=commands.ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode != 0
    assert "LOCAL_RANK, MASTER_ADDR, MASTER_PORT" in result.stderr
    assert "Traceback" not in result.stderr
