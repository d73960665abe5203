"""What a finished run and a checkpoint must have, looked for without torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from m4oe_ds.errors import CheckpointError, ConfigError, DataError, EnvironmentProblem
from m4oe_ds.runs.export import choose
from m4oe_ds.runs.opening import check_run
from m4oe_ds.runs.weight_files import find_weights, tensors_of
from tests.integration import shards


def safetensors(*names: str, size: int = 8) -> bytes:
    """A file of float32 tensors, by the format and not by the library."""
    header = {name: {"dtype": "F32", "shape": [2], "data_offsets": [8 * i, 8 * i + 8]} for i, name in enumerate(names)}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    return len(text).to_bytes(8, "little") + text + bytes(size * len(names))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    data = shards.write(tmp_path / "data", {"train": 3, "test": 2})
    folder = tmp_path / "runs" / "one"
    (folder / "weights").mkdir(parents=True)
    lines = ["config_version: 1", "data: {dataset: embed, root: %s}" % data]  # noqa: UP031  (braces)
    (folder / "config.yaml").write_text("\n".join(lines))
    (folder / "weights" / "model.safetensors").write_bytes(safetensors("a", "b"))
    for tag in ("step-00000001", "step-00000002"):
        (folder / "checkpoints" / tag).mkdir(parents=True)
        (folder / "checkpoints" / tag / "manifest.json").write_text("{}")
    (folder / "checkpoints" / "BEST").write_text("step-00000001\n")
    return folder


def test_a_run_that_can_be_opened(run: Path, tmp_path: Path) -> None:
    assert check_run(run, ["test"]).data.root == str(tmp_path / "data")
    assert check_run(run, ["train"], str(tmp_path / "data")).data.dataset == "embed"


def test_a_library_reads_what_these_tests_write(run: Path) -> None:
    from safetensors.numpy import load_file

    assert sorted(load_file(run / "weights" / "model.safetensors")) == ["a", "b"]
    assert sorted(tensors_of(run / "weights" / "model.safetensors", run)) == ["a", "b"]


def test_folders_that_are_no_run(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nope: no such run folder .*; there: .*one"):
        check_run(tmp_path / "runs" / "nope")
    with pytest.raises(DataError, match=r"runs: not a run folder \(no config\.yaml\); .*there: .*one"):
        check_run(tmp_path / "runs")
    with pytest.raises(DataError, match=r"config\.yaml: is a file, not a run folder"):
        check_run(run / "config.yaml")


def test_splits_that_are_not_there_and_those_that_are(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no split 'tests' here; there are: test, train"):
        check_run(run, ["tests"])
    with pytest.raises(DataError, match=r"--data: no shard folder 'nope'"):
        check_run(run, ["test"], "nope")
    with pytest.raises(DataError, match=r"is a file, not a folder of shards"):
        check_run(run, ["test"], str(run / "config.yaml"))
    with pytest.raises(DataError, match=r"no manifest\.json here; name a folder above: its splits are test, train"):
        check_run(run, [""], str(tmp_path / "data"))


@pytest.mark.parametrize(
    "content",
    [b"", b"short", bytes(8), b"x" * 4000, safetensors("a")[:-1], safetensors("a") + b"x", safetensors("a")[:20]],
    ids=["empty", "short", "no header", "text", "cut off", "too long", "header cut off"],
)
def test_damaged_weights_name_the_checkpoints(run: Path, content: bytes) -> None:
    (run / "weights" / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        check_run(run)
    assert f"is damaged: {len(content)} bytes" in str(caught.value).replace(",", "")
    assert "m4oe export" in str(caught.value)
    assert "step-00000001, step-00000002" in str(caught.value)


def test_absent_weights(run: Path) -> None:
    shutil.rmtree(run / "weights")
    with pytest.raises(CheckpointError, match="no consolidated weights; make them with `m4oe export"):
        check_run(run)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match="no consolidated weights; the run has no checkpoints either"):
        check_run(run)
    check_run(run, weights=False)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "absent.safetensors"}}']
)
def test_a_damaged_index(run: Path, content: str) -> None:
    (run / "weights" / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError):
        check_run(run)


def test_several_files(run: Path) -> None:
    weights = run / "weights"
    (weights / "one.safetensors").write_bytes(safetensors("a"))
    index = {"weight_map": {"a": "one.safetensors", "b": "model.safetensors"}}
    (weights / "model.safetensors.index.json").write_text(json.dumps(index))
    found = find_weights(weights / "model.safetensors")
    assert {name: path.name for name, path in found.items()} == index["weight_map"]
    index["weight_map"]["c"] = "one.safetensors"
    (weights / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="its files lack 1 tensors"):
        find_weights(weights / "model.safetensors")


def test_what_is_exported(run: Path, tmp_path: Path) -> None:
    best = choose(run, "best")
    assert (best.checkpoint.name, best.out) == ("step-00000001", run / "weights" / "model.safetensors")
    assert choose(run, "step-00000002").checkpoint.name == "step-00000002"
    assert choose(run / "checkpoints" / "step-00000002", "").checkpoint.name == "step-00000002"
    assert choose(run, "best", str(tmp_path / "x.safetensors")).out == tmp_path / "x.safetensors"
    assert choose(run, "best", str(tmp_path / "x")).out == tmp_path / "x" / "weights" / "model.safetensors"


@pytest.mark.parametrize(
    ("checkpoint", "said"),
    [
        (
            "step-1",
            r"no checkpoint 'step-1'; did you mean step-0000000\d\? \(known: best, latest, step-00000001, step-",
        ),
        ("besst", r"no checkpoint 'besst'; did you mean best\?"),
        (
            "latest",
            r"no latest checkpoint \(no LATEST file\); name one with --checkpoint: step-00000001, step-00000002",
        ),
    ],
)
def test_checkpoints_that_are_not_there(run: Path, checkpoint: str, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        choose(run, checkpoint)


def test_exports_that_cannot_be(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a checkpoint itself"):
        choose(run / "checkpoints" / "step-00000002", "best")
    (run / "checkpoints" / "BEST").write_text("step-9")
    with pytest.raises(CheckpointError, match="no checkpoint 'step-9', which BEST names"):
        choose(run, "best")
    (run / "checkpoints" / "BEST").write_bytes(bytes([200, 201]))
    with pytest.raises(CheckpointError, match="no best checkpoint"):
        choose(run, "best")
    with pytest.raises(EnvironmentProblem, match="choose another --out"):
        choose(run, "step-00000001", "/proc/x")
    with pytest.raises(DataError, match="no such run folder"):
        choose(tmp_path / "absent", "best")
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match=r"has no complete checkpoint; .* there already: .*model\.safetensors"):
        choose(run, "best")
