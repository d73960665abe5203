"""Makes the shards of an archive: parallel over samples, resumable and divisible by shard, then one manifest per split.

Every finished shard leaves a record next to it. A conversion that was killed continues after the records it finds;
several jobs may share the work, and whichever finds all records present writes the manifests.
"""

from __future__ import annotations

import fcntl
import functools
import json
import logging
import math
import operator
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data_tools.convert.jobs import ShardJob
from data_tools.convert.sample import SampleResult, Sums
from data_tools.convert.workers import converted
from m4oe_ds.data.cards import Card
from m4oe_ds.data.manifest import Manifest, Shard, assemble
from m4oe_ds.data.schema import SPLITS
from m4oe_ds.data.shard_writer import OpenShard
from m4oe_ds.errors import DataError
from m4oe_ds.progress import Progress

logger = logging.getLogger(__name__)
RECORDS = ".records"
REASONS_SHOWN = 3


@dataclass
class Record:
    """What became of the samples of one shard: counts and sums are whole numbers, so their order does not matter.

    Attributes:
        shard: None if no sample was left.
        keys: keys of the samples that were written.
        sums: sums of the stored pixels per modality.
        numbers: the numbers of tables, by ``modality.column``.
        quarantine: key, modality and reason of images that were not used.
        facts: counts for the histograms of the report.
        digests: ``[digest of the decoded pixels, patient pseudonym]`` of every image.
    """

    name: str
    shard: Shard | None = None
    keys: list[str] = field(default_factory=list)
    sums: dict[str, Sums] = field(default_factory=dict)
    numbers: dict[str, list[float]] = field(default_factory=dict)
    quarantine: list[dict[str, str]] = field(default_factory=list)
    facts: dict[str, dict[str, int]] = field(default_factory=dict)
    digests: list[list[str]] = field(default_factory=list)
    samples_without_image: int = 0
    incomplete: int = 0
    images: int = 0
    planned: int = 0

    def add(self, result: SampleResult) -> None:
        """Counts a converted sample, whether it is kept or not."""
        key, group = result.meta["key"], result.meta["group"]
        self.quarantine += [{"key": key, "modality": modality, "reason": reason} for modality, reason in result.bad]
        for name, counts in result.facts.items():
            self.facts[name] = dict(Counter(self.facts.get(name, {})) + counts)
        self.digests += [[digest, group] for digest in result.digests]

    def add_kept(self, result: SampleResult) -> None:
        """Counts a sample that goes into the shard."""
        self.keys.append(result.meta["key"])
        self.images += len(result.sums)
        for name, sums in result.sums.items():
            self.sums[name] = self.sums[name] + sums if name in self.sums else sums
        for name, value in result.numbers.items():
            self.numbers.setdefault(name, []).append(value)

    def save(self, folder: Path) -> None:
        """Writes the record in one go: its presence says that the shard is complete."""
        temporary = folder / f".{self.name}.json"
        with temporary.open("w", encoding="utf-8") as stream:
            json.dump(asdict(self), stream, sort_keys=True)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, folder / f"{self.name}.json")

    @classmethod
    def load(cls, folder: Path, job: ShardJob, out: Path) -> Record | None:
        """The record of a shard that is finished and still there in its full length; None otherwise."""
        path = folder / f"{job.name}.json"
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            content["shard"] = None if content["shard"] is None else Shard(**content["shard"])
            content["sums"] = {name: Sums(**sums) for name, sums in content["sums"].items()}
            record = cls(**content)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError):
            logger.warning("the record of shard %s is damaged or of another version: the shard is made again", job.name)
            return None
        if record.shard is not None:
            tar = out / job.split / job.name
            if not tar.is_file() or tar.stat().st_size != record.shard.bytes:
                logger.warning("shard %s is not as its record says: it is made again", job.name)
                return None
        return record


@dataclass(frozen=True)
class ShardRules:
    """What decides whether a sample is kept and when to give up. ``require``: ``any`` or ``complete``."""

    require: str
    max_quarantine: float
    archive: str


def _check_quarantine(bad: list[dict[str, str]], planned: int, rules: ShardRules) -> None:
    """Stops as soon as more images are bad than accepted: the number never falls again."""
    if len(bad) > rules.max_quarantine * planned:
        reasons = Counter(item["reason"] for item in bad)
        common = ", ".join(f"{name} {n}" for name, n in reasons.most_common(REASONS_SHOWN))
        raise DataError(
            f"{len(bad)} of {planned} images are bad so far ({common}), more than --max-quarantine "
            f"{rules.max_quarantine}",
            rules.archive,
            "check that the archive is complete, or raise --max-quarantine",
        )


