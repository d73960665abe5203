"""What the columns of a table seem to hold: names, splits, paths of files, numbers, few values, times and events."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.archives.doubts import means_no_event
from data_tools.archives.values import EVENTS, MISSING_WORDS, SPLIT_WORDS, finite
from data_tools.deidentify import find_identifiers
from m4oe_ds.data.cards.parse import RESERVED

MOST_VALUES = 20  # of a column of classes
ROWS_LOOKED_AT = 200  # for files on the disk
FILES_LOOKED_AT = 20_000
_ID = re.compile(r"(^|_)(id|uid|sample|case|image|exam|scan|study|name|key|number|nr|no|index)($|_|s$)")
_GROUP = re.compile(
    r"(^|_)(patient|subject|person|female|participant|mrn|pid|group|individual|animal|mouse)($|_|id|s$)"
)
_SPLIT = re.compile(r"(^|_)(split|set|fold|partition|subset|phase)($|_)")
_TIME = re.compile(r"(^|_)(time|days|months|years|followup|follow_up|survival|duration|tte|os|pfs|dfs)($|_)")
_EVENT = re.compile(r"(^|_)(event|status|death|died|dead|deceased|relapse|recurrence|progression)($|_)")
_KNOWN_BEFORE = re.compile(
    r"(^|_)(age|sex|gender|bmi|height|weight|smok\w*|race|ethnicity|site|center|centre|hospital|scanner|vendor|device|"
    r"manufacturer|family_history|menopaus\w*|laterality|side)($|_)"
)
_NAMED_ID = re.compile(r"(^|_)(id|uid|mrn)($|_)")
_MASK = re.compile(r"(^|_)(mask|seg|segmentation|contour|outline|roi|label_map|annotation)s?($|_|\d)")


@dataclass(frozen=True)
class Seen:
    """What a column seems to hold.

    Attributes:
        column: what it is called in the table.
        name: what it may be called in a card.
        role: ``empty``, ``path``, ``split``, ``number``, ``few`` (values), ``comma`` (numbers with a decimal comma),
            ``identifiers`` or ``text``.
        known: fields that are not missing.
        values: how often which value occurs in whatever case, in its most frequent spelling, for ``few``.
        unique: whether every row has a value of its own.
        repeated: whether values repeat and are more than a few.
    """

    column: str
    name: str
    role: str
    known: int
    values: Mapping[str, int]
    unique: bool
    repeated: bool


def card_name(text: str, taken: Sequence[str] = ()) -> str:
    """A name that a card accepts, made of a column's."""
    name = re.sub(r"[^a-z0-9]+", "_", text.casefold()).strip("_") or "column"
    name = name if name[0].isalpha() else f"c_{name}"
    while name in RESERVED or name in taken:
        name += "_"
    return name


def look(column: str, fields: Sequence[str], root: Path) -> Seen:
    """What the fields of a column seem to be.

    Args:
        column: its name.
        fields: all of them, as text.
        root: folder of files.
    """
    known = [field for field in fields if field.casefold() not in MISSING_WORDS]
    counts = Counter(known)
    name = re.sub(r"[^a-z0-9]+", "_", column.casefold()).strip("_")
    spelt = _in_any_case(counts)
    role = _role(name, fields, known, spelt, root)
    return Seen(
        column,
        card_name(column),
        role,
        len(known),
        dict(sorted(spelt.items(), key=lambda item: _order(item[0]))) if role == "few" else {},
        len(known) == len(fields) == len(counts),
        bool(known) and len(counts) < len(known),
    )


def _in_any_case(counts: Mapping[str, int]) -> dict[str, int]:
    """Values that differ in their case alone as one, in the spelling that most rows have."""
    spellings: dict[str, list[str]] = {}
    for value in counts:
        spellings.setdefault(value.casefold(), []).append(value)
    return {max(same, key=lambda one: counts[one]): sum(counts[one] for one in same) for same in spellings.values()}


