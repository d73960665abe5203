"""Large intermediate arrays in pieces that stay in the cache of a CPU."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

# Measured on a CPU with 1 MB of second-level cache per core (docs/reports/benchmarks.md): the same from 2 to 12 MB.
# Arrays beyond 32 MB are also given back to the system each time by the C library, and cleared page by page when they
# are made again.
PASS_BYTES = 6 << 20
_whole: ContextVar[bool] = ContextVar("whole", default=False)


class Pass(NamedTuple):
    """Rows ``start`` to ``stop`` of dimension 0."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of rows."""
        return self.stop - self.start

    def of(self, tensor: Tensor) -> Tensor:
        """View of those rows."""
        return tensor[self.start : self.stop]


def passes(like: Tensor, count: int, elements: int, *, single: bool = False) -> tuple[Pass, ...]:
    """Splits ``count`` rows, of which each needs ``elements`` of the dtype of ``like`` at once.

    One pass on other devices than CPUs, which want few large kernels, and where the whole is small. Passes differ by at
    most one row, the first is the longest. ``single``: one row each.
    """
    each = max(1, elements * like.element_size())
    if like.device.type != "cpu" or _whole.get() or torch.compiler.is_compiling() or count < 2:
        return (Pass(0, count),)
    number = count if single else -(-count // max(1, PASS_BYTES // each))
    short, longer = divmod(count, number)
    ends = [0]
    for i in range(number):
        ends.append(ends[-1] + short + (i < longer))
    return tuple(Pass(a, b) for a, b in itertools.pairwise(ends))


@contextlib.contextmanager
def whole() -> Iterator[None]:
    """Within the block everything is one pass, as on a GPU."""
    token = _whole.set(True)
    try:
        yield
    finally:
        _whole.reset(token)
