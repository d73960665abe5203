"""What the fields of one's own table mean: missing, a class, a number, an event, a side, a split, a group of ages.

A field is missing, can be read as what the card says, or is odd. Nothing odd is ever taken for missing: it is counted
by :class:`Oddities`, which name rows and columns, and values only of columns that hold labels.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_tools.deidentify import find_identifiers
from m4oe_ds.data.cards import Card
from m4oe_ds.data.cards.source import LONGEST_GROUP
from m4oe_ds.data.schema import TaskSpec

MISSING_WORDS = frozenset({"", "na", "n/a", "#n/a", "nan", "none", "null", "<na>", "nat", "-"})  # in any case
EVENTS = {"0": 0, "no": 0, "false": 0, "censored": 0, "1": 1, "yes": 1, "true": 1, "event": 1}
SPLIT_WORDS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
    "testing": "test",
}  # fmt: skip
SHOWN_VALUES, SHOWN_LETTERS = 5, 20  # of odd values in messages
MOST_GROUPS = 50  # values that a subgroup may have
MOST_PASSED = 20  # values of a column that passes them on as they are
FEWEST_HOLDERS = 5  # groups (patients) that share every one of them
NARROWEST_BAND = 5  # of a number, in its unit
_NUMBER_IN = re.compile(r"\d[\d.,:/\s-]*\d")  # two digits, together or parted as in dates


class OddValue(Exception):
    """A field that is not what the card says; the text says why, without the field."""


@dataclass
class Oddities:
    """Fields that cannot be read, by column and reason.

    Attributes:
        rows: numbers of the rows, as a spreadsheet counts them, by (column, reason).
        values: how often which value was met, by (column, reason); of columns of labels alone.
    """

    rows: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    values: dict[tuple[str, str], Counter[str]] = field(default_factory=dict)

    def add(self, column: str, reason: str, row: int, value: str | None = None) -> None:
        """Counts one; the value is kept only where it is given and does not look like an identifier or a date."""
        self.rows.setdefault((column, reason), []).append(row)
        if value is not None and not find_identifiers(value):
            self.values.setdefault((column, reason), Counter())[value] += 1

    def lines(self) -> list[str]:
        """One line for each column and reason, with examples."""
        out = []
        for (column, reason), rows in self.rows.items():
            line = f"column {column!r}: {counted(len(rows), 'value')} {reason}, first in row {rows[0]}"
            found = self.values.get((column, reason))
            if found:
                common = [f"{value[:SHOWN_LETTERS]!r} {number}" for value, number in found.most_common(SHOWN_VALUES)]
                more = f" and {len(found) - SHOWN_VALUES} more" if len(found) > SHOWN_VALUES else ""
                line += f" ({', '.join(common)}{more})"
            out.append(line)
        return out


def counted(number: int, noun: str) -> str:
    """A number with its noun in the right form."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def missing_words(card: Card) -> frozenset[str]:
    """All words that mean that a field is empty, in lower case."""
    extra = card.source.missing if card.source is not None else ()
    return MISSING_WORDS | {word.strip().casefold() for word in extra}


def _same(text: str) -> str:
    """What two spellings of one value have in common: case aside, and 2.0 is 2."""
    value = finite(text)
    return f"{value:g}" if value is not None and value == int(value) and abs(value) < 1e6 else text.strip().casefold()


def finite(text: str) -> float | None:
    """The number that a text is; None if it is none, or no finite one."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in text else None  # 1_2 is a number to Python alone


class Choice:
    """One of several names: a class, a category, yes or no.

    The name itself decides, whatever its case; then what the card maps to names; then codes from 0, where neither the
    names are numbers nor the card maps any. A name may be a word that elsewhere means missing.

    Args:
        names: in the order of their codes.
        values: ``{field: name}``.
        missing: words for missing.
    """

    def __init__(self, names: Sequence[str], values: Mapping[str, str], missing: frozenset[str]) -> None:
        self.missing = missing
        codes = {name: code for code, name in enumerate(names)}
        self.known = {_same(name): codes[name] for name in reversed(names)}
        if len(self.known) < len(names):  # names that differ in their case alone
            self.known = {}
        self.exact = codes | {value: codes[name] for value, name in values.items()}
        self.known |= {_same(value): codes[name] for value, name in values.items()}
        if not values and not any(finite(name) is not None for name in names):
            self.known |= {str(code): code for code in range(len(names))}

    def code(self, text: str) -> int | None:
        """The code, None where it is missing.

        Raises:
            OddValue: it is none of them.
        """
        found = self.exact.get(text, self.known.get(_same(text)))
        if found is not None:
            return found
        if text.casefold() in self.missing:
            return None
        raise OddValue("none of the names")


def number(text: str, missing: frozenset[str]) -> float | None:
    """The number in a field, None where it is missing.

    Raises:
        OddValue: no number, or one that looks like an identifier or a date.
    """
    if text.casefold() in missing:
        return None
    value = finite(text)
    if value is None:
        raise OddValue("not a number (write a decimal point)" if finite(text.replace(",", ".")) else "not a number")
    if text.isdigit() and find_identifiers(text):
        raise OddValue("a number that looks like an identifier or a date")
    return value


def answer_reader(task: TaskSpec, card: Card, missing: frozenset[str]) -> Callable[[Mapping[str, str]], Any]:
    """What reads the answer to a task from a row: a code, a number or ``[time, event]``; None where it is missing.

    The function raises :class:`OddValue` with the column as its second argument.
    """
    assert card.source is not None
    source = card.source.labels[task.name]
    if task.coded:
        choice = Choice(task.class_names, source.values, missing)
        return lambda row: _at(source.column, lambda: choice.code(row[source.column]))
    if task.kind == "number":
        return lambda row: _at(source.column, lambda: number(row[source.column], missing))
    words = {word: ("no", "yes")[code] for word, code in EVENTS.items()}
    events = Choice(("no", "yes"), source.values or words, missing)

    def survival(row: Mapping[str, str]) -> list[float] | None:
        time = _at(source.column, lambda: number(row[source.column], missing))
        event = _at(source.event, lambda: events.code(row[source.event]))
        if time is not None and time < 0:
            raise OddValue("a time below 0", source.column)
        if (time is None) != (event is None):
            lone, other = (source.column, "an event") if event is None else (source.event, "a time")
            raise OddValue(f"there without {other}", lone)
        return None if time is None or event is None else [time, float(event)]

    return survival


def _at(column: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except OddValue as odd:
        raise OddValue(odd.args[0], column) from None


def group_value(text: str) -> str:
    """The value of a subgroup as it may stand in a shard.

    Raises:
        OddValue: too long, or it looks like an identifier or a date.
    """
    if len(text) > LONGEST_GROUP:
        raise OddValue(f"longer than the {LONGEST_GROUP} letters that a subgroup may have")
    if find_identifiers(text):
        raise OddValue("looking like an identifier or a date, which no shard may hold")
    return text


def holds_number(text: str) -> bool:
    """Whether a text has a number of several digits in it, as ages, years and codes of persons have."""
    return _NUMBER_IN.search(text) is not None


def passed_value(text: str) -> str:
    """The value of a column whose values go into shards as they are, without a list in the card.

    Raises:
        OddValue: it is no word, has a number of several digits in it, or see :func:`group_value`.
    """
    group_value(text)
    if holds_number(text) or not any(letter.isalpha() for letter in text):
        raise OddValue("without letters or with a number of several digits (give `bands`, or list `values`)")
    return text
