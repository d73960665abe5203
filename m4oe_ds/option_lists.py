"""Lists that are written with commas on a command line, such as ``--seeds 0,1,2``."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import TypeVar

from m4oe_ds.errors import ConfigError

T = TypeVar("T")
_ADVICE: dict[object, str] = {int: "write whole numbers, e.g. 0,1,2", float: "write numbers, e.g. 0.1,0.2"}


def comma_list(
    text: str,
    option: str,
    kind: Callable[[str], T],
    choices: Iterable[T] | None = None,
    *,
    least: T | None = None,
    required: bool = False,
    once: bool = False,
    noun: str = "",
    advice: str = "",
) -> list[T]:
    """The items of ``a,b,c`` in their order; blanks around them and empty ones between commas do not count.

    Args:
        text: the list as the user wrote it.
        option: it was written for, such as ``--seeds``.
        kind: ``str``, ``int``, ``float``, or any function that raises ValueError for what it cannot convert.
        choices: the items there are; None = any.
        least: smallest item allowed; None = no limit.
        required: refuse a text without items.
        once: refuse an item that is there twice.
        noun: what an item is, for the message about an unknown one, e.g. ``analysis``.
        advice: what to write instead, in place of a sentence that follows from ``kind``, ``least`` and ``choices``.

    Raises:
        ConfigError: an item that ``kind`` does not convert, that is not among ``choices`` or below ``least``, or that
            is there twice; no item where one is required.
    """
    known = None if choices is None else list(choices)
    advice = advice or _advice(kind, known, least)
    try:
        items = [kind(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError:
        raise ConfigError(f"cannot read {text!r}", option, advice) from None
    if known is not None:
        check_known(items, option, known, noun=noun, advice=advice)
    if least is not None and any(not item >= least for item in items):  # type: ignore[operator]  # NaN is refused too
        raise ConfigError(f"cannot read {text!r}", option, advice)
    if required and not items:
        raise ConfigError(f"cannot read {text!r}", option, advice)
    if once and (twice := [str(item) for number, item in enumerate(items) if item in items[:number]]):
        raise ConfigError(f"has {', '.join(twice)} twice", option, "leave one out")
    return items


def check_known(items: Iterable[T], option: str, choices: Iterable[T], *, noun: str = "", advice: str = "") -> None:
    """Refuses items that are not among the choices.

    Args:
        items: what was asked for.
        option: the option it was asked with.
        choices: the items there are.
        noun: what an item is, e.g. ``analysis``.
        advice: what to write instead, in place of the choices.

    Raises:
        ConfigError: an unknown item; all of them are named.
    """
    known = list(choices)
    if unknown := [str(item) for item in items if item not in known]:
        what = " ".join(filter(None, ("no", noun, ", ".join(unknown))))
        close = difflib.get_close_matches(unknown[0], [str(one) for one in known], n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(what, option, hint + (advice or _choose(known)))


def _choose(choices: Iterable[object]) -> str:
    return f"choose among {', '.join(map(str, choices))}"


def _advice(kind: Callable[[str], T], choices: list[T] | None, least: T | None) -> str:
    if choices is not None:
        return _choose(choices)
    if isinstance(least, (int, float)):
        numbers = "whole numbers" if kind is int else "numbers"
        return f"write {numbers} from {least}, e.g. {least},{least + 1},{least + 3}"
    return _ADVICE.get(kind, "write names with commas between them")
