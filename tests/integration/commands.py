"""Runs the commands a user types, with this interpreter's environment, and returns what they printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from m4oe_ds.coordinates import free_port

ROOT = Path(__file__).resolve().parents[2]


def environment(**extra: str) -> dict[str, str]:
    """Two ranks share two cores; no launch variables leak in from outside."""
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("RANK", "WORLD_SIZE", "LOCAL_", "MASTER_", "SLURM_"))
    }
    path = f"{Path(sys.executable).parent}:{kept.get('PATH', '')}"
    return {**kept, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PATH": path, **extra}


def command(arguments: Sequence[str], ranks: int = 1) -> list[str]:
    """``train.py`` with these arguments, under the deepspeed launcher for more than one rank."""
    if ranks == 1:
        return [sys.executable, str(ROOT / "train.py"), *arguments]
    launcher = str(Path(sys.executable).parent / "deepspeed")
    return [
        launcher,
        "--num_accelerators",
        str(ranks),
        "--master_port",
        str(free_port()),
        str(ROOT / "train.py"),
        *arguments,
    ]


def train(arguments: Sequence[str], ranks: int = 1, timeout_s: float = 900) -> subprocess.CompletedProcess[str]:
    """Runs ``train.py`` to its end."""
    return subprocess.run(
        command(arguments, ranks), env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=timeout_s
    )


def m4oe(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs an ``m4oe`` command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "m4oe_ds", *arguments],
        env=environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )


def losses(run: Path) -> dict[int, tuple[object, ...]]:
    """Per training step what must be equal bit for bit: the figures that do not depend on the clock."""
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return {
        r["step"]: (r["loss"], tuple(sorted(r["losses"].items())), r["mi"], r["grad_norm"], r["lr"], r["samples"])
        for r in records
        if r.get("event") != "validation"
    }
