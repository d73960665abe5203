"""Explains a card against its table and files before anything is converted.

Reads the table as a conversion does, and converts some samples (or all) in memory: what is said here is what a
conversion would find. Rows are named by their number; nothing that names a patient is repeated.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.archives.doubts import by_split, columns_of, known_labels, within
from data_tools.archives.plan import ArchivePlan, Sample
from data_tools.archives.table import TableFound, read_samples
from data_tools.archives.values import counted
from data_tools.cards.warnings import warnings_of
from data_tools.convert.jobs import Storing, assign_splits, make_jobs
from data_tools.convert.options import MOST_PROCESSES
from data_tools.convert.report import label_counts, plural
from data_tools.convert.sample import SampleResult
from data_tools.convert.workers import converted
from m4oe_ds.data.cards import Card
from m4oe_ds.data.codecs import decode
from m4oe_ds.data.roots import Root
from m4oe_ds.data.schema import SPLITS, TaskSpec
from m4oe_ds.errors import DataError
from m4oe_ds.progress import track

SAMPLES_READ, EXAMPLES = 16, 5
_STAND_IN = b"card check"  # the secret of the conversion is not made yet: which group goes where is not known


@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """What to look at.

    Attributes:
        card_path: the card.
        root: folder or address of the table and the files; None takes the folder of the card.
        full: read every file, not those of a few samples.
        workers: processes; 0 = read in this one.
        max_missing: share of the files named by the table, of each modality, that may not be there.
        max_quarantine: share of bad files accepted.
    """

    card_path: Path
    root: Root | None = None
    full: bool = False
    workers: int = 1
    max_missing: float = 0.0
    max_quarantine: float = 0.2

    @property
    def folder(self) -> Root:
        """Folder or address of the table and the files."""
        return self.card_path.parent if self.root is None else self.root


@dataclass
class Checked:
    """What was found.

    Attributes:
        card: the card.
        content: all findings, as plain values for JSON.
        results: the samples that were read.
    """

    card: Card
    content: dict[str, Any]
    results: list[SampleResult] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """What stands against a conversion, one line each."""
        problems: list[str] = self.content["problems"]
        return problems


def check_card(card: Card, options: CheckOptions) -> Checked:
    """Reads the table and some files of a card.

    Raises:
        DataError: no table, an unreadable one, or columns missing.
    """
    where = str(options.card_path)
    if card.source is not None and card.source.reader:
        raise DataError(
            f"is of an archive with a reader of its own, {card.source.reader}",
            where,
            "look at the archive with `m4oe convert --dry-run`",
        )
    found = read_samples(card, where, options.folder, options.max_missing)
    assert card.source is not None
    samples = found.plan.samples
    content: dict[str, Any] = {
        "card": card.name,
        "unit": card.unit,
        "group": card.group,
        "table": card.source.table,
        "samples": len(samples),
        "groups": len({sample.patient for sample in samples}),
        "splits": _splits(samples, card),
        "files": _files(found, card),
        "labels": {task.name: _labels(task, samples) for task in card.tasks},
        "columns": _columns(samples, card),
        "subgroups": _subgroups(samples, card),
        "problems": list(found.problems),
    }
    chosen = _chosen(samples, options.full)
    results = _read([samples[place] for place in chosen], card, options)
    content["read"] = _reading(results, card, len(samples))
    content["examples"] = [
        _example(found.numbers[place], samples[place], result, card)
        for place, result in list(zip(chosen, results, strict=False))[:EXAMPLES]  # none where names are there twice
    ]
    content["problems"] += _bad_problem(content["read"], options)
    content["warnings"] = warnings_of(found, card, content, results)
    content["next"] = _next(options, bool(content["problems"]))
    return Checked(card, content, results)


def _next(options: CheckOptions, stopped: bool) -> str:
    if stopped:
        return f"mend this, then: m4oe card check {options.card_path}"
    root = "" if options.root is None else f" --root {options.root}"
    missing = f" --max-missing {options.max_missing:g}" if options.max_missing else ""
    return f"m4oe convert --card {options.card_path}{root} --out shards/{options.card_path.stem}{missing}"


def _splits(samples: Sequence[Sample], card: Card) -> dict[str, Any]:
    """Samples and groups of every split, as the table says or as a conversion will draw them."""
    assert card.source is not None
    try:
        splits = assign_splits(samples, _STAND_IN, card.source.shares)
    except DataError:
        return {}
    counts = {
        split: {
            "samples": sum(splits[sample.patient] == split for sample in samples),
            "groups": sum(one == split for one in splits.values()),
        }
        for split in SPLITS
    }
    named = {sample.split for sample in samples}
    drawn = "all" if named == {""} else "val" if "train" in named and "val" not in named else ""
    return {"counts": counts, "drawn": drawn, "shares": list(card.source.shares)}


def _files(found: TableFound, card: Card) -> dict[str, dict[str, Any]]:
    assert found.files is not None
    kinds = {one.name: one.kind for one in card.inputs}
    return {
        what: {
            "kind": kinds.get(what, "mask"),
            "pattern": found.patterns[what],
            "there": counts.found,
            "not_named": counts.empty,
            "missing": len(counts.absent),
            "outside": len(counts.outside),
        }
        for what, counts in found.files.named.items()
    }


def _labels(task: TaskSpec, samples: Sequence[Sample]) -> dict[str, Any]:
    """Answers to a task: counts by split, and where they are numbers their range."""
    out: dict[str, Any] = {"kind": task.kind, "counts": {}}
    for split, mine in by_split(samples).items():
        if task.dense:
            there = sum(task.name in sample.layers for sample in mine)
            out["counts"][split] = {"mask": there, "missing": len(mine) - there}
            continue
        labels = [sample.labels[task.name] for sample in mine]
        counts = label_counts(task, labels)
        if task.coded:
            missing = counts.pop("missing", 0)
            counts = {name: counts.get(str(code), 0) for code, name in enumerate(task.class_names)}
            counts["missing"] = missing
        out["counts"][split] = counts
    known = [] if task.dense else known_labels(task, samples)
    if task.kind == "number" and known:
        out["range"] = quartiles(known) | {"unit": task.unit}
    if task.kind == "survival" and known:
        out["follow_up"] = quartiles([time for time, _ in known]) | {"unit": task.unit}
        out["within"] = {f"{horizon:g}": within(task, known, horizon) for horizon in task.horizons}
    return out


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Smallest, quartiles and largest."""
    points = np.quantile(np.array(values, dtype=np.float64), (0, 0.25, 0.5, 0.75, 1))
    return dict(zip(("least", "quarter", "median", "three_quarters", "most"), map(float, points), strict=True))


