"""Bytes of this process's collectives, from the log that DeepSpeed keeps of them.

Its latencies are not used: in 0.19.8 the timer of an operation is read without being reset, so each is the sum of all
before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import deepspeed.comm as dist
from deepspeed.comm.comm import comms_logger, configure


@dataclass(frozen=True)
class Traffic:
    """One kind of collective: number of ``calls``, and ``bytes`` handed to it on this rank."""

    calls: int
    bytes: int


def start() -> None:
    """Starts counting. Every collective then waits for its end: not for normal training."""
    comms_logger.reset_data()
    configure(enabled=dist.is_initialized(), prof_all=True, verbose=False)


def stop() -> dict[str, Traffic]:
    """Ends counting; what was counted, by the name of the collective."""
    configure(enabled=False, prof_all=False)
    found = {}
    for name, sizes in comms_logger.get_raw_data().items():
        calls = sum(entry[0] for entry in sizes.values())
        found[name] = Traffic(calls, sum(int(size) * entry[0] for size, entry in sizes.items()))
    comms_logger.reset_data()
    return found
