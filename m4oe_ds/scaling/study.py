"""The grid of a study: which points are possible, each run in processes of its own on this machine."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from m4oe_ds.config import Config
from m4oe_ds.errors import ConfigError
from m4oe_ds.planning.recommend import expert_counts


@dataclass(frozen=True)
class Cell:
    """A point to measure: experts of the MToE, ranks that share them, ranks, scaling mode."""

    experts: int
    ep: int
    world: int
    mode: str

    def __str__(self) -> str:
        return f"{self.experts} experts, {self.world} ranks, ep {self.ep}, {self.mode}"


def grid(
    config: Config, experts: Sequence[int], eps: Sequence[int], worlds: Sequence[int], modes: Sequence[str], batch: int
) -> tuple[list[Cell], list[tuple[Cell, str]]]:
    """Every combination, and those that cannot be with the reason.

    Args:
        config: whose other mixture layers also have to be divided. batch: samples per step of strong scaling.
    """
    possible, impossible = [], []
    for mode, count, world, ep in itertools.product(modes, experts, worlds, eps):
        cell = Cell(count, ep, world, mode)
        others = [number for number in expert_counts(config) if number != config.model.mtoe.num_experts]
        reason = ""
        if world % ep:
            reason = f"ep {ep} does not divide {world} ranks"
        elif any(number % ep for number in (count, *others)):
            reason = f"ep {ep} does not divide the experts of every layer ({count}; {', '.join(map(str, others))})"
        elif mode == "strong" and batch % world:
            reason = f"a batch of {batch} cannot be shared by {world} ranks"
        if reason:
            impossible.append((cell, reason))
        else:
            possible.append(cell)
    return possible, impossible


def run_cell(cell: Cell, options: Sequence[str], timeout_s: float, command: Sequence[str] = ()) -> str:
    """Measures one point with ``cell.world`` processes; an empty text, or the last lines of the first that failed.

    Args:
        options: more for ``m4oe scale point``. timeout_s: kill the processes after so long.
        command: what to start instead of this interpreter's ``m4oe scale point`` (tests).
    """
    port = _free_port()
    arguments = ["--experts", str(cell.experts), "--ep", str(cell.ep), "--mode", cell.mode, *options]
    start = list(command) or [sys.executable, "-m", "m4oe_ds", "scale", "point"]
    threads = str(max(1, (os.cpu_count() or 1) // cell.world))
    processes = []
    for rank in range(cell.world):
        environment = {
            **os.environ, "RANK": str(rank), "WORLD_SIZE": str(cell.world), "LOCAL_RANK": str(rank),
            "LOCAL_SIZE": str(cell.world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
        }  # fmt: skip
        processes.append(
            subprocess.Popen(
                [*start, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    failed = ""
    try:
        for process in processes:
            output, _ = process.communicate(timeout=timeout_s)
            if process.returncode and not failed:
                failed = "\n".join(output.strip().splitlines()[-3:]) or f"exit status {process.returncode}"
    except subprocess.TimeoutExpired:
        failed = f"not done after {timeout_s:.0f} s"
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.communicate()
    return failed


def run(
    cells: Sequence[Cell],
    done: Callable[[Cell], bool],
    options: Sequence[str],
    timeout_s: float,
    say: Callable[[str], None],
) -> list[tuple[Cell, str]]:
    """Measures every cell that is not there yet, one after the other; those that failed with their last lines."""
    failures = []
    for number, cell in enumerate(cells, 1):
        if done(cell):
            say(f"[{number}/{len(cells)}] {cell}: there already")
            continue
        say(f"[{number}/{len(cells)}] {cell}")
        problem = run_cell(cell, options, timeout_s)
        if problem:
            failures.append((cell, problem))
            say(f"    failed: {problem}")
    return failures


def numbers(text: str, option: str) -> list[int]:
    """``16,32`` as whole numbers from 1.

    Raises:
        ConfigError: something else.
    """
    try:
        found = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise ConfigError(f"cannot read {text!r}", option, "write whole numbers from 1, e.g. 16,32,64")
    return found


def path_of(folder: Path, cell: Cell, micro: int, batch: int) -> Path:
    """Where the point of a cell is, as :attr:`m4oe_ds.scaling.rows.Row.name` calls it."""
    size = micro * cell.world if cell.mode == "weak" else batch
    return folder / "points" / f"e{cell.experts}-ep{cell.ep}-w{cell.world}-{cell.mode}-b{size}.json"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
