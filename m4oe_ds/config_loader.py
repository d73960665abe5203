"""YAML files and ``--set`` options into the typed tree, with the file and line of every mistake.

Closes the traps of the usual loader: ``1e-4`` read as text, a duplicate key silently winning, ``010`` read as 8.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union

import yaml

from m4oe_ds.config import CONFIG_VERSION, Config
from m4oe_ds.data.schema import DATASETS
from m4oe_ds.errors import ConfigError


class _Exponent(str):
    """Text such as 1e-4: a number where any type is allowed, text where text is wanted."""


@dataclass
class _Node:
    """A parsed YAML value that remembers where it stands."""

    value: Any  # dict[str, _Node], list[_Node], or a scalar
    where: str


def load(path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """The configuration of ``path`` (with its ``extends`` chain) after ``--set`` overrides ``dotted.key=value``.

    Raises:
        ConfigError: file missing, unknown key (with the nearest known one), wrong type, contradiction; all findings of
            a round are reported together, one line each.
    """
    tree = _read(Path(path), ()) if path is not None else _Node({}, "defaults")
    for text in overrides:
        tree = _merge(tree, _parse_override(text))
    problems: list[str] = []
    config = _build(Config, tree, "", problems)
    if problems:
        raise ConfigError("\n".join(problems))
    check(config, str(path) if path is not None else "configuration")
    return config  # type: ignore[no-any-return]


def check(config: Config, where: str) -> None:
    """Meaning of the values, apart from the machine they will run on.

    Raises:
        ConfigError: one line per contradiction.
    """
    problems: list[str] = []
    if config.config_version != CONFIG_VERSION:
        problems.append(f"{where}: config_version {config.config_version}; this package reads {CONFIG_VERSION}")
    spec = DATASETS.get(config.data.dataset)
    if spec is None:
        problems.append(f"{where}: unknown data.dataset {config.data.dataset!r}; known: {', '.join(sorted(DATASETS))}")
    else:
        known_tasks = [task.name for task in spec.tasks]
        for kind, values, known in (
            ("modalities", config.data.modalities, list(spec.modalities)),
            ("tasks", config.data.tasks, known_tasks),
            ("tasks (under loss)", tuple(config.loss.tasks), known_tasks),
        ):
            for name in values:
                if name not in known:
                    hint = _nearest(name, known)
                    problems.append(f"{where}: {name!r} is not one of the {kind} of {config.data.dataset}{hint}")
    if len(config.data.image_size) != 2 or min(config.data.image_size) < 8:
        problems.append(f"{where}: data.image_size must be [height, width], at least 8, got {config.data.image_size}")
    model = config.model
    for name, heads in (("msoe", model.msoe), ("mtoe", model.mtoe), ("fusion", model.fusion)):
        if heads.num_heads < 1 or model.dim % heads.num_heads:
            problems.append(f"{where}: model.{name}.num_heads={heads.num_heads} does not divide model.dim={model.dim}")
        if heads.num_experts < 1:
            problems.append(f"{where}: model.{name}.num_experts={heads.num_experts} must be at least 1")
    if config.loss.alpha < 0:
        problems.append(f"{where}: loss.alpha={config.loss.alpha} must not be negative")
    if config.run.checkpoint.metric not in ("loss", "auroc", "balanced_accuracy"):
        problems.append(f"{where}: run.checkpoint.metric={config.run.checkpoint.metric!r} is not known; "
                        "use loss, auroc or balanced_accuracy")  # fmt: skip
    if problems:
        raise ConfigError("\n".join(problems))


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return (f"; did you mean {close[0]}?" if close else ";") + f" (known: {', '.join(sorted(known))})"


def _read(path: Path, seen: tuple[Path, ...]) -> _Node:
    if not path.is_file():
        raise ConfigError("no such configuration file", str(path), "see configs/ for those shipped")
    if path.resolve() in seen:
        raise ConfigError("`extends` leads back to this file", str(path), "remove one of the references")
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"not valid YAML: {getattr(error, 'problem', error)}", f"{path}{line}") from None
    tree = _convert(node, str(path)) if node is not None else _Node({}, str(path))
    if not isinstance(tree.value, dict):
        raise ConfigError("must be a mapping of sections", str(path))
    base = tree.value.pop("extends", None)
    if base is None:
        return tree
    return _merge(_read(path.parent / str(base.value), (*seen, path.resolve())), tree)


def _convert(node: yaml.Node, path: str) -> _Node:
    where = f"{path}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode):
        result: dict[str, _Node] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key in result:
                line = f"{path}:{key_node.start_mark.line + 1}"
                raise ConfigError(f"duplicate key {key}", line, f"first given at {result[key].where}")
            result[key] = _convert(value_node, path)
            result[key].where = f"{path}:{key_node.start_mark.line + 1}"
        return _Node(result, where)
    if isinstance(node, yaml.SequenceNode):
        return _Node([_convert(item, path) for item in node.value], where)
    text = node.value
    plain = getattr(node, "style", None) is None
    if plain and re.fullmatch(r"[-+]?0[0-7]+", text):  # 08 is text to YAML and refused by the type of its key
        raise ConfigError(f"{text} would be read as an octal number", where, "write it without leading zeros")
    if plain and text.lower() in ("yes", "no", "on", "off"):
        return _Node(text, where)  # true and false are the only booleans
    if plain and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", text):
        return _Node(_Exponent(text), where)
    try:
        return _Node(yaml.SafeLoader("").construct_object(node), where)
    except (yaml.YAMLError, ValueError) as error:  # a foreign tag, or the 45th of a month
        problem = getattr(error, "problem", None) or error
        raise ConfigError(f"{text!r} is not a valid value: {problem}", where, "quote it if it is text") from None


def _parse_override(text: str) -> _Node:
    key, separator, value = text.partition("=")
    where = f"--set {text}"
    if not separator or not key:
        raise ConfigError("must have the form section.key=value", where)
    try:
        composed = yaml.compose(value, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        raise ConfigError("the value is not valid YAML", where) from None
    node = _convert(composed, where) if composed is not None else _Node("", where)
    _relabel(node, where)
    for part in reversed(key.split(".")):
        node = _Node({part: node}, where)
    return node


def _relabel(node: _Node, where: str) -> None:
    node.where = where
    children = node.value.values() if isinstance(node.value, dict) else node.value
    if isinstance(node.value, (dict, list)):
        for child in children:
            _relabel(child, where)


def _merge(base: _Node, update: _Node) -> _Node:
    """Mappings merge (an empty one clears), everything else is replaced."""
    if not (isinstance(base.value, dict) and isinstance(update.value, dict) and update.value):
        return update
    merged = dict(base.value)
    for key, node in update.value.items():
        merged[key] = _merge(merged[key], node) if key in merged else node
    return _Node(merged, update.where)


def _build(cls: Any, node: _Node, path: str, problems: list[str]) -> Any:
    if not isinstance(node.value, dict):
        problems.append(f"{node.where}: {path or 'the file'} must be a mapping, got {node.value!r}")
        return None
    hints = typing.get_type_hints(cls)
    values = {}
    for key, child in node.value.items():
        dotted = f"{path}.{key}" if path else key
        if key not in hints:
            problems.append(f"{child.where}: unknown key {dotted}{_nearest(key, list(hints))}")
            continue
        values[key] = _value(hints[key], child, dotted, problems)
    return None if problems else cls(**values)


def _value(hint: Any, node: _Node, path: str, problems: list[str]) -> Any:
    """Checked and converted value of one field; appends to ``problems`` and returns None where it does not fit."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    value = node.value
    if dataclasses.is_dataclass(hint):
        return _build(hint, node, path, problems)
    if origin in (Union, types.UnionType):
        if value is None:
            return None
        return _value(next(item for item in arguments if item is not type(None)), node, path, problems)
    if origin is Literal:
        if value in arguments:
            return value
        return _reject(f"one of {', '.join(map(str, arguments))}", node, path, problems)
    if origin is tuple:
        items = value if isinstance(value, list) else [node]
        return tuple(_value(arguments[0], item, path, problems) for item in items)
    if origin is dict:
        if not isinstance(value, dict):
            return _reject("a mapping", node, path, problems)
        return {key: _value(arguments[1], child, f"{path}.{key}", problems) for key, child in value.items()}
    if hint is Any:
        return _plain(node)
    if hint is bool:
        return value if isinstance(value, bool) else _reject("true or false", node, path, problems)
    if hint is int:
        exact = isinstance(value, int) and not isinstance(value, bool)
        return value if exact else _reject("a whole number", node, path, problems)
    if hint is float:
        try:
            if isinstance(value, bool):
                raise ValueError
            return float(value)  # also text such as 1e-4, which YAML does not take for a number
        except (TypeError, ValueError):
            return _reject("a number", node, path, problems)
    textual = isinstance(value, (str, int, float)) and not isinstance(value, bool)
    return str(value) if textual else _reject("text", node, path, problems)


def _plain(node: _Node) -> Any:
    if isinstance(node.value, dict):
        return {key: _plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [_plain(child) for child in node.value]
    return float(node.value) if isinstance(node.value, _Exponent) else node.value


def _reject(expected: str, node: _Node, path: str, problems: list[str]) -> None:
    problems.append(f"{node.where}: {path} must be {expected}, got {_plain(node)!r}")
