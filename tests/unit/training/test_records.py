"""The run's own files: a log that survives a kill, JSON written whole, the scalars of a record."""

from __future__ import annotations

import io
import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from m4oe_ds import config_loader
from m4oe_ds.config import to_dict
from m4oe_ds.runs import folder as runs_folder
from m4oe_ds.training import records
from m4oe_ds.training.records import Recorder


def record(step: int, **more: Any) -> dict[str, Any]:
    return {"step": step, "epoch": 0, "loss": 1.0 / step, "samples_per_s": 10.0, **more}


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def run(folder: Path, first: int, last: int) -> None:
    """Logs steps ``first + 1`` to ``last``."""
    recorder = Recorder(folder, 10, enabled=True, first_step=first)
    for step in range(first + 1, last + 1):
        recorder.write(record(step))
        recorder.step()
    recorder.close()


def test_every_record_is_one_line_at_once(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 10, enabled=True)
    recorder.write(record(1))
    recorder.write({"event": "eval", "step": 1, "loss": 0.5})
    assert lines(tmp_path) == [
        record(1),
        {"event": "eval", "step": 1, "loss": 0.5},
    ]  # before close: a kill loses nothing
    recorder.close()


def test_resuming_cuts_off_what_is_done_again(tmp_path: Path) -> None:
    run(tmp_path, 0, 7)
    run(tmp_path, 4, 6)
    assert [entry["step"] for entry in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_fresh_start_in_the_same_folder_leaves_no_old_steps(tmp_path: Path) -> None:
    run(tmp_path, 0, 5)
    run(tmp_path, 0, 2)
    assert [entry["step"] for entry in lines(tmp_path)] == [1, 2]


@pytest.mark.parametrize("kept", range(0, 60, 7))
def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path: Path, kept: int) -> None:
    run(tmp_path, 0, 3)
    whole = (tmp_path / "log.jsonl").read_text()
    (tmp_path / "log.jsonl").write_text(whole + json.dumps(record(4))[:kept])
    run(tmp_path, 3, 5)
    assert [entry["step"] for entry in lines(tmp_path)] == [1, 2, 3, 4, 5]


def test_evaluation_lines_up_to_the_step_stay(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 10, enabled=True)
    for step in (1, 2, 3):
        recorder.write(record(step))
        recorder.write({"event": "eval", "step": step, "loss": 0.1})
    recorder.close()
    Recorder(tmp_path, 10, enabled=True, first_step=2).close()
    assert [(entry.get("event"), entry["step"]) for entry in lines(tmp_path)] == [
        (None, 1),
        ("eval", 1),
        (None, 2),
        ("eval", 2),
    ]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 10, enabled=False)
    recorder.write(record(1))
    recorder.step()
    recorder.say("hello")
    recorder.close()
    assert list(tmp_path.iterdir()) == []


def test_the_log_in_a_file_says_where_training_stands_again_and_again(tmp_path: Path) -> None:
    out = io.StringIO()
    figures = {"loss": 2.34567, "lr": 1e-4, "samples_per_s": 812.34, "max_memory_bytes": 4.26e10}
    recorder = Recorder(tmp_path, 400, enabled=True, epochs=8, stream=out, every_s=0.05)
    time.sleep(0.1)
    for _ in range(100):
        recorder.step()
    recorder.write({"step": 100, "epoch": 1, **figures})
    end = time.monotonic() + 10
    while out.getvalue().count("812.3") < 3 and time.monotonic() < end:
        time.sleep(0.01)  # no step is done meanwhile: a slow one must not silence the log
    recorder.close()
    assert "\r" not in out.getvalue()
    said = [line for line in out.getvalue().splitlines() if "812.3" in line]
    assert len(said) >= 3
    wanted = (
        r"training: 100 of 400 steps \(25%\), [\d.]+(/s| s each), \d+:\d\d h left, "
        r"epoch 2 of 8, loss 2\.3457, rate 0\.0001, 812\.3 samples/s, 42\.6 GB"
    )
    assert all(re.fullmatch(wanted, line) for line in said), said[0]


def test_the_last_epoch_is_not_counted_beyond_the_end(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, 4, enabled=True, epochs=2)
    assert recorder._note({"epoch": 2, "loss": 1.0}) == "epoch 2 of 2, loss 1.0000"
    recorder.close()


def test_json_is_written_whole_and_replaces_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    runs_folder.write_json(path, {"a": 1})
    runs_folder.write_json(path, {"a": [2, None]})
    assert json.loads(path.read_text()) == {"a": [2, None]}
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.parametrize("content", [{"a": float("nan")}, {"a": object()}])
def test_what_json_cannot_hold_leaves_the_old_file(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "result.json"
    runs_folder.write_json(path, {"a": 1})
    with pytest.raises((ValueError, TypeError)):
        runs_folder.write_json(path, content)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["result.json"]


def test_a_failure_before_the_exchange_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    runs_folder.write_json(path, {"a": 1})

    def killed(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        runs_folder.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}


def test_the_resolved_configuration_is_read_back_equal(tmp_path: Path) -> None:
    config = config_loader.load(None, ["run.name='010'", "loss.alpha=1e-5", "run.expects={a.b: 1}"])
    runs_folder.write_yaml(tmp_path / "config.yaml", to_dict(config))
    assert config_loader.load(tmp_path / "config.yaml") == config
    assert next(iter(yaml.safe_load((tmp_path / "config.yaml").read_text()))) == "config_version"


def test_the_environment_names_versions_but_neither_host_nor_user() -> None:
    facts = records.environment(world=2)
    assert facts["world"] == 2
    assert facts["versions"]["torch"].startswith("2.")
    text = json.dumps(facts)
    assert f'"{os.uname().nodename}"' not in text
    assert str(Path.home()) + "/" not in text
