"""What a card's table allows but its user would want to know before training."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from data_tools.archives.doubts import doubts
from data_tools.archives.table import TableFound
from data_tools.archives.values import counted
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
        *doubts(found.plan.samples, found.rows, card),
        *_equal_pictures(results),
        *_turned(content, card),
        *_splits(content, card),
        *_groups(found, card),
        *_answers(content, card),
        *_columns(content),
    ]


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
            continue  # said already
        if task.coded:
            for name, number in counts.items():
                if number < FEW:
                    lines.append(f"{task.name}: class {name!r} has {counted(number, 'sample')}")
        elif task.kind == "survival" and 0 < counts["event"] < FEW:
            lines.append(f"{task.name}: {counted(counts['event'], 'event')} among {known} followed")
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
