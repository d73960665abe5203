"""From the built wheel alone, in an empty folder: everything a user does who never sees a checkout.

The environment is a fresh one that holds the wheel and sees the third-party packages of this one; the checkout, which
is installed here for editing, is not on its path. That a wheel's requirements are complete is tested apart from it
(``tests/unit/test_packaging.py``).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.integration, pytest.mark.slow]
PHANTOMS = ("--set", "data.phantom.patients=24")
QUICK = ("--set", "evaluation.resamples=20")


class Installed:
    """An environment with the wheel, and the empty folder that its commands run in."""

    def __init__(self, folder: Path) -> None:
        self.home, self.work = folder / "environment", folder / "work"
        self.work.mkdir()
        source = folder / "source"  # setuptools writes beside what it builds
        tracked = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        for name in filter(None, tracked.stdout.split("\0")):
            if (ROOT / name).is_file():
                (source / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, source / name)
        wheels = folder / "wheels"
        pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
        build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(source)]
        subprocess.run(build, check=True, capture_output=True)
        (wheel,) = wheels.glob("*.whl")
        self.wheel = wheel
        venv.create(self.home, with_pip=False)
        site = next(self.home.glob("lib/python*/site-packages"))
        (site / "third-party.pth").write_text(sysconfig.get_path("purelib") + "\n")
        install = [*pip, "--python", str(self.home / "bin" / "python"), "install", "--no-deps", "--no-index"]
        subprocess.run([*install, "--ignore-installed", str(wheel)], check=True, capture_output=True)

    def run(self, *arguments: str, status: int = 0) -> str:
        """Output of a command of the environment, both streams, run to its end."""
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "SLURM_", "PYTHON", "DS_", "VIRTUAL"))
        }
        path = f"{self.home / 'bin'}:/usr/bin:/bin"
        ended = subprocess.run(
            [str(self.home / "bin" / arguments[0]), *arguments[1:]],
            env={**kept, "PATH": path, "OMP_NUM_THREADS": "1"},
            cwd=self.work,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
        )
        assert ended.returncode == status, f"{' '.join(arguments)}\n{ended.stdout}"
        assert "Traceback" not in ended.stdout
        return ended.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The environment, with a run on two ranks in its folder."""
    made = Installed(tmp_path_factory.mktemp("wheel"))
    options = ("--ranks", "2", *PHANTOMS, *QUICK, "--set", "run.max_steps=3")
    said = made.run("m4oe", "train", "--config", "demo", "--ds_config", "zero2", *options)
    assert "over 2 of 2 ranks" in said
    return made


def test_the_checkout_is_not_on_the_path(installed: Installed) -> None:
    code = "import data_tools, m4oe_ds; print(m4oe_ds.__file__); print(data_tools.__file__)"
    for line in installed.run("python", "-c", code).splitlines():
        assert line.startswith(str(installed.home))


def test_the_run_is_complete(installed: Installed) -> None:
    run = installed.work / "runs" / "demo"
    assert json.loads((run / "environment.json").read_text())["world"] == 2
    assert (run / "report.html").is_file()
    said = installed.run("m4oe", "evaluate", "runs/demo", "--split", "test")
    assert "metrics of test: runs/demo/metrics.json" in said
    (run / "report.html").unlink()
    installed.run("m4oe", "report", "runs/demo")
    assert (run / "report.html").is_file()


def test_new_exams_are_predicted(installed: Installed) -> None:
    installed.run("m4oe", "phantom", "--layout", "embed", "--out", "archive", "--patients", "2")
    installed.run("m4oe", "predict", "runs/demo", "--dicom", "archive", "--out", "predictions")
    assert list((installed.work / "predictions").glob("*.csv"))


def test_two_cells_are_compared(installed: Installed) -> None:
    shards = ("--set", "data.root=data/demo", "--set", "data.phantom.root=data/demo", *PHANTOMS, *QUICK)
    options = ("--preset", "smoke", "--datasets", "embed", *shards, "--set", "run.num_epochs=1")
    for cell, ranks in (("0", "1"), ("3", "2")):
        assert ": done: " in installed.run("m4oe", "compare", *options, "--cell", cell, "--ranks", ranks)
    installed.run("m4oe", "compare", *options, "--collect", status=1)  # most cells are still missing
    assert (installed.work / "runs" / "compare-smoke" / "table1.md").is_file()


def test_two_points_are_scaled(installed: Installed) -> None:
    steps = ("--steps", "2", "--warm-up", "1", "--profiled", "0")
    said = installed.run("m4oe", "scale", "run", "--experts", "8", "--ep", "1", "--output", "runs/study", *steps)
    assert (installed.work / "runs" / "study").is_dir(), said


def test_files_that_come_with_it_are_named_and_copied(installed: Installed) -> None:
    assert "backbone: vit_base_patch16_224" in installed.run("m4oe", "config", "embed")
    installed.run("m4oe", "init", "mine")
    for name in ("configs/demo.yaml", "ds_configs/zero2.json", "slurm/train.sbatch", "slurm/env.sh"):
        assert (installed.work / "mine" / name).read_bytes() == (ROOT / name).read_bytes()
    assert os.access(installed.work / "mine" / "slurm" / "env.sh", os.R_OK)
    said = installed.run("m4oe", "init", "mine", status=3)
    assert "is there already" in said


def test_a_misspelt_data_folder_is_filled_by_nobody(installed: Installed) -> None:
    options = ("--config", "demo", "--ds_config", "zero2", "--set", "data.root=data/dmeo")
    said = installed.run("m4oe", "train", *options, status=4)
    assert "no shard folder 'data/dmeo'" in said
    assert not (installed.work / "data" / "dmeo").exists()
