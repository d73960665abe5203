"""Where a trained model to start from is found, and that nothing needs it any more once a run has its own weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from m4oe_ds import cli, config_loader
from m4oe_ds.config import to_dict
from m4oe_ds.data.cards import find_card, write_card
from m4oe_ds.errors import CheckpointError, ConfigError
from m4oe_ds.runs import assemble
from m4oe_ds.runs.configuration import open_config
from m4oe_ds.runs.folder import CheckpointFolder, RunFolder, write_yaml
from m4oe_ds.runs.initial_source import open_source
from m4oe_ds.runs.request import Request, prepare
from m4oe_ds.runs.state_files import write

STARTED = ("model.init_from=gone/run", "model.init_map={ffdm_cc: fundus}", "model.embedder.weights=gone/vit.pth")


def made(folder: Path, *overrides: str) -> RunFolder:
    """A run folder whose weights are one tensor."""
    files = RunFolder(folder)
    files.weights.parent.mkdir(parents=True)
    write_yaml(files.config, to_dict(config_loader.load(None, overrides)))
    save_file({"a": torch.ones(3)}, str(files.weights))
    return files


def test_a_run_folder_or_its_weights(tmp_path: Path) -> None:
    files = made(tmp_path / "old", "data.dataset=rsna", *STARTED[2:])
    for path in (files.path, files.weights):
        source = open_source(path)
        assert source.spec.task_names == ("density", "birads")
        assert source.weights.names == {"a"}
        assert source.config.model.embedder.weights == ""
        assert source.digest() == hashlib.sha256(files.weights.read_bytes()).hexdigest()
    assert open_source(files.path).name == "old"


def test_an_export_and_the_configuration_next_to_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = made(tmp_path / "old", "data.dataset=rsna")
    checkpoint = CheckpointFolder(files.checkpoints / "step-00000001")
    checkpoint.path.mkdir(parents=True)
    write({"master|a|0": torch.arange(3.0)}, checkpoint.state(0))
    checkpoint.manifest.write_text(json.dumps({"parameters": {"a": [3]}}))
    out = tmp_path / "exports"
    assert cli.main(["export", str(checkpoint.path), "--out", str(out / "first.safetensors")]) == 0
    assert "its configuration -> " in capsys.readouterr().out
    for path in (out, out / "first.safetensors"):
        source = open_source(path)
        assert source.weights.read("a").tolist() == [0, 1, 2]
        assert source.config.data.dataset == "rsna"
    assert cli.main(["export", str(checkpoint.path), "--out", str(out / "second.safetensors")]) == 0
    with pytest.raises(CheckpointError, match=r"first\.safetensors, second\.safetensors; name one of the files"):
        open_source(out)
    assert cli.main(["export", str(checkpoint.path)]) == 0  # into the run folder, which has its configuration
    assert sorted(path.name for path in files.weights.parent.iterdir()) == ["model.safetensors"]


def test_a_card_that_is_gone_travels_with_the_run_and_its_export(tmp_path: Path) -> None:
    """The configuration names the card by a path, which is that of another machine."""
    card = tmp_path / "mine.yaml"
    write_card(card, replace(find_card("rsna"), name="mine"))
    files = made(tmp_path / "old", f"data.dataset={card}")
    write_card(files.card, find_card(str(card)))
    checkpoint = CheckpointFolder(files.checkpoints / "step-00000001")
    checkpoint.path.mkdir(parents=True)
    write({"master|a|0": torch.arange(3.0)}, checkpoint.state(0))
    checkpoint.manifest.write_text(json.dumps({"parameters": {"a": [3]}}))
    card.unlink()
    out = tmp_path / "exports" / "mine.safetensors"
    assert cli.main(["export", str(checkpoint.path), "--out", str(out)]) == 0
    for path in (files.path, files.weights, out, out.parent):
        assert open_source(path).spec.task_names == ("density", "birads")


def test_what_is_no_trained_model(tmp_path: Path) -> None:
    files = made(tmp_path / "old")
    alone = tmp_path / "alone.safetensors"
    files.weights.rename(alone)
    for path, says in (
        (alone, "has no configuration next to it; export with `m4oe export`, which writes alone.safetensors.yaml"),
        (tmp_path / "none.safetensors", "no such file"),
        (tmp_path / "none", "no such folder"),
        (tmp_path, "is neither a run nor an export folder"),
        (files.path, "no consolidated weights"),
    ):
        with pytest.raises(CheckpointError) as caught:
            open_source(path)
        assert says in str(caught.value)


def test_a_finished_run_is_opened_without_what_it_started_from(tmp_path: Path) -> None:
    model = open_config(made(tmp_path / "run", *STARTED).path).model
    assert (model.init_from, model.init_map, model.embedder.weights) == ("", {}, "")


def fingerprint(*overrides: str) -> str:
    """The digest of the model that a checkpoint carries."""
    manifest: Any = type("Shards", (), {"digest": "d"})()
    ds = {"zero_optimization": {"stage": 2}}
    return str(assemble.stamp(config_loader.load(None, overrides), ds, {}, manifest)["model"])


def test_the_fingerprint_is_of_the_model_not_of_where_its_values_came_from() -> None:
    assert fingerprint(*STARTED) == fingerprint()
    assert fingerprint("model.embedder.weights=hub", "model.dim=64") == fingerprint("model.dim=64") != fingerprint()
    assert fingerprint("model.embedder.freeze=true") != fingerprint()


def test_the_fingerprint_of_older_checkpoints_without_weights_is_accepted() -> None:
    """As it was computed before there was init_from: of the whole section ``model``, where weights were empty.

    Nor was there ``freeze`` then, which was as if it were empty.
    """
    config = config_loader.load(None)
    later = ("init_from", "init_map", "freeze")
    section = {key: value for key, value in to_dict(config.model).items() if key not in later}
    assert section["embedder"]["weights"] == ""
    content = json.dumps(section | {"tasks": [], "modalities": []}, sort_keys=True, default=list)
    assert fingerprint() == hashlib.sha256(content.encode()).hexdigest()[:12]


def test_a_mapping_without_a_source_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--set model\.init_map=.*: model\.init_map does nothing without"):
        config_loader.load(None, ["model.init_map={a: b}"])


def test_a_run_that_begins_says_at_once_that_its_source_is_missing(tmp_path: Path) -> None:
    """Before data is verified and ranks wait for each other; a run that goes on does not look for it."""
    root = Path(__file__).parents[3]
    files = RunFolder(tmp_path / "run")
    options = (f"model.init_from={tmp_path / 'none'}",)
    json_path, yaml_path = str(root / "ds_configs" / "zero2.json"), str(root / "configs" / "demo.yaml")
    for resume in ("auto", "never"):
        with pytest.raises(CheckpointError, match=r"model\.init_from: no such file or folder"):
            prepare(Request(json_path, yaml_path, options, resume, str(files.path)))
    manifest = CheckpointFolder(files.checkpoints / "step-00000001").manifest
    manifest.parent.mkdir(parents=True)
    manifest.write_text("{}")
    assert not prepare(Request(json_path, yaml_path, options, "auto", str(files.path))).starts
