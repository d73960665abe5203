"""Progress of long work, said one way everywhere: a bar on a terminal, elsewhere a plain line now and then."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from types import TracebackType
from typing import Any, Generic, TextIO, TypeVar

T = TypeVar("T")
LINE_EVERY_S = 30.0
_FIRST_LINE_S = 5.0


def duration(seconds: float) -> str:
    """``h:mm:ss`` of a time in seconds, rounded down; ``?`` where it is not known."""
    if not 0 <= seconds < float("inf"):
        return "?"
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def hours(seconds: float) -> str:
    """``h:mm h`` of a time in seconds, rounded up to the minute; ``?`` where it is not known."""
    if not 0 <= seconds < float("inf"):
        return "?"
    minutes = -int(-seconds // 60)
    return f"{minutes // 60}:{minutes % 60:02d} h"


def on_terminal(stream: TextIO) -> bool:
    """Whether a stream shows a bar; ``M4OE_PROGRESS=1`` says so of a pipe, ``0`` never."""
    choice = os.environ.get("M4OE_PROGRESS", "")
    return choice == "1" or (choice != "0" and stream.isatty())


class Progress:
    """A piece of work of known or unknown length.

    On a terminal a bar with rate and time left. Elsewhere, such as the file a scheduler writes, a line after the first
    seconds and then at least every ``every_s`` seconds, also while a single item takes longer than that, and none for
    work that is done before; never a carriage return.

    Args:
        what: the work, as it stands before the figures.
        total: number of items; None = not known.
        unit: what an item is, in the plural; empty = nothing is counted, only time is told.
        stream: where to write; default standard error.
        every_s: longest silence, seconds.
        done: items that were done before.
        clock: writes the time left: :func:`duration`, or :func:`hours` for work of hours.
    """

    def __init__(
        self,
        what: str,
        total: int | None,
        unit: str,
        *,
        stream: TextIO | None = None,
        every_s: float = LINE_EVERY_S,
        done: int = 0,
        clock: Callable[[float], str] = duration,
    ) -> None:
        self._clock = clock
        self.what, self.total, self.unit, self.done = what, total, unit, done
        self._stream = stream or sys.stderr
        self._every, self._first = every_s, min(_FIRST_LINE_S, every_s)
        self._from, self._started = done, time.monotonic()
        self._warm: tuple[float, int] | None = None  # time and count of the first update: it may hold a start-up
        self._said, self._lines, self._note = self._started, 0, ""
        self._bar: Any = None
        self._watch: threading.Thread | None = None
        self._over = threading.Event()
        self._lock = threading.Lock()
        if on_terminal(self._stream):
            from tqdm import tqdm

            self._bar = tqdm(
                total=total,
                initial=done,
                desc=what,
                unit=f" {unit}",
                file=self._stream,
                dynamic_ncols=True,
                leave=False,
            )

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close(failed=kind is not None)

    def update(self, items: int = 1, note: str = "") -> None:
        """Counts items as done; the note stands behind the figures."""
        self.done += items
        self._note = note or self._note
        self._warm = self._warm or (time.monotonic(), self.done)
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(items)
        else:
            self._start_watch()
            self._say_if_due()

    def say(self, text: str) -> None:
        """A line of its own on standard output, which does not break a bar."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stdout)
        else:
            sys.stdout.write(text + "\n")
        sys.stdout.flush()

    def clear(self) -> None:
        """Takes the bar off the terminal for what somebody else prints next; the next update draws it again."""
        if self._bar is not None:
            self._bar.clear()

    def close(self, failed: bool = False) -> None:
        """Ends the bar, or says the last figures if any were said before."""
        if self._over.is_set():
            return
        self._over.set()
        if self._bar is not None:
            self._bar.close()
        elif self._lines and not failed:
            self._write(f"{self._counted()} in {duration(time.monotonic() - self._started)}")

    def line(self) -> str:
        """What is said: such as ``samples: 120 of 2,000 (6 %), 35.2/s, 0:00:53 left``."""
        now = time.monotonic()
        parts = [self._counted()]
        if rate := self._rate(now):
            parts.append(f"{rate:.1f}/s" if rate >= 1 else f"{1 / rate:.0f} s each")
        if rate and self.total is not None and self.done - self._from > 1:
            parts.append(f"{self._clock((self.total - self.done) / rate)} left")
        else:
            parts.append(f"{duration(now - self._started)} so far")
        return ", ".join([*parts, self._note] if self._note else parts)

    def _rate(self, now: float) -> float:
        """Items per second since the first update, or since the start where that was the only one; 0 = not known."""
        begun, before = self._started, self._from
        if self._warm and self.done > self._warm[1]:
            begun, before = self._warm
        return (self.done - before) / (now - begun) if now > begun else 0.0

    def start(self) -> Progress:
        """Begins to report before the first item is done: for work whose items are long."""
        if self._bar is None:
            self._start_watch()
        return self

    def _counted(self) -> str:
        if self.total is None:
            return f"{self.what}: {self.done:,} {self.unit}" if self.unit else self.what
        share = f" ({self.done / self.total:.0%})" if self.total else ""
        return f"{self.what}: {self.done:,} of {self.total:,} {self.unit}{share}"

    def _due(self) -> bool:
        return time.monotonic() - self._said >= (self._every if self._lines else self._first)

    def _say_if_due(self) -> None:
        with self._lock:
            if self._due():
                self._write(self.line())

    def _write(self, text: str) -> None:
        self._said, self._lines = time.monotonic(), self._lines + 1
        self._stream.write(text + "\n")
        self._stream.flush()

    def _start_watch(self) -> None:
        if self._watch is None:
            self._watch = threading.Thread(target=self._watching, name="progress", daemon=True)
            self._watch.start()

    def _watching(self) -> None:
        while not self._over.wait(min(1.0, self._every / 4)):
            self._say_if_due()


class Tracked(Generic[T]):
    """An iterable whose items are counted as they are asked for; see :func:`track`."""

    def __init__(self, items: Iterable[T], progress: Progress) -> None:
        self._items, self.progress = items, progress

    def __iter__(self) -> Iterator[T]:
        with self.progress.start() as progress:
            for item in self._items:
                yield item
                progress.update()


def track(items: Iterable[T], what: str, unit: str, total: int | None = None) -> Tracked[T]:
    """The items of an iterable, with :class:`Progress`.

    Args:
        items: what is worked through; an item counts as done when the next one is asked for.
        what: the work.
        unit: what an item is, in the plural.
        total: number of items; default ``len(items)``, or not known.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    return Tracked(items, Progress(what, total, unit))
