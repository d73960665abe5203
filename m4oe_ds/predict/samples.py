"""Planned samples to model input: the converter makes the members of a shard, the trainer's reader decodes them.

Nothing here touches pixels, so a predicted sample is what conversion and evaluation would have made of it, bit for bit.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data_tools.convert.jobs import Storing, make_jobs
from data_tools.convert.sample import SampleJob, SampleResult
from data_tools.convert.workers import converted
from data_tools.pixels import geometry, grayscale
from m4oe_ds.data.cards import Card
from m4oe_ds.data.collate import Sample
from m4oe_ds.data.reading import Reading
from m4oe_ds.data.roots import Root
from m4oe_ds.errors import DataError
from m4oe_ds.predict.given import BEYOND_LIMIT, USED, Found, source_of


@dataclass(frozen=True)
class KnownSample:
    """What is known of a sample besides its prediction.

    Attributes:
        key: key of the sample.
        group: pseudonym of the patient.
        exam: pseudonym of the exam.
        side: one letter; empty where samples have none.
        modalities: names of the modalities present.
        row: number of its row in the table that was given; 0 = no table.
    """

    key: str
    group: str
    exam: str
    side: str
    modalities: tuple[str, ...]
    row: int = 0


@dataclass
class Tally:
    """What became of samples and images while they were read.

    Attributes:
        rows: predicted samples, by key.
        keys: key of every predicted sample by patient, sample and side, as the source names them.
        failed: key, exam, side, row and reason of the others.
        used: images that were used.
        bad: reasons of images that could not be, and of takes that lost by area.
    """

    rows: dict[str, KnownSample] = field(default_factory=dict)
    keys: dict[tuple[str, str, str], str] = field(default_factory=dict)
    failed: list[dict[str, Any]] = field(default_factory=list)
    used: int = 0
    bad: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class SampleRules:
    """What a sample needs to be predicted.

    Attributes:
        complete: modalities without which the converter leaves a sample out; empty where any image is enough.
        modalities: names of the model's modalities; a sample needs one of them, or all with ``complete_only``, as in
            training.
        contralateral: the model also reads the other side of the exam.
    """

    complete: tuple[str, ...]
    modalities: tuple[str, ...]
    complete_only: bool
    contralateral: bool


def storing(stored: Mapping[str, Any], card: Card, where: str) -> Storing:
    """How the run's shards were stored, for the samples of ``card``.

    Args:
        stored: ``preprocessing`` of the run's training data.
        card: what is to be converted.
        where: where ``stored`` comes from, for messages.

    Raises:
        DataError: it does not say, or this version of the package treats pixels otherwise.
    """
    fix = "convert the archive with data_tools.convert and train on it"
    of_table = card.source is not None and bool(card.source.table)
    wanted = ("ranges", "volume_size") if of_table else ("percentiles", "margin_share")
    lacking = [name for name in ("rows", "cols", "codec", *wanted) if name not in stored]
    if lacking:
        raise DataError(f"does not say how pixels were treated: no {', '.join(lacking)}", where, fix)
    here = {"percentiles": list(grayscale.PERCENTILES), "margin_share": geometry.MARGIN_SHARE}
    for name in () if of_table else wanted:
        if stored[name] != here[name]:
            raise DataError(f"shards were made with {name} {stored[name]}, this package uses {here[name]}", where, fix)
    converter = "exam" if of_table else "mammogram"
    return Storing(card, converter, int(stored["rows"]), int(stored["cols"]), str(stored["codec"]), 1)


def plan_samples(found: Found, root: Root, store: Storing, secret: bytes) -> list[SampleJob]:
    """The samples as jobs of the converter, those of an exam next to each other.

    Keys and pseudonyms are the converter's, so the same sample has the same key under the same secret.
    """
    jobs = make_jobs(found.plan, root, store, secret, (0, 0, 100), None)
    samples = [sample for job in jobs for sample in job.samples]
    return sorted(samples, key=lambda sample: (sample.meta["exam"], sample.meta.get("side", ""), sample.meta["key"]))


def limited(jobs: Sequence[SampleJob], limit: int, contralateral: bool) -> tuple[list[SampleJob], set[str]]:
    """The jobs to convert and the keys to predict: at most ``limit`` samples (0 = all).

    A model that compares sides reads the other one of the last exam although it is beyond the limit.
    """
    kept = list(jobs[: limit or None])
    keys = {job.meta["key"] for job in kept}
    rest = jobs[len(kept) :]
    if contralateral and kept:
        kept += [job for job in rest if job.meta["exam"] == kept[-1].meta["exam"]]
    return kept, keys


def mark_beyond(found: Found, jobs: Sequence[SampleJob], keys: set[str]) -> None:
    """Marks the files and rows of samples beyond the limit."""
    for job in jobs:
        if job.meta["key"] not in keys:
            found.settle(job, BEYOND_LIMIT)
            for file in found.files_of(job, job.images):
                file.outcome = BEYOND_LIMIT


def read_samples(
    jobs: Sequence[SampleJob],
    keys: set[str],
    found: Found,
    reading: Reading,
    rules: SampleRules,
    workers: int,
    tally: Tally,
) -> Iterator[Sample]:
    """Decoded samples of ``keys`` in the order of the jobs; what cannot be used goes into ``tally`` and ``found``.

    Args:
        workers: processes that convert; 0 converts in this one, without protection against decoders that crash.
    """
    pairs = zip(jobs, converted(jobs, workers), strict=True)
    for _, exam in itertools.groupby(pairs, key=lambda pair: str(pair[0].meta["exam"])):
        read: list[tuple[SampleJob, Sample]] = []
        wanted = []
        for job, result in exam:
            mine = job.meta["key"] in keys
            reason = _problem(result, rules)
            if mine:
                _note(job, result, reason, found, tally)
            if reason not in ("", "modalities_missing_for_the_run"):
                continue
            sample = decode(result, reading)
            read.append((job, sample))
            if mine and not reason:
                wanted.append((job, sample))
        for job, sample in wanted:
            if rules.contralateral:
                sample.contralateral = _other_side(job, read)
            tally.rows[sample.key] = _known(job, sample, rules, found)
            tally.keys[source_of(job)] = sample.key
            yield sample


def _other_side(job: SampleJob, read: Sequence[tuple[SampleJob, Sample]]) -> dict[str, Any]:
    """Views of the other side of the exam; none if it has none."""
    side = job.meta.get("side", "")
    return next((sample.views for other, sample in read if side and other.meta.get("side", "") not in ("", side)), {})


def _known(job: SampleJob, sample: Sample, rules: SampleRules, found: Found) -> KnownSample:
    present = tuple(name for name in rules.modalities if name in sample.views)
    row = found.row_of.get(source_of(job))
    number = 0 if row is None else row.row
    return KnownSample(sample.key, sample.group, job.meta["exam"], job.meta.get("side", ""), present, number)


def decode(result: SampleResult, reading: Reading) -> Sample:
    """A converted sample as the trainer's stream would read it from a shard."""
    return reading.sample({"meta.json": json.dumps(result.meta).encode(), **result.members}, epoch=0)


