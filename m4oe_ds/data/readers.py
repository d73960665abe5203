"""Reader processes whose death is an error to the process that waits for them, never a silence."""

from __future__ import annotations

import multiprocessing.queues
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling

from m4oe_ds.data.shared_memory import FIX, FOLDER
from m4oe_ds.errors import EnvironmentProblem

T = TypeVar("T")
_CANNOT_SEND = 74  # EX_IOERR
_PATIENCE = 20  # tenths of a second until the end of a process is known


def start_reader(_worker: int) -> None:
    """What a reader process does first: one thread, and an end instead of a silence.

    A sample that cannot be handed over, such as with ``/dev/shm`` full, is by default a traceback of a background
    thread: the sample is gone, and the training process would wait for it for ever.
    """
    torch.set_num_threads(1)
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_give_up)  # type: ignore[attr-defined]


def _give_up(error: BaseException, _item: Any) -> None:
    sys.stderr.write(f"reader process: a batch cannot be handed over: {error}\n")
    sys.stderr.flush()
    os._exit(_CANNOT_SEND)


def start_reading(loader: DataLoader[Any]) -> Iterator[Any]:
    """An iterator of a loader: its reader processes begin to work.

    By default torch raises the death of one in the main thread, wherever that is at the moment, such as in the middle
    of a training step. Here it is an error of the reading alone, see :func:`watched`.
    """
    signal_handling._SIGCHLD_handler_set = True  # it thinks that it has set its handler already
    return iter(loader)


def watched(batches: Iterator[T]) -> Iterator[T]:
    """The items of a loader; a reader process that died is one line.

    Args:
        batches: of :func:`start_reading`.

    Raises:
        EnvironmentProblem: one was killed, ended, or could not hand its samples over.
    """
    while True:
        try:
            item = next(batches)
        except StopIteration:
            return
        except (RuntimeError, ConnectionError, EOFError) as error:
            # torch has words of its own for it, or what reads from the process finds its end cut off
            died = not isinstance(error, RuntimeError) or "exited unexpectedly" in str(error)
            code = _exit_code(batches) if died else None
            if code is None:
                raise
            raise EnvironmentProblem(*_told(code)) from None
        yield item


def _exit_code(batches: Iterator[Any]) -> int | None:
    """What the first reader process that is gone ended with; None if all of them live on."""
    for _ in range(_PATIENCE):
        for process in getattr(batches, "_workers", ()):
            if process.exitcode is not None:
                return int(process.exitcode)
        time.sleep(0.1)
    return None


def _told(code: int) -> tuple[str, str, str]:
    """What, where and what to do about an exit status, negative for a signal."""
    free = _free(FOLDER)
    shared = f"{FOLDER} has {free / 1e6:.1f} MB free" if free is not None else f"there is no {FOLDER}"
    if code in (_CANNOT_SEND, -signal.SIGBUS):
        return f"a reader process could not hand over its samples: {shared}", "data.workers", FIX
    if code < 0:
        what = f"a reader process was killed by {signal.Signals(-code).name} ({shared})"
        return what, "data.workers", "see whether memory ran out (dmesg), and use fewer data.workers"
    what = f"a reader process ended by itself with status {code} ({shared})"
    return what, "data.workers", "see its message above; data.workers=0 shows it"


def _free(folder: str) -> int | None:
    try:
        state = os.statvfs(folder)
    except OSError:
        return None
    return state.f_bavail * state.f_frsize
