"""From a plan to work: pseudonyms, splits of patients, and the samples of every shard in their order."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from data_tools.archives.plan import ArchivePlan, Sample, with_paths
from data_tools.convert.sample import ExamJob, SampleJob
from data_tools.deidentify import hash16, split_of, vendor_family
from m4oe_ds.data.cards import Card
from m4oe_ds.data.roots import Root, located
from m4oe_ds.data.schema import SCHEMA_VERSION, SPLITS, shard_name
from m4oe_ds.errors import DataError


@dataclass(frozen=True)
class Storing:
    """What the samples are of, what converts them, and how images are stored: size, codec, samples per shard."""

    card: Card
    converter: str
    rows: int
    cols: int
    codec: str
    samples_per_shard: int


@dataclass(frozen=True)
class ShardJob:
    """One shard to make: the unit that is resumed and divided among jobs of an array."""

    split: str
    index: int
    name: str
    samples: tuple[SampleJob, ...]

    @property
    def num_images(self) -> int:
        """Images planned, counting one per modality."""
        return sum(len(sample.images) for sample in self.samples)


def assign_splits(samples: Sequence[Sample], secret: bytes, shares: Sequence[int]) -> dict[str, str]:
    """The split of every patient.

    An official split is kept: ``test`` stays ``test``, ``val`` stays ``val``, and where the archive names only
    ``train`` and ``test``, validation is carved out of ``train`` with the ratio of its share. Otherwise a keyed hash of
    the patient decides; with strata, patients are ranked by that hash within their stratum and cut at the shares, so
    every split holds the same mixture.

    Args:
        shares: percentages of ``SPLITS``, summing to 100.

    Raises:
        DataError: a patient is in two official splits.
    """
    official: dict[str, set[str]] = defaultdict(set)
    strata: dict[str, str] = {}
    for sample in samples:
        official[sample.patient].add(sample.split)
        strata.setdefault(sample.patient, sample.stratum)
    crossing = sum(len(splits) > 1 for splits in official.values())
    if crossing:
        raise DataError(f"{crossing} patients are in two official splits", "tables", "use the original tables")
    named = {next(iter(splits)) for splits in official.values()}
    out: dict[str, str] = {}
    free: dict[str, list[str]] = defaultdict(list)
    carve = "train" in named and "val" not in named
    for patient in sorted(official):
        split = next(iter(official[patient]))
        if split in SPLITS and not (split == "train" and carve):
            out[patient] = split
        elif not split and not strata[patient]:
            out[patient] = split_of(secret, patient, shares)
        else:
            free[strata[patient]].append(patient)
    borders = (shares[0], shares[0] + shares[1], sum(shares))
    if carve:
        borders = (shares[0], shares[0] + shares[1], shares[0] + shares[1])
    for stratum in sorted(free):
        ranked = sorted(free[stratum], key=lambda patient: hash16(secret, "rank", patient))
        for rank, patient in enumerate(ranked):
            place = (rank + 0.5) / len(ranked) * borders[2]
            out[patient] = next(
                split for split, border in zip(SPLITS, borders, strict=True) if place < border or border == borders[2]
            )
    return out


def key_of(secret: bytes, card: str, sample: Sample) -> str:
    """The key of a sample: the name of the card, a keyed hash, and the side where there is one."""
    side = sample.side.lower()
    what = (sample.name,) if sample.name else (sample.exam, side)
    return f"{card}-{hash16(secret, 'sample', card, sample.patient, *what)}" + (f"-{side}" if side else "")


def _meta(sample: Sample, split: str, storing: Storing, secret: bytes) -> dict[str, Any]:
    """What is said of a sample before its images are read."""
    card = storing.card.name
    meta = {
        "schema_version": SCHEMA_VERSION,
        "dataset": card,
        "split": split,
        "key": key_of(secret, card, sample),
        "group": hash16(secret, "patient", card, sample.patient),
        "exam": hash16(secret, "exam", card, sample.patient, sample.exam),
        "labels": dict(sample.labels),
    }
    if sample.side:
        meta["side"] = sample.side.lower()
    if sample.subgroups:
        meta["subgroups"] = dict(sample.subgroups)
    if storing.converter != "exam":
        meta["screening"] = sample.screening
        meta["vendor"] = vendor_family(sample.manufacturer) if sample.manufacturer.strip() else ""
    return meta


def _exam_job(sample: Sample, root: Root, card: Card) -> ExamJob | None:
    """What a sample of a card's table needs besides; None for one of an archive."""
    source = card.source
    if source is None or source.reader:
        return None
    layers = {
        name: tuple(mask and replace(mask, pattern=located(root, mask.pattern)) for mask in masks)
        for name, masks in sample.layers.items()
    }
    masks = tuple(task for task in card.tasks if task.dense)
    return ExamJob(card.inputs, masks, dict(source.ranges), source.volume_size, sample.tables, layers)


def _sample_job(sample: Sample, split: str, root: Root, storing: Storing, secret: bytes) -> SampleJob:
    images = {name: tuple(located(root, path) for path in paths) for name, paths in sample.images.items()}
    masks = {name: located(root, path) for name, path in sample.masks.items()}
    return SampleJob(
        _meta(sample, split, storing, secret),
        images,
        storing.rows,
        storing.cols,
        storing.codec,
        sample.choose,
        masks,
        (sample.patient, sample.name or sample.exam),
        storing.converter,
        with_paths(sample.outlines, root),
        _exam_job(sample, root, storing.card),
    )


def make_jobs(
    plan: ArchivePlan, root: Root, storing: Storing, secret: bytes, shares: Sequence[int], limit: int | None
) -> list[ShardJob]:
    """All shards of an archive, in order of split and number.

    Which samples a shard is planned to hold depends on the tables, the options and the secret alone: samples in order
    of their key, which is as good as shuffled. A sample without a usable image leaves its place empty, so shards can be
    made in any order and by any number of processes.

    Raises:
        DataError: a patient in two official splits, or two samples with one key.
    """
    splits = assign_splits(plan.samples, secret, shares)
    samples = [_sample_job(sample, splits[sample.patient], root, storing, secret) for sample in plan.samples]
    samples.sort(key=lambda sample: sample.meta["key"])
    repeated = len(samples) - len({sample.meta["key"] for sample in samples})
    if repeated:
        raise DataError(
            f"{repeated} samples are planned twice", "tables", "report this: it is an error of this package"
        )
    samples = samples[:limit]
    jobs = []
    for split in SPLITS:
        mine = [sample for sample in samples if sample.meta["split"] == split]
        for index, start in enumerate(range(0, len(mine), storing.samples_per_shard)):
            part = tuple(mine[start : start + storing.samples_per_shard])
            jobs.append(ShardJob(split, index, shard_name(storing.card.name, split, index), part))
    return jobs


def fingerprint(jobs: Sequence[ShardJob], preprocessing: Mapping[str, object]) -> str:
    """Digest of everything that decides the bytes of the shards, except the images.

    An unfinished conversion may only be continued under the same one.
    """

    def planned(sample: SampleJob) -> list[object]:
        images = {name: len(paths) for name, paths in sample.images.items()}
        masks = {task: [(one.code, len(one.files)) for one in several] for task, several in sample.outlines.items()}
        more = [] if sample.exam is None else [asdict(sample.exam) | {"layers": sorted(sample.exam.layers)}]
        return [sample.meta, images, *([masks] if masks else []), *more]

    content = [[job.name, [planned(sample) for sample in job.samples]] for job in jobs]
    return hashlib.sha256(json.dumps([content, dict(preprocessing)], sort_keys=True).encode()).hexdigest()
