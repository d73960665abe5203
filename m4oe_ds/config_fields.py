"""Fields of the configuration tree: an option has a default, the sentence that documents it, and what it may be."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

MOST = 10**9  # of every number without an upper limit of its own
Names = Literal["a data set", "a system", "a network of timm", "modalities", "tasks", "splits"]


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a number may be; None = no limit on that side. NaN is within no bound.

    Attributes:
        at_least: smallest value allowed.
        at_most: largest value allowed.
        above: the value must be larger.
        below: the value must be smaller.
    """

    at_least: float | None = None
    at_most: float | None = None
    above: float | None = None
    below: float | None = None

    def hold(self, value: Any) -> bool:
        """Whether a number, or every number of a tuple, is within them, and no slip of the finger."""
        if isinstance(value, tuple):
            return all(self.hold(item) for item in value)
        if self.beyond(value):
            return False
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.at_most is None or value <= self.at_most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def beyond(self, value: Any) -> bool:
        """Whether a number without an upper limit of its own is larger than any that makes sense."""
        free = self.at_most is None and self.below is None
        return free and isinstance(value, (int, float)) and value > MOST

    def __str__(self) -> str:
        """Such as ``at least 0 and at most 1``."""
        limits = ((field.name.replace("_", " "), getattr(self, field.name)) for field in dataclasses.fields(self))
        return " and ".join(f"{name} {_short(limit)}" for name, limit in limits if limit is not None)


def _short(limit: float) -> str:
    return str(limit) if isinstance(limit, int) else f"{limit:g}"


def option(
    default: Any,
    sentence: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    names: Names | None = None,
) -> Any:
    """A field with its default and the sentence that documents it. Mutable defaults are copied per instance.

    Args:
        default: its default.
        sentence: what it means.
        at_least: see :class:`Bounds`.
        at_most: see :class:`Bounds`.
        above: see :class:`Bounds`.
        below: see :class:`Bounds`.
        names: what its texts (the keys of a mapping) are names of; :mod:`m4oe_ds.config_checks` knows which there are.
    """
    bounds = Bounds(at_least=at_least, at_most=at_most, above=above, below=below)
    metadata = {"doc": sentence, "bounds": bounds, "names": names}
    if isinstance(default, (dict, list)):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(cls: type, sentence: str) -> Any:
    """A nested section with all its defaults."""
    return dataclasses.field(default_factory=cls, metadata={"doc": sentence})
