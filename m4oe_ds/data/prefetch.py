"""Makes the next batches in a thread while the present one is used."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")
_PATIENCE_SECONDS = 0.1  # between two looks whether the reader has gone


class _Failure:
    """What the thread ended with; None at the end of the items."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error


def prefetched(source: Iterator[T], ahead: int, prepare: Callable[[], object] | None = None) -> Iterator[T]:
    """The items of an iterator in their order, up to ``ahead`` of them made in advance.

    An exception of the source is raised in the place of the item it prevented. When the reader stops early the thread
    ends with the item it works on, and a source that can be closed is closed.

    Args:
        prepare: called first in the thread, such as to choose its GPU.
    """
    ready: queue.Queue[T | _Failure] = queue.Queue(maxsize=ahead)
    gone = threading.Event()

    def hand_over(item: T | _Failure) -> None:
        while not gone.is_set():
            with contextlib.suppress(queue.Full):
                ready.put(item, timeout=_PATIENCE_SECONDS)
                return

    def work() -> None:
        try:
            if prepare is not None:
                prepare()
            for item in source:
                hand_over(item)
                if gone.is_set():
                    return
        except BaseException as error:  # whatever it is, it belongs to the reader
            hand_over(_Failure(error))
        else:
            hand_over(_Failure(None))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, _Failure):
                if item.error is not None:
                    raise item.error
                return
            yield item
    finally:
        gone.set()
        thread.join()
        close = getattr(source, "close", None)
        if close is not None:
            close()
