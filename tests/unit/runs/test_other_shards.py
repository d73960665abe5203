"""Results on other shards stand beside those on the run's own, under a name that says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from m4oe_ds import config_loader
from m4oe_ds.cli import main
from m4oe_ds.config import to_dict
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.models import build
from m4oe_ds.report.html import render
from m4oe_ds.runs.folder import RunFolder, write_yaml
from m4oe_ds.runs.result_name import result_name, title_of
from tests.integration import shards


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with random weights whose own shards are in ``demo``."""
    data = shards.write(tmp_path / "demo", {"train": 8, "val": 4, "test": 6})
    folder = tmp_path / "run"
    config = config_loader.load(None, (*shards.SMALL, f"data.root={data}", "evaluation.resamples=5"))
    RunFolder(folder).weights.parent.mkdir(parents=True)
    write_yaml(RunFolder(folder).config, to_dict(config))
    state = {name: value.contiguous() for name, value in build(config).state_dict().items()}
    save_file(state, str(RunFolder(folder).weights))
    return folder


def test_another_hospital_replaces_nothing(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    files = RunFolder(run)
    other = shards.write(tmp_path / "other hospital", {"train": 8, "val": 4, "test": 10})
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "demo", moved)
    assert main(["evaluate", str(run)]) == 0
    own, answers = json.loads(files.metrics.read_text())["test"], files.predictions("test").read_bytes()
    assert own["data_digest"] == Manifest.load(moved / "test").digest

    assert main(["evaluate", str(run), "--data", str(other)]) == 0
    assert "metrics of test split of other shards than the run's: other-hospital (digest" in capsys.readouterr().out
    found = json.loads(files.metrics.read_text())
    assert found["test"] == own
    assert files.predictions("test").read_bytes() == answers
    assert found["test@other-hospital"]["n"] == 10
    assert found["test@other-hospital"]["data_digest"] == Manifest.load(other / "test").digest
    assert files.predictions("test@other-hospital").is_file()

    assert main(["evaluate", str(run), "--data", str(moved)]) == 0
    assert json.loads(files.metrics.read_text()).keys() == found.keys()
    page = render(run).read_text()
    assert "<h3>test: 6 samples" in page
    assert "<h3>test split of other shards than the run&#39;s: other-hospital (digest" in page


def test_names_of_runs_that_kept_no_digest(run: Path, tmp_path: Path) -> None:
    """The run's own folder is asked, and where it is gone nothing counts as its own."""
    demo, other = tmp_path / "demo", shards.write(tmp_path / "x" / "demo", {"train": 8, "val": 4, "test": 10})
    moved = tmp_path / "moved"
    shutil.copytree(demo, moved)
    mine, theirs = Manifest.load(demo / "test"), Manifest.load(other / "test")
    old = {"test": {"tasks": {}}}
    assert result_name(run, "test", "", mine, old) == "test"
    assert result_name(run, "test", str(moved), mine, old) == "test"
    assert result_name(run, "test", str(other), theirs, old) == "test@demo"
    known = {"test@demo": {"data_digest": mine.digest}}
    assert result_name(run, "test", str(other), theirs, known) == f"test@demo-{theirs.digest[:8]}"
    shutil.rmtree(demo)
    assert result_name(run, "test", f"{other}/", theirs, {}) == "test@demo"
    # shards that were made anew where the run's were
    assert result_name(run, "test", "", theirs, {"test": {"data_digest": mine.digest}}) == "test@demo"
    assert title_of("test", {}) == "test"
