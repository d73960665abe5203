"""What a table of one's own allows but can hardly be meant: who is one patient, what a field means, what is missing.

A conversion says these lines before it starts, ``m4oe card check`` among its other warnings: whoever converts without a
check is told of them, too.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_tools.archives.plan import Sample
from data_tools.archives.values import counted
from m4oe_ds.data.cards import Card, Source
from m4oe_ds.data.schema import SPLITS, Column, TaskSpec

SENTINELS = (9, 99, 999, 9999, 99999, 88, 888, 8888, 77, 777, 7777)  # and their negatives: refused, unknown, missing
_NOT_EVENT = re.compile(
    r"(^|_)(censor(ed|ing|ship)?|alive|survived|event_free)($|_)"
)  # where 1 means that it did not come


def doubts(samples: Sequence[Sample], rows: Sequence[Mapping[str, str]], card: Card) -> list[str]:
    """One line each, the gravest kinds first.

    Args:
        samples: what the table says, as far as it could be read.
        rows: the fields of every sample.
        card: the card; its source has a table.
    """
    source = card.source
    assert source is not None
    return [
        *_shared_files(samples),
        *_spellings(samples, card, source),
        *_codes(rows, card, source),
        *_answers(samples, card, source),
        *_sentinels(samples, card),
    ]


def by_split(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    """Samples by the split that the table names; all together where it names none."""
    parts: dict[str, list[Sample]] = {}
    for split in (*SPLITS, ""):
        mine = [sample for sample in samples if sample.split == split]
        if mine:
            parts[split or "all"] = mine
    return parts


def known_labels(task: TaskSpec, samples: Sequence[Sample]) -> list[Any]:
    """Answers to a task that is no mask, those that are there."""
    return [sample.labels[task.name] for sample in samples if task.known(sample.labels[task.name])]


def within(task: TaskSpec, known: Sequence[tuple[float, Any]], horizon: float) -> dict[str, int]:
    """Of a survival: who had the event by a horizon, and who is known to have been free of it then."""
    return {
        "events": sum(bool(event) and time <= horizon for time, event in known),
        "followed": sum(time > horizon or (not event and time == horizon) for time, event in known),
    }


def columns_of(samples: Sequence[Sample], card: Card) -> Iterator[tuple[str, Column, list[float | None]]]:
    """Name, what it is, and values of every column that is an input; None where a sample has none."""
    for one in card.inputs:
        for column in one.columns:
            yield (
                f"{one.name}.{column.name}",
                column,
                [sample.tables.get(one.name, {}).get(column.name) for sample in samples],
            )


def means_no_event(name: str) -> bool:
    """Whether a column says, by its name, that the event did not come: ``censored``, ``alive``."""
    return bool(_NOT_EVENT.search(re.sub(r"[^a-z0-9]+", "_", name.casefold())))


def _shared_files(samples: Sequence[Sample]) -> Iterator[str]:
    owners: dict[tuple[str, str], set[str]] = {}
    for sample in samples:
        for name, paths in sample.images.items():
            owners.setdefault((name, paths[0]), set()).add(sample.patient)
    for name in sorted({name for name, _ in owners}):
        shared = sum(len(groups) > 1 for (one, _), groups in owners.items() if one == name)
        if shared:
            yield f"{counted(shared, 'file')} of {name} in several groups: the same picture may be learnt and tested on"


def _alike(name: str) -> str:
    """A name without what people and programs write in one way or the other."""
    plain = unicodedata.normalize("NFKC", name).casefold()
    plain = "".join(letter for letter in plain if not letter.isspace() and unicodedata.category(letter) != "Cf")
    return re.sub(r"(?<!\d)0+(?=\d)", "", plain)


def _spellings(samples: Sequence[Sample], card: Card, source: Source) -> Iterator[str]:
    """Names that may be the same one: they differ in case, in blanks or in zeros before a number alone."""
    for column, names in (
        (source.group, {sample.patient for sample in samples}),
        (source.sample, {sample.name for sample in samples}),
    ):
        twice = sum(number > 1 for number in Counter(map(_alike, names)).values())
        if column and twice:
            yield (
                f"column {column!r}: {counted(twice, 'name')} in several spellings (case, blanks, invisible letters, "
                "zeros before a number), read as different ones; if they are the same, they may be learnt and tested on"
            )
    for task in card.tasks:
        folded = {name.casefold() for name in task.class_names}
        if len(folded) < len(task.class_names):
            yield f"{task.name}: classes that differ in their case alone; a field must be spelt as they are"


def _codes(rows: Sequence[Mapping[str, str]], card: Card, source: Source) -> Iterator[str]:
    """Classes given as numbers of which none is 0: they may count from 1."""
    for task in card.tasks:
        label = source.labels.get(task.name)
        if label is None or not task.coded or label.values:
            continue
        fields = {row[label.column] for row in rows}
        codes = {int(float(field)) for field in fields if re.fullmatch(r"\d{1,4}(\.0*)?", field)}
        if codes and min(codes) > 0 and not any(name.isdigit() for name in task.class_names):
            yield (
                f"{task.name}: no field is 0, which is {task.class_names[0]}, and the least is {min(codes)}, read as "
                f"{task.class_names[min(codes)] if min(codes) < task.num_classes else 'nothing'}: if they count from "
                f"1, map them with `values`"
            )


def _answers(samples: Sequence[Sample], card: Card, source: Source) -> Iterator[str]:
    """Answers that nothing can be learnt from."""
    parts = by_split(samples)
    for task in card.tasks:
        if task.dense:
            counts = {split: sum(task.name in sample.layers for sample in mine) for split, mine in parts.items()}
        else:
            counts = {split: len(known_labels(task, mine)) for split, mine in parts.items()}
        if not sum(counts.values()):
            yield f"{task.name}: no answer at all"
            continue
        if counts.get("train") == 0:
            yield f"{task.name}: no answer in train, where it is to be learnt"
        if task.dense:
            continue
        known = known_labels(task, samples)
        if task.coded:
            learnt = known_labels(task, parts.get("train", samples))
            if len(set(known)) == 1:
                yield f"{task.name}: every answer is {task.class_names[known[0]]}"
            elif len(set(learnt)) == 1:
                yield f"{task.name}: every answer in train is {task.class_names[learnt[0]]}"
        elif task.kind == "number" and min(known) == max(known):
            yield f"{task.name}: all numbers are equal"
        elif task.kind == "survival":
            yield from _survival(task, known, source)


def _sentinels(samples: Sequence[Sample], card: Card) -> Iterator[str]:
    """Numbers that people write for a missing one, far from all others."""
    numbers: dict[str, list[float]] = {}
    for task in card.tasks:
        if task.kind == "number":
            numbers[task.name] = known_labels(task, samples)
        elif task.kind == "survival":
            numbers[task.name] = [time for time, _ in known_labels(task, samples)]
    answers = set(numbers)  # of inputs no value is quoted but the code
    for name, column, fields in columns_of(samples, card):
        if column.kind == "number":
            numbers[name] = [value for value in fields if value is not None]
    for name, known in numbers.items():
        rest = [value for value in known if abs(value) not in SENTINELS]
        if not rest:
            continue
        low, high = min(rest), max(rest)
        far = Counter(value for value in known if not 2 * low - high <= value <= 2 * high - low)
        for value, times in sorted(far.items()):
            if abs(value) in SENTINELS:
                others = f"all others from {low:g} to {high:g}" if name in answers else "far from all others"
                yield (
                    f"{name}: {counted(times, 'value')} {value:g}, {others}: if it means missing, list it under "
                    "`missing` of the source, as the table writes it"
                )


def _survival(task: TaskSpec, known: Sequence[tuple[float, Any]], source: Source) -> Iterator[str]:
    label = source.labels.get(task.name)
    if label is not None and not label.values and means_no_event(label.event):
        yield (
            f"{task.name}: 1 in the column {label.event!r} is read as an event; if it means that none came, "
            'say `values: {"0": "yes", "1": "no"}`'
        )
    events = sum(bool(event) for _, event in known)
    last = max(time for time, _ in known)
    if events in (0, len(known)):
        yield f"{task.name}: {'nobody' if events == 0 else 'everybody'} of {len(known)} followed has the event"
    late = [f"{h:g}" for h in task.horizons if h > last]
    if late:
        yield f"{task.name}: nobody is followed to the horizon {', '.join(late)} {task.unit}"
    horizon = task.horizons[-1]
    if events and not within(task, known, horizon)["events"]:
        yield (
            f"{task.name}: no event within the last horizon, {horizon:g} {task.unit}, of times up to {last:g}: is the "
            f"column in {task.unit}?"
        )
