"""YAML files and ``--set`` options into the typed tree, with the file and line of every mistake."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from m4oe_ds.config import CONFIG_VERSION, Bounds, Config
from m4oe_ds.data.cards import find_card, is_path
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

    Raises:
        ConfigError: file missing, unknown key (with the nearest known one), wrong type, value out of bounds,
            contradiction; all findings of a round are reported together, one line each.
    """
    tree = _read(Path(path), ()) if path is not None else Node({}, "defaults")
    for text in overrides:
        tree = _merge(tree, _parse_override(text))
    found = _Findings()
    config = _build(Config, tree, "", found)
    if not found.problems:
        config = _with_card(config, found)
        found.problems.extend(_contradictions(config, str(path) if path is not None else "configuration", found))
    if found.problems:
        raise ConfigError("\n".join(found.problems))
    return config


def _contradictions(config: Config, where: str, found: _Findings) -> Iterator[str]:
    """Meaning of the values, apart from the machine they will run on; one line per contradiction."""
    if config.config_version != CONFIG_VERSION:
        place = found.place("config_version", otherwise=where)
        yield f"{place}: config_version {config.config_version}; this package reads {CONFIG_VERSION}"
    yield from _unknown_names(config, where, found)
    for name, value, bounds in _bounded(config, ""):
        if not bounds.hold(value):
            yield f"{found.place(name, otherwise=where)}: {name}={value} must be {bounds}"
    yield from _volumes(config, where, found)
    sizes = {"data.image_size": config.data.image_size, "data.phantom.image_size": config.data.phantom.image_size}
    for name, size in sizes.items():
        if len(size) != 2:
            yield f"{found.place(name, otherwise=where)}: {name} must be [height, width], got {size}"
    model = config.model
    if model.init_map and not model.init_from:
        place = found.place("model.init_map", otherwise=where)
        yield f"{place}: model.init_map does nothing without model.init_from"
    for name, heads in (("msoe", model.msoe), ("mtoe", model.mtoe), ("fusion", model.fusion)):
        if heads.num_heads >= 1 and model.dim % heads.num_heads:
            option = f"model.{name}.num_heads"
            place = found.place(option, "model.dim", otherwise=where)
            yield f"{place}: {option}={heads.num_heads} does not divide model.dim={model.dim}"


def _volumes(config: Config, where: str, found: _Findings) -> Iterator[str]:
    """Sizes of volumes and of their patches, which must divide them, and masks that have lost their volume."""
    size, patch = config.data.volume_size, config.model.embedder.volume_patch
    for name, value in {"data.volume_size": size, "model.embedder.volume_patch": patch}.items():
        if len(value) != 3:
            yield f"{found.place(name, otherwise=where)}: {name} must be [depth, height, width], got {value}"
    try:
        card = find_card(config.data.dataset)
    except ConfigError:
        return  # said already
    chosen = [one for one in card.inputs if one.name in (config.data.modalities or card.modalities)]
    solid = {one.name for one in card.inputs if one.kind == "volume" and not one.flat}
    uneven = len(size) == len(patch) == 3 and any(not b or a % b for a, b in zip(size, patch, strict=True))
    if uneven and any(one.name in solid for one in chosen):
        place = found.place("model.embedder.volume_patch", "data.volume_size", otherwise=where)
        yield f"{place}: model.embedder.volume_patch={list(patch)} does not divide data.volume_size={list(size)}"
    for task in card.tasks:
        taken = task.dense and (not config.data.tasks or task.name in config.data.tasks)
        lost = taken and chosen and task.of not in {one.name for one in chosen}
        # a mask over an image is decoded from the first modality instead: possible only between images
        if lost and (task.of in solid or not chosen[0].flat):
            place = found.place("data.modalities", otherwise=where)
            yield f"{place}: data.modalities leaves out {task.of}, over which the mask {task.name} lies"


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


