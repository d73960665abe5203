"""What a training run was asked for is refused before torch is imported."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from m4oe_ds import config_loader
from m4oe_ds.errors import CheckpointError, ConfigError, DataError, EnvironmentProblem
from m4oe_ds.runs.request import Request, has_phantoms, makes_phantoms, needed_splits, prepare
from tests.integration import shards


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shards.write(tmp_path_factory.mktemp("request"), {"train": 4, "val": 2, "test": 2})


def asked(tmp_path: Path, root: Path | str, *overrides: str, resume: str = "auto", output: str = "") -> Request:
    given = (*shards.SMALL, f"data.root={root}", *overrides)
    return Request("zero2", "demo", given, resume, output or str(tmp_path / "run"))


def checkpoint(run: Path, tag: str = "step-00000003") -> Path:
    folder = run / "checkpoints" / tag
    folder.mkdir(parents=True)
    content = {"format": 2, "stamp": {}, "position": {}, "progress": {}, "parameters": {}, "files": {}}
    (folder / "manifest.json").write_text(json.dumps(content))
    return folder


def test_a_request_that_can_begin(tmp_path: Path, data: Path) -> None:
    prepared = prepare(asked(tmp_path, data))
    assert prepared.starts
    assert prepared.folder == tmp_path / "run"
    assert prepared.ds_config["train_batch_size"] == 32
    assert not (tmp_path / "run").exists()


def test_the_folder_is_named_after_the_run(data: Path, tmp_path: Path) -> None:
    request = asked(tmp_path, data, "run.name=first")
    assert prepare(Request(request.ds_config, request.config, request.overrides)).folder == Path("runs/first")


def test_a_run_continues_from_its_checkpoint(tmp_path: Path, data: Path) -> None:
    folder = checkpoint(tmp_path / "run")
    assert not prepare(asked(tmp_path, data)).starts
    assert not prepare(asked(tmp_path, data, resume=str(folder), output=str(tmp_path / "other"))).starts
    assert prepare(asked(tmp_path, data, resume="never")).starts


@pytest.mark.parametrize("wrong", ["absent/step-1", "run", "run/checkpoints", "run/checkpoints/step-00000004"])
def test_what_is_no_checkpoint_is_refused_and_those_near_are_named(tmp_path: Path, data: Path, wrong: str) -> None:
    checkpoint(tmp_path / "run")
    with pytest.raises(CheckpointError) as caught:
        prepare(asked(tmp_path, data, resume=str(tmp_path / wrong)))
    assert "not a checkpoint of this trainer" in str(caught.value)
    assert ("step-00000003" in str(caught.value)) == wrong.startswith("run")


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_a_damaged_checkpoint_is_refused_and_the_others_are_named(tmp_path: Path, data: Path, content: str) -> None:
    checkpoint(tmp_path / "run", "step-00000001")
    (checkpoint(tmp_path / "run") / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"damaged.*step-00000001"):
        prepare(asked(tmp_path, data, resume=str(tmp_path / "run" / "checkpoints" / "step-00000003")))


def test_an_old_run_is_not_touched(tmp_path: Path, data: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.jsonl").write_text("")
    with pytest.raises(ConfigError, match="already holds a run; choose another --output, or --resume auto"):
        prepare(asked(tmp_path, data, resume="never"))


def test_a_folder_that_cannot_be_written_to(tmp_path: Path, data: Path) -> None:
    (tmp_path / "file").write_text("")
    for output in ("/proc/run", str(tmp_path / "file"), str(tmp_path / "file" / "run")):
        with pytest.raises(EnvironmentProblem, match="choose another --output"):
            prepare(asked(tmp_path, data, output=output))


def test_shards_must_be_where_the_configuration_says(tmp_path: Path, data: Path) -> None:
    with pytest.raises(DataError, match=r"data\.root: no shard folder .*absent"):
        prepare(asked(tmp_path, tmp_path / "absent"))
    with pytest.raises(DataError, match=r"data\.root: is empty"):
        prepare(asked(tmp_path, ""))
    shutil.copytree(data, tmp_path / "part")
    shutil.rmtree(tmp_path / "part" / "val")
    with pytest.raises(DataError, match=r"no val split in .*; it has test, train"):
        prepare(asked(tmp_path, tmp_path / "part"))
    prepare(asked(tmp_path, tmp_path / "part", "run.eval_every_epochs=0", "evaluation.splits=[test]"))
    (tmp_path / "part" / "train" / "manifest.json").unlink()
    with pytest.raises(DataError, match="no train split"):
        prepare(asked(tmp_path, tmp_path / "part", "run.eval_every_epochs=0", "evaluation.splits=[test]"))


def test_phantoms_are_made_in_their_own_folder_only(tmp_path: Path) -> None:
    def made(root: Path) -> bool:
        return makes_phantoms(
            config_loader.load("demo", [f"data.root={root}", f"data.phantom.root={tmp_path / 'own'}"])
        )

    assert made(tmp_path / "own")
    assert not made(tmp_path / "onw")
    (tmp_path / "own" / "train").mkdir(parents=True)
    (tmp_path / "own" / "train" / "manifest.json").write_text("{}")
    assert not made(tmp_path / "own")
    assert has_phantoms(config_loader.load("demo", []))
    assert not has_phantoms(config_loader.load("embed", []))
    assert not has_phantoms(config_loader.load("demo", ["data.phantom.patients=0"]))


@pytest.mark.parametrize("option", ["model.embedder.weights", "model.init_from"])
def test_files_to_start_from_must_be_there(tmp_path: Path, data: Path, option: str) -> None:
    with pytest.raises(CheckpointError, match=f"{option}: no such file or folder"):
        prepare(asked(tmp_path, data, f"{option}={tmp_path / 'absent.pth'}"))
    checkpoint(tmp_path / "run")
    prepare(asked(tmp_path, data, f"{option}={tmp_path / 'absent.pth'}"))  # a run that goes on does not need them


def test_a_negative_number_of_profiled_steps(tmp_path: Path, data: Path) -> None:
    request = asked(tmp_path, data)
    with pytest.raises(ConfigError, match="--profile"):
        prepare(Request(request.ds_config, request.config, request.overrides, output=request.output, profile_steps=-1))


def test_splits_that_are_read() -> None:
    assert needed_splits(config_loader.load("demo", [])) == ("train", "val", "test")
    without = config_loader.load("demo", ["run.eval_every_epochs=0", "evaluation.splits=[test]"])
    assert needed_splits(without) == ("train", "test")
