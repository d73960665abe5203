"""What a run writes about itself: log.jsonl, TensorBoard, environment.json, the progress line."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

from m4oe_ds.progress import LINE_EVERY_S, Progress, hours
from m4oe_ds.runs.folder import RunFolder

PACKAGES = ("torch", "deepspeed", "timm", "torchvision", "webdataset", "numpy", "pydicom", "m4oe_ds")


def environment(**facts: Any) -> dict[str, Any]:
    """Versions, git commit, hardware and whatever else the caller knows; no host name, user or path."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    devices = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    return {
        "versions": versions,
        "python": platform.python_version(),
        "git": _git_commit(),
        "hardware": {"gpus": devices, "cpu": platform.machine(), "cpu_cores": os.cpu_count()},
        **facts,
    }


def recorded(path: Path, key: str) -> Any:
    """What an earlier leg of the run recorded under a key of ``environment.json``; None if nothing."""
    try:
        return json.loads(path.read_text(encoding="utf-8")).get(key)
    except (OSError, ValueError, AttributeError):  # another folder, or a record cut short; the run itself is sound
        return None


def _git_commit() -> dict[str, Any]:
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():  # installed: the repository around it, if any, is somebody else's
        return {"commit": None, "modified": None}
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "status", "--porcelain"], cwd=folder, capture_output=True, text=True, check=True, timeout=10
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "modified": None}
    return {"commit": commit, "modified": bool(changed.strip())}


class Recorder:
    """Rank 0's log: one JSON object per logged step, TensorBoard scalars, and a progress line with the time left.

    Args:
        folder: run folder.
        total_steps: number of steps of the whole run.
        enabled: False on all other ranks.
        tensorboard: whether TensorBoard events are written.
        first_step: step a resumed run starts from; later lines of an earlier run are cut off.
        epochs: number of epochs of the whole run.
        stream: where the progress is shown; default standard error.
        every_s: longest silence where that is no terminal, seconds.
    """

    def __init__(
        self,
        folder: Path,
        total_steps: int,
        *,
        enabled: bool,
        tensorboard: bool = True,
        first_step: int = 0,
        epochs: int = 1,
        stream: TextIO | None = None,
        every_s: float = LINE_EVERY_S,
    ) -> None:
        self.folder, self.total_steps, self.enabled = folder, total_steps, enabled
        self._epochs = epochs
        self._progress: Progress | None = None
        self._writer: Any = None
        if not enabled:
            return
        path = RunFolder(folder).log
        _truncate_log(path, first_step)
        self._log = path.open("a", encoding="utf-8")
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(RunFolder(folder).tensorboard), purge_step=first_step + 1)
        self._progress = Progress(
            "training", total_steps, "steps", stream=stream, every_s=every_s, done=first_step, clock=hours
        ).start()

    def step(self) -> None:
        """Moves the progress by one step."""
        if self._progress is not None:
            self._progress.update()

    def write(self, record: dict[str, Any]) -> None:
        """Appends one line to log.jsonl (flushed, so that a killed run keeps it) and the scalars to TensorBoard."""
        if not self.enabled:
            return
        self._log.write(json.dumps(record, allow_nan=True) + "\n")
        self._log.flush()
        kind = record.get("event", "train")
        for name, value in _scalars(record):
            if self._writer is not None:
                self._writer.add_scalar(f"{kind}/{name}", value, record["step"])
        if kind == "train" and self._progress is not None:
            self._progress.update(0, self._note(record))

    def _note(self, record: dict[str, Any]) -> str:
        """The figures behind the steps, as far as the record has them; epochs count from 1 here, as
        ``run.num_epochs`` does.
        """
        shown = {
            "epoch": lambda epoch: f"epoch {min(epoch + 1, self._epochs)} of {self._epochs}",
            "loss": lambda loss: f"loss {loss:.4f}",
            "lr": lambda rate: f"rate {rate:.2g}",
            "samples_per_s": lambda speed: f"{speed:.1f} samples/s",
            "max_memory_bytes": lambda size: f"{size / 1e9:.1f} GB",
        }
        return ", ".join(text(record[name]) for name, text in shown.items() if record.get(name) is not None)

    def distribution(self, name: str, values: Sequence[float], step: int) -> None:
        """A histogram for TensorBoard; log.jsonl holds figures only."""
        if self._writer is not None:
            self._writer.add_histogram(name, np.asarray(values), step)

    def figures(self, group: str, made: Mapping[str, Any], step: int) -> None:
        """Matplotlib figures for TensorBoard's image tab; they are closed afterwards."""
        if self._writer is not None:
            for name, figure in made.items():
                self._writer.add_figure(f"{group}/{name}", figure, step)

    def say(self, text: str) -> None:
        """A line for the person watching, without breaking the progress line."""
        if self._progress is not None:
            self._progress.say(text)

    def close(self) -> None:
        """Closes files and the progress line."""
        if not self.enabled:
            return
        self._log.close()
        if self._writer is not None:
            self._writer.close()
        if self._progress is not None:
            self._progress.close()


def _scalars(record: dict[str, Any]) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for name, value in record.items():
        if name in ("step", "event", "labels"):
            continue
        if isinstance(value, dict):
            found += [(f"{name}/{key}", item) for key, item in _scalars(value)]
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            found.append((name, value))
    return found


def _truncate_log(path: Path, first_step: int) -> None:
    """Drops lines after ``first_step``: steps a killed run logged beyond its last checkpoint are done again."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue  # a line cut short by the kill; its step is done again
        if record.get("step", 0) <= first_step:
            kept.append(line)
    temporary = path.with_name(".log.jsonl.tmp")
    temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    temporary.replace(path)
