"""Mappings of a card, read key by key; what is wrong is collected, each with its file and line."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from m4oe_ds.yaml_tree import Node, nearest, plain

NAME = re.compile(r"[a-z][a-z0-9_]*")
COLUMN = re.compile(r"\{([^{}]*)\}")


@dataclass
class Problems:
    """What is wrong with a card, one line each."""

    lines: list[str] = field(default_factory=list)

    def add(self, where: str, what: str) -> None:
        """Notes a problem at a place."""
        self.lines.append(f"{where}: {what}")


class Part:
    """One mapping of a card.

    Args:
        node: the mapping; another value is a problem, and is read as an empty mapping.
        path: its dotted name, for the messages.
        problems: where to note what is wrong.
    """

    def __init__(self, node: Node, path: str, problems: Problems) -> None:
        self.path, self.problems, self.where = path, problems, node.where
        if not isinstance(node.value, dict):
            problems.add(node.where, f"{path or 'the card'} must be a mapping, got {plain(node)!r}")
        self.nodes: dict[str, Node] = node.value if isinstance(node.value, dict) else {}
        self._asked: set[str] = set()

    def wrong(self, key: str, what: str) -> None:
        """Notes that the value of a key is wrong."""
        place = self.nodes[key].where if key in self.nodes else self.where
        self.problems.add(place, f"{self.dotted(key)} {what}")

    def dotted(self, key: str) -> str:
        """Name of a key with those of the mappings around it."""
        return f"{self.path}.{key}" if self.path else key

    def has(self, key: str) -> bool:
        """Whether the key was given."""
        return self._take(key) is not None

    def _take(self, key: str) -> Node | None:
        self._asked.add(key)
        node = self.nodes.get(key)
        return None if node is None or node.value is None else node

    def require(self, *keys: str) -> None:
        """Notes every key that is missing."""
        for key in keys:
            if not self.has(key):
                self.problems.add(self.where, f"{self.dotted(key)} is missing")

    def text(self, key: str, default: str = "") -> str:
        """A text (a number is taken as one)."""
        node = self._take(key)
        if node is None:
            return default
        if isinstance(node.value, bool) or not isinstance(node.value, str | int | float):
            self.wrong(key, f"must be text, got {plain(node)!r}")
            return default
        return str(node.value).strip()

    def choice(self, key: str, known: Sequence[str], default: str = "") -> str:
        """One of the known words."""
        value = self.text(key, default)
        if value and value not in known:
            self.wrong(key, f"{value!r} is not known{nearest(value, known)}")
            return default
        return value

    def name(self, key: str) -> str:
        """A name of a modality or task, checked later against those that exist."""
        return self.text(key)

    def whole(self, key: str, default: int, least: int, most: int) -> int:
        """A whole number within bounds."""
        node = self._take(key)
        if node is None:
            return default
        if isinstance(node.value, bool) or not isinstance(node.value, int) or not least <= node.value <= most:
            self.wrong(key, f"must be a whole number from {least} to {most}, got {plain(node)!r}")
            return default
        return node.value

    def number(self, key: str, default: float | None) -> float | None:
        """A number."""
        node = self._take(key)
        if node is None:
            return default
        value = _number(node)
        if value is None:
            self.wrong(key, f"must be a number, got {plain(node)!r}")
            return default
        return value

    def numbers(self, key: str, count: int = 0, ascending: bool = True) -> tuple[float, ...]:
        """A list of numbers; one number is a list of one.

        Args:
            key: name of the list.
            count: how many there must be; 0 = any.
            ascending: whether each must be larger than the one before.
        """
        node = self._take(key)
        if node is None:
            return ()
        values = [_number(item) for item in (node.value if isinstance(node.value, list) else [node])]
        known = [value for value in values if value is not None]
        if len(known) < len(values) or (count and len(known) != count) or not known:
            self.wrong(key, f"must be {count or 'some'} numbers in a list, got {plain(node)!r}")
            return ()
        if ascending and any(b <= a for a, b in itertools.pairwise(known)):
            self.wrong(key, f"must ascend, got {plain(node)!r}")
            return ()
        return tuple(known)

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, each once."""
        node = self._take(key)
        if node is None:
            return ()
        items = node.value if isinstance(node.value, list) else [node]
        if any(isinstance(item.value, dict | list) or item.value is None for item in items):
            self.wrong(key, f"must be a list of texts, got {plain(node)!r}")
            return ()
        words = [str(item.value).strip() for item in items]
        if "" in words:
            self.wrong(key, f"has an empty text in its list, got {plain(node)!r}")
            return ()
        twice = sorted({word for word in words if words.count(word) > 1})
        if twice:
            self.wrong(key, f"lists {', '.join(twice)} twice")
            return ()
        return tuple(words)

    def part(self, key: str) -> Part:
        """A mapping below this one; an empty one if it is not there."""
        return Part(self._take(key) or Node({}, self.where), self.dotted(key), self.problems)

    def parts(self) -> Iterator[tuple[str, Part]]:
        """Every key with the mapping below it."""
        for key in self.nodes:
            yield key, self.part(key)

    def node(self, key: str) -> Node | None:
        """The value of a key, of whatever type."""
        return self._take(key)

    def finish(self) -> None:
        """Notes every key that nobody asked for."""
        for key, node in self.nodes.items():
            if key not in self._asked:
                self.problems.add(node.where, f"unknown key {self.dotted(key)}{nearest(key, sorted(self._asked))}")


def _number(node: Node) -> float | None:
    if isinstance(node.value, bool) or not isinstance(node.value, int | float | str):
        return None
    try:
        value = float(node.value)  # also text such as 1e-4, which YAML does not take for a number
    except ValueError:
        return None
    return value if value == value and abs(value) != float("inf") else None
