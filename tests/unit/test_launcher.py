"""What the ranks that the launcher starts find in their environment."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from pathlib import Path

import pytest

from m4oe_ds.launcher import launch_environment, launcher

PROBE = """import os
from pathlib import Path
names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "CUDA_VISIBLE_DEVICES")
Path("rank" + os.environ["RANK"]).write_text(" ".join(os.environ[name] for name in names))
raise SystemExit(int(os.environ["RANK"]) * 7)
"""


@pytest.mark.parametrize(
    ("devices", "expected"),
    [
        ([], ["0", "1"]),
        (["2", "3", "5"], ["2", "3"]),
        (["GPU-4f", "GPU-9a"], ["GPU-4f", "GPU-9a"]),
        (["7"], ["0", "1"]),  # more processes than GPUs: on CPUs
    ],
)
def test_visible_devices_are_those_of_the_ranks(devices: list[str], expected: list[str]) -> None:
    (world,) = [item.partition("=")[2] for item in launcher(2, devices) if item.startswith("--world_info=")]
    assert json.loads(base64.urlsafe_b64decode(world)) == {"localhost": expected}


def test_threads_are_shared_unless_their_number_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert launch_environment(10**6)["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert launch_environment(2)["OMP_NUM_THREADS"] == "3"


@pytest.mark.distributed
def test_ranks_see_the_devices_and_their_status_is_the_launchers(tmp_path: Path) -> None:
    (tmp_path / "probe.py").write_text(PROBE)
    environment = {**os.environ, **launch_environment(2), "PYTHONPATH": str(tmp_path), "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [*launcher(2, ["2", "3"]), "--module", "probe"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 7, done.stderr
    assert (tmp_path / "rank0").read_text() == "0 0 2 127.0.0.1 2,3"
    assert (tmp_path / "rank1").read_text() == "1 1 2 127.0.0.1 2,3"
