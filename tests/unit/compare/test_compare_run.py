"""Cells are run once, failures are recorded and tried again, signals stop the work, contradictions come first."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from m4oe_ds import shipped
from m4oe_ds.cli import main
from m4oe_ds.compare import run
from m4oe_ds.compare.cells import Cell, enumerate_cells
from m4oe_ds.compare.processes import Children
from m4oe_ds.errors import ConfigError
from m4oe_ds.launcher import shares, visible_devices

WORKS = "import pathlib; pathlib.Path({folder!r}, 'metrics.json').write_text('{{}}'); print('fine')"
FAILS = "import sys; print('step 1'); sys.exit('error: no such thing')"
SAVES = "import sys; sys.exit(75)"
HANGS = "import time; time.sleep(60)"


def plan(folder: Path, timeout_s: float = 900.0) -> run.CellPlan:
    return run.CellPlan(folder, "smoke", "ds_configs/zero2.json", 1, timeout_s)


def cells(count: int = 2) -> list[Cell]:
    return enumerate_cells(["embed"], ["ours"], list(range(count)), ["multi"])


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """What runs in place of training, by seed; counts its starts in ``started``."""
    by_seed: dict[int, str] = {}

    def command(cell: Cell, plan: run.CellPlan, *_: Any) -> list[str]:
        with (plan.folder / "started").open("a") as stream:
            stream.write(f"{cell.seed}\n")
        return [sys.executable, "-c", by_seed.get(cell.seed, WORKS).format(folder=str(plan.of(cell)))]

    monkeypatch.setattr(run, "_command", command)
    return by_seed


def started(folder: Path) -> list[int]:
    return sorted(map(int, (folder / "started").read_text().split()))


def test_what_is_finished_is_not_run_again_and_a_failure_is(tmp_path: Path, scripts: dict[int, str]) -> None:
    said: list[str] = []
    scripts[1] = FAILS
    failures, stopped = run.run(cells(3), plan(tmp_path), 2, said.append)
    assert [(cell.seed, problem.splitlines()[-1]) for cell, problem in failures] == [(1, "error: no such thing")]
    assert not stopped
    assert run.reason(cells(3)[1], plan(tmp_path)) == "failed: error: no such thing"
    assert "ended with status 1" in (plan(tmp_path).of(cells(3)[1]) / "error.txt").read_text()
    assert sum(": failed" in line for line in said) == 1
    del scripts[1]
    assert run.run(cells(3), plan(tmp_path), 1, said.append) == ([], False)
    assert started(tmp_path) == [0, 1, 1, 2]
    assert [run.state(cell, plan(tmp_path)) for cell in cells(3)] == ["done"] * 3
    assert not (plan(tmp_path).of(cells(3)[1]) / "error.txt").exists()


def test_a_cell_that_hangs_is_ended(tmp_path: Path, scripts: dict[int, str]) -> None:
    scripts[0] = HANGS
    assert "not finished after 1 s" in run.run_cell(cells()[0], plan(tmp_path, 1.0))
    assert run.state(cells()[0], plan(tmp_path, 1.0)) == "failed"


def test_a_run_that_ends_well_without_metrics_has_failed(tmp_path: Path, scripts: dict[int, str]) -> None:
    scripts[0] = "print('hello')"
    assert run.run_cell(cells()[0], plan(tmp_path)).splitlines() == ["ended with status 0", "hello"]


def test_a_run_that_saved_is_neither_done_nor_failed(tmp_path: Path, scripts: dict[int, str]) -> None:
    scripts[0] = SAVES
    assert run.run_cell(cells()[0], plan(tmp_path)) == run.STOPPED
    assert run.state(cells()[0], plan(tmp_path)) == "started"
    assert run.reason(cells()[0], plan(tmp_path)) == "not finished"
    assert run.reason(cells()[1], plan(tmp_path)) == "not run"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_reaches_running_cells_and_starts_no_others(
    number: signal.Signals, tmp_path: Path, scripts: dict[int, str]
) -> None:
    listens = (
        "import signal, sys, time, pathlib\n"
        "signal.signal({number}, lambda *_: sys.exit(75))\n"
        "pathlib.Path({folder!r}, 'listens').touch()\n"
        "time.sleep(60)"
    )
    scripts[0] = listens.replace("{number}", str(int(number)))
    ready = plan(tmp_path).of(cells()[0]) / "listens"

    def send() -> None:
        while not ready.is_file():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    before = signal.getsignal(number)
    failures, stopped = run.run(cells(4), plan(tmp_path), 1, lambda _: None)
    sender.join()
    assert (failures, stopped) == ([], True)
    assert started(tmp_path) == [0]
    assert signal.getsignal(number) is before


def test_processes_of_an_ended_child_are_ended_with_it(tmp_path: Path) -> None:
    """Ranks whose launcher was killed must not train on."""
    script = (
        "import os, subprocess, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {HANGS!r}])\n"
        "print(child.pid, flush=True)\nos.kill(os.getpid(), 9)"
    )
    with Children() as children:
        assert children.call([sys.executable, "-c", script], os.environ, 900.0, tmp_path / "output") == -signal.SIGKILL
    grandchild = int((tmp_path / "output").read_text())
    for _ in range(18000):
        status = Path(f"/proc/{grandchild}/stat")
        if not status.exists() or status.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail(f"process {grandchild} lives on")


def test_identity_covers_what_a_configuration_extends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "configs" / "compare" / "smoke"
    folder.mkdir(parents=True)
    (tmp_path / "ds_configs").mkdir()
    (tmp_path / "ds_configs" / "zero2.json").write_text("{}")
    (folder / "embed.yaml").write_text("extends: base.yaml\nrun: {name: x}\n")
    monkeypatch.setattr(shipped, "_PACKAGE", tmp_path / "m4oe_ds")
    found = []
    for text in ("loss: {alpha: 0.1}", "loss: {alpha: 0.2}", "# alpha\nloss:\n  alpha: 0.2"):
        (folder / "base.yaml").write_text(text)
        run._digest.cache_clear()
        found.append(run.identity(cells()[0], plan(tmp_path / "out"))["configuration"])
    run._digest.cache_clear()
    assert found[0] != found[1] == found[2]


def test_a_failed_run_of_other_settings_is_given_up_a_running_one_is_not(
    tmp_path: Path, scripts: dict[int, str]
) -> None:
    old = enumerate_cells(["embed"], ["ours"], [0], ["multi"], extra=["loss.alpha=0.3"])[0]
    scripts[0] = FAILS
    run.run_cell(old, plan(tmp_path))
    leftover = plan(tmp_path).of(old) / "checkpoints"
    leftover.mkdir()
    assert run.state(cells()[0], plan(tmp_path)) == "new"
    scripts[0] = SAVES
    run.run_cell(cells()[0], plan(tmp_path))
    assert not leftover.exists()
    with pytest.raises(ConfigError, match="other settings"):
        run.state(old, plan(tmp_path))


def test_a_contradiction_is_found_before_anything_runs(tmp_path: Path, scripts: dict[int, str]) -> None:
    arguments = ["compare", "--datasets", "embed", "--methods", "ours", "--set", "model.dim=7", "--output"]
    assert main([*arguments, str(tmp_path)]) == ConfigError.exit_code
    assert not (tmp_path / "started").exists()


def test_one_cell_of_an_array(tmp_path: Path, scripts: dict[int, str], capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--datasets", "vindr", "--methods", "ours", "--seeds", "0,1", "--settings", "multi"]
    options += ["--set", "data.phantom.patients=0", "--output", str(tmp_path)]
    scripts[1] = FAILS
    assert main(["compare", *options, "--cell", "0"]) == 0
    assert main(["compare", *options, "--cell", "1"]) == 1
    assert "error: no such thing" in capsys.readouterr().out
    assert main(["compare", *options, "--cell", "2"]) == ConfigError.exit_code
    assert "there are 2, numbered from 0" in capsys.readouterr().err
    scripts[1] = SAVES
    assert main(["compare", *options, "--cell", "1"]) == 75
    assert started(tmp_path) == [0, 1, 1]


def test_tasks_of_a_step_are_the_ranks_of_one_cell(
    tmp_path: Path, scripts: dict[int, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert run.step_tasks(os.environ) == (2, 1)
    assert run.cell_environment(2)["SLURM_PROCID"] == "1"
    scripts[0] = "print('rank')"
    assert run.run_cell(cells()[0], plan(tmp_path)) == ""  # rank 0 answers for the metrics
    assert not plan(tmp_path).of(cells()[0]).exists()
    assert main(["compare", "--datasets", "embed", "--methods", "ours", "--output", str(tmp_path)]) == 6
    assert "--cell" in capsys.readouterr().err
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert not {"SLURM_STEP_ID", "SLURM_PROCID", "MASTER_PORT"} & run.cell_environment(1).keys()


def test_shared_shards_are_made_by_one_at_a_time(tmp_path: Path) -> None:
    inside: list[int] = []

    def enter() -> None:
        with run.locked(tmp_path / "new" / ".lock"):
            inside.append(1)
            time.sleep(0.05)
            inside.append(-1)

    threads = [threading.Thread(target=enter) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inside == [1, -1] * 3


def test_the_command_is_the_one_a_user_would_type(tmp_path: Path) -> None:
    cell = cells()[0]
    one = run._command(cell, plan(tmp_path), 1)
    assert one[0] == sys.executable
    assert one[1:3] == ["-m", "m4oe_ds.entry"]
    assert f"run.name={cell.name}" in one
    assert [one[i + 1] for i, item in enumerate(one) if item == "--set"][: len(cell.overrides)] == list(cell.overrides)
    two = run._command(cell, plan(tmp_path), 2)
    assert two[:4] == [sys.executable, "-u", "-m", "deepspeed.launcher.launch"]
    assert two[two.index("--module") + 1] == "m4oe_ds.entry"
    assert json.loads(json.dumps(run.identity(cell, plan(tmp_path)))) == run.identity(cell, plan(tmp_path))


SAYS_DEVICES = (
    "import os, pathlib, time; "
    "pathlib.Path({folder!r}, 'devices').write_text(os.environ.get('CUDA_VISIBLE_DEVICES', 'none')); "
    "open({folder!r} + '/../../begun', 'a').write('x'); end = time.monotonic() + 20\n"
    "while time.monotonic() < end and len(open({folder!r} + '/../../begun').read()) < 2: time.sleep(0.02)\n"
) + WORKS


def test_workers_at_the_same_time_have_gpus_of_their_own(tmp_path: Path, scripts: dict[int, str]) -> None:
    scripts |= dict.fromkeys(range(4), SAYS_DEVICES)
    failures, _ = run.run(cells(4), plan(tmp_path), 2, lambda _: None, ["2", "GPU-5"])
    assert failures == []
    found = [(plan(tmp_path).of(cell) / "devices").read_text() for cell in cells(4)]
    assert set(found) == {"2", "GPU-5"}
    assert len(set(found[:2])) == 2  # these two waited for each other


def test_more_workers_than_gpus_are_refused_and_nothing_runs(tmp_path: Path, scripts: dict[int, str]) -> None:
    with pytest.raises(ConfigError, match="3 at a time with 1 rank each, and 2 GPUs are visible"):
        run.run(cells(3), plan(tmp_path), 3, lambda _: None, ["0", "1"])
    assert not (tmp_path / "started").exists()
    assert shares(["4", "5", "6", "7"], 2, 2) == [("4", "5"), ("6", "7")]
    assert shares([], 2, 4) == [(), ()]
    with pytest.raises(ConfigError, match="use fewer --ranks"):
        shares(["0"], 1, 2)


def test_visible_gpus_reach_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take the first GPUs of the machine for a number of ranks, whatever CUDA_VISIBLE_DEVICES says."""
    assert visible_devices({"CUDA_VISIBLE_DEVICES": "0"}) == [] or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert visible_devices({}) == ["0", "1"]
    assert visible_devices({"CUDA_VISIBLE_DEVICES": "6, 7"}) == ["6", "7"]
    assert run.cell_environment(1, ["6", "7"])["CUDA_VISIBLE_DEVICES"] == "6,7"