def _columns(samples: Sequence[Sample], card: Card) -> dict[str, dict[str, Any]]:
    """Columns of table modalities: ranges of numbers, counts of categories."""
    out: dict[str, dict[str, Any]] = {}
    for name, column, fields in columns_of(samples, card):
        known = [value for value in fields if value is not None]
        entry: dict[str, Any] = {"kind": column.kind, "missing": len(fields) - len(known)}
        if column.kind == "category":
            counts = Counter(int(value) for value in known)
            entry["counts"] = {word: counts[code] for code, word in enumerate(column.values)}
        elif known:
            entry["range"] = quartiles(known)
        out[name] = entry
    return out


def _subgroups(samples: Sequence[Sample], card: Card) -> dict[str, dict[str, int]]:
    assert card.source is not None
    out: dict[str, dict[str, int]] = {}
    for name in card.source.subgroups:
        counts = Counter(sample.subgroups.get(name, "missing") for sample in samples)
        out[name] = dict(sorted(counts.items()))
    return out


def _chosen(samples: Sequence[Sample], full: bool) -> list[int]:
    """Places of the samples to read: all, or half of a few among those that have most files, half among all."""
    places = list(range(len(samples)))
    if full:
        return places
    files = [len(sample.images) + len(sample.layers) for sample in samples]
    rich = _spread([place for place in places if files[place] == max(files)], SAMPLES_READ // 2)
    return sorted({*rich, *_spread([place for place in places if place not in rich], SAMPLES_READ - len(rich))})


def _spread(places: Sequence[int], most: int) -> list[int]:
    """At most so many of the places, spread evenly."""
    steps = np.unique(np.linspace(0, len(places) - 1, min(most, len(places))).astype(int))
    return [places[step] for step in steps]


def _read(samples: Sequence[Sample], card: Card, options: CheckOptions) -> list[SampleResult]:
    """The samples as a conversion would make them, in their order."""
    assert card.source is not None
    if len({sample.name for sample in samples}) < len(samples):
        return []  # two of one name: said already
    rows, cols = card.source.size
    storing = Storing(card, "exam", rows, cols, "b2", len(samples))
    plan = ArchivePlan(samples=[replace(sample, split="", stratum="") for sample in samples])
    shards = make_jobs(plan, options.folder, storing, _STAND_IN, (100, 0, 0), None)
    place_of = {sample.name: place for place, sample in enumerate(samples)}
    jobs = sorted((job for shard in shards for job in shard.samples), key=lambda job: place_of[job.source[1]])
    done = converted(jobs, min(options.workers, MOST_PROCESSES))
    return list(track(done, "read", "samples", len(jobs)))


def _reading(results: Sequence[SampleResult], card: Card, samples: int) -> dict[str, Any]:
    """What the samples that were read look like."""
    facts: dict[str, Counter[str]] = defaultdict(Counter)
    bad: dict[str, Counter[str]] = defaultdict(Counter)
    pictures = 0
    for result in results:
        for name, counts in result.facts.items():
            facts[name].update(counts)
        for what, reason in result.bad:
            bad[what][reason] += 1
        pictures += len(result.sums)
    return {
        "samples": len(results),
        "of": samples,
        "good": pictures,
        "facts": {name: dict(counts.most_common()) for name, counts in facts.items()},
        "bad": {what: dict(counts.most_common()) for what, counts in bad.items()},
        "mask_shares": {task.name: _shares(task, results) for task in card.tasks if task.dense},
    }


def _shares(task: TaskSpec, results: Iterable[SampleResult]) -> dict[str, float]:
    """Mean share of the stored picture that each class of a mask covers."""
    found = []
    for result in results:
        member = next((name for name in result.members if name.split(".")[0] == task.name), None)
        if member is not None:
            bits = decode(result.members[member], member.rsplit(".", 1)[-1])
            found.append([float((bits >> k & 1).mean()) for k in range(task.num_classes)])
    means = np.mean(found, axis=0) if found else []
    return {name: round(float(mean), 6) for name, mean in zip(task.class_names, means, strict=False)}


def _bad_problem(read: dict[str, Any], options: CheckOptions) -> list[str]:
    bad = sum(number for counts in read["bad"].values() for number in counts.values())
    total = bad + read["good"]
    if not total or bad <= options.max_quarantine * total:
        return []
    reasons: Counter[str] = Counter()
    for what, counts in read["bad"].items():
        reasons.update({f"{what} {reason.replace('_', ' ')}": number for reason, number in counts.items()})
    listed = ", ".join(f"{reason} {number}" for reason, number in reasons.most_common(3))
    return [f"{bad} of {counted(total, 'file')} read cannot be used ({listed}); a conversion would stop"]


def _example(row: int, sample: Sample, result: SampleResult, card: Card) -> dict[str, Any]:
    """One row: which files and answers were found, nothing that names it."""
    labels: dict[str, Any] = {}
    for task in card.tasks:
        label = result.meta["labels"].get(task.name, task.unknown)
        if not task.known(label):
            labels[task.name] = None
        elif task.coded:
            labels[task.name] = task.class_names[label]
        else:
            labels[task.name] = "mask" if task.dense else label
    return {
        "row": row,
        "split": sample.split,
        "inputs": {one.name: one.name in result.meta["modalities"] for one in card.inputs},
        "labels": labels,
    }


def headline(content: dict[str, Any]) -> str:
    """What the table holds, in one sentence."""
    groups = "" if content["groups"] == content["samples"] else f" of {content['groups']} {plural(content['group'])}"
    return f"{content['card']}: {content['samples']} {plural(content['unit'])}{groups} in {content['table']}"
