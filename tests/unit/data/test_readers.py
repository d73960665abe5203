"""A reader process that dies, or cannot hand over its samples, ends training in a line and never in a hang."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from m4oe_ds.data import readers
from m4oe_ds.data.prefetch import prefetched
from m4oe_ds.errors import EnvironmentProblem

pytestmark = pytest.mark.timeout(120)


class Rows(IterableDataset):  # type: ignore[type-arg]
    """Tensors, and one thing that happens after two of them."""

    def __init__(self, happens: str) -> None:
        self.happens = happens

    def __iter__(self) -> Iterator[object]:
        for number in range(6):
            if number == 2 and self.happens == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if number == 2 and self.happens == "ended":
                os._exit(3)
            if number == 2 and self.happens == "cannot be sent":
                yield lambda: None  # nothing that can be handed to another process
                continue
            if number == 2 and self.happens == "raises":
                raise ValueError("a fault of the code")
            yield torch.full((2,), float(number))


def loader(happens: str) -> DataLoader[object]:
    return DataLoader(
        Rows(happens),
        batch_size=None,
        num_workers=1,
        worker_init_fn=readers.start_reader,
        multiprocessing_context="fork",
    )


def read(happens: str) -> list[object]:
    return list(readers.watched(readers.start_reading(loader(happens))))


def test_a_reader_that_works() -> None:
    assert [int(row[0]) for row in read("nothing")] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("happens", "said"),
    [
        ("killed", "a reader process was killed by SIGKILL (/dev/shm has "),
        ("ended", "a reader process ended by itself with status 3 (/dev/shm has "),
        ("cannot be sent", "a reader process could not hand over its samples: /dev/shm has "),
    ],
)
def test_a_reader_that_dies_is_one_line(happens: str, said: str) -> None:
    with pytest.raises(EnvironmentProblem, match=re.escape(said)) as caught:
        read(happens)
    assert str(caught.value).startswith("data.workers: ")
    assert "data.workers=0" in str(caught.value) or "fewer data.workers" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_fault_of_the_code_stays_one() -> None:
    with pytest.raises(ValueError, match="a fault of the code"):
        read("raises")


def test_it_is_one_line_wherever_the_main_thread_is() -> None:
    """Batches are read ahead in a thread; the main thread computes, and gets the line in place of a batch."""
    ahead = prefetched(readers.watched(readers.start_reading(loader("killed"))), 2)
    assert int(next(ahead)[0]) == 0
    deadline = time.monotonic() + 8
    while time.monotonic() < deadline:  # what would be interrupted by a handler of the signal
        sum(range(1000))
    with pytest.raises(EnvironmentProblem, match="was killed by SIGKILL"):
        list(ahead)


def test_other_errors_pass_through() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise RuntimeError("shapes differ")

    found = readers.watched(items())
    next(found)
    with pytest.raises(RuntimeError, match="shapes differ"):
        next(found)


@pytest.mark.parametrize(("code", "said"), [(-7, "could not hand over"), (74, "could not hand over"), (1, "status 1")])
def test_what_an_exit_status_means(code: int, said: str) -> None:
    assert said in readers._told(code)[0]


def test_free_space_of_a_folder(tmp_path: Path) -> None:
    assert (readers._free(str(tmp_path)) or 0) > 0
    assert readers._free(str(tmp_path / "absent")) is None