def _take(result: SampleResult, record: Record, writer: OpenShard, card: Card, rules: ShardRules) -> None:
    """Counts one converted sample and writes it if it is kept."""
    record.add(result)
    if not result.meta["modalities"]:
        record.samples_without_image += 1
    elif rules.require == "complete" and len(result.meta["modalities"]) < len(card.modalities):
        record.incomplete += 1
    else:
        record.add_kept(result)
        writer.add(result.meta, result.members)


def make_shards(out: Path, jobs: Sequence[ShardJob], card: Card, rules: ShardRules, workers: int) -> list[Record]:
    """Makes the shards that have no record yet; returns the records of all ``jobs``.

    Args:
        out: folder in which ``<split>/<shard>`` and the records go.

    Raises:
        DataError: too many bad images.
    """
    folder = out / RECORDS
    folder.mkdir(exist_ok=True)
    for split in SPLITS:
        (out / split).mkdir(exist_ok=True)
    records = {job.name: Record.load(folder, job, out) for job in jobs}
    todo = [job for job in jobs if records[job.name] is None]
    done = len(jobs) - len(todo)
    if done:
        logger.warning("%d of %d shards are there already and are kept", done, len(jobs))
    planned = sum(job.num_images for job in jobs)
    bad = [item for record in records.values() if record is not None for item in record.quarantine]
    samples = [sample for job in todo for sample in job.samples]
    results = converted(samples, workers)
    with Progress("converting", len(samples), "samples") as progress:
        for job in todo:
            record = Record(job.name, planned=job.num_images)
            writer = OpenShard(out / job.split / job.name, card)
            try:
                for _ in job.samples:
                    _take(next(results), record, writer, card, rules)
                    _check_quarantine(bad + record.quarantine, planned, rules)
                    progress.update()
            except BaseException:
                writer.abort()
                raise
            if record.keys:
                record.shard = writer.close()
            else:
                writer.abort()
            record.save(folder)
            bad += record.quarantine
            records[job.name] = record
    return [record for record in records.values() if record is not None]


def all_records(out: Path, jobs: Sequence[ShardJob]) -> list[Record] | None:
    """Records of all jobs, None while some are missing: another part is still at work."""
    found = [Record.load(out / RECORDS, job, out) for job in jobs]
    complete = [record for record in found if record is not None]
    return complete if len(complete) == len(jobs) else None


def _statistics(records: Sequence[Record], modalities: Sequence[str]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation of stored pixels / full range of their type, per modality present; of numbers of
    tables as they are, per ``modality.column``.
    """
    out = {}
    for name in modalities:
        parts = [record.sums[name] for record in records if name in record.sums]
        if parts:
            sums = functools.reduce(operator.add, parts)
            # exact: whole numbers until here
            variance = (sums.pixels * sums.squares - sums.total * sums.total) / (sums.pixels * sums.pixels)
            out[name] = {"mean": sums.total / sums.pixels / sums.full, "std": variance**0.5 / sums.full}
    for name in sorted({name for record in records for name in record.numbers}):
        values = [value for record in records for value in record.numbers.get(name, ())]
        mean = math.fsum(values) / len(values)
        spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
        out[name] = {"mean": mean, "std": spread or 1.0}  # a column that does not vary is left as it is around 0
    return out


def write_manifests(
    out: Path,
    jobs: Sequence[ShardJob],
    records: Sequence[Record],
    card: Card,
    synthetic: bool,
    preprocessing: Mapping[str, Any],
) -> dict[str, Manifest]:
    """One manifest per split; the records are removed afterwards."""
    by_name = {record.name: record for record in records}
    manifests = {}
    for split in SPLITS:
        mine = [by_name[job.name] for job in jobs if job.split == split]
        manifests[split] = assemble(
            card,
            split,
            [record.shard for record in mine if record.shard is not None],
            synthetic=synthetic,
            preprocessing=preprocessing,
            pixel_statistics=_statistics(mine, card.modalities),
        )
        manifests[split].save(out / split)
    return manifests


def remove_records(out: Path) -> None:
    """Removes what only an unfinished conversion needs."""
    shutil.rmtree(out / RECORDS, ignore_errors=True)


@contextmanager
def only_one(partial: Path) -> Iterator[bool]:
    """Whether this process is the one that finishes the work: of several parts that find it complete, one may.

    The lock is the operating system's: it ends with the process that holds it, whatever happens to that.
    """
    try:
        stream = (partial / ".finishing").open("w")
    except FileNotFoundError:  # another part has moved the folder already
        yield False
        return
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield partial.is_dir()
