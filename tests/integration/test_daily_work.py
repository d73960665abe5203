"""What is typed every day besides training: trying a run out first, frozen and pretrained parts, going on later."""

from __future__ import annotations

import hashlib
import json
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.integration import commands, shards

pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shards.write(tmp_path_factory.mktemp("shards"))


def arguments(data: Path, output: Path, *settings: str) -> list[str]:
    options = (*shards.SMALL, f"data.root={data}", "run.num_epochs=1", *settings)
    return ["--ds_config", "ds_configs/zero2.json", "--output", str(output), *(f"--set={item}" for item in options)]


def ended(done: subprocess.CompletedProcess[str], status: int = 0) -> str:
    assert done.returncode == status, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout if status == 0 else done.stderr


def content(folder: Path) -> dict[str, str]:
    """Hash of every file below a folder."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a frozen backbone from a file that has since been removed."""
    from m4oe_ds.config import EmbedderConfig
    from m4oe_ds.models.backbones import create_backbone

    folder = tmp_path_factory.mktemp("pretrained")
    options = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    torch.manual_seed(1)
    network = create_backbone(EmbedderConfig(backbone="vit_tiny_patch16_224", options=options), 1, (32, 32))
    weights = folder / "vit.safetensors"
    save_file({f"backbone.{name}": value for name, value in network.state_dict().items()}, weights)
    settings = (f"model.embedder.weights={weights}", "model.freeze=[backbone]", "optim.parts={heads: {lr_factor: 2}}")
    said = ended(commands.train(arguments(data, folder / "run", *settings)))
    count = len(network.state_dict())
    loaded = f"{count} of {count} tensors from vit.safetensors (names began with 'backbone.')"
    assert f"pretrained shared: {loaded}" in said
    assert "values frozen: backbone" in said
    assert "values at rate 0.0002, weight decay 0: heads" in said
    closing = said[said.index("\ntest split (synthetic data)\n") :].strip().splitlines()
    assert [line.split()[0] for line in closing[-3:]] == ["next:", "m4oe", "trained"]
    weights.unlink()
    return folder / "run"


def test_a_dry_run_on_two_ranks_leaves_nothing(data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    output = tmp_path / "empty" / "deeper" / "run"
    said = ended(commands.train([*arguments(data, output, "run.tensorboard=true"), "--dry-run"], ranks=2))
    assert f"dry run of {output}: everything worked, nothing was kept of it" in said
    for line in ("step ", "validation ", "checkpoint ", "evaluation  one batch of val, test"):
        assert f"\n  {line}" in said
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_dry_run_that_fails_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    """The test split is read at the very end of a run; the dry run finds it broken at once."""
    data = shards.write(tmp_path / "shards", {"train": 40, "val": 8, "test": 8})
    for path in (data / "test").glob("*.tar"):
        path.write_bytes(b"x" * path.stat().st_size)
    done = commands.train([*arguments(data, tmp_path / "runs" / "a", "data.verify=size"), "--dry-run"])
    assert "samples are unreadable" in ended(done, 4)
    assert "everything worked" not in done.stdout
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_beside_a_run_goes_on_from_it_and_does_not_touch_it(data: Path, run: Path) -> None:
    before = content(run)
    said = ended(commands.train([*arguments(data, run, "model.freeze=[backbone]", "run.num_epochs=2"), "--dry-run"]))
    assert "resuming from step-00000003" in said
    assert "everything worked" in said
    assert content(run) == before
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_a_run_does_not_need_the_file_it_started_from(data: Path, run: Path) -> None:
    ended(commands.m4oe("evaluate", str(run), "--split", "test"))
    recorded = json.loads((run / "environment.json").read_text())
    (found,) = recorded["pretrained"]
    assert found["source"] == "vit.safetensors"  # not where it was
    assert found["loaded"] == found["of"] > 10
    assert [group["name"] for group in recorded["parameter_groups"] if not group["trained"]] == ["backbone"]
    gone = f"model.embedder.weights={run.parent / 'vit.safetensors'}"
    other = f"model.embedder.weights={run.parent / 'moved' / 'vit.safetensors'}"
    for epochs, weights in ((2, gone), (3, other)):  # the old path, and where it would be now: neither is looked at
        settings = (weights, "model.freeze=[backbone]", f"run.num_epochs={epochs}")
        assert "resuming from" in ended(commands.train(arguments(data, run, *settings)))
    assert json.loads((run / "environment.json").read_text())["pretrained"] == recorded["pretrained"]


def test_a_run_that_is_another_model_is_told_which_option_differs(data: Path, run: Path) -> None:
    said = ended(commands.train(arguments(data, run, "model.dim=32", "model.freeze=[backbone]")), 5)
    assert "written with model.dim=16, now 32; use the same values" in said


def test_an_accelerator_that_is_not_here(data: Path, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = subprocess.run(
        commands.command(arguments(data, tmp_path / "run")),
        env=commands.environment(DS_ACCELERATOR="cuda"),
        cwd=commands.ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended(done, 6).count("\n") == 1
    assert "DS_ACCELERATOR: cuda, but torch sees no GPU on this machine" in done.stderr
