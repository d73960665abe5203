"""Who is told the figures of a run: TensorBoard, services where their clients are installed, classes of one's own."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from m4oe_ds import config_loader
from m4oe_ds.errors import ConfigError, EnvironmentProblem
from m4oe_ds.runs import request
from m4oe_ds.training.figures_of import Changing, figures_of
from m4oe_ds.training.records import Recorder
from m4oe_ds.training.trackers import TrackedRun, chosen, make, shareable

CONFIG = {"model": {"dim": 16, "options": {}}, "loss": {"alpha": 0.05}, "data": {"tasks": ["a", "b"]}}
OWN = """
heard = []

class Own:
    def start(self, run):
        heard.append(("start", run.name, run.first_step, dict(run.config)))

    def log(self, step, values):
        heard.append((step, dict(values)))

    def finish(self, failed):
        heard.append(("finish", failed))

class Broken(Own):
    def log(self, step, values):
        raise OSError("the service is down\\nand more")

class Refusing(Own):
    def start(self, run):
        raise ValueError("no key")

class Half:
    def start(self, run): ...
"""


def train(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "epoch": 0, "samples": 8 * step, "loss": 1.0 / step, "lr": 1e-3, **more}


def validation(step: int) -> dict[str, Any]:
    return {"event": "validation", "step": step, "epoch": 0, "loss": 2.0, "auroc": {"risk": 0.75}}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module ``my_trackers`` of somebody else."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "my_trackers.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.delitem(__import__("sys").modules, "my_trackers", raising=False)
    return importlib.import_module("my_trackers")


# -------------------------------------------------------------------------------------------------------- figures


def test_a_line_becomes_figures_with_one_name_per_measure_and_layer() -> None:
    line = train(
        3,
        losses={"risk": 0.5, "density": None},
        mi=0.25,
        labels={"risk": 8},
        grad_norm=2.0,
        routing={"msoe.x.0": {"dispatch_entropy": 0.9}},
        router_scale={"msoe.x.0": 8.0},
        gradient_conflict={"tasks": ["a"], "cosines": [[1.0]], "conflict": 0.5, "dimension": 12},
        samples_per_s=10.0,
    )
    assert figures_of(line) == {
        "train/loss/total": 1 / 3,
        "train/loss/risk": 0.5,
        "train/loss/mutual_information": 0.25,
        "train/optimizer/rate": 1e-3,
        "train/optimizer/grad_norm": 2.0,
        "train/routing/msoe.x.0/dispatch_entropy": 0.9,
        "train/routing/msoe.x.0/scale": 8.0,
        "train/gradient_conflict/conflict": 0.5,
        "train/speed/samples_per_s": 10.0,
    }
    assert figures_of(validation(3)) == {"validation/loss/total": 2.0, "validation/auroc/risk": 0.75}


def test_numbers_are_found_at_any_depth_and_nothing_else_is() -> None:
    line = {"step": 3, "new": {"a": {"b": 2}, "text": "x", "switch": True, "list": [1]}, "other": 5, "none": None}
    assert figures_of(line) == {"train/new/a/b": 2, "train/other": 5}


def test_what_never_changes_is_no_curve() -> None:
    changing = Changing()
    lines = [figures_of(train(step, skipped_steps=skipped)) for step, skipped in enumerate((0, 0, 1, 0), start=1)]
    told = ["train/optimizer/skipped_steps" in changing.only(line) for line in lines]
    assert told == [False, False, True, True]
    assert all("train/loss/total" in changing.only(line) for line in lines)


# ---------------------------------------------------------------------------------------------------- TensorBoard


def events(folder: Path, kind: str) -> EventAccumulator:
    found = EventAccumulator(str(folder / "tensorboard" / folder.name / kind), {"images": 0, "tensors": 0})
    return found.Reload()


def test_training_and_validation_share_their_tags_as_two_runs(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    recorder = Recorder(folder, 10, enabled=True, trackers=("tensorboard",), config=CONFIG)
    for step in (1, 2):
        recorder.write(train(step))
    recorder.write(validation(2))
    recorder.distribution("routing/mtoe/expert_share", [0.25, 0.75], 2)
    recorder.close()
    assert [(e.step, e.value) for e in events(folder, "train").Scalars("loss/total")] == [(1, 1.0), (2, 0.5)]
    assert [(e.step, e.value) for e in events(folder, "validation").Scalars("loss/total")] == [(2, 2.0)]
    assert events(folder, "train").Tags()["histograms"] == ["routing/mtoe/expert_share"]
    text = events(folder, "train").Tensors("configuration/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "    model:\n      dim: 16" in text  # a block of code in Markdown
    assert "loss.alpha" in str(events(folder, "train").summary_metadata)


def test_a_resumed_run_replaces_the_steps_that_it_does_again(tmp_path: Path) -> None:
    for first, last in ((0, 4), (2, 5)):
        recorder = Recorder(tmp_path, 10, enabled=True, trackers=("tensorboard",), config=CONFIG, first_step=first)
        for step in range(first + 1, last + 1):
            recorder.write(train(step))
        recorder.close()
    assert [event.step for event in events(tmp_path, "train").Scalars("loss/total")] == [1, 2, 3, 4, 5]


# ------------------------------------------------------------------------------------------------- of one's own


def test_a_class_of_ones_own_hears_everything_in_order(own: Any, tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 10, enabled=True, trackers=("my_trackers:Own",), config=CONFIG, first_step=4)
    recorder.write(train(5))
    recorder.write(validation(5))
    recorder.figures("validation", {"roc": None}, 5)  # pictures stay on this machine
    recorder.close()
    assert own.heard == [
        ("start", tmp_path.name, 4, CONFIG),
        (5, {"train/loss/total": 0.2, "train/optimizer/rate": 1e-3}),
        (5, {"validation/loss/total": 2.0, "validation/auroc/risk": 0.75}),
        ("finish", False),
    ]


def test_a_tracker_hears_that_training_failed(own: Any, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Recorder(tmp_path, 10, enabled=True, trackers=("my_trackers:Own",)):
        raise ZeroDivisionError
    with Recorder(tmp_path, 10, enabled=True, trackers=("my_trackers:Own",)):
        pass
    assert [entry for entry in own.heard if entry[0] == "finish"] == [("finish", True), ("finish", False)]


@pytest.mark.usefixtures("own")
def test_a_tracker_that_fails_is_told_no_more_and_training_goes_on(
    own: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recorder = Recorder(tmp_path, 10, enabled=True, trackers=("my_trackers:Broken", "my_trackers:Own"))
    for step in (1, 2):
        recorder.write(train(step))
    recorder.close()
    assert [entry[0] for entry in own.heard[2:-1]] == [1, 2]  # the other one hears all
    assert [record.getMessage() for record in caplog.records] == [
        "tracker my_trackers:Broken failed and is told no more: the service is down"
    ]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("my_trackers:Refusing", r"run\.trackers: my_trackers:Refusing did not start: no key"),
        ("my_trackers:Half", r"my_trackers:Half has no log, finish; a tracker has start, log and finish"),
        ("my_trackers:Other", r"run\.trackers: my_trackers has no Other"),
        ("my_tracker:Own", r"run\.trackers: no module 'my_tracker'; put its folder on PYTHONPATH"),
    ],
)
def test_a_tracker_that_cannot_be_used_is_one_line(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises((ConfigError, EnvironmentProblem), match=says):
        Recorder(tmp_path, 10, enabled=True, trackers=(name,))


def test_one_of_the_current_folder_is_found_by_the_command(tmp_path: Path) -> None:
    (tmp_path / "here.py").write_text(OWN + "\nprint('imported')\n")
    program = (
        "import sys; from m4oe_ds import config_loader; from m4oe_ds.runs.request import _check_trackers\n"
        "_check_trackers(config_loader.load(None, ['run.trackers=[here:Own]']))\n"
        "assert 'here' not in sys.modules\n"
        "from m4oe_ds.training.trackers import make; print(type(make('here:Own')).__name__)"
    )
    path = os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(  # -P: without the current folder on sys.path, as the installed command has it
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "imported\nOwn\n"), done.stderr


def test_names_are_checked_before_anything_starts() -> None:
    with pytest.raises(ConfigError, match=r"unknown tracker 'tensorbord'; did you mean tensorboard\?"):
        config_loader.load(None, ["run.trackers=[tensorbord]"])
    config = config_loader.load(None, ["run.trackers=[nowhere.module:Class]"])
    with pytest.raises(ConfigError, match=r"run\.trackers: no module 'nowhere\.module'"):
        request._check_trackers(config)
    for name in (":", "a:", ":b", "a b:c", "a.:c"):
        with pytest.raises(ConfigError, match=rf"unknown tracker '{name}' .*; or write package\.module:Class"):
            config_loader.load(None, [f"run.trackers=['{name}']"])
    for name in ("wandb", "mlflow"):
        if importlib.util.find_spec(name) is None:
            for refuses in (
                make,
                lambda one: request._check_trackers(config_loader.load(None, [f"run.trackers={one}"])),
            ):
                with pytest.raises(
                    EnvironmentProblem, match=rf"{name} is not installed; pip install 'm4oe_ds\[{name}\]'"
                ):
                    refuses(name)


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ([], ("tensorboard",)),
        (["run.tensorboard=false"], ()),
        (["run.trackers=[mlflow, tensorboard]", "run.tensorboard=false"], ("mlflow",)),
        (["run.trackers=[]"], ()),
    ],
)
def test_the_older_switch_takes_tensorboard_out(settings: list[str], names: tuple[str, ...]) -> None:
    assert chosen(config_loader.load(None, settings).run) == names


def test_what_is_told_of_the_configuration_holds_no_folder() -> None:
    paths = ("data.root=/home/someone/shards", "data.cache_dir=/scratch/someone", "model.embedder.weights=/w/vit.pth")
    told = shareable(
        config_loader.load(None, [*paths, "model.init_from=/home/someone/run"]), {"optimizer": {"type": "Adam"}}
    )
    assert "/" not in json.dumps(told)
    assert told["data"]["root"] == "shards"
    assert told["model"]["embedder"]["weights"] == "vit.pth"
    assert told["deepspeed"] == {"optimizer": {"type": "Adam"}}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("local-dir:/home/someone/model", "model"),
        ("/local_nvme/someone/", "someone"),
        ("file:///home/someone/x", "x"),
        ("s3://someones-bucket/x", "x"),
        ("~/x", "x"),
        ("~someone/x", "x"),
        ("$HOME/x", "x"),
        ("${HOME}/x", "x"),
        ("../someone/x", "x"),
        ("C:\\Users\\someone\\x", "x"),
        ("\\\\host\\someone\\x", "x"),
        ("--path=/home/someone/x", "x"),
        ("hf-hub:timm/vit_base_patch16_224", "hf-hub:timm/vit_base_patch16_224"),
        ("samples/s, 1/2 or a / b", "samples/s, 1/2 or a / b"),
        ("AdamW", "AdamW"),
    ],
)
def test_a_place_anywhere_in_the_configuration_is_told_by_its_last_name(text: str, told: str) -> None:
    config = config_loader.load(None)
    config = dataclasses.replace(
        config,
        model=dataclasses.replace(
            config.model,
            embedder=dataclasses.replace(config.model.embedder, backbone=text),
            options={"deep": [{"er": text}]},
        ),
    )
    found = shareable(config, {"zero_optimization": {"offload_optimizer": {"nvme_path": text}, "stage": 2}})
    assert found["model"]["embedder"]["backbone"] == told
    assert found["model"]["options"] == {"deep": [{"er": told}]}
    assert found["deepspeed"]["zero_optimization"] == {"offload_optimizer": {"nvme_path": told}, "stage": 2}


# ------------------------------------------------------------------------------------------------------- services


def two_legs(name: str, folder: Path) -> None:
    """A run of two steps that goes on for a third."""
    for first, steps in ((0, (1, 2)), (2, (3,))):
        tracker = make(name)
        tracker.start(TrackedRun("mine", folder, CONFIG, first))
        for step in steps:
            tracker.log(step, {"train/loss/total": 1.0 / step, "train/routing/msoe.x.0/scale": 8.0})
        tracker.finish(failed=first > 0)


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed (m4oe_ds[wandb])")
def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    two_legs("wandb", tmp_path)
    identity = json.loads((tmp_path / "trackers.json").read_text())["wandb"]
    stored = sorted((tmp_path / "wandb").glob(f"offline-run-*-{identity}/run-{identity}.wandb"))
    assert len(stored) == 2  # two legs of one run
    assert [_exit_code(path) for path in stored] == [0, 1]
    written = b"".join(path.read_bytes() for path in stored)
    assert b"train/loss/total" in written
    for secret in (os.uname().nodename.encode() + b"\n", str(tmp_path).encode(), b"pytest"):
        assert secret not in written


@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed (m4oe_ds[mlflow])")
def test_mlflow_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    two_legs("mlflow", tmp_path)
    (run,) = [path.parent for path in (tmp_path / "mlruns").glob("*/*/meta.yaml")]  # the second leg continues it
    points = (run / "metrics" / "train" / "loss" / "total").read_text().split("\n")[:3]
    assert [(float(point.split()[1]), int(point.split()[2])) for point in points] == [(1.0, 1), (0.5, 2), (1 / 3, 3)]
    assert yaml.safe_load((run / "meta.yaml").read_text())["status"] == 4  # failed, as its second leg did
    assert (run / "params" / "model.dim").read_text() == "16"
    assert [path.name for path in (run / "tags").iterdir()] == ["mlflow.runName"]  # neither user nor script


def _exit_code(path: Path) -> int:
    """The status that the client of Weights & Biases wrote at the end of a run."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, found = path.read_bytes(), 7, -1  # after a header: checksum (4), length (2), kind (1) and record
    while place + 7 <= len(data):
        end = place + 7 + int.from_bytes(data[place + 4 : place + 6], "little")
        record = Record.FromString(data[place + 7 : end])
        found = record.exit.exit_code if record.HasField("exit") else found
        place = end
    return found
