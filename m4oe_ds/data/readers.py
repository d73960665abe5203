"""Reader processes whose death is an error to the process that waits for them, never a silence."""

from __future__ import annotations

import multiprocessing.queues
import os
import re
import sys
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import torch

from m4oe_ds.data.shared_memory import FIX, FOLDER
from m4oe_ds.errors import EnvironmentProblem

T = TypeVar("T")
_CANNOT_SEND = 74  # EX_IOERR
_ENDED = re.compile(r"exit(?:ed unexpectedly)?[^0-9]*(?:exit )?code (\d+)")


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


def watched(batches: Iterator[T]) -> Iterator[T]:
    """The items of a loader; a reader process that died is one line.

    Raises:
        EnvironmentProblem: one was killed, ended, or could not hand its samples over.
    """
    while True:
        try:
            item = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            text = " ".join(str(one) for one in (error, error.__cause__) if one is not None)
            if "DataLoader worker" not in text:
                raise
            raise EnvironmentProblem(*_told(text)) from None
        except (ConnectionError, EOFError):  # it died while it handed a sample over
            raise EnvironmentProblem(*_told(_what_became_of_it())) from None
        yield item


def _what_became_of_it() -> str:
    """What torch's handler of the signal that a child ended raises wherever this process is at that moment: here."""
    try:
        time.sleep(2.0)
    except RuntimeError as error:
        return str(error)
    return ""


def _told(text: str) -> tuple[str, str, str]:
    free = _free(FOLDER)
    shared = f"{FOLDER} has {free / 1e6:.1f} MB free" if free is not None else f"there is no {FOLDER}"
    code = _ENDED.search(text)
    if "Bus error" in text or "shared memory" in text or (code and int(code[1]) == _CANNOT_SEND):
        return f"a reader process could not hand over its samples: {shared}", "data.workers", FIX
    if "Killed" in text or "signal" in text:
        what = f"a reader process was killed ({shared})"
        return what, "data.workers", "see whether memory ran out (dmesg), and use fewer data.workers"
    return (
        f"a reader process ended by itself ({shared})",
        "data.workers",
        "see its message above; data.workers=0 shows it",
    )


def _free(folder: str) -> int | None:
    try:
        state = os.statvfs(folder)
    except OSError:
        return None
    return state.f_bavail * state.f_frsize
