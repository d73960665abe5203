"""What a reader sees instead of names: labels of modalities and tasks, classes and sides, as the card has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from m4oe_ds.data.cards import Card


class Words:
    """The words of a card; without one, or where it is silent, the names themselves.

    Args:
        card: card of the data set; None if it is not known.
    """

    def __init__(self, card: Card | None = None) -> None:
        self._tasks = {task.name: task for task in card.tasks} if card else {}
        self._labels = {one.name: one.label for one in card.inputs} if card else {}
        self._sides = dict(card.sides) if card else {}
        self.unit = card.unit if card else "sample"
        self.group = card.group if card else "patient"

    @property
    def groups(self) -> str:
        """Several groups."""
        return f"{self.group}s"

    def task(self, name: str) -> str:
        """A task, as it begins a heading or a row."""
        known = self._tasks.get(name)
        return capital((known.label if known else "") or name)

    def modality(self, name: str) -> str:
        """A modality, likewise."""
        return capital(self._labels.get(name) or name)

    def tasks(self, names: Iterable[str]) -> list[str]:
        """Several tasks."""
        return [self.task(name) for name in names]

    def modalities(self, names: Iterable[str]) -> list[str]:
        """Several modalities."""
        return [self.modality(name) for name in names]

    def column(self, name: str) -> str:
        """A column of a table: its label if it is a task or a modality."""
        known = self._tasks.get(name)
        return capital((known.label if known else "") or self._labels.get(name, "")) or name

    def classes(self, name: str, entry: Mapping[str, Any] | None = None, count: int = 0) -> list[str]:
        """Names of a task's classes, in the order of their codes.

        Args:
            name: the task.
            entry: its entry in ``metrics.json``, which may name the classes too.
            count: how many there are, where nothing names them.
        """
        known = self._tasks.get(name)
        found = list((entry or {}).get("class_names") or (known.class_names if known and known.coded else ()))
        return found + [str(number) for number in range(len(found), count)]

    def side(self, key: str) -> str:
        """The side that the key of a sample ends in, in words; empty if it has none."""
        return self._sides.get(key.rpartition("-")[2], "")

    def sides(self) -> list[str]:
        """All sides that samples have."""
        return list(self._sides.values())

    def subgroup(self, attribute: str, group: str) -> tuple[str, str]:
        """An attribute by which results are told apart and one of its groups, in words."""
        if attribute in self._tasks:
            return self.task(attribute), group
        known = {"side": self._sides, "vendor": {"ge": "GE"}}.get(attribute, {})
        return capital(attribute.replace("_", " ")), known.get(group, group.replace(">=", "≥ "))


def capital(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]


NAMES = Words()