def _role(name: str, fields: Sequence[str], known: Sequence[str], counts: Mapping[str, int], root: Path) -> str:
    if not known:
        return "empty"
    if _is_path(known, root):
        return "path"
    if {value.casefold() for value in counts} <= set(SPLIT_WORDS) and (len(counts) > 1 or _SPLIT.search(name)):
        return "split"
    numbers = [number for number in map(finite, known) if number is not None]
    if len(numbers) < len(known) and all(finite(field.replace(",", ".", 1)) is not None for field in known):
        return "comma"
    most = min(MOST_VALUES, max(3, len(fields) // 5))
    words = Counter(field.casefold() for field in fields if field.casefold() in ("none", "-"))
    if len(counts) + len(words) <= most and (len(counts) > 1 or words):
        fractions = len(numbers) == len(known) and any(number != int(number) for number in numbers)
        if not fractions:
            return "few"
    if any(find_identifiers(value) for value in list(counts)[:ROWS_LOOKED_AT]):
        return "identifiers"
    if len(numbers) == len(known):
        zeros = any(re.fullmatch(r"0\d+", field) for field in known)  # 0017 is a name: a number has no such zero
        return "identifiers" if zeros or _NAMED_ID.search(name) else "number"
    return "text"


def _order(text: str) -> tuple[int, float, str]:
    """Numbers by their size, then texts; "no" before "yes"."""
    number = finite(text)
    event = EVENTS.get(text.casefold())
    return (0, number, "") if number is not None else (1, -1.0 if event is None else event, text)


def _is_path(known: Sequence[str], root: Path) -> bool:
    """Whether most fields are paths of files or folders."""
    tried = known[:: max(1, len(known) // ROWS_LOOKED_AT)]
    there = sum(len(one) > 2 and os.path.exists(os.path.join(root, one.replace("\\", "/"))) for one in tried)
    return there >= 0.5 * len(tried)


def find_pattern(fields: Sequence[str], column: str, root: Path) -> list[str]:
    """Patterns such as ``photos/{id}.png`` whose files the fields of a column name, most files first.

    Args:
        fields: of the column.
        column: its name.
        root: folder of files.
    """
    wanted, found, looked = set(fields), Counter[str](), 0
    for folder, folders, files in os.walk(root):
        folders.sort()
        inner = Path(folder).relative_to(root).as_posix()
        for file in files:
            looked += 1
            stem, dot, suffix = file.partition(".")
            if stem in wanted and dot:
                found[f"{'' if inner == '.' else inner + '/'}{{{column}}}.{suffix}"] += 1
        if looked > FILES_LOOKED_AT:
            break
    return [pattern for pattern, number in found.most_common() if number >= 0.5 * len(wanted)]


def best(seen: Sequence[Seen], kind: str) -> Seen | None:
    """The column that suits a place of the card best by its name.

    Args:
        seen: columns that may take it.
        kind: ``sample``, ``group`` or ``split``.
    """
    pattern = {"sample": _ID, "group": _GROUP, "split": _SPLIT}[kind]
    named = [one for one in seen if pattern.search(one.name)]
    return next(iter(named or (() if kind == "group" else seen)), None)


def time_and_event(seen: Sequence[Seen], fields: Mapping[str, Sequence[str]]) -> tuple[Seen, Seen] | None:
    """A column of times and one of events; None if there is no such pair.

    The time is known by its name, the event by its name or because it stands beside the time and is missing with it,
    in some rows.

    Args:
        seen: columns in the order of the table.
        fields: their fields, by column.
    """

    def gaps(one: Seen) -> list[bool]:
        return [field.casefold() in MISSING_WORDS for field in fields[one.column]]

    times = [one for one in seen if _TIME.search(one.name) and _all_numbers(fields[one.column])]
    events = [one for one in seen if one.role == "few" and {value.casefold() for value in one.values} <= set(EVENTS)]
    for time in times:
        named = [one for one in events if _EVENT.search(one.name)]
        named = named or [one for one in events if means_no_event(one.name)]
        place = list(seen).index(time)
        near = seen[max(0, place - 1) : place + 2] if any(gaps(time)) else ()  # without gaps every column would do
        beside = [one for one in events if one in near and gaps(one) == gaps(time)]
        if named or beside:
            return time, (named or beside)[0]
    return None


def _all_numbers(fields: Sequence[str]) -> bool:
    known = [field for field in fields if field.casefold() not in MISSING_WORDS]
    return bool(known) and all(finite(field) is not None for field in known)


def known_before(one: Seen) -> bool:
    """Whether a column is, by its name, known before the question is asked: an input, not an answer."""
    return bool(_KNOWN_BEFORE.search(one.name))


def is_mask(one: Seen) -> bool:
    """Whether a column of paths holds, by its name, masks."""
    return bool(_MASK.search(one.name))


def class_values(one: Seen, fields: Sequence[str]) -> list[str]:
    """The classes of a column of few values; a word such as ``none`` is one if nothing else means missing."""
    words = Counter(field for field in fields if field.casefold() == "none")
    return [*([next(iter(words))] if words else []), *one.values]


def horizons(times: Sequence[Any], events: Sequence[Any]) -> list[float]:
    """Two or three round times by which a quarter, half and three quarters of the events have come.

    Args:
        times: as text.
        events: as text.
    """
    came = sorted(
        float(time)
        for time, event in zip(times, events, strict=True)
        if EVENTS.get(str(event).casefold()) == 1 and (finite(str(time)) or 0) > 0
    )
    if not came:
        return [1.0]
    points = [came[min(len(came) - 1, int(share * len(came)))] for share in (0.25, 0.5, 0.75)]
    return sorted({_round(point) for point in points})


def _round(value: float) -> float:
    """To one digit, two from a half on: 3.7 is 4, 37 is 40."""
    size = 10.0 ** math.floor(math.log10(value))
    return round(value / size) * size if size >= 1 else float(f"{value:.1g}")