def _unknown_names(config: Config, where: str, found: _Findings) -> Iterator[str]:
    """Data set, modalities and tasks that do not exist."""
    dataset = config.data.dataset
    try:
        spec = find_card(dataset)
    except ConfigError as error:
        place = found.place("data.dataset", otherwise=where)
        yield str(error) if Path(dataset).is_file() else f"{place}: data.dataset: {error}"
        return
    known_tasks = [task.name for task in spec.tasks]
    for option, kind, values, known in (
        ("data.modalities", "modalities", config.data.modalities, list(spec.modalities)),
        ("data.tasks", "tasks", config.data.tasks, known_tasks),
        ("loss.tasks", "tasks (under loss)", tuple(config.loss.tasks), known_tasks),
    ):
        for name in values:
            if name not in known:
                place = found.place(f"{option}.{name}", option, otherwise=where)
                yield f"{place}: {name!r} is not one of the {kind} of {spec.name}{nearest(name, known)}"


def _bounded(section: Any, path: str) -> Iterator[tuple[str, Any, Bounds]]:
    """Dotted name, value and bounds of every option below a section."""
    for item in dataclasses.fields(section):
        name, value = f"{path}{item.name}", getattr(section, item.name)
        if dataclasses.is_dataclass(value):
            yield from _bounded(value, f"{name}.")
        elif isinstance(value, dict):
            for key, entry in value.items():
                if dataclasses.is_dataclass(entry):
                    yield from _bounded(entry, f"{name}.{key}.")
        else:
            yield name, value, item.metadata["bounds"]


def _read(path: Path, seen: tuple[Path, ...]) -> Node:
    if not path.is_file():
        raise ConfigError("no such configuration file", str(path), "see configs/ for those shipped")
    if path.resolve() in seen:
        raise ConfigError("`extends` leads back to this file", str(path), "remove one of the references")
    tree = read_tree(path)
    if not isinstance(tree.value, dict):
        raise ConfigError("must be a mapping of sections", str(path))
    base = tree.value.pop("extends", None)
    if base is None:
        return tree
    return _merge(_read(path.parent / str(base.value), (*seen, path.resolve())), tree)


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
        node = Node({part: node}, where)
    return node


def _relabel(node: Node, where: str) -> None:
    node.where = where
    children = node.value.values() if isinstance(node.value, dict) else node.value
    if isinstance(node.value, (dict, list)):
        for child in children:
            _relabel(child, where)


def _merge(base: Node, update: Node) -> Node:
    """Mappings merge (an empty one clears), everything else is replaced."""
    if not (isinstance(base.value, dict) and isinstance(update.value, dict) and update.value):
        return update
    merged = dict(base.value)
    for key, node in update.value.items():
        merged[key] = _merge(merged[key], node) if key in merged else node
    return Node(merged, update.where)


def _build(cls: Any, node: Node, path: str, found: _Findings) -> Any:
    if not isinstance(node.value, dict):
        found.problems.append(f"{node.where}: {path or 'the file'} must be a mapping, got {node.value!r}")
        return None
    hints = typing.get_type_hints(cls)
    values = {}
    for key, child in node.value.items():
        dotted = f"{path}.{key}" if path else key
        if key not in hints:
            found.problems.append(f"{child.where}: unknown key {dotted}{nearest(key, list(hints))}")
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
    return float(node.value)  # also text such as 1e-4, which YAML does not take for a number


def _text(node: Node) -> str:
    if isinstance(node.value, (str, int, float)) and not isinstance(node.value, bool):
        return str(node.value)
    raise TypeError


def _reject(expected: str, node: Node, path: str, found: _Findings) -> None:
    found.problems.append(f"{node.where}: {path} must be {expected}, got {plain(node)!r}")


# Every type that an option can have: what its message says was expected, and the converter.
_PLAIN: dict[Any, tuple[str, Callable[[Node], Any]]] = {
    bool: ("true or false", _boolean),
    int: ("a whole number", _whole),
    float: ("a number", _number),
    str: ("text", _text),
    Any: ("any value", plain),
}
_GENERIC: dict[Any, Callable[[tuple[Any, ...], Node, str, _Findings], Any]] = {
    Literal: _choice,
    tuple: _sequence,
    dict: _mapping,
}
