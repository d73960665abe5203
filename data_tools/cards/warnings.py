"""What a card's table allows but its user would want to know before training."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from data_tools.archives.table import TableFound
from data_tools.archives.values import counted
from data_tools.cards.columns import means_no_event
from data_tools.convert.report import plural
from data_tools.convert.sample import SampleResult
from m4oe_ds.data.cards import Card

_WITHOUT = {
    "train": "nothing can be trained",
    "val": "no best checkpoint can be chosen",
    "test": "nothing can be evaluated",
}
FEW, LARGE_GROUP, MANY_MISSING = 10, 0.1, 0.5  # samples of a class; share of one group; share of missing answers


def warnings_of(found: TableFound, card: Card, content: dict[str, Any], results: Sequence[SampleResult]) -> list[str]:
    """One line each, the gravest kinds first."""
    return [
        *_shared_files(found),
        *_equal_pictures(results),
        *_turned(content, card),
        *_splits(content, card),
        *_groups(found, card),
        *_spellings(found, card),
        *_codes(found, card),
        *_answers(content, card),
        *_columns(content),
    ]


def _shared_files(found: TableFound) -> list[str]:
    lines = []
    owners: dict[tuple[str, str], set[str]] = {}
    for sample in found.plan.samples:
        for name, paths in sample.images.items():
            owners.setdefault((name, paths[0]), set()).add(sample.patient)
    for name in sorted({name for name, _ in owners}):
        shared = sum(len(groups) > 1 for (one, _), groups in owners.items() if one == name)
        if shared:
            lines.append(
                f"{counted(shared, 'file')} of {name} in several groups: the same picture may be learnt and tested on"
            )
    return lines


def _equal_pictures(results: Sequence[SampleResult]) -> list[str]:
    owners: dict[str, set[str]] = {}
    for result in results:
        for digest in result.digests:
            owners.setdefault(digest, set()).add(result.meta["group"])
    equal = sum(len(groups) > 1 for groups in owners.values())
    return [f"{counted(equal, 'picture')} of those read are equal in several groups"] if equal else []


def _turned(content: dict[str, Any], card: Card) -> list[str]:
    """Pictures turned as their camera noted, under masks that may have been drawn before that."""
    lines = []
    for name in dict.fromkeys(task.of for task in card.tasks if task.dense):
        turned = content["read"]["facts"].get(f"{name}_notes", {}).get("oriented", 0)
        if turned:
            lines.append(
                f"{counted(turned, 'file')} of {name} turned as their EXIF orientation says: look at the picture "
                "whether the masks were drawn on the turned ones"
            )
    return lines


def _splits(content: dict[str, Any], card: Card) -> list[str]:
    lines = []
    for split, counts in content["splits"].get("counts", {}).items():
        if counts["samples"] == 0:
            lines.append(f"split {split} is empty: {_WITHOUT[split]}")
        elif counts["samples"] < FEW:
            lines.append(f"split {split} has {counted(counts['samples'], 'sample')}: its numbers will say little")
    source = card.source
    if source is not None and not source.group:
        lines.append(
            f"no `group` in the card: if several {plural(card.unit)} are of one {card.group}, name the column, or they "
            "are learnt and tested on"
        )
    return lines


def _groups(found: TableFound, card: Card) -> list[str]:
    counts = Counter(sample.patient for sample in found.plan.samples)
    total = len(found.plan.samples)
    large = [number for number in counts.values() if total >= FEW and number > LARGE_GROUP * total]
    if not large:
        return []
    return [
        f"{counted(len(large), 'group')} with more than {100 * LARGE_GROUP:.0f} % of all samples (the largest has "
        f"{max(large)} of {total}): is {card.group!r} the right column?"
    ]


def _spellings(found: TableFound, card: Card) -> list[str]:
    """Names that may be the same one: they differ in their case or in zeros before a number alone."""
    source = card.source
    assert source is not None
    lines = []
    samples = found.plan.samples
    for column, names in (
        (source.group, {sample.patient for sample in samples}),
        (source.sample, {sample.name for sample in samples}),
    ):
        alike = Counter(re.sub(r"(?<!\d)0+(?=\d)", "", name.casefold()) for name in names)
        twice = sum(number > 1 for number in alike.values())
        if column and twice:
            lines.append(
                f"column {column!r}: {counted(twice, 'name')} in several spellings (case, zeros before a number), read "
                "as different ones; if they are the same, they may be learnt and tested on"
            )
    for task in card.tasks:
        folded = {name.casefold() for name in task.class_names}
        if len(folded) < len(task.class_names):
            lines.append(f"{task.name}: classes that differ in their case alone; a field must be spelt as they are")
    return lines


def _codes(found: TableFound, card: Card) -> list[str]:
    """Classes given as numbers of which none is 0: they may count from 1."""
    assert card.source is not None
    lines = []
    for task in card.tasks:
        source = card.source.labels.get(task.name)
        if source is None or not task.coded or source.values:
            continue
        fields = {row[source.column] for row in found.rows}
        codes = {int(float(field)) for field in fields if re.fullmatch(r"\d{1,4}(\.0*)?", field)}
        if codes and min(codes) > 0 and not any(name.isdigit() for name in task.class_names):
            lines.append(
                f"{task.name}: no field is 0, which is {task.class_names[0]}, and the least is {min(codes)}, read as "
                f"{task.class_names[min(codes)] if min(codes) < task.num_classes else 'nothing'}: if they count from "
                f"1, map them with `values`"
            )
    return lines


def _answers(content: dict[str, Any], card: Card) -> list[str]:
    lines = []
    for task in card.tasks:
        entry = content["labels"][task.name]
        counts: Counter[str] = Counter()
        for one in entry["counts"].values():
            counts.update(one)
        missing = counts.pop("missing", 0)
        known = sum(counts.values())
        if not known:
            lines.append(f"{task.name}: no answer at all")
            continue
        if task.coded:
            for name, number in counts.items():
                if number < FEW:
                    lines.append(f"{task.name}: class {name!r} has {counted(number, 'sample')}")
        elif task.kind == "number" and entry["range"]["least"] == entry["range"]["most"]:
            lines.append(f"{task.name}: all numbers are equal")
        elif task.kind == "survival":
            source = card.source.labels.get(task.name) if card.source is not None else None
            if source is not None and not source.values and means_no_event(source.event):
                lines.append(
                    f"{task.name}: 1 in the column {source.event!r} is read as an event; if it means that none came, "
                    'say `values: {"0": "yes", "1": "no"}`'
                )
            if counts["event"] < FEW:
                lines.append(f"{task.name}: {counted(counts['event'], 'event')} among {known} followed")
            late = [f"{h:g}" for h in task.horizons if h > entry["follow_up"]["most"]]
            if late:
                lines.append(f"{task.name}: nobody is followed to the horizon {', '.join(late)} {task.unit}")
        if missing > MANY_MISSING * (missing + known):
            lines.append(f"{task.name}: {missing} of {missing + known} samples have no answer")
        if task.dense and "read" in content:
            empty = [name for name, share in content["read"]["mask_shares"][task.name].items() if share == 0]
            if empty:
                lines.append(f"{task.name}: no pixel of {', '.join(empty)} in the masks that were read")
    return lines


def _columns(content: dict[str, Any]) -> list[str]:
    lines = []
    for name, entry in content["columns"].items():
        values = entry.get("range")
        total = content["samples"]
        if entry["missing"] == total:
            lines.append(f"column {name} is empty")
            continue
        used = [one for one, number in entry.get("counts", {}).items() if number]
        if (values and values["least"] == values["most"]) or len(used) == 1:
            lines.append(f"column {name} has one value only: it says nothing")
        unused = [one for one, number in entry.get("counts", {}).items() if not number]
        if unused:
            lines.append(f"column {name}: never {', '.join(unused)}")
        if entry["missing"] > MANY_MISSING * total:
            lines.append(f"column {name}: {entry['missing']} of {total} values are missing")
    return lines
