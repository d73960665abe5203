"""Runs cells, each in a process of its own, resumable: what is finished is not run again, what failed is recorded."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m4oe_ds.compare.cells import Cell
from m4oe_ds.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Plan:
    """How cells are run.

    Attributes:
        folder: of the comparison; cells lie in ``cells/``. preset: smoke, small or paper. ds_config: DeepSpeed JSON.
        ranks: processes of a cell; above 1 under the deepspeed launcher. timeout_s: of a cell.
    """

    folder: Path
    preset: str
    ds_config: str
    ranks: int
    timeout_s: float

    def config(self, dataset: str) -> Path:
        """The preset's configuration of a data set.

        Raises:
            ConfigError: the preset has none.
        """
        name = f"{dataset}.yaml"
        path = ROOT / "configs" / name if self.preset == "paper" else ROOT / "configs" / "compare" / self.preset / name
        if not path.is_file():
            raise ConfigError(f"preset {self.preset} has no data set {dataset}", str(path.parent), "use another preset")
        return path


def identity(cell: Cell, plan: Plan) -> dict[str, Any]:
    """What a finished run must have been made from to count as this cell."""
    content = plan.config(cell.dataset).read_bytes() + (ROOT / plan.ds_config).read_bytes()
    return {**asdict(cell), "overrides": list(cell.overrides), "preset": plan.preset,
            "configuration": hashlib.sha256(content).hexdigest()[:16]}  # fmt: skip


def state(cell: Cell, plan: Plan) -> str:
    """``done``, ``failed``, ``started`` or ``new``.

    Raises:
        ConfigError: the folder holds a run of other settings.
    """
    folder = plan.folder / "cells" / cell.name
    if not (folder / "cell.json").is_file():
        return "new"
    if json.loads((folder / "cell.json").read_text()) != identity(cell, plan):
        raise ConfigError("holds a run of other settings", str(folder), "delete it, or choose another --output")
    if (folder / "metrics.json").is_file():
        return "done"
    return "failed" if (folder / "error.txt").is_file() else "started"


def run_cell(cell: Cell, plan: Plan) -> str:
    """Trains and evaluates one cell; the last lines of its output if it failed, else an empty text."""
    folder = plan.folder / "cells" / cell.name
    if state(cell, plan) == "done":
        return ""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "error.txt").unlink(missing_ok=True)
    (folder / "cell.json").write_text(json.dumps(identity(cell, plan), indent=1) + "\n")
    arguments = [
        str(ROOT / "train.py"), "--ds_config", str(ROOT / plan.ds_config), "--config", str(plan.config(cell.dataset)),
        "--output", str(folder), "--resume", "auto",
    ]  # fmt: skip
    for override in (*cell.overrides, f"run.name={cell.name}"):
        arguments += ["--set", override]
    command = [sys.executable, *arguments]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    if plan.ranks > 1:
        launcher = str(Path(sys.executable).parent / "deepspeed")
        command = [
            launcher,
            "-q",
            "--num_accelerators",
            str(plan.ranks),
            "--master_port",
            str(_free_port()),
            *arguments,
        ]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=plan.timeout_s, check=False
        )
        output, code = done.stdout + done.stderr, done.returncode
    except subprocess.TimeoutExpired:
        output, code = f"not done after {plan.timeout_s:.0f} s", 1
    (folder / "output.txt").write_text(output)
    if code == 0 and (folder / "metrics.json").is_file():
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # the weights are kept in weights/
        return ""
    last = "\n".join(output.strip().splitlines()[-3:]) or f"exit status {code}"
    (folder / "error.txt").write_text(last + "\n")
    return last


def run(cells: Sequence[Cell], plan: Plan, workers: int, say: Callable[[str], None]) -> list[tuple[Cell, str]]:
    """Runs all cells that are not done, ``workers`` at a time; those that failed with their last lines."""
    todo = [cell for cell in cells if state(cell, plan) != "done"]
    say(f"{len(cells)} cells, {len(cells) - len(todo)} done already, {workers} at a time")
    failures: list[tuple[Cell, str]] = []
    started = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        pending = {pool.submit(run_cell, cell, plan): cell for cell in todo}
        for number, finished in enumerate(as_completed(pending), 1):
            cell, problem = pending[finished], finished.result()
            left = (time.monotonic() - started) / number * (len(todo) - number)
            say(f"[{number}/{len(todo)}] {cell.name}: {'failed' if problem else 'done'}, {left / 60:.0f} min left")
            if problem:
                failures.append((cell, problem))
                say("    " + problem.splitlines()[-1])
    return failures


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
