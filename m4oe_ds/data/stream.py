"""Shards to batches in a deterministic order, equal steps on every rank, resumable at any step.

Every sample is addressable (shard, byte range), so the order of an epoch is one permutation of the whole split, and
which rank or worker reads a position is arithmetic. Reading goes through WebDataset's tar reader.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from m4oe_ds.data import sources
from m4oe_ds.data.batch import Batch
from m4oe_ds.data.cache import Cache
from m4oe_ds.data.collate import Sample, Sizes, collate
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.order import Share, epoch_order, weighted_order
from m4oe_ds.data.prefetch import prefetched
from m4oe_ds.data.quarantine import Quarantine, Unreadable
from m4oe_ds.data.readers import start_reader, start_reading, watched
from m4oe_ds.data.reading import Reading
from m4oe_ds.data.shard_reader import read_sample
from m4oe_ds.data.shared_memory import AHEAD
from m4oe_ds.errors import DataError

os.environ.setdefault("WDS_SECURE", "1")  # no pipe: or file: addresses, no pickles in archives

PADDING = (-1, -1)
BATCHES_AHEAD = 2  # collated and pinned before they are needed; the reader processes work further ahead
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)  # arrays do not compare to one truth value
class Sampling:
    """Which samples an epoch holds, how often and in which order.

    Attributes:
        seed: seed of the run.
        complete_only: use only samples that have every modality.
        weights: ``[num_samples]`` sampling weights in manifest order; None = every sample once per epoch.
        last_batch: ``pad`` fills the last global batch of an epoch with padding samples, so that every sample comes
            exactly once per epoch; ``drop`` leaves the remainder out.
    """

    seed: int = 0
    complete_only: bool = False
    weights: np.ndarray | None = None
    last_batch: Literal["pad", "drop"] = "pad"


class _Samples(Dataset[Any]):
    """Map-style access for the loader: an item is (shard, index, epoch); a failure comes back, not raised."""

    def __init__(
        self,
        folder: Path | str,
        manifest: Manifest,
        reading: Reading,
        other_side: dict[tuple[int, int], tuple[int, int]] | None,
        cache: Cache | None,
    ) -> None:
        self.folder, self.manifest, self.reading, self.other_side = folder, manifest, reading, other_side
        self.cache = cache

    def __getitem__(self, item: tuple[int, int, int]) -> Sample | Unreadable | None:
        shard_id, index, epoch = item
        if shard_id < 0:
            return None
        try:
            sample = self.reading.sample(self._members(shard_id, index), epoch)
        except DataError as error:
            return Unreadable(f"{self.manifest.shards[shard_id].name}[{index}]", str(error))
        other = (self.other_side or {}).get((shard_id, index))
        if other is not None:
            try:
                sample.contralateral = self.reading.sample(self._members(*other), epoch, lost=sample.lost).views
            except DataError as error:  # it is also a sample itself, and is counted as one
                _logger.debug("the other side cannot be read: %s", error)
        return sample

    def _members(self, shard_id: int, index: int) -> dict[str, bytes]:
        shard = self.manifest.shards[shard_id]
        start, stop = shard.offsets[index], shard.offsets[index + 1]
        return read_sample(sources.join(self.folder, shard.name), start, stop, shard=shard, cache=self.cache)


def _other_sides(manifest: Manifest) -> dict[tuple[int, int], tuple[int, int]]:
    """(shard, index) of the other side of the same exam, for every sample that has one in this split."""
    where = {
        name: (number, index) for number, shard in enumerate(manifest.shards) for index, name in enumerate(shard.exams)
    }
    letters = tuple(manifest.card.sides)
    mirrored = dict(zip(letters, letters[::-1], strict=True)) if len(letters) == 2 else {}
    out = {}
    for name, place in where.items():
        exam, _, side = name.rpartition("-")
        other = where.get(f"{exam}-{mirrored.get(side, '')}")
        if other is not None:
            out[place] = other
    return out


class ShardStream:
    """One rank's batches of one split.

    Args:
        folder: folder of the split, or its address.
        manifest: manifest of the split.
        reading: how a sample becomes tensors.
        share: what this reader reads of every step.
        sampling: which samples an epoch holds.
        workers: reader processes; 0 = read in this one.
        cache: cache of remote shards.
        max_bad_fraction: see :class:`Quarantine`.

    Raises:
        DataError: a split without a modality or task that is to be read.
    """

    def __init__(
        self,
        folder: Path | str,
        manifest: Manifest,
        reading: Reading,
        share: Share,
        sampling: Sampling,
        *,
        workers: int = 0,
        cache: Cache | None = None,
        max_bad_fraction: float = 0.001,
    ) -> None:
        lacking = [name for name in reading.modalities if name not in manifest.modalities]
        lacking += [task.name for task in reading.tasks if task.name not in {t.name for t in manifest.tasks}]
        if lacking:
            raise DataError(
                f"these shards have no {', '.join(lacking)}", str(folder), "change data.modalities or data.tasks"
            )
        self.folder, self.manifest, self.cache, self.workers = folder, manifest, cache, workers
        self.reading, self.share, self.sampling = reading, share, sampling
        self.other_side = _other_sides(manifest) if reading.contralateral else None
        present = manifest.sample_present(reading.modalities)
        self.eligible: np.ndarray = np.asarray(present.all(1) if sampling.complete_only else present.any(1))
        self.num_samples = int(self.eligible.sum())
        self.weights = None if sampling.weights is None else np.where(self.eligible, sampling.weights, 0.0)
        self.quarantine = Quarantine(self.num_samples, max_bad_fraction)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of a whole epoch, equal on every rank.

        Raises:
            DataError: fewer samples than one global batch.
        """
        return self.steps_left(0)

    def steps_left(self, samples_done: int) -> int:
        """Optimizer steps from a position of the epoch to its end, equal on every rank.

        Raises:
            DataError: fewer samples than one global batch.
        """
        batch = self.share.global_batch
        if self.num_samples < batch:
            raise DataError(
                f"{self.num_samples} samples do not fill one global batch of {batch}",
                str(self.folder),
                "lower train_batch_size in the DeepSpeed JSON (`m4oe init DIR` copies the shipped ones)",
            )
        left = max(0, self.num_samples - samples_done)
        return -(-left // batch) if self.sampling.last_batch == "pad" else left // batch

    def epoch(self, epoch: int, samples_done: int = 0) -> Iterator[list[Batch]]:
        """The rest of an epoch: each step is as many micro-batches of this rank as are accumulated.

        Args:
            samples_done: position in the epoch: samples used before by all ranks together, however many those were.
        """
        if self.weights is None:
            order = epoch_order(self.manifest, self.sampling.seed, epoch, self.eligible)
        else:
            order = weighted_order(self.manifest, self.sampling.seed, epoch, self.weights)
        share, items = self.share, []
        for step in range(self.steps_left(samples_done)):
            for micro in range(share.accumulation):
                places = [samples_done + share.position(step, micro, row) for row in range(share.micro_batch)]
                items.append([(*(map(int, order[at]) if at < len(order) else PADDING), epoch) for at in places])
        held: list[Batch] = []
        for batch in self._batches(items, self.reading):
            held.append(batch)
            if len(held) == share.accumulation:
                yield held
                held = []

    def evaluation(self) -> Iterator[Batch]:
        """Every sample once over all ranks, in manifest order, whole and never augmented; equally many batches on every
        rank."""
        samples = [item for item, keep in zip(self.manifest.samples(), self.eligible, strict=True) if keep]
        size = self.share.micro_batch
        per_round = size * self.share.world
        samples += [PADDING] * (-len(samples) % per_round)
        items = []
        for start in range(self.share.rank * size, len(samples), per_round):
            items.append([(*item, 0) for item in samples[start : start + size]])
        yield from self._batches(items, replace(self.reading, augment=None, modality_dropout=0.0))

    def _batches(self, items: list[list[tuple[int, int, int]]], reading: Reading) -> Iterator[Batch]:
        if not items:
            return
        loader = DataLoader(
            _Samples(self.folder, self.manifest, reading, self.other_side, self.cache),
            batch_sampler=items,  # type: ignore[arg-type]  # the items are the indices
            num_workers=self.workers,
            collate_fn=_as_list,
            worker_init_fn=start_reader,
            prefetch_factor=AHEAD if self.workers else None,
            pin_memory=False,  # samples arrive here; the batch is pinned when it is made
            # the loader must not draw from the global generator: training state would depend on it
            generator=torch.Generator().manual_seed(0),
        )
        found = watched(start_reading(loader))  # reader processes start here, not in the thread
        if not self.workers:
            yield from self._collated(found, reading)
            return
        prepare = partial(torch.cuda.set_device, torch.cuda.current_device()) if torch.cuda.is_available() else None
        yield from prefetched(self._collated(found, reading), BATCHES_AHEAD, prepare)

    def _collated(self, found: Iterator[list[Sample | Unreadable | None]], reading: Reading) -> Iterator[Batch]:
        """Batches in page-locked memory where there is a GPU, so that they are copied to it while it works."""
        pin = torch.cuda.is_available()
        for several in found:
            samples = [self._accept(sample) for sample in several]
            batch = collate(
                samples,
                reading.inputs,
                reading.tasks,
                Sizes(reading.image_size, reading.volume_size),
                contralateral=reading.contralateral,
            )
            yield batch.pin_memory() if pin else batch

    def _accept(self, sample: Sample | Unreadable | None) -> Sample | None:
        if isinstance(sample, Unreadable):
            self.quarantine.add(sample.where, sample.reason)
            return None
        return sample


def _as_list(samples: list[Any]) -> list[Any]:
    return samples
