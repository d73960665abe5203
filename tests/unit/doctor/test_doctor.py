"""What ``m4oe doctor`` says of a machine that is fit, and of one that is not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from m4oe_ds import config_loader
from m4oe_ds.cli import main
from m4oe_ds.doctor import machine
from m4oe_ds.doctor.finding import Finding, run
from m4oe_ds.runs.reader_memory import sample_bytes, shared_memory_need, shortage

ROOT = Path(__file__).resolve().parents[3]


def states(findings: list[Finding]) -> set[str]:
    return {finding.state for finding in findings}


def test_a_line_says_what_and_below_it_what_to_do() -> None:
    assert Finding("clock", "good", "noon").line() == "ok    clock              noon"
    told = Finding("disk of runs", "bad", "is full", "empty it").line().splitlines()
    assert told == ["BAD   disk of runs       is full", "                         -> empty it"]


def test_a_check_that_breaks_is_a_finding() -> None:
    def check() -> list[Finding]:
        raise OSError("no such device\nat all")

    (found,) = run("GPUs", check)
    assert (found.state, found.text) == ("bad", "could not be looked at: OSError: no such device at all")


def test_this_environment_has_the_packages_and_decoders() -> None:
    assert states(run("packages", machine.packages)) == {"good"}
    assert states(run("DICOM", machine.decoders)) == {"good"}


def test_a_version_that_the_tests_do_not_run_with_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(machine.TESTED, "numpy", "1.0")
    monkeypatch.setitem(machine.TESTED, "no_such_package", "1.0")
    found = {finding.topic: finding for finding in machine.packages()}
    assert found["numpy"].text.endswith("(the tests run with 1.0)")
    assert found["no_such_package"].state == "bad"


def test_shared_memory_is_measured_against_the_readers(tmp_path: Path) -> None:
    config = config_loader.load("demo", ["data.workers=3"])
    one = sample_bytes(config)
    assert one == 4 * 64 * 56 * 4  # four views, float32
    assert shared_memory_need(config, ranks=2, micro=5) == one * 5 * 3 * 4 * 2
    assert shared_memory_need(config_loader.load("demo"), ranks=2, micro=5) == 0
    assert states(list(machine.shared_memory(1))) == {"good"}
    (short,) = machine.shared_memory(10**18)
    assert short.state == "bad"
    assert "--shm-size" in short.fix
    (absent,) = machine.shared_memory(1, str(tmp_path / "none"))
    assert absent.state == "bad"
    assert shortage(config, 2, 5) == ""
    assert "reader processes may need" in shortage(config, 10**9, 5)
    assert "has 0.00 GB free" in shortage(config, 2, 5, str(tmp_path / "none"))


def test_samples_of_both_sides_and_chosen_modalities_are_counted() -> None:
    both = config_loader.load("demo", ["data.contralateral=true"])
    one = config_loader.load("demo", ["data.modalities=[ffdm_cc]"])
    assert sample_bytes(both) == 2 * sample_bytes(config_loader.load("demo")) == 8 * sample_bytes(one)


def test_a_disk_is_written_to_and_locked(tmp_path: Path) -> None:
    (found,) = machine.disk(tmp_path / "runs" / "not" / "there")
    assert found.state in ("good", "note")
    assert "writes" in found.text
    (refused,) = machine.disk(Path("/proc/runs"))
    assert refused.state == "bad"


def test_an_interface_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "ib9")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "^lo")
    found = [finding for finding in machine.network() if finding.state == "bad"]
    assert len(found) == 1
    assert found[0].text.startswith("NCCL_SOCKET_IFNAME=ib9, interfaces: ")
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "lo")
    assert "bad" not in states(list(machine.network()))


def test_host_memory_against_a_need() -> None:
    assert states(list(machine.memory())) == {"good"}
    assert states(list(machine.memory(10**18))) == {"bad"}


def test_the_command_looks_at_the_machine_and_ends_with_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["doctor", "--quick"])
    said = capsys.readouterr().out
    assert status == int("BAD" in said)
    assert "host memory" in said
    assert said.splitlines()[-1].endswith(("to note", "is fit for training"))


@pytest.mark.integration
def test_ranks_meet_exchange_bytes_and_train_a_step(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "m4oe_ds", "doctor", "--seconds", "0.2", "--ranks", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=_bare(), timeout=600)
    assert "2 met in" in done.stdout, done.stdout + done.stderr
    assert "GB/s sent per rank over 0.2 s" in done.stdout
    assert "experts over 2 of 2 ranks: loss" in done.stdout
    assert done.returncode == 0


def _bare() -> dict[str, str]:
    from tests.integration.commands import environment

    return {**environment(), "PYTHONPATH": str(ROOT)}
