"""Child processes that do not outlive a signal: it is passed on to them, and no further ones are started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Children:
    """Starts processes and waits for them, from any thread.

    Inside the ``with`` block SIGTERM, SIGINT and SIGUSR1 are passed on to the running children, which save and end.
    Each child leads a process group of its own, so that a terminal's Ctrl-C reaches it once: a second one interrupts
    training.

    Attributes:
        stopped: the first signal that came, 0 for none; then no child is started any more.
    """

    def __init__(self) -> None:
        self.stopped = 0
        self._live: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.RLock()  # a handler may run while its own thread holds it
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Children:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                self._previous[number] = signal.signal(number, self._pass_on)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        with self._lock:
            self.stopped = self.stopped or number
            for process in self._live:
                process.send_signal(number)

    def call(
        self, command: Sequence[str], environment: Mapping[str, str], timeout_s: float, output: Path | None
    ) -> int | None:
        """Exit status of a command run to its end; None if it was killed after ``timeout_s`` or never started.

        Args:
            output: file for what it prints, replaced; None = where this process prints.
        """
        with contextlib.ExitStack() as stack:
            stream = stack.enter_context(output.open("wb")) if output is not None else None
            with self._lock:
                if self.stopped:
                    return None
                process = subprocess.Popen(
                    command,
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=stream,
                    stderr=None if stream is None else subprocess.STDOUT,
                    start_new_session=True,
                )
                self._live.add(process)
            try:
                return process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                return None
            finally:
                with self._lock:
                    self._live.discard(process)
                with contextlib.suppress(ProcessLookupError):  # ranks of a launcher that is gone, or of one that hangs
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
