"""Cards: what a data set is. One YAML file each; those in ``shipped`` are known by name.

A configuration names a card with ``data.dataset``: a shipped name, or the path of a file.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from m4oe_ds.data.cards.card import Card, LabelSource, MaskFile, Source, Subgroup
from m4oe_ds.data.cards.parse import parse_card, read_card
from m4oe_ds.errors import ConfigError
from m4oe_ds.yaml_tree import parse_tree

__all__ = [
    "Card",
    "LabelSource",
    "MaskFile",
    "Source",
    "Subgroup",
    "card_from",
    "find_card",
    "is_path",
    "parse_card",
    "read_card",
    "shipped",
    "write_card",
]

_SHIPPED = Path(__file__).with_name("shipped")


def shipped() -> tuple[str, ...]:
    """Names of the cards that come with the package, sorted."""
    return tuple(sorted(path.stem for path in _SHIPPED.glob("*.yaml")))


def is_path(name: str) -> bool:
    """Whether ``data.dataset`` names a file and not a shipped card."""
    return "/" in name or "\\" in name or name.endswith((".yaml", ".yml"))


def find_card(name: str) -> Card:
    """The card of a shipped name or a path.

    Raises:
        ConfigError: no such card (with the nearest shipped one), or mistakes in it.
    """
    path = Path(name) if is_path(name) else _SHIPPED / f"{name}.yaml"
    if not path.is_file():
        if is_path(name):
            raise ConfigError("no such card", name, "give the path of a card, or the name of a shipped one")
        close = difflib.get_close_matches(name, shipped(), n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(
            f"unknown data set {name!r}", fix=f"{hint}known: {', '.join(shipped())}, or the path of a card (my.yaml)"
        )
    return _read(str(path), path.stat().st_mtime_ns)


@lru_cache(maxsize=64)
def _read(path: str, _changed: int) -> Card:
    return read_card(Path(path))


def card_from(content: Mapping[str, Any], where: str) -> Card:
    """The card that a manifest carries.

    Raises:
        ConfigError: it is damaged.
    """
    return _parsed(json.dumps(content), where)


@lru_cache(maxsize=64)
def _parsed(text: str, where: str) -> Card:
    return parse_card(parse_tree(text, where), where)


def write_card(path: Path, card: Card) -> None:
    """Writes a card as YAML that :func:`read_card` reads back."""
    temporary = path.with_name(f".{path.name}")
    text = yaml.safe_dump(dict(card.content), sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
