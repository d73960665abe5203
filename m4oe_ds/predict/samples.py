"""Planned breasts to model input: the converter makes the members of a shard, the trainer's reader decodes them.

Nothing here touches pixels, so a predicted sample is what conversion and evaluation would have made of it, bit for bit.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_tools.convert.jobs import Storing, make_jobs
from data_tools.convert.sample import SampleJob, SampleResult
from data_tools.convert.workers import converted
from data_tools.pixels import geometry, grayscale
from m4oe_ds.data.collate import Sample
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.reading import Reading
from m4oe_ds.errors import DataError
from m4oe_ds.predict.exams import BEYOND_LIMIT, USED, File, Found


@dataclass(frozen=True)
class KnownSample:
    """What is known of a sample besides its prediction: pseudonyms, side, modalities present."""

    key: str
    group: str
    exam: str
    side: str
    modalities: tuple[str, ...]


@dataclass
class Tally:
    """What became of samples and images while they were read.

    Attributes:
        rows: predicted samples, by key.
        failed: key, exam, side and reason of the others.
        used: images that were used.
        bad: reasons of images that could not be, and of takes that lost by area.
    """

    rows: dict[str, KnownSample] = field(default_factory=dict)
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
        contralateral: the model also reads the other breast of the exam.
    """

    complete: tuple[str, ...]
    modalities: tuple[str, ...]
    complete_only: bool
    contralateral: bool


def storing(manifest: Manifest, where: str) -> Storing:
    """How the run's shards were stored.

    Raises:
        DataError: the manifest does not say, or this version of the package treats pixels otherwise.
    """
    stored = manifest.preprocessing
    fix = "convert the archive with data_tools.convert and train on it"
    lacking = [name for name in ("rows", "cols", "codec", "percentiles", "margin_share") if name not in stored]
    if lacking:
        raise DataError(f"does not say how pixels were treated: no {', '.join(lacking)}", where, fix)
    here = {"percentiles": list(grayscale.PERCENTILES), "margin_share": geometry.MARGIN_SHARE}
    for name, value in here.items():
        if stored[name] != value:
            raise DataError(f"shards were made with {name} {stored[name]}, this package uses {value}", where, fix)
    return Storing(manifest.card, "mammogram", int(stored["rows"]), int(stored["cols"]), str(stored["codec"]), 1)


def plan_samples(found: Found, root: Path, store: Storing, secret: bytes) -> list[SampleJob]:
    """The samples as jobs of the converter, the breasts of an exam next to each other.

    Keys and pseudonyms are the converter's, so the same exam has the same key under the same secret.
    """
    jobs = make_jobs(found.plan, root, store, secret, (0, 0, 100), None)
    samples = [sample for job in jobs for sample in job.samples]
    return sorted(samples, key=lambda sample: (sample.meta["exam"], sample.meta["side"]))


def limited(jobs: Sequence[SampleJob], limit: int, contralateral: bool) -> tuple[list[SampleJob], set[str]]:
    """The jobs to convert and the keys to predict: at most ``limit`` samples (0 = all).

    A model that compares breasts reads the other one of the last exam although it is beyond the limit.
    """
    kept = list(jobs[: limit or None])
    keys = {job.meta["key"] for job in kept}
    rest = jobs[len(kept) :]
    if contralateral and kept:
        kept += [job for job in rest if job.meta["exam"] == kept[-1].meta["exam"]]
    return kept, keys


def mark_beyond(found: Found, jobs: Sequence[SampleJob], keys: set[str]) -> None:
    """Marks the files of samples beyond the limit."""
    for job in jobs:
        if job.meta["key"] not in keys:
            for file in _files(found, job, job.images):
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
        stored: dict[str, Sample] = {}
        wanted = []
        for job, result in exam:
            mine = job.meta["key"] in keys
            reason = _problem(result, rules)
            if mine:
                _note(job, result, reason, found, tally)
            if reason not in ("", "modalities_missing_for_the_run"):
                continue
            stored[job.meta["side"]] = decode(result, reading)
            if mine and not reason:
                wanted.append((job, result))
        for job, result in wanted:
            sample = stored[job.meta["side"]]
            if rules.contralateral:
                other = stored.get("r" if job.meta["side"] == "l" else "l")
                sample.contralateral = {} if other is None else other.views
            present = tuple(name for name in rules.modalities if name in sample.views)
            meta = result.meta
            tally.rows[sample.key] = KnownSample(sample.key, sample.group, meta["exam"], meta["side"], present)
            yield sample


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


def _files(found: Found, job: SampleJob, modalities: Mapping[str, Any] | Sequence[str]) -> Iterator[File]:
    patient, exam = job.source
    for name in modalities:
        yield from found.candidates[patient, exam, job.meta["side"].upper(), name]


def _note(job: SampleJob, result: SampleResult, reason: str, found: Found, tally: Tally) -> None:
    """Books every file of a sample under one outcome, so that the counts add up."""
    for name in job.images:
        files = list(_files(found, job, [name]))
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
        tally.failed.append(
            {
                "key": job.meta["key"],
                "exam": job.meta["exam"],
                "side": job.meta["side"],
                "reason": reason,
                "images": dict(sorted(Counter(why for _, why in result.bad).items())),
            }
        )
    tally.used += tally.bad.pop(USED, 0)
    tally.bad = +tally.bad
