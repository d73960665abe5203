"""What a run writes about itself: log.jsonl, what trackers are told, environment.json, the progress line."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch

from m4oe_ds.errors import EnvironmentProblem
from m4oe_ds.progress import LINE_EVERY_S, Progress, hours
from m4oe_ds.runs.folder import RunFolder
from m4oe_ds.training.figures_of import Changing, figures_of
from m4oe_ds.training.trackers import TensorBoard, TrackedRun, Tracker, make

_logger = logging.getLogger(__name__)
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
    """Rank 0's log: one JSON object per logged step, the same figures to trackers, and progress with the time left.

    Args:
        folder: run folder.
        total_steps: number of steps of the whole run.
        enabled: False on all other ranks.
        trackers: names of those who are told (:mod:`m4oe_ds.training.trackers`).
        config: what they are told about the run.
        first_step: step a resumed run starts from; later lines of an earlier run are cut off.
        epochs: number of epochs of the whole run.
        stream: where the progress is shown; default standard error.
        every_s: longest silence where that is no terminal, seconds.

    Raises:
        UserError: a tracker cannot be made or does not start.
    """

    def __init__(
        self,
        folder: Path,
        total_steps: int,
        *,
        enabled: bool,
        trackers: Sequence[str] = (),
        config: Mapping[str, Any] | None = None,
        first_step: int = 0,
        epochs: int = 1,
        stream: TextIO | None = None,
        every_s: float = LINE_EVERY_S,
    ) -> None:
        self.folder, self.total_steps, self.enabled = folder, total_steps, enabled
        self._epochs = epochs
        self._progress: Progress | None = None
        self._trackers: dict[str, Tracker] = {}
        self._changing = Changing()
        if not enabled:
            return
        path = RunFolder(folder).log
        _truncate_log(path, first_step)
        self._log = path.open("a", encoding="utf-8")
        self._start_trackers(trackers, TrackedRun(folder.absolute().name, folder, config or {}, first_step))
        self._progress = Progress(
            "training", total_steps, "steps", stream=stream, every_s=every_s, done=first_step, clock=hours
        ).start()

    def _start_trackers(self, names: Sequence[str], run: TrackedRun) -> None:
        for name in names:
            tracker = make(name)
            try:
                tracker.start(run)
            except Exception as error:  # whatever a client raises: no network, no key, a full disk
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                fix = "see its own documentation, or leave it out"
                raise EnvironmentProblem(f"{name} did not start: {reason}", "run.trackers", fix) from error
            self._trackers[name] = tracker

    def step(self) -> None:
        """Moves the progress by one step."""
        if self._progress is not None:
            self._progress.update()

    def write(self, record: dict[str, Any]) -> None:
        """Appends one line to log.jsonl (flushed, so that a killed run keeps it) and tells the trackers its figures."""
        if not self.enabled:
            return
        self._log.write(json.dumps(record, allow_nan=True) + "\n")
        self._log.flush()
        figures = self._changing.only(figures_of(record))
        self._tell(lambda tracker: tracker.log(record["step"], figures))
        if "event" not in record and self._progress is not None:
            self._progress.update(0, self._note(record))

    def _tell(self, what: Callable[[Tracker], None]) -> None:
        """Tells every tracker; one that fails is told no more, and the run goes on."""
        for name, tracker in list(self._trackers.items()):
            try:
                what(tracker)
            except Exception as error:  # a service that is down must not end days of training
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                _logger.warning("tracker %s failed and is told no more: %s", name, reason)
                del self._trackers[name]

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
        """A histogram, for trackers that take some; log.jsonl holds figures only."""
        for tracker in self._trackers.values():
            if isinstance(tracker, TensorBoard):
                tracker.distribution(name, values, step)

    def figures(self, kind: str, made: Mapping[str, Any], step: int) -> None:
        """Matplotlib figures, for trackers on this machine alone; they are closed afterwards."""
        for tracker in self._trackers.values():
            if isinstance(tracker, TensorBoard):
                tracker.figures(kind, made, step)

    def say(self, text: str) -> None:
        """A line for the person watching, without breaking the progress line."""
        if self._progress is not None:
            self._progress.say(text)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None)

    def close(self, failed: bool = False) -> None:
        """Closes files, trackers and the progress line.

        Args:
            failed: training ended by an exception, as trackers are told.
        """
        if not self.enabled:
            return
        self._log.close()
        self._tell(lambda tracker: tracker.finish(failed))
        self._trackers.clear()
        if self._progress is not None:
            self._progress.close()


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
