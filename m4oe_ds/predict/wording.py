"""Words and names that the command and the run of ``m4oe predict`` share."""

from __future__ import annotations

REASONS_SHOWN = 4


def counted(reasons: dict[str, int], shown: int | None = None) -> str:
    """``name number`` of the most frequent reasons."""
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{name} {number}" for name, number in ordered[:shown])
