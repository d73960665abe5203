"""YAML files and ``--set`` options into the typed tree, with the file and line of every mistake."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from m4oe_ds import shipped
from m4oe_ds.config import Config
from m4oe_ds.config_checks import contradictions
from m4oe_ds.data.cards import is_path
from m4oe_ds.errors import ConfigError
from m4oe_ds.yaml_tree import Node, nearest, plain, read_tree, to_tree


@dataclass(frozen=True)
class _Findings:
    """What reading a tree found out.

    Attributes:
        problems: one line each.
        places: file and line, or ``--set`` option, of every option that was given, by its dotted name.
    """

    problems: list[str] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)

    def place(self, *names: str, otherwise: str) -> str:
        """Where the first of ``names`` that was given stands."""
        return next((self.places[name] for name in names if name in self.places), otherwise)


def load(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """The configuration of ``path`` (with its ``extends`` chain) after ``--set`` overrides ``dotted.key=value``.

    ``path`` and what ``extends`` names are files, or names of shipped configurations such as ``embed``.

    Raises:
        ConfigError: file missing, unknown key (with the nearest known one), wrong type, value out of bounds,
            contradiction; all findings of a round are reported together, one line each.
    """
    path = None if path is None else shipped.find(shipped.CONFIG, path)
    tree, found = _tree(path, overrides), _Findings()
    config = _build(Config, tree, "", found)
    if not found.problems:
        config = _with_card(config, found)
        found.problems.extend(contradictions(config, str(path) if path is not None else "configuration", found))
    if found.problems:
        raise ConfigError("\n".join(found.problems))
    return config


def place_of(path: str | Path | None, overrides: Sequence[str], *names: str) -> str:
    """Where the first of some options that was given stands: file and line, or the ``--set`` option; else the file.

    For what shows only when a model is built: an option in a mapping of free ones may come from a file that the user's
    own extends.

    Args:
        path: as :func:`load` took it.
        overrides: as :func:`load` took them.
        *names: dotted names.
    """
    found = _Findings()
    _build(Config, _tree(path, overrides), "", found)
    return found.place(*names, otherwise=str(path) if path is not None else "configuration")


def _tree(path: str | Path | None, overrides: Sequence[str]) -> Node:
    """What a file and the options after it say, not yet checked."""
    tree = _read(shipped.find(shipped.CONFIG, path), ()) if path is not None else Node({}, "defaults")
    for text in overrides:
        tree = _merge(tree, _parse_override(text), _FREE)
    return tree


def _with_card(config: Config, found: _Findings) -> Config:
    """The configuration with the path of its card made absolute: a file names it relative to itself."""
    name = config.data.dataset
    if not is_path(name):
        return config
    file, _, line = found.place("data.dataset", otherwise="").rpartition(":")
    folder = Path(file).parent if line.isdigit() else Path()
    beside = folder / name
    path = beside if beside.is_file() else Path(name)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, dataset=str(path.absolute())))


def _read(path: Path, seen: tuple[Path, ...]) -> Node:
    if path.resolve() in seen:
        raise ConfigError("`extends` leads back to this file", str(path), "remove one of the references")
    tree = read_tree(path)
    if not isinstance(tree.value, dict):
        raise ConfigError("must be a mapping of sections", str(path))
    base = tree.value.pop("extends", None)
    if base is None:
        return tree
    beside = path.parent / str(base.value)
    try:
        file = beside if beside.is_file() else shipped.find(shipped.CONFIG, str(base.value))
    except ConfigError as error:
        raise ConfigError(f"`extends`: {error.what}", base.where, error.fix) from None
    return _merge(_read(file, (*seen, path.resolve())), tree)


def _parse_override(text: str) -> Node:
    key, separator, value = text.partition("=")
    where = f"--set {text}"
    if not separator or not key:
        raise ConfigError("must have the form section.key=value", where)
    try:
        composed = yaml.compose(value, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        raise ConfigError("the value is not valid YAML", where) from None
    node = to_tree(composed, where) if composed is not None else Node("", where)
    _relabel(node, where)
    for part in reversed(key.split(".")):
        node = Node({part: node}, where, dotted=True)
    return node


def _relabel(node: Node, where: str) -> None:
    node.where = where
    children = node.value.values() if isinstance(node.value, dict) else node.value
    if isinstance(node.value, (dict, list)):
        for child in children:
            _relabel(child, where)


def _merge(base: Node, update: Node, whole: frozenset[str] = frozenset(), path: str = "") -> Node:
    """Mappings merge (an empty one clears), everything else is replaced.

    Args:
        base: what was there.
        update: what is put over it.
        whole: dotted names of mappings that are replaced where the update writes them with braces.
        path: dotted name of the two.
    """
    given = isinstance(base.value, dict) and isinstance(update.value, dict) and update.value
    if not given or (path in whole and not update.dotted):
        return update
    merged = dict(base.value)
    for key, node in update.value.items():
        below = f"{path}.{key}" if path else key
        merged[key] = _merge(merged[key], node, whole, below) if key in merged else node
    return Node(merged, update.where)


def _free_mappings(cls: Any, path: str = "") -> Iterator[str]:
    """Dotted names of the options that are mappings without a layout of their own, such as ``model.options``."""
    for name, hint in typing.get_type_hints(cls).items():
        dotted = f"{path}.{name}" if path else name
        if dataclasses.is_dataclass(hint):
            yield from _free_mappings(hint, dotted)
        elif typing.get_origin(hint) is dict and not dataclasses.is_dataclass(typing.get_args(hint)[1]):
            yield dotted


_FREE = frozenset(_free_mappings(Config))


def _build(cls: Any, node: Node, path: str, found: _Findings) -> Any:
    hints = typing.get_type_hints(cls)
    if not isinstance(node.value, dict):
        what = f"{path or 'the file'} must be a mapping, got {_shown(node)}"
        found.problems.append(f"{node.where}: {what}; its options: {', '.join(hints)}")
        return None
    values = {}
    for key, child in node.value.items():
        dotted = f"{path}.{key}" if path else key
        if key not in hints:
            glued = "; write a blank after the colon" if ":" in key else ""
            found.problems.append(f"{child.where}: unknown key {dotted}{nearest(key, list(hints))}{glued}")
            continue
        values[key] = _value(hints[key], child, dotted, found)
    return None if found.problems else cls(**values)


def _value(hint: Any, node: Node, path: str, found: _Findings) -> Any:
    """Checked and converted value of one field; adds to the problems and returns None where it does not fit."""
    found.places[path] = node.where
    if dataclasses.is_dataclass(hint):
        return _build(hint, node, path, found)
    if (origin := typing.get_origin(hint)) is not None:
        return _GENERIC[origin](typing.get_args(hint), node, path, found)
    expected, convert = _PLAIN[hint]
    try:
        return convert(node)
    except (TypeError, ValueError):
        return _reject(expected, node, path, found)


def _choice(allowed: tuple[Any, ...], node: Node, path: str, found: _Findings) -> Any:
    if node.value in allowed:
        return node.value
    return _reject(f"one of {', '.join(map(str, allowed))}", node, path, found)


def _sequence(arguments: tuple[Any, ...], node: Node, path: str, found: _Findings) -> tuple[Any, ...]:
    """A tuple; a single value is a tuple of one."""
    items = node.value if isinstance(node.value, list) else [node]
    values = tuple(_value(arguments[0], item, path, found) for item in items)
    found.places[path] = node.where  # not that of the last item
    return values


def _mapping(arguments: tuple[Any, ...], node: Node, path: str, found: _Findings) -> Any:
    if not isinstance(node.value, dict):
        return _reject("a mapping", node, path, found)
    for key, child in node.value.items():
        if ":" in key and child.value is None:  # {a:1} is the key a:1 without a value
            found.problems.append(
                f"{child.where}: {path} has a key {key!r} without a value; write a blank after the colon"
            )
    return {key: _value(arguments[1], child, f"{path}.{key}", found) for key, child in node.value.items()}


def _boolean(node: Node) -> bool:
    if isinstance(node.value, bool):
        return node.value
    raise TypeError


def _whole(node: Node) -> int:
    if isinstance(node.value, int) and not isinstance(node.value, bool):
        return node.value
    raise TypeError


def _number(node: Node) -> float:
    if isinstance(node.value, bool):
        raise TypeError
    value = float(node.value)  # also text such as 1e-4, which YAML does not take for a number
    if not math.isfinite(value):
        raise ValueError
    return value


def _text(node: Node) -> str:
    if isinstance(node.value, (str, int, float)) and not isinstance(node.value, bool):
        return str(node.value)
    raise TypeError


def _reject(expected: str, node: Node, path: str, found: _Findings) -> None:
    found.problems.append(f"{node.where}: {path} must be {expected}, got {_shown(node)}")


def _shown(node: Node) -> str:
    """A value as YAML writes it, where that differs from Python."""
    value = plain(node)
    return yaml.safe_dump(value).split()[0] if value is None or isinstance(value, bool) else repr(value)


# Every type that an option can have: what its message says was expected, and the converter.
_PLAIN: dict[Any, tuple[str, Callable[[Node], Any]]] = {
    bool: ("true or false", _boolean),
    int: ("a whole number", _whole),
    float: ("a finite number", _number),
    str: ("text", _text),
    Any: ("any value", plain),
}
_GENERIC: dict[Any, Callable[[tuple[Any, ...], Node, str, _Findings], Any]] = {
    Literal: _choice,
    tuple: _sequence,
    dict: _mapping,
}
