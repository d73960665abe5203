"""The ends of every command: errors as one line, outputs that cannot be."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from m4oe_ds.command_line import INTERRUPTED, check_file, check_output, guarded
from m4oe_ds.errors import DataError, EnvironmentProblem


def raising(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


def test_what_a_command_returns_is_its_status() -> None:
    assert [guarded(lambda: None), guarded(lambda: 0), guarded(lambda: 7)] == [0, 0, 7]


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (DataError("what", "where", "fix"), 4, "error: where: what; fix\n"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            6,
            "error: /x: Permission denied; change its rights",
        ),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"), 6, "error: /x: No such file"),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x"),
            6,
            "error: /x: No space left on device; check the disk",
        ),
        (KeyboardInterrupt(), INTERRUPTED, "stopped\n"),
        (MemoryError(), 6, "error: this machine has too little memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            6,
            "error: this machine has too little",
        ),
    ],
)
def test_an_error_of_the_user_is_one_line(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert guarded(raising(error)) == status
    shown = capsys.readouterr().err
    assert shown.startswith(line)
    assert shown.count("\n") == 1


def test_a_fault_of_the_package_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        guarded(raising(ZeroDivisionError()))
    with pytest.raises(RuntimeError, match="shape"):
        guarded(raising(RuntimeError("shape '[2]' is invalid")))
    with pytest.raises(OSError, match="no name"):
        guarded(raising(OSError("no name of a file")))
    with pytest.raises(DataError):
        guarded(raising(DataError("what")), debug=True)


def test_a_line_can_have_a_prefix(capsys: pytest.CaptureFixture[str]) -> None:
    guarded(raising(DataError("what")), prefix="[rank 3] ")
    assert capsys.readouterr().err == "[rank 3] error: what\n"


@pytest.mark.parametrize("options", ["--print-completion bash", "--help", "models"])
def test_a_reader_that_leaves_early_is_no_error(options: str) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "m4oe_ds", *options.split()]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def test_outputs_that_can_be(tmp_path: Path) -> None:
    check_output(tmp_path, "--out")
    check_output(tmp_path / "new" / "newer", "--out")
    check_file(tmp_path / "new" / "a.json", "--out", ".json")


@pytest.mark.parametrize("name", ["file", "file/below", "/proc/x", "/sys/x"])
def test_output_folders_that_cannot_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="choose another --out"):
        check_output(tmp_path / name, "--out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_rights(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(EnvironmentProblem, match="change its rights"):
        check_output(tmp_path / "x", "--out")


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("a.yaml", "is not named"),
        ("a", "is not named"),
        ("folder.json", "is a folder"),
        ("/proc/x/a.json", "cannot write"),
    ],
)
def test_output_files_that_cannot_be(tmp_path: Path, name: str, what: str) -> None:
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(EnvironmentProblem, match=what):
        check_file(tmp_path / name, "--out", ".json")
