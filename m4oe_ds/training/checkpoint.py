"""Atomic, verified checkpoints that any layout can load, written in the background of training.

DeepSpeed's own files are written in place, tied to the number of ranks, and with another ``ep_size`` load permuted
without an error. So here every rank writes the intervals of the global state it holds
(:mod:`m4oe_ds.parallel.engine_state`) as safetensors: first under another name, hashed, with a manifest, then renamed
into place. The copy to host memory stalls training; hashing and writing happen in a thread. Nothing is unpickled at
load.

    checkpoints/step-00000120/   state-00000.safetensors (one per rank), manifest.json
    checkpoints/LATEST, BEST     names of the newest and the best
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m4oe_ds.errors import CheckpointError
from m4oe_ds.parallel import engine_state, reduce
from m4oe_ds.runs import state_files
from m4oe_ds.runs.described import differences
from m4oe_ds.runs.folder import BEST, LATEST, CheckpointFolder, checkpoint_tag, checkpoint_tags, write_json
from m4oe_ds.runs.weight_files import read_manifest
from m4oe_ds.training import seeds

FORMAT_VERSION = 2
LAYOUT_KEYS = ("world", "ep_size", "order", "zero_stage", "precision", "deepspeed")  # may differ at load
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Position:
    """Where training stands.

    Attributes:
        step: optimizer steps done.
        epoch: epoch of the next step.
        samples_in_epoch: used before it, over all ranks.
        samples: used since the beginning.
    """

    step: int
    epoch: int
    samples_in_epoch: int
    samples: int


class CheckpointStore:
    """Checkpoints of one run.

    Args:
        folder: ``runs/NAME/checkpoints``, on a file system that all ranks see.
        stamp: layout, model and data fingerprints; model and data must be equal at load.
        keep_last: newest checkpoints to keep besides the best.
        background: write in a thread; otherwise :meth:`save` returns when everything is on disk.
        timeout_s: how long rank 0 waits for the files of the other ranks.
        described: what the fingerprints are of (:func:`m4oe_ds.runs.described.describe`); where a checkpoint has it,
            options are compared one by one in their place.
    """

    def __init__(
        self,
        folder: Path,
        stamp: dict[str, Any],
        keep_last: int,
        *,
        background: bool = True,
        timeout_s: float = 600.0,
        described: dict[str, Any] | None = None,
    ) -> None:
        self.described = described
        self.folder, self.stamp, self.keep_last = folder, stamp, max(keep_last, 1)
        self.background, self.timeout_s = background, timeout_s
        self._writer: threading.Thread | None = None
        self._problem = ""
        self._verified: set[str] = set()

    def save(self, engine: Any, position: Position, progress: dict[str, Any], *, best: bool = False) -> str:
        """Takes a copy of model, optimizer and generators and starts writing it; returns the tag.

        Args:
            engine: the engine, at an accumulation boundary.
            position: position of the next step.
            progress: JSON-ready state of the loop.
            best: the BEST pointer moves to it.

        Raises:
            CheckpointError: the checkpoint before could not be written, or there is too little space.

        Collectives: several small ones; every rank must call it.
        """
        self.finish()
        tag = checkpoint_tag(position.step)
        aside = self.folder / f".writing-{tag}"
        if reduce.rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in self.folder.glob(".writing-*"):  # of a run that was killed while saving
                shutil.rmtree(leftover)
            (aside / tag).mkdir(parents=True)
        tensors = _snapshot(engine)
        self._check_space(sum(value.numel() * value.element_size() for value in tensors.values()))
        manifest = {
            "format": FORMAT_VERSION,
            "stamp": self.stamp,
            **({} if self.described is None else {"described": self.described}),
            "position": vars(position),
            "progress": progress,
            "engine": engine_state.counters(engine),
            "parameters": {name: list(place.shape) for name, place in engine_state.places(engine.module).items()},
        }
        world = reduce.world_size()
        self._writer = threading.Thread(
            target=self._write, args=(aside, tag, tensors, manifest, reduce.rank(), world, best), daemon=True
        )
        self._writer.start()
        if not self.background:
            self.finish()
        return tag

    def finish(self) -> None:
        """Waits until the last checkpoint is in place on every rank.

        Raises:
            CheckpointError: some rank could not write it.

        Collectives: two; every rank must call it.
        """
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        problems = reduce.agree([self._problem] if self._problem else [], _device())
        self._problem = ""
        if problems:
            raise CheckpointError(
                "; ".join(problems), str(self.folder), "free or repair the file system; older checkpoints are untouched"
            )

    def _check_space(self, size: int) -> None:
        total = int(reduce.sum_over_ranks(torch.tensor(float(size), dtype=torch.float64, device=_device())))
        free = shutil.disk_usage(self.folder).free
        short = [f"a checkpoint takes {total / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"] if total > free else []
        if reduce.agree(short, _device()):
            raise CheckpointError(short[0] if short else "too little space", str(self.folder), "free some space")

    def _write(
        self,
        aside: Path,
        tag: str,
        tensors: dict[str, Tensor],
        manifest: dict[str, Any],
        rank: int,
        world: int,
        best: bool,
    ) -> None:
        """Thread body: this rank's file; on rank 0 also the manifest, the rename, pointers and retention."""
        try:
            path = CheckpointFolder(aside / tag).state(rank)
            state_files.write(tensors, path)
            write_json(aside / f"done-{rank}.json", {path.name: _describe(path)})
            if rank == 0:
                manifest["files"] = self._wait_for_all(aside, world)
                self._commit(aside, tag, manifest, best)
        except Exception as error:  # a thread has nobody to raise to: kept for finish()
            self._problem = f"rank {rank} could not write {tag}: {error}"
            if rank != 0:
                (aside / f"failed-{rank}").write_text(str(error))

    def _wait_for_all(self, aside: Path, world: int) -> dict[str, Any]:
        files: dict[str, Any] = {}
        deadline = time.monotonic() + self.timeout_s
        for rank in range(world):
            done = aside / f"done-{rank}.json"
            while not done.is_file():
                if (aside / f"failed-{rank}").is_file():
                    raise CheckpointError(f"rank {rank} failed")
                if time.monotonic() > deadline:
                    raise CheckpointError(f"rank {rank} wrote nothing within {self.timeout_s:.0f} s")
                time.sleep(0.02)
            files.update(json.loads(done.read_text()))
        return files

    def _commit(self, aside: Path, tag: str, manifest: dict[str, Any], best: bool) -> None:
        files = CheckpointFolder(aside / tag)
        write_json(files.manifest, manifest)
        _sync(files.manifest)
        if (self.folder / tag).exists():  # saved before, e.g. at the end of an epoch; the new one replaces it whole
            shutil.rmtree(self.folder / tag)
        os.replace(aside / tag, self.folder / tag)
        _sync(self.folder)
        shutil.rmtree(aside)
        self._point(LATEST, tag)
        if best:
            self._point(BEST, tag)
        chosen = self.pointer(BEST)
        for old in self.tags()[: -self.keep_last]:
            if old != chosen:
                shutil.rmtree(self.folder / old)

    def tags(self) -> list[str]:
        """Complete checkpoints, oldest first."""
        return checkpoint_tags(self.folder)

    def agreed_pointer(self, name: str) -> str | None:
        """Tag that ``LATEST`` or ``BEST`` names as rank 0 sees it: ranks that read the file themselves could differ.

        Collectives: those of :meth:`finish` and two broadcasts; every rank must call it.
        """
        self.finish()
        return reduce.broadcast_text(self.pointer(name) or "", _device()) or None

    def pointer(self, name: str) -> str | None:
        """Tag that ``LATEST`` or ``BEST`` names on this rank's view of the file system, if it exists."""
        path = self.folder / name
        tag = path.read_text().strip() if path.is_file() else None
        return tag if tag and CheckpointFolder(self.folder / tag).manifest.is_file() else None

    def newest_valid(self) -> str | None:
        """The newest checkpoint whose files all verify; broken ones are reported and passed over.

        Collectives: every rank verifies a share of the files and all agree; every rank must call it.
        """
        known = reduce.broadcast_text("\n".join(self.tags()), _device()).split()
        for tag in reversed(known):
            problems = self.verify(tag)
            if not problems:
                self._verified.add(tag)
                return tag
            _logger.warning("checkpoint %s does not verify (%s); trying the one before", tag, problems[0])
        return None

    def verify(self, tag: str) -> list[str]:
        """Problems with the files of ``tag`` seen by this rank, or one that another rank saw; empty = it verifies."""
        try:
            files, problems = self._manifest(tag)["files"], []
        except CheckpointError as error:
            files, problems = {}, [str(error)]
        for name in sorted(files)[reduce.rank() :: reduce.world_size()]:
            path = self.folder / tag / name
            if not path.is_file():
                problems.append(f"{tag}/{name} is missing")
            elif _describe(path) != files[name]:
                problems.append(f"{tag}/{name} differs from its checksum")
        worst = int(reduce.maximum_over_ranks(torch.tensor(len(problems), device=_device())))
        return problems or ([f"{tag}: another rank found a broken file"] if worst else [])

    def load(self, engine: Any, tag: str, *, weights_only: bool = False) -> tuple[Position, dict[str, Any]]:
        """Restores engine and generators, in whatever layout this run has; returns position and progress.

        Args:
            weights_only: working copies and buffers only, for evaluation.

        Raises:
            CheckpointError: files do not verify, names differ (all listed), or it is of another model or data set.

        Collectives: a few small ones; every rank must call it. Each rank reads only what it holds.
        """
        manifest = self._manifest(tag)
        if manifest["format"] != FORMAT_VERSION:
            raise CheckpointError(
                f"format {manifest['format']}; this package reads {FORMAT_VERSION}",
                tag,
                "resume with the older version",
            )
        self._check_stamp(manifest["stamp"], tag, manifest.get("described"))
        if tag not in self._verified and (problems := self.verify(tag)):
            raise CheckpointError(problems[0], fix="remove this checkpoint and resume from the one before")
        reader = state_files.StateReader(self.folder / tag)
        where = engine_state.places(engine.module)
        buffers = dict(engine.module.named_buffers())
        if problems := reader.differences(where, buffers):
            raise CheckpointError(f"{len(problems)} names do not match: {'; '.join(problems)}", str(self.folder / tag))
        shapes = manifest["parameters"]
        if problems := [
            f"{name} is {shapes[name]}, the model has {list(p.shape)}"
            for name, p in where.items()
            if shapes[name] != list(p.shape)
        ]:
            raise CheckpointError("; ".join(problems), str(self.folder / tag))
        with torch.no_grad():
            if weights_only:
                engine_state.restore_working(engine, reader.read)
            else:
                engine_state.restore(engine, reader.read)
                engine_state.set_counters(engine, manifest["engine"])
                self._restore_generators(reader, manifest)
            for name, buffer in buffers.items():
                buffer.copy_(reader.buffer(name))
        return Position(**manifest["position"]), manifest["progress"]

    def _check_stamp(self, written: dict[str, Any], tag: str, described: dict[str, Any] | None) -> None:
        different = [key for key in self.stamp if written.get(key) != self.stamp[key]]
        if described is not None and self.described is not None:
            if options := differences(described, self.described):
                fix = "use the same values, or --resume never with another --output"
                raise CheckpointError(f"written with {'; '.join(options)}", f"checkpoint {tag}", fix)
            different = [key for key in different if key in LAYOUT_KEYS]
        then = ", ".join(f"{key}={written.get(key)}" for key in different)
        now = ", ".join(f"{key}={self.stamp[key]}" for key in different)
        if [key for key in different if key not in LAYOUT_KEYS]:
            raise CheckpointError(
                f"written with {then}; this run has {now}",
                f"checkpoint {tag}",
                "use its configuration and data, or --resume never",
            )
        if different and reduce.rank() == 0:
            _logger.warning("checkpoint %s was written with %s and continues with %s", tag, then, now)

    def _restore_generators(self, reader: state_files.StateReader, manifest: dict[str, Any]) -> None:
        rank = reduce.rank()
        if manifest["stamp"].get("world") == reduce.world_size():
            seeds.restore(reader.generators(rank))
        else:  # other ranks, other streams: new ones that depend on the step and nothing else
            seeds.seed_everything(seeds.derive(manifest["position"]["step"], "resharded"), rank)

    def _manifest(self, tag: str) -> dict[str, Any]:
        path = CheckpointFolder(self.folder / tag).manifest
        if not path.is_file():
            raise CheckpointError("no complete checkpoint here", str(self.folder / tag), f"known: {self.tags()}")
        return read_manifest(path.parent, ("format", "stamp", "position", "progress", "parameters", "files"))

    def _point(self, name: str, tag: str) -> None:
        temporary = self.folder / f".{name}"
        temporary.write_text(tag + "\n")
        os.replace(temporary, self.folder / name)
        _sync(self.folder)


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _snapshot(engine: Any) -> dict[str, Tensor]:
    """Host copies of what this rank writes: its pieces, its share of what is not trained, its generators."""
    rank = reduce.rank()
    where = engine_state.places(engine.module)
    shared = [  # replicated tensors are written once, sharded ones by everybody
        piece
        for piece in engine_state.frozen(engine)
        if rank == 0 or piece.values.numel() < torch.Size(where[piece.name].shape).numel()
    ]
    buffers = engine.module.named_buffers() if rank == 0 else ()
    tensors = state_files.snapshot([*engine_state.pieces(engine), *shared], buffers)
    tensors.update({f"{state_files.GENERATOR}|{name}|{rank}": value for name, value in seeds.capture().items()})
    return tensors


def _describe(path: Path) -> dict[str, Any]:
    """Size and sha256 of a file, after forcing it to disk."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        while block := stream.read(1 << 22):
            digest.update(block)
        size = stream.tell()
    return {"bytes": size, "sha256": digest.hexdigest()}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
