"""``--profile``: a torch profiler trace of some steps on every rank, and where their time and their bytes went."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from m4oe_ds.parallel import reduce, traffic
from m4oe_ds.runs.folder import RunFolder, write_json

FORWARD, BACKWARD, OPTIMIZER = "m4oe.forward", "m4oe.backward", "m4oe.optimizer"
WARM_UP = 2  # steps of this process before the first profiled one: lazy allocations and caches are not the steady state
phase = record_function  # marks a phase in the trace; costs about a microsecond without a profiler
Item = TypeVar("Item")


class Recording:
    """The profiler and the log of collectives, from construction to :meth:`end`.

    Collectives: a barrier at the start, so that ranks do not wait for each other's start-up.
    """

    def __init__(self) -> None:
        reduce.barrier()
        activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
        self.profile: Any = profile(activities=activities)
        self.profile.__enter__()
        traffic.start()
        self._waited, self._started = 0.0, time.perf_counter()

    def wait_for(self, iterator: Iterator[Item]) -> Item:
        """The next item, with the time waited for it counted. Raises StopIteration as the iterator does."""
        started = time.perf_counter()
        item = next(iterator)
        self._waited += time.perf_counter() - started
        return item

    def end(self, steps: int) -> dict[str, Any]:
        """Ends the recording of ``steps`` steps; :func:`summarise` of them."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        wall = time.perf_counter() - self._started
        exchanged = traffic.stop()
        self.profile.__exit__(None, None, None)
        return summarise(self.profile, max(steps, 1), wall, self._waited, exchanged)


class StepProfiler:
    """Records ``steps`` steps after the first two of this process; does nothing if ``steps`` is 0.

    Args:
        folder: run folder; writes ``profile/trace-rank<r>.json.gz`` (for Perfetto or chrome://tracing) on every rank,
            and ``profile/summary.json`` on rank 0.
        steps: number of steps to record.
        say: prints a line on rank 0.

    Collectives wait for their end while recording, so the split is that of a step without overlap.
    """

    def __init__(self, folder: Path, steps: int, say: Callable[[str], None]) -> None:
        self.folder, self.steps, self.say = folder, steps, say
        self._seen = 0
        self._recording: Recording | None = None

    def batches(self, stream: Iterable[Item]) -> Iterator[Item]:
        """The stream, with the time waited for it counted."""
        iterator = iter(stream)
        while True:
            try:
                yield next(iterator) if self._recording is None else self._recording.wait_for(iterator)
            except StopIteration:
                return

    def step(self) -> None:
        """Must be called after every optimizer step. Collectives: a barrier when a recording starts."""
        if not self.steps:
            return
        self._seen += 1
        if self._seen == WARM_UP:
            self._recording = Recording()
        elif self._seen == WARM_UP + self.steps:
            self._end(self.steps)

    def close(self) -> None:
        """Ends a recording that training cut short."""
        if self._recording is not None:
            self._end(self._seen - WARM_UP)
        elif self.steps and self._seen < WARM_UP + self.steps:
            self.say(f"--profile: no profile, it needs {WARM_UP + 1} steps and training had {self._seen}")

    def _end(self, steps: int) -> None:
        assert self._recording is not None
        recording, self._recording = self._recording, None
        summary = recording.end(steps)
        if steps < 1:
            return
        target = RunFolder(self.folder).profile
        target.mkdir(exist_ok=True)
        recording.profile.export_chrome_trace(str(target / f"trace-rank{reduce.rank()}.json.gz"))
        if reduce.rank() == 0:
            write_json(target / "summary.json", summary)
            self.say(f"profile of {steps} steps -> {target}\n{table(summary)}")


def summarise(
    profiler: Any, steps: int, wall: float, waited: float, exchanged: dict[str, traffic.Traffic]
) -> dict[str, Any]:
    """Milliseconds per step by phase, bytes per step by collective, and the kernels that cost most.

    Args:
        profiler: the profiler with a finished recording.
        wall: seconds of all ``steps``.
        waited: seconds of waiting for data.
        exchanged: collectives of all steps.
    """
    averages = {event.key: event for event in profiler.key_averages()}
    on_device = torch.cuda.is_available()
    total_time = "device_time_total" if on_device else "cpu_time_total"
    phases = {
        name.removeprefix("m4oe."): getattr(averages[name], total_time) / 1e3 / steps
        for name in (FORWARD, BACKWARD, OPTIMIZER)
        if name in averages
    }
    total = 1e3 * wall / steps
    split = {"data": 1e3 * waited / steps, **phases}
    split["other"] = max(total - sum(split.values()), 0.0)
    cost = "self_device_time_total" if on_device else "self_cpu_time_total"
    events = [event for event in averages.values() if not event.key.startswith("m4oe.")]
    kernels = sorted(events, key=lambda event: getattr(event, cost), reverse=True)[:15]
    busy = sum(getattr(event, cost) for event in events)
    return {
        "steps": steps,
        "step_ms": total,
        "split_ms": split,
        "communication": {
            name: {"calls_per_step": one.calls / steps, "bytes_per_step": one.bytes / steps}
            for name, one in sorted(exchanged.items())
        },
        "communication_ms": {
            event.key: getattr(event, total_time) / 1e3 / steps
            for event in events
            # on a GPU the kernels alone: the ranges around their launches carry the same device time again
            if event.key.startswith(("gloo:", "ncclDevKernel", "ncclKernel"))
        },
        "kernels": [
            {
                "name": event.key,
                "ms_per_step": getattr(event, cost) / 1e3 / steps,
                "share": getattr(event, cost) / max(busy, 1e-9),
                "calls_per_step": event.count / steps,
            }
            for event in kernels
        ],
        "note": "collectives were waited for one by one; kernels: self time on "
        + ("the GPU" if on_device else "the CPU"),
    }


def table(summary: dict[str, Any]) -> str:
    """The summary for a person."""
    total = summary["step_ms"]
    lines = [f"{'step':24} {total:10.1f} ms"]
    lines += [f"  {name:22} {ms:10.1f} ms {ms / total:6.1%}" for name, ms in summary["split_ms"].items()]
    for name, ms in summary["communication_ms"].items():
        lines.append(f"  of these {name[:30]:30} {ms:6.1f} ms {ms / total:6.1%}")
    for name, one in summary["communication"].items():
        lines.append(f"  {name:30} {one['bytes_per_step'] / 1e6:12.3f} MB in {one['calls_per_step']:.0f} calls")
    for kernel in summary["kernels"][:5]:
        lines.append(
            f"  {kernel['name'][:40]:40} {kernel['ms_per_step']:8.1f} ms {kernel['share']:6.1%} of kernel time"
        )
    return "\n".join(lines)
