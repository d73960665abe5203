"""Bands of a number: the only form in which a number of a patient, such as an age, reaches a shard."""

from __future__ import annotations

from collections.abc import Sequence

from m4oe_ds.data.cards.card import Subgroup


def band(value: float, borders: Sequence[float]) -> str:
    """The band of a number between ascending borders: ``<40``, ``40-59``, ``>=80``; whole numbers end before the next.

    Args:
        value: the number.
        borders: at least one.
    """
    if value < borders[0]:
        return f"<{borders[0]:g}"
    if value >= borders[-1]:
        return f">={borders[-1]:g}"
    place = next(k for k in range(len(borders) - 1) if value < borders[k + 1])
    low, high = borders[place], borders[place + 1]
    whole = all(border == int(border) for border in borders)
    return f"{low:g}-{high - 1:g}" if whole and high - low > 1 else f"{low:g} to <{high:g}"


def possible_groups(subgroup: Subgroup) -> frozenset[str] | None:
    """All groups that a shard may say; None where the card lets the values of a column pass."""
    if subgroup.values:
        return frozenset(subgroup.values.values())
    if not subgroup.bands:
        return None
    return frozenset(band(value, subgroup.bands) for value in (subgroup.bands[0] - 1, *subgroup.bands))
