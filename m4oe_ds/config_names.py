"""Whether the texts of a configuration that are names of something name something: data sets, tasks, systems."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from m4oe_ds.config import Config
from m4oe_ds.config_fields import Names
from m4oe_ds.data.cards import Card, find_card
from m4oe_ds.data.schema import SPLITS
from m4oe_ds.errors import ConfigError
from m4oe_ds.models import backbone_names
from m4oe_ds.models.systems import available
from m4oe_ds.yaml_tree import nearest


class Places(Protocol):
    """Where options were given."""

    def place(self, *names: str, otherwise: str) -> str:
        """File and line, or ``--set`` option, of the first of ``names`` that was given."""
        ...


# what the names of a kind are, in the words of a message, and which there are; of what is not here a function judges
_KNOWN: dict[Names, Callable[[Card], tuple[str, Sequence[str]]]] = {
    "modalities": lambda card: (f"the modalities of {card.name}", card.modalities),
    "tasks": lambda card: (f"the tasks of {card.name}", [task.name for task in card.tasks]),
    "splits": lambda card: ("the splits", SPLITS),
}


def unknown(config: Config, where: str, found: Places) -> Iterator[str]:
    """A line for every name that nothing has, or that is given twice.

    Args:
        config: the tree.
        where: what to name for an option that was not given.
        found: where options were given.
    """
    try:
        card = find_card(config.data.dataset)
    except ConfigError as error:
        place = found.place("data.dataset", otherwise=where)
        named = Path(config.data.dataset).is_file()
        yield str(error) if named else f"{place}: data.dataset: {error}"
        card = None
    for option, kind, values in _named(config, ""):
        place = found.place(option, otherwise=where)
        if kind == "a system" and ":" not in values[0] and values[0] not in available():
            yield f"{place}: unknown {option} {values[0]!r}{nearest(values[0], available())}"
        # a class of one's own may register networks of its own when it is imported
        own = ":" in config.model.name
        if kind == "a network of timm" and not own and (what := backbone_names.unknown(values[0])):
            yield f"{place}: {option}: {what}"
        if kind not in _KNOWN or card is None:
            continue
        words, known = _KNOWN[kind](card)
        for name in values:
            if name not in known:
                place = found.place(f"{option}.{name}", option, otherwise=where)
                yield f"{place}: {option}: {name!r} is not one of {words}{nearest(name, known)}"
        yield from repeated(option, values, place)


def repeated(option: str, names: Sequence[str], place: str) -> Iterator[str]:
    """A line if a list has names twice.

    Args:
        option: dotted name of the list.
        names: in it.
        place: where it was given.
    """
    if twice := sorted({name for name in names if names.count(name) > 1}):
        yield f"{place}: {option} lists {', '.join(twice)} twice"


def _named(section: Any, path: str) -> Iterator[tuple[str, Names, Sequence[str]]]:
    """Dotted name, kind and texts of every option below a section whose texts are names."""
    for item in dataclasses.fields(section):
        name, value = f"{path}{item.name}", getattr(section, item.name)
        if (kind := item.metadata.get("names")) is not None:
            yield name, kind, [value] if isinstance(value, str) else list(value)
        if dataclasses.is_dataclass(value):
            yield from _named(value, f"{name}.")
        elif isinstance(value, Mapping):
            for key, entry in value.items():
                if dataclasses.is_dataclass(entry):
                    yield from _named(entry, f"{name}.{key}.")