def _problem(result: SampleResult, rules: SampleRules) -> str:
    """Why a converted sample is not predicted; empty if it is. The order is that of conversion, then training."""
    names = result.meta["modalities"]
    if not names:
        return "no_good_image"
    if any(name not in names for name in rules.complete):
        return "incomplete"
    present = [name in names for name in rules.modalities]
    ready = all(present) if rules.complete_only else any(present)
    return "" if ready else "modalities_missing_for_the_run"


def _note(job: SampleJob, result: SampleResult, reason: str, found: Found, tally: Tally) -> None:
    """Books the row and every file of a sample under one outcome, so that the counts add up."""
    found.settle(job, reason or USED)
    for name in job.images:
        files = list(found.files_of(job, [name]))
        reasons = [why for modality, why in result.bad if modality == name]
        if name not in result.meta["modalities"]:
            reasons += reasons[-1:] * (len(files) - len(reasons))  # images that crash a decoder only together
            for file, why in zip(files, reasons, strict=True):
                file.outcome = why
            tally.bad.update(reasons)
            continue
        outcome = "of_excluded_samples" if reason else USED
        for file in files:
            file.outcome = outcome if len(files) == 1 else "one_of_several_takes"
        tally.bad.update(reasons)
        tally.bad["smaller_take"] += len(files) - len(reasons) - 1
        tally.bad[outcome] += 1
    if reason:
        row = found.row_of.get(source_of(job))
        tally.failed.append(
            {
                "key": job.meta["key"],
                **({} if row is None else {"row": row.row}),
                "exam": job.meta["exam"],
                **({"side": job.meta["side"]} if "side" in job.meta else {}),
                "reason": reason,
                "images": dict(sorted(Counter(why for _, why in result.bad).items())),
            }
        )
    tally.used += tally.bad.pop(USED, 0)
    tally.bad = +tally.bad
