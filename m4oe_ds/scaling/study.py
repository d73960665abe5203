"""The grid of a study: which points are possible, each run in processes of its own on this machine."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from m4oe_ds import config_loader, deepspeed_json
from m4oe_ds.config import Config, to_dict
from m4oe_ds.coordinates import free_port
from m4oe_ds.models.registry import expert_counts

NO_POINT = "ended without its point; were the configuration files changed meanwhile?"


@dataclass(frozen=True)
class GridPoint:
    """A point to measure: experts of the MToE, ranks that share them, ranks, scaling mode."""

    experts: int
    ep: int
    world: int
    mode: str

    def __str__(self) -> str:
        return f"{self.experts} experts, {self.world} ranks, ep {self.ep}, {self.mode}"


def grid(
    config: Config, experts: Sequence[int], eps: Sequence[int], worlds: Sequence[int], modes: Sequence[str], batch: int
) -> tuple[list[GridPoint], list[tuple[GridPoint, str]]]:
    """Every combination, and those that cannot be with the reason.

    Args:
        config: whose other mixture layers also have to be divided.
        batch: samples per step of strong scaling.
    """
    possible, impossible = [], []
    for mode, count, world, ep in itertools.product(modes, experts, worlds, eps):
        cell = GridPoint(count, ep, world, mode)
        mtoe = dataclasses.replace(config.model.mtoe, num_experts=count)
        counts = expert_counts(dataclasses.replace(config, model=dataclasses.replace(config.model, mtoe=mtoe)))
        reason = ""
        if world % ep:
            reason = f"ep {ep} does not divide {world} ranks"
        elif ep > 1 and not counts:
            reason = f"ep {ep}, but {config.model.name} has no experts to share"
        elif any(number % ep for number in counts):
            reason = f"ep {ep} does not divide the experts of every layer ({', '.join(map(str, counts))})"
        elif mode == "strong" and batch % world:
            reason = f"a batch of {batch} cannot be shared by {world} ranks"
        if reason:
            impossible.append((cell, reason))
        else:
            possible.append(cell)
    return possible, impossible


def run_cell(
    cell: GridPoint,
    options: Sequence[str],
    timeout_s: float,
    command: Sequence[str] = (),
    more: Mapping[str, str] | None = None,
) -> str:
    """Measures one point with ``cell.world`` processes; an empty text, or the last lines of the first that failed.

    The first failure ends the others, which would wait for it in a collective.

    Args:
        options: more for ``m4oe scale point``.
        timeout_s: kill the processes after this time.
        command: what to start instead of this interpreter's ``m4oe scale point`` (tests).
        more: further environment variables.
    """
    port = free_port()
    arguments = ["--experts", str(cell.experts), "--ep", str(cell.ep), "--mode", cell.mode, *options]
    start = list(command) or [sys.executable, "-m", "m4oe_ds", "scale", "point"]
    threads = str(max(1, (os.cpu_count() or 1) // cell.world))
    with tempfile.TemporaryDirectory() as folder:  # files, not pipes: a full pipe would stop a rank, and so all of them
        logs = [Path(folder) / f"{rank}.log" for rank in range(cell.world)]
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank, log in enumerate(logs):
                environment = {
                    **os.environ,
                    "RANK": str(rank),
                    "WORLD_SIZE": str(cell.world),
                    "LOCAL_RANK": str(rank),
                    "LOCAL_SIZE": str(cell.world),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                    "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
                    **(more or {}),
                }
                with log.open("wb") as stream:
                    processes.append(
                        subprocess.Popen([*start, *arguments], env=environment, stdout=stream, stderr=subprocess.STDOUT)
                    )
            return _wait(processes, logs, timeout_s)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()


def _wait(processes: Sequence[subprocess.Popen[bytes]], logs: Sequence[Path], timeout_s: float) -> str:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        codes = [process.poll() for process in processes]
        for rank, (code, log) in enumerate(zip(codes, logs, strict=True)):
            if code:
                lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                return "\n".join(lines[-3:]) or f"rank {rank}: exit status {code}"
        if all(code == 0 for code in codes):
            return ""
        time.sleep(0.05)
    return f"not finished after {timeout_s:.0f} s"


def run(
    cells: Sequence[GridPoint],
    done: Callable[[GridPoint], bool],
    options: Sequence[str],
    timeout_s: float,
    say: Callable[[str], None],
) -> list[tuple[GridPoint, str]]:
    """Measures every cell that is not there yet, one after the other; those that failed with their last lines.

    Args:
        done: whether the point of a cell is there.
        timeout_s: most seconds that one point may take.
        say: prints a line.
    """
    failures = []
    for number, cell in enumerate(cells, 1):
        if done(cell):
            say(f"[{number}/{len(cells)}] {cell}: measured already")
            continue
        say(f"[{number}/{len(cells)}] {cell}")
        problem = run_cell(cell, options, timeout_s)
        if not done(cell):  # judged by its file: gloo can abort while it ends, when the point is written
            problem = problem or NO_POINT
            failures.append((cell, problem))
            say(f"    failed: {problem}")
    return failures


def path_of(folder: Path, cell: GridPoint, micro: int, batch: int, digest: str) -> Path:
    """Where the point of a cell is, as :attr:`m4oe_ds.scaling.rows.StudyRow.name` calls it."""
    size = micro * cell.world if cell.mode == "weak" else batch
    return folder / "points" / f"e{cell.experts}-ep{cell.ep}-w{cell.world}-{cell.mode}-b{size}-{digest}.json"


def described(config: str, ds_config: str, overrides: Sequence[str]) -> str:
    """The setting of a study for people."""
    return " ".join([config, ds_config, *overrides])


def digest(config: str, ds_config: str, overrides: Sequence[str]) -> str:
    """Eight hexadecimal digits of what a setting says, wherever its files are."""
    known = to_dict(config_loader.load(config, list(overrides)))
    text = json.dumps([known, deepspeed_json.read(ds_config)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
