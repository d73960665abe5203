"""Words and names that the command and the run of ``m4oe predict`` share."""

from __future__ import annotations

from collections.abc import Sequence

REASONS_SHOWN = 4
ROWS_SHOWN = 10


def counted(reasons: dict[str, int], shown: int | None = None) -> str:
    """``name number`` of the most frequent reasons."""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {number}" for name, number in ordered[:shown])


def numbered(rows: Sequence[int]) -> str:
    """The first of several row numbers, and how many more there are."""
    more = f" and {len(rows) - ROWS_SHOWN} more" if len(rows) > ROWS_SHOWN else ""
    return ", ".join(map(str, rows[:ROWS_SHOWN])) + more
