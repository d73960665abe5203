"""Atomic, verified, stamped checkpoints around DeepSpeed's own files.

DeepSpeed writes plain files in place, moves its ``latest`` pointer before all ranks have finished, and loads experts of
another ``ep_size`` without an error but permuted. So here a checkpoint is written aside, hashed, stamped with the topology,
and renamed into place; a load verifies every file and refuses another topology.

    checkpoints/step-00000120/   DeepSpeed's files, rank-N.pt (generators), manifest.json
    checkpoints/LATEST, BEST     names of the newest and the best
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from m4oe_ds.errors import CheckpointError
from m4oe_ds.parallel import reduce
from m4oe_ds.training import seeds
from m4oe_ds.training.records import write_json

FORMAT_VERSION = 1
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Position:
    """Where training stands.

    Attributes:
        step: optimizer steps done. epoch: of the next step. samples_in_epoch: used before it, over all ranks.
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
        stamp: topology, stage, dtype and model fingerprint; a load demands equality.
        keep_last: newest checkpoints to keep besides the best.
    """

    def __init__(self, folder: Path, stamp: dict[str, Any], keep_last: int) -> None:
        self.folder, self.stamp, self.keep_last = folder, stamp, max(keep_last, 1)

    def save(self, engine: Any, position: Position, progress: dict[str, Any]) -> str:
        """Saves model, optimizer and generators; returns the tag.

        Args:
            engine: at an accumulation boundary. position: of the next step. progress: JSON-ready state of the loop.

        Collectives: several barriers and DeepSpeed's own; every rank must call it.
        """
        tag = f"step-{position.step:08d}"
        aside = self.folder / f".writing-{tag}"
        if reduce.rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in self.folder.glob(".writing-*"):  # of a run that was killed while saving
                shutil.rmtree(leftover)
            (aside / tag).mkdir(parents=True)
        reduce.barrier()
        engine.save_checkpoint(str(aside), tag=tag, save_latest=False)
        torch.save(seeds.capture(), aside / tag / f"rank-{reduce.rank()}.pt")
        reduce.barrier()
        names = _files(aside / tag)
        mine = names[reduce.rank() :: reduce.world_size()]
        write_json(aside / f"hashes-{reduce.rank()}.json", {name: _describe(aside / tag / name) for name in mine})
        reduce.barrier()
        if reduce.rank() == 0:
            files: dict[str, Any] = {}
            for rank in range(reduce.world_size()):
                files.update(json.loads((aside / f"hashes-{rank}.json").read_text()))
            manifest = {
                "format": FORMAT_VERSION,
                "stamp": self.stamp,
                "position": vars(position),
                "progress": progress,
                "files": files,
            }
            write_json(aside / tag / "manifest.json", manifest)
            _sync(aside / tag / "manifest.json")
            if (self.folder / tag).exists():  # saved before, e.g. at the end of an epoch; the new one replaces it whole
                shutil.rmtree(self.folder / tag)
            os.replace(aside / tag, self.folder / tag)
            _sync(self.folder)
            shutil.rmtree(aside)
            self._point("LATEST", tag)
        reduce.barrier()
        return tag

    def mark_best(self, tag: str) -> None:
        """Makes ``tag`` the best and drops what retention no longer covers."""
        if reduce.rank() == 0:
            self._point("BEST", tag)

    def retain(self) -> None:
        """Deletes all but the newest ``keep_last`` checkpoints and the best."""
        if reduce.rank() == 0:
            best = self.pointer("BEST")
            for tag in self.tags()[: -self.keep_last]:
                if tag != best:
                    shutil.rmtree(self.folder / tag)

    def tags(self) -> list[str]:
        """Complete checkpoints, oldest first."""
        return sorted(path.parent.name for path in self.folder.glob("step-*/manifest.json"))

    def agreed_pointer(self, name: str) -> str | None:
        """Tag that ``LATEST`` or ``BEST`` names as rank 0 sees it: ranks that read the file themselves could differ.

        Collectives: two broadcasts; every rank must call it.
        """
        return reduce.broadcast_text(self.pointer(name) or "", _device()) or None

    def pointer(self, name: str) -> str | None:
        """Tag that ``LATEST`` or ``BEST`` names on this rank's view of the file system, if it exists."""
        path = self.folder / name
        tag = path.read_text().strip() if path.is_file() else None
        return tag if tag and (self.folder / tag / "manifest.json").is_file() else None

    def newest_valid(self) -> str | None:
        """The newest checkpoint whose files all verify; broken ones are reported and passed over.

        Collectives: every rank verifies a share of the files and all agree; every rank must call it.
        """
        known = reduce.broadcast_text("\n".join(self.tags()), _device()).split()
        for tag in reversed(known):
            problems = self.verify(tag)
            if not problems:
                return tag
            _logger.warning("checkpoint %s does not verify (%s); trying the one before", tag, problems[0])
        return None

    def verify(self, tag: str) -> list[str]:
        """Problems with the files of ``tag`` seen by this rank, or one that another rank saw; empty = it verifies."""
        manifest = self._manifest(tag)
        problems = []
        for name in sorted(manifest["files"])[reduce.rank() :: reduce.world_size()]:
            path = self.folder / tag / name
            if not path.is_file():
                problems.append(f"{tag}/{name} is missing")
            elif _describe(path) != manifest["files"][name]:
                problems.append(f"{tag}/{name} differs from its checksum")
        worst = int(reduce.maximum_over_ranks(torch.tensor(len(problems), device=_device())))
        return problems or ([f"{tag}: another rank found a broken file"] if worst else [])

    def load(self, engine: Any, tag: str, *, weights_only: bool = False) -> tuple[Position, dict[str, Any]]:
        """Restores engine and generators; returns position and progress.

        DeepSpeed unpickles its files: load only checkpoints you trust.

        Raises:
            CheckpointError: files do not verify, or the stamp differs from this run's.

        Collectives: DeepSpeed's own; every rank must call it.
        """
        manifest = self._manifest(tag)
        if manifest["format"] != FORMAT_VERSION:
            raise CheckpointError(f"format {manifest['format']}; this package reads {FORMAT_VERSION}", tag)
        different = [key for key in self.stamp if manifest["stamp"].get(key) != self.stamp[key]]
        if different:
            then = ", ".join(f"{key}={manifest['stamp'].get(key)}" for key in different)
            now = ", ".join(f"{key}={self.stamp[key]}" for key in different)
            raise CheckpointError(
                f"written with {then}; this run has {now}",
                f"checkpoint {tag}",
                "start with the same values (loading as it is would permute experts), or --resume never",
            )
        problems = self.verify(tag)
        if problems:
            raise CheckpointError(problems[0], fix="remove this checkpoint and resume from the one before")
        path, _ = engine.load_checkpoint(
            str(self.folder), tag=tag, load_optimizer_states=not weights_only, load_module_only=weights_only
        )
        if path is None:
            raise CheckpointError("DeepSpeed found nothing to load", f"checkpoint {tag}")
        if not weights_only:
            state = torch.load(self.folder / tag / f"rank-{reduce.rank()}.pt", map_location="cpu", weights_only=True)
            seeds.restore(state)
        return Position(**manifest["position"]), manifest["progress"]

    def _manifest(self, tag: str) -> dict[str, Any]:
        path = self.folder / tag / "manifest.json"
        if not path.is_file():
            raise CheckpointError("no complete checkpoint here", str(self.folder / tag), f"known: {self.tags()}")
        manifest: dict[str, Any] = json.loads(path.read_text())
        return manifest

    def _point(self, name: str, tag: str) -> None:
        temporary = self.folder / f".{name}"
        temporary.write_text(tag + "\n")
        os.replace(temporary, self.folder / name)
        _sync(self.folder)


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


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
