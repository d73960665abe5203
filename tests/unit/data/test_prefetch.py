"""Batches made ahead by a thread: the same ones in the same order, failures in their place, nothing left running."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import pytest

from m4oe_ds.data.prefetch import prefetched

SECONDS = 900.0  # a test that hangs fails then


def running() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.mark.parametrize("ahead", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 5, 20])
def test_items_come_in_their_order_and_the_thread_ends(ahead: int, count: int) -> None:
    assert list(prefetched(iter(range(count)), ahead)) == list(range(count))
    assert not running()


def test_the_next_items_are_made_while_one_is_used_but_no_more_than_asked() -> None:
    """Item 0 is held until items 1 to 3 were made (3 ready); the fifth waits in the thread's hand, the sixth is not
    begun.
    """
    made = [threading.Event() for _ in range(10)]

    def source() -> Iterator[int]:
        for number, event in enumerate(made):
            event.set()
            yield number

    items = prefetched(source(), 3)
    assert next(items) == 0
    for number in range(1, 5):
        assert made[number].wait(SECONDS)
    assert not made[5].wait(0.3)
    assert list(items) == list(range(1, 10))


def test_an_exception_comes_in_the_place_of_its_item() -> None:
    def source() -> Iterator[int]:
        yield from (0, 1)
        raise RuntimeError("third")

    items = prefetched(source(), 8)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(RuntimeError, match="third"):
        next(items)
    assert not running()


def test_a_reader_that_stops_ends_the_thread_and_closes_the_source() -> None:
    closed = threading.Event()

    def source() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.set()

    items = prefetched(source(), 2)
    assert next(items) == 0
    items.close()  # type: ignore[attr-defined]
    assert closed.is_set()
    assert not running()


def test_preparation_happens_first_and_in_the_thread() -> None:
    where: list[str] = []
    items = prefetched(
        (where.append("item") or n for n in range(2)), 1, lambda: where.append(threading.current_thread().name)
    )  # type: ignore[func-returns-value]
    assert list(items) == [0, 1]
    assert where[:2] == ["prefetch", "item"]

    def fail() -> None:
        raise OSError("no such GPU")

    with pytest.raises(OSError, match="no such GPU"):
        next(prefetched(iter([1]), 1, fail))
