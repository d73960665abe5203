"""Settings of every test: one thread, fixed seeds, GPU tests skipped where there is no GPU.

torch takes a second to import, so nothing here imports it at collection time; tests that do not need it stay fast.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Before anything imports torch or numpy; processes started by a test inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

ORACLES = Path(__file__).parent / "oracles"
SEED = 1234


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seeds the global generators before each test and returns the seed."""
    random.seed(SEED)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(SEED)
    if "torch" in sys.modules:  # a test that imports torch later starts from torch's own fixed default seed
        torch = sys.modules["torch"]
        torch.manual_seed(SEED)
        if torch.get_num_threads() != 1:
            torch.set_num_threads(1)
    return SEED


@pytest.fixture(autouse=True)
def launch_variables() -> Iterator[None]:
    """Takes away what a process group made in a test sets, or the commands of later tests are ranks of it."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
    before = {name: os.environ[name] for name in names if name in os.environ}
    yield
    for name in names:
        os.environ.pop(name, None)
    os.environ.update(before)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips tests marked ``gpu`` with a reason where no CUDA device can be used."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device: torch.cuda.is_available() is False")


@pytest.fixture(scope="session")
def cmi_reference() -> dict[str, Any]:
    """Reference values of I(M;E|T): see ``oracles/README.md``."""
    return json.loads((ORACLES / "cmi_reference.json").read_text())


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Which printed commands were not run as they are printed, by what was done instead."""
    ran = any("test_printed_commands" in report.nodeid for report in terminalreporter.getreports("passed"))
    if not ran:
        return
    from tests.integration import printed

    terminalreporter.section("printed commands that were not run as printed")
    for line in printed.summary():
        terminalreporter.write_line(line)
