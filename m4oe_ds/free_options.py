"""Mappings of options whose keys depend on another option (``model.options``): read as a dataclass of options."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal, TypeVar

from m4oe_ds.yaml_tree import nearest

T = TypeVar("T")
_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def problems(kind: type, values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with a mapping: the key, and words that follow it.

    Args:
        kind: dataclass of fields made with :func:`m4oe_ds.config.option`.
        values: the mapping.
    """
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]  # it is a dataclass
    hints = typing.get_type_hints(kind)
    for name, value in values.items():
        if name not in fields:
            yield name, f"is unknown{nearest(name, list(fields)) if fields else ': there are none'}"
        elif typing.get_origin(hints[name]) is Literal:
            choices = typing.get_args(hints[name])
            if value not in choices:
                yield name, f"must be one of {', '.join(choices)}, got {value!r}"
        elif not _is_a(hints[name], value):
            yield name, f"must be {_WORDS[hints[name]]}, got {value!r}"
        elif not fields[name].metadata["bounds"].hold(value):
            yield name, f"must be {fields[name].metadata['bounds']}, got {value!r}"


def read(kind: type[T], values: Mapping[str, Any]) -> T:
    """The dataclass of a mapping without problems."""
    hints = typing.get_type_hints(kind)
    return kind(**{name: float(value) if hints[name] is float else value for name, value in values.items()})


def _is_a(hint: type, value: Any) -> bool:
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))
