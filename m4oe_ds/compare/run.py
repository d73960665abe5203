"""Runs cells, each in a process of its own, resumable: what is finished is not run again, what failed is recorded."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import queue
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m4oe_ds import config_loader, deepspeed_json, shipped
from m4oe_ds.compare.cells import Cell
from m4oe_ds.compare.processes import Children
from m4oe_ds.config import to_dict
from m4oe_ds.errors import ConfigError
from m4oe_ds.launcher import launch_environment, launcher, shares, visible_devices
from m4oe_ds.progress import Progress, hours
from m4oe_ds.runs.folder import RunFolder
from m4oe_ds.stored import read_json

STOPPED = "stopped by a signal; the same command continues"
_STOPPED_STATUS = 75  # of train.py, which saved a checkpoint


@dataclass(frozen=True)
class CellPlan:
    """How cells are run.

    Attributes:
        folder: folder of the comparison; cells lie in ``cells/``.
        preset: smoke, small or paper; ``own`` with a configuration of one's own.
        ds_config: DeepSpeed JSON, a path or the name of a shipped one.
        ranks: processes of a cell; above 1 under the deepspeed launcher.
        timeout_s: most seconds that a cell may take.
        own: the configuration of one's own; empty = the preset's of each data set.
    """

    folder: Path
    preset: str
    ds_config: str
    ranks: int
    timeout_s: float
    own: str = ""

    def config(self, dataset: str) -> Path:
        """The preset's configuration of a data set, or one's own.

        Raises:
            ConfigError: the preset has none.
        """
        if self.own:
            return Path(self.own)
        path = shipped.folder("configs") / "compare" / self.preset / f"{dataset}.yaml"
        if not path.is_file():
            raise ConfigError(
                f"preset {self.preset} has no data set {dataset}",
                str(path.parent),
                "use another preset, or --config YAML",
            )
        return path

    def of(self, cell: Cell) -> Path:
        """Folder of a cell's run."""
        return self.folder / "cells" / cell.name


@functools.cache
def _digest(cell: Cell, plan: CellPlan) -> str:
    """Digest of what the run is made from: all options with their defaults, wherever they are written, and the JSON."""
    options = to_dict(config_loader.load(plan.config(cell.dataset), cell.overrides))
    content = [options, deepspeed_json.read(plan.ds_config)]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=list).encode()).hexdigest()[:16]


def check(cells: Sequence[Cell], plan: CellPlan) -> None:
    """Looks at the configuration of every cell; those that differ in their seed alone once.

    Raises:
        ConfigError: the configuration of a cell, or its DeepSpeed JSON, is wrong.
    """
    seen = set()
    for cell in cells:
        key = (cell.dataset, tuple(text for text in cell.overrides if not text.startswith("run.seed=")))
        if key not in seen:
            seen.add(key)
            config_loader.load(plan.config(cell.dataset), cell.overrides)
    content = deepspeed_json.read(plan.ds_config)
    deepspeed_json.check(content, plan.ds_config, {}, "")


def identity(cell: Cell, plan: CellPlan) -> dict[str, Any]:
    """What a finished run must have been made from to count as this cell.

    Raises:
        ConfigError: the cell's options contradict each other.
    """
    return {
        **asdict(cell),
        "overrides": list(cell.overrides),
        "scored": list(cell.scored),
        "preset": plan.preset,
        "configuration": _digest(cell, plan),
    }


def state(cell: Cell, plan: CellPlan) -> str:
    """``done``, ``failed``, ``started`` or ``new``.

    Raises:
        ConfigError: the folder holds a run of other settings, finished or under way; one that failed is given up.
    """
    folder = plan.of(cell)
    if not (folder / "cell.json").is_file():
        return "new"
    done, failed = RunFolder(folder).metrics.is_file(), (folder / "error.txt").is_file()
    if read_json(folder / "cell.json", "delete the folder, or choose another --output") != identity(cell, plan):
        if failed and not done:
            return "new"
        raise ConfigError("holds a run of other settings", str(folder), "delete it, or choose another --output")
    return "done" if done else "failed" if failed else "started"


def reason(cell: Cell, plan: CellPlan) -> str:
    """Why a cell has no result: the last line of what a failed run printed, else that it was not run to its end."""
    path = plan.of(cell) / "error.txt"
    lines = path.read_text(errors="replace").strip().splitlines() if path.is_file() else []
    return f"failed: {lines[-1]}" if lines else "not run" if state(cell, plan) == "new" else "not finished"


