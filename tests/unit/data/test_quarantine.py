"""Unreadable samples are counted and logged; too many stop the run."""

from __future__ import annotations

import logging

import pytest

from m4oe_ds.data.quarantine import Quarantine
from m4oe_ds.errors import DataError


@pytest.mark.parametrize(
    ("total", "fraction", "allowed"), [(10, 0.0, 1), (10, 0.001, 1), (100, 0.05, 5), (1000, 0.0015, 1), (4, 0.5, 2)]
)
def test_the_allowed_share_is_tolerated_and_one_more_stops(total: int, fraction: float, allowed: int) -> None:
    quarantine = Quarantine(total, fraction)
    for number in range(allowed):
        quarantine.add(f"shard[{number}]", "damaged")
    with pytest.raises(DataError, match=rf"{allowed + 1} of {total} samples are unreadable.*the last because: lost"):
        quarantine.add("shard[99]", "lost")


def test_a_sample_met_every_epoch_counts_once() -> None:
    quarantine = Quarantine(10, 0.0)
    for _ in range(5):
        quarantine.add("shard[3]", "damaged")
    assert quarantine.reasons == {"shard[3]": "damaged"}


def test_each_is_logged_once_with_place_and_reason(caplog: pytest.LogCaptureFixture) -> None:
    quarantine = Quarantine(100, 0.1)
    with caplog.at_level(logging.WARNING):
        quarantine.add("shard[3]", "damaged header")
        quarantine.add("shard[3]", "damaged header")
        quarantine.add("shard[4]", "too short")
    assert [record.getMessage() for record in caplog.records] == [
        "sample shard[3] left out: damaged header",
        "sample shard[4] left out: too short",
    ]


def test_the_error_says_what_to_do() -> None:
    quarantine = Quarantine(10, 0.0)
    quarantine.add("a", "x")
    with pytest.raises(DataError, match=r"data\.max_bad_fraction"):
        quarantine.add("b", "y")
