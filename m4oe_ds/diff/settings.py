"""What two runs were made from, key by key."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from m4oe_ds.diff.sides import Side

ABSENT = "–"  # of a key that only the other side has
# what of environment.json can explain a difference; the rest is a consequence (number of parameters) or a name
_FACTS = ("versions", "python", "git", "hardware", "synthetic", "world", "ep_size", "device", "batch", "data_digest")


@dataclass(frozen=True)
class Difference:
    """A key with two values.

    Attributes:
        source: ``configuration``, ``DeepSpeed``, ``card`` or ``environment``.
        key: dotted name.
        first: value of the first run, as text.
        second: value of the second run, as text.
    """

    source: str
    key: str
    first: str
    second: str


def differences(first: Side, second: Side) -> list[Difference]:
    """Every key with different values, in the order of the files."""
    pairs = (
        ("configuration", first.config, second.config),
        ("DeepSpeed", first.ds_config, second.ds_config),
        ("card", first.card.content, second.card.content),
        ("environment", _facts(first), _facts(second)),
    )
    found = []
    for source, one, other in pairs:
        left, right = dict(_leaves(one)), dict(_leaves(other))
        for key in dict.fromkeys([*left, *right]):
            if left.get(key, ABSENT) != right.get(key, ABSENT) or (key in left) != (key in right):
                found.append(Difference(source, key, _text(left, key), _text(right, key)))
    return found


def _facts(side: Side) -> dict[str, Any]:
    return {name: side.environment[name] for name in _FACTS if name in side.environment}


def _leaves(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values; an empty mapping is a value."""
    for name, value in tree.items():
        dotted = f"{path}.{name}" if path else str(name)
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, dotted)
        else:
            yield dotted, value


def _text(leaves: Mapping[str, Any], key: str) -> str:
    if key not in leaves:
        return ABSENT
    value = leaves[key]
    return "" if value == "" else str(value).lower() if isinstance(value, bool) else str(value)