def run_cell(cell: Cell, plan: CellPlan, children: Children | None = None, devices: Sequence[str] = ()) -> str:
    """Trains and evaluates one cell; the last lines of its output if it failed, else an empty text.

    In a SLURM step of several tasks every task calls this for the same cell: the tasks are its ranks.

    Args:
        cell: the cell.
        plan: how it is run.
        children: who starts its process; None = nobody else's.
        devices: GPUs that it has for itself; none = those that are visible here.
    """
    if state(cell, plan) == "done":
        return ""
    children = children or Children()
    if children.stopped:
        return STOPPED
    folder, (tasks, task) = plan.of(cell), step_tasks(os.environ)
    if task == 0:
        if state(cell, plan) == "new":
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "error.txt").unlink(missing_ok=True)
        _write(folder / "cell.json", json.dumps(identity(cell, plan), indent=1) + "\n")
    ranks = 1 if tasks > 1 else plan.ranks
    code = children.call(
        _command(cell, plan, ranks, devices),
        {**(launch_environment(ranks) if ranks > 1 else {}), **cell_environment(tasks, devices)},
        plan.timeout_s,
        folder / "output.txt" if task == 0 else None,
    )
    if code == 0 and (task != 0 or RunFolder(folder).metrics.is_file()):
        if task == 0:
            shutil.rmtree(RunFolder(folder).checkpoints, ignore_errors=True)  # the weights are kept in weights/
        return ""
    if children.stopped or code == _STOPPED_STATUS:
        return STOPPED
    if task != 0:
        return f"rank {task} ended with status {code}"
    printed = (folder / "output.txt").read_text(errors="replace").strip().splitlines()[-3:]
    ended = f"not finished after {plan.timeout_s:.0f} s" if code is None else f"ended with status {code}"
    last = "\n".join([ended, *printed] if printed and code is not None else [*printed, ended])
    _write(folder / "error.txt", last + "\n")
    return last


def run(
    cells: Sequence[Cell], plan: CellPlan, workers: int, say: Callable[[str], None], devices: Sequence[str] = ()
) -> tuple[list[tuple[Cell, str]], bool]:
    """Runs all cells that are not done, ``workers`` at a time, each of these on GPUs of its own.

    Args:
        cells: the cells.
        plan: how they are run.
        workers: cells at a time.
        say: takes what happens as lines.
        devices: GPUs to share out, as ``CUDA_VISIBLE_DEVICES`` names them; none on a machine without.

    Returns:
        those that failed, with their last lines; whether a signal stopped the work.

    Raises:
        ConfigError: a cell's options contradict each other, its folder holds a run of other settings, or there are too
            few GPUs; nothing was run.
    """
    free = free_shares(devices, workers, plan.ranks)
    todo = [cell for cell in cells if state(cell, plan) != "done"]
    say(f"{len(cells)} cells, {len(cells) - len(todo)} done already, {workers} at a time")
    failures: list[tuple[Cell, str]] = []
    progress = Progress("cells", len(cells), "cells", done=len(cells) - len(todo), clock=hours)
    with progress.start(), Children() as children, ThreadPoolExecutor(workers) as pool:

        def one(cell: Cell) -> str:
            with free() as share:
                return run_cell(cell, plan, children, share)

        pending = {pool.submit(one, cell): cell for cell in todo}
        for number, finished in enumerate(as_completed(pending), 1):
            cell, problem = pending[finished], finished.result()
            if problem == STOPPED:
                continue
            progress.update()
            progress.clear()
            say(f"[{number}/{len(todo)}] {cell.name}: {'failed' if problem else 'done'}")
            if problem:
                failures.append((cell, problem))
                say("    " + problem.splitlines()[-1])
        return failures, bool(children.stopped)


def free_shares(
    devices: Sequence[str], workers: int, ranks: int
) -> Callable[[], contextlib.AbstractContextManager[tuple[str, ...]]]:
    """What a worker borrows GPUs from: nobody else has them meanwhile.

    Args:
        devices: GPUs to share out.
        workers: jobs at a time.
        ranks: GPUs of each.

    Raises:
        ConfigError: too few GPUs.
    """
    waiting: queue.SimpleQueue[tuple[str, ...]] = queue.SimpleQueue()
    for share in shares(devices, workers, ranks):
        waiting.put(share)

    @contextlib.contextmanager
    def borrowed() -> Iterator[tuple[str, ...]]:
        share = waiting.get()
        try:
            yield share
        finally:
            waiting.put(share)

    return borrowed


def step_tasks(environ: Mapping[str, str]) -> tuple[int, int]:
    """Number of tasks of this SLURM step and which one this is; (1, 0) outside of one."""
    if not environ.get("SLURM_STEP_ID", "").isdigit():
        return 1, 0
    count = environ.get("SLURM_STEP_NUM_TASKS", environ.get("SLURM_NTASKS", "1"))
    return int(count), int(environ.get("SLURM_PROCID", "0"))


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock file: array tasks that start together make shared shards once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _command(cell: Cell, plan: CellPlan, ranks: int, devices: Sequence[str] = ()) -> list[str]:
    arguments = [
        "--ds_config",
        plan.ds_config,
        "--config",
        str(plan.config(cell.dataset)),
        "--output",
        str(plan.of(cell)),
        "--resume",
        "auto",
    ]
    for override in (*cell.overrides, f"run.name={cell.name}"):
        arguments += ["--set", override]
    if ranks == 1:
        return [sys.executable, "-m", "m4oe_ds.entry", *arguments]
    return [*launcher(ranks, devices or visible_devices(os.environ)), "--module", "m4oe_ds.entry", *arguments]


def cell_environment(tasks: int, devices: Sequence[str] = ()) -> dict[str, str]:
    """Environment of a cell's process: that of the SLURM step if its tasks are the ranks, else without the variables of
    other launchers.

    Args:
        tasks: tasks of the SLURM step.
        devices: GPUs that it may use; none = as here.
    """
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    if tasks == 1:
        foreign = ("SLURM_", "MASTER_", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "WORLD_SIZE", "RANK")
        environment = {name: value for name, value in environment.items() if not name.startswith(foreign)}
    return environment | ({"CUDA_VISIBLE_DEVICES": ",".join(devices)} if devices else {})


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
