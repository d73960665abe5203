"""YAML as a tree of values that remember where they stand, so that every mistake has a file and a line.

Closes the traps of the usual loader: ``1e-4`` read as text, a duplicate key silently winning, ``010`` read as 8.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from m4oe_ds.errors import ConfigError


class Exponent(str):
    """Text such as 1e-4: a number where any type is allowed, text where text is wanted."""


@dataclass
class Node:
    """A parsed YAML value that remembers where it stands.

    Attributes:
        value: a mapping of texts to nodes, a list of nodes, or a scalar.
        where: file and line, or the option it was given with.
        dotted: a mapping of one key that was written as ``a.b``, not in braces.
    """

    value: Any
    where: str
    dotted: bool = False


def read_tree(path: Path) -> Node:
    """The tree of a YAML file; an empty file is an empty mapping.

    Raises:
        ConfigError: not readable, not YAML, a duplicate key, or a value that YAML would misread.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError("is not a text file in UTF-8", str(path), "save it as plain text") from None
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", str(path), "check the path") from None
    return parse_tree(text, str(path))


def parse_tree(text: str, name: str) -> Node:
    """The tree of a YAML text; ``name`` stands for the file in messages.

    Raises:
        ConfigError: as :func:`read_tree`.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return to_tree(node, name) if node is not None else Node({}, name)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or next(iter(str(error).splitlines()), "")
        fix = "check brackets, quotes and indentation near that line"
        raise ConfigError(f"not valid YAML: {problem}", f"{name}{line}", fix) from None
    except RecursionError:
        raise ConfigError("not valid YAML: nested too deeply", name, "check its brackets") from None


def nearest(name: str, known: Sequence[str], *, ordered: bool = False) -> str:
    """``; did you mean X? (known: ...)``, to end the line about an unknown name with.

    Args:
        name: the unknown one.
        known: those there are.
        ordered: whether their order means something; else they are listed by the alphabet.
    """
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    listed = f" (known: {', '.join(known if ordered else sorted(known))})"
    return (f"; did you mean {close[0]}?" if close else "") + listed


def to_tree(node: yaml.Node, path: str, above: tuple[int, ...] = ()) -> Node:
    """A composed YAML node as a tree.

    Args:
        node: composed by PyYAML's safe loader.
        path: name of the file, for the places.
        above: the nodes that this one lies in.

    Raises:
        ConfigError: see :func:`read_tree`.
    """
    where = f"{path}:{node.start_mark.line + 1}"
    if id(node) in above:
        raise ConfigError("a value contains itself", where, "remove the alias")
    above = (*above, id(node))
    if isinstance(node, yaml.MappingNode):
        result: dict[str, Node] = {}
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key in result:
                line = f"{path}:{key_node.start_mark.line + 1}"
                raise ConfigError(f"duplicate key {key}", line, f"first given at {result[key].where}")
            result[key] = to_tree(value_node, path, above)
            result[key].where = f"{path}:{key_node.start_mark.line + 1}"
        return Node(result, where)
    if isinstance(node, yaml.SequenceNode):
        return Node([to_tree(item, path, above) for item in node.value], where)
    text = node.value
    plain = getattr(node, "style", None) is None
    if plain and re.fullmatch(r"[-+]?0[0-7]+", text):  # 08 is text to YAML and refused by the type of its key
        raise ConfigError(f"{text} would be read as an octal number", where, "write it without leading zeros")
    if plain and text.lower() in ("yes", "no", "on", "off"):
        return Node(text, where)  # true and false are the only booleans
    if plain and re.fullmatch(r"[-+]?\d+[eE][-+]?\d+", text):
        return Node(Exponent(text), where)
    try:
        return Node(yaml.SafeLoader("").construct_object(node), where)
    except (yaml.YAMLError, ValueError) as error:  # a foreign tag, or the 45th of a month
        problem = getattr(error, "problem", None) or error
        raise ConfigError(f"{text!r} is not a valid value: {problem}", where, "quote it if it is text") from None


def plain(node: Node) -> Any:
    """The value of a tree without its places."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    if isinstance(node.value, list):
        return [plain(child) for child in node.value]
    return float(node.value) if isinstance(node.value, Exponent) else node.value
