"""Signals become an agreed stop: every rank finishes the same optimizer step, then the run saves and ends."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import torch

from m4oe_ds.parallel import reduce


class StopRequest:
    """Remembers SIGTERM, SIGINT and SIGUSR1; :meth:`agreed` makes it the same decision on every rank.

    Handlers only set a flag: nothing is saved or left inside a handler or a collective. A second SIGINT interrupts.
    """

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def agreed(self, device: torch.device) -> int:
        """The highest signal number any rank received, 0 for none. Collectives: one all-reduce of one number."""
        return int(reduce.maximum_over_ranks(torch.tensor(self.received, device=device)))
