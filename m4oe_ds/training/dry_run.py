"""``--dry-run``: one batch through everything that a run does, in a folder that is removed again."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from m4oe_ds.config import Config
from m4oe_ds.data.task_statistics import TaskStatistics
from m4oe_ds.errors import CheckpointError, EnvironmentProblem
from m4oe_ds.parallel import engine_state, reduce
from m4oe_ds.runs.folder import LATEST, RunFolder
from m4oe_ds.training.closing import evaluate
from m4oe_ds.training.loop import Loop
from m4oe_ds.training.validation import Best

RESAMPLES = 20  # of intervals, which are not looked at


def small(config: Config) -> Config:
    """The configuration with what only takes time made short; the model, the data and a step are those of the run."""
    inside = tuple(name for name in config.run.trackers if name == "tensorboard")  # nothing is sent anywhere
    run = dataclasses.replace(config.run, log_every_steps=1, trackers=inside)
    resamples = min(config.evaluation.resamples, RESAMPLES)
    return dataclasses.replace(config, run=run, evaluation=dataclasses.replace(config.evaluation, resamples=resamples))


@contextlib.contextmanager
def folder_beside(run: Path, device: torch.device) -> Iterator[Path]:
    """A folder for all ranks next to a run folder, on the file system that the run will use; removed at the end.

    Raises:
        EnvironmentProblem: another rank does not see it.

    Collectives: two broadcasts and an agreement; every rank must call it.
    """
    name, made = "", []
    if reduce.rank() == 0:
        made = [path for path in (run.parent, *run.parent.absolute().parents) if not path.exists()]
        run.parent.mkdir(parents=True, exist_ok=True)
        name = tempfile.mkdtemp(prefix=f".{run.name}-dry-run-", dir=run.parent)
    try:
        with _ends_when_told():
            folder = Path(reduce.broadcast_text(name, device))
            blind = [] if folder.is_dir() else [f"rank {reduce.rank()} does not see what rank 0 writes"]
            if problems := reduce.agree(blind, device):
                fix = "choose an --output on a file system that all machines share"
                raise EnvironmentProblem(problems[0], str(run.parent), fix)
            yield folder
            reduce.barrier()
    finally:
        if name:
            shutil.rmtree(name, ignore_errors=True)
        for path in made:  # the nearest first
            with contextlib.suppress(OSError):
                path.rmdir()


@contextlib.contextmanager
def _ends_when_told() -> Iterator[None]:
    """A launcher that ends this rank because of another one must not leave the folder behind."""

    def leave(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def try_out(loop: Loop, folder: Path, run: Path, statistics: Mapping[str, TaskStatistics]) -> list[str]:
    """One step, one batch of every split, a checkpoint written and read, metrics and the report.

    Args:
        loop: ready to train, in ``folder``; its checkpoints go there.
        folder: of :func:`folder_beside`.
        run: the run folder that would be used.
        statistics: what the training labels say, by task.

    Returns:
        What is said about it; meant for rank 0.

    Raises:
        UserError: whatever the run itself would end with.

    Collectives: those of the loop and of the evaluation; every rank must call it.
    """
    loop.total_steps, loop.most_batches = loop.position.step + 1, 1
    loop.validation.best = Best()  # one batch says nothing about the best weights so far
    started = time.monotonic()
    outcome = loop.run()
    trained = time.monotonic() - started
    if outcome.stopped_by:
        return [f"dry run stopped by signal {outcome.stopped_by}; nothing was kept"]
    started = time.monotonic()
    tag = loop.store.agreed_pointer(LATEST)
    if tag is None:
        raise CheckpointError("nothing was written", str(folder), "report this")
    _read_back(loop, tag)
    read = time.monotonic() - started
    metrics, report = evaluate(loop, outcome, folder, statistics)
    if reduce.rank():
        return []
    size = sum(path.stat().st_size for path in (loop.store.folder / tag).iterdir())
    log = [json.loads(line) for line in RunFolder(folder).log.read_text(encoding="utf-8").splitlines()]
    step = next(entry for entry in log if "event" not in entry)
    lines = [
        f"step        loss {step['loss']:.4f}, rate {step['lr']:.2g}, {step['max_memory_bytes'] / 1e9:.1f} GB; "
        f"with validation and checkpoint {trained:.1f} s",
        f"validation  {'one batch' if loop.validation.selects else 'none: there is nothing to validate with'}",
        f"checkpoint  {size / 1e6:.1f} MB written, read back and compared in {read:.1f} s",
        f"evaluation  one batch of {', '.join(metrics) or 'no split'}; "
        f"report of {Path(report).stat().st_size / 1e6:.1f} MB",
    ]
    done = f"dry run of {run}: everything worked, nothing was kept of it"
    return [done, *(f"  {line}" for line in lines), "next: the same command without --dry-run"]


def _read_back(loop: Loop, tag: str) -> None:
    """Loads a checkpoint that was just written: every value must be what it was.

    Raises:
        CheckpointError: one is not.
    """
    before = _fingerprints(loop.engine)
    loop.store.load(loop.engine, tag)
    after = _fingerprints(loop.engine)
    differing = [name for name, value in before.items() if after[name] != value]
    if problems := reduce.agree(differing[:1], loop.engine.device):
        raise CheckpointError(f"{problems[0]} was read back with other values", tag, "check the file system")


def _fingerprints(engine: Any) -> dict[str, int]:
    """A checksum over the bytes of everything that a checkpoint holds on this rank: values that are not a number count
    as what they are, too.
    """
    return {f"{piece.kind} of {piece.name}": checksum(piece.values) for piece in engine_state.pieces(engine)}


def checksum(values: torch.Tensor) -> int:
    """CRC-32 of the bytes of a tensor of any shape, type and device."""
    content = values.detach().reshape(-1).contiguous().cpu().view(torch.uint8)
    return zlib.crc32(content.numpy().data)
