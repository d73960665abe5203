"""Shards to batches in a deterministic order, equal steps on every rank, resumable at any step.

Every sample is addressable (shard, byte range), so the order of an epoch is one permutation of the whole split, and which
rank or worker reads a position is arithmetic. Reading goes through WebDataset's tar reader.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from m4oe_ds.data import codecs, sources
from m4oe_ds.data.augment import AugmentOptions, augment
from m4oe_ds.data.batch import Batch
from m4oe_ds.data.cache import Cache
from m4oe_ds.data.collate import Sample, collate
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.order import epoch_order, generator, position, weighted_order
from m4oe_ds.data.prefetch import prefetched
from m4oe_ds.data.quarantine import Quarantine
from m4oe_ds.data.schema import DATASETS, MISSING, TaskSpec
from m4oe_ds.data.shard_reader import read_sample
from m4oe_ds.errors import DataError

os.environ.setdefault("WDS_SECURE", "1")  # no pipe: or file: addresses, no pickles in archives

PADDING = (-1, -1)
BATCHES_AHEAD = 2  # collated and pinned before they are asked for; the reader processes work further ahead
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """How a sample becomes tensors.

    Attributes:
        modalities, channels, tasks: to read. image_size: height and width of the views.
        normalise: ``{modality: (mean, std)}`` on the 0..1 scale. augment: None = off. seed: of the run.
    """

    modalities: tuple[str, ...]
    channels: tuple[int, ...]
    tasks: tuple[TaskSpec, ...]
    image_size: tuple[int, int]
    normalise: Mapping[str, tuple[float, float]]
    augment: AugmentOptions | None
    seed: int

    def sample(self, members: Mapping[str, bytes], epoch: int) -> Sample:
        """Decodes, resizes, augments and standardises one sample.

        Raises:
            DataError: members missing or damaged.
        """
        if "meta.json" not in members:
            raise DataError("a sample has no meta.json")
        try:
            meta = json.loads(members["meta.json"])
            key, group, labels, stored = meta["key"], meta["group"], meta["labels"], meta["modalities"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"a sample's meta.json is damaged ({type(error).__name__})") from None
        for task in self.tasks:
            code = labels.get(task.name, MISSING)
            if task.kind == "classification" and not (isinstance(code, int) and MISSING <= code < task.num_classes):
                raise DataError(f"label {code!r} of {task.name} is outside its {task.num_classes} classes")
        by_name = {name.split(".", 1)[0]: (name.rsplit(".", 1)[-1], data) for name, data in members.items()}
        views, masks = {}, {}
        for name, channels in zip(self.modalities, self.channels, strict=True):
            if name in stored:
                if name not in by_name:
                    raise DataError(f"member {name} is missing")
                codec, data = by_name[name]
                views[name] = self._image(codecs.decode(data, codec))
                if views[name].shape[0] != channels:
                    raise DataError(f"{name} has {views[name].shape[0]} channels instead of {channels}")
        for task in self.tasks:
            if task.kind == "segmentation" and task.name in by_name:
                codec, data = by_name[task.name]
                mask = torch.from_numpy((codecs.decode(data, codec) > 0).astype(np.float32))[None, None]
                masks[task.name] = functional.interpolate(mask, self.image_size, mode="nearest")[0]
        if self.augment is not None:
            state = torch.Generator()
            state.manual_seed(int(generator(self.seed, "augment", epoch, key).integers(2**62)))
            views, masks = augment(views, masks, self.augment, state)
        for name, view in views.items():
            mean, std = self.normalise.get(name, (0.0, 1.0))
            views[name] = (view - mean) / std
        return Sample(key, group, views, labels, masks)

    def _image(self, array: np.ndarray) -> Tensor:
        """``[C, H, W]`` float32 in [0, 1] at the wanted size (area interpolation when shrinking)."""
        full = 65535.0 if array.dtype == np.uint16 else 255.0
        image = torch.from_numpy(array.astype(np.float32) / full)
        if image.ndim == 2:
            image = image[None]
        elif image.shape[-1] == 3:
            image = image.permute(2, 0, 1)
        if tuple(image.shape[-2:]) != self.image_size:
            image = functional.interpolate(
                image[None], self.image_size, mode="bilinear", antialias=True, align_corners=False
            )[0]
        return image


class _Samples(Dataset[Any]):
    """Map-style access for the loader: an item is (shard, index, epoch); a failure comes back as text, not raised."""

    def __init__(
        self,
        folder: Path | str,
        manifest: Manifest,
        reading: Reading,
        other_breast: dict[tuple[int, int], tuple[int, int]] | None,
        cache: Cache | None,
    ) -> None:
        self.folder, self.manifest, self.reading, self.other_breast = folder, manifest, reading, other_breast
        self.cache = cache

    def __getitem__(self, item: tuple[int, int, int]) -> Sample | str | None:
        shard_id, index, epoch = item
        if shard_id < 0:
            return None
        try:
            sample = self.reading.sample(self._members(shard_id, index), epoch)
        except DataError as error:
            return f"{self.manifest.shards[shard_id].name}[{index}]\n{error}"
        other = (self.other_breast or {}).get((shard_id, index))
        if other is not None:
            try:
                sample.contralateral = self.reading.sample(self._members(*other), epoch).views
            except DataError as error:  # it will be met as a sample of its own, and counted there
                _logger.debug("the other breast cannot be read: %s", error)
        return sample

    def _members(self, shard_id: int, index: int) -> dict[str, bytes]:
        shard = self.manifest.shards[shard_id]
        start, stop = shard.offsets[index], shard.offsets[index + 1]
        return read_sample(sources.join(self.folder, shard.name), start, stop, shard=shard, cache=self.cache)


def _other_breasts(manifest: Manifest) -> dict[tuple[int, int], tuple[int, int]]:
    """(shard, index) of the other breast of the same exam, for every sample that has one in this split."""
    where = {
        name: (number, index) for number, shard in enumerate(manifest.shards) for index, name in enumerate(shard.exams)
    }
    mirrored = {"l": "r", "r": "l"}
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
        folder: split folder with ``manifest.json``, or its address. modalities, tasks: what to read, in batch order.
        image_size: height and width. micro_batch: samples per batch. accumulation: batches per optimizer step.
        rank, world: this reader among all. seed: of the run. workers: reader processes; 0 = read in this one.
        augment: training augmentation, or None. normalise: ``{modality: (mean, std)}``; default this split's own.
        complete_only: use only samples that have every modality. max_bad_fraction: see :class:`Quarantine`.
        last_batch: ``pad`` fills the last global batch of an epoch with padding samples, so that every sample comes
            exactly once per epoch; ``drop`` leaves the remainder out.
        weights: ``[num_samples]`` sampling weights in manifest order; None = every sample once per epoch.
        contralateral: also read the other breast of the same exam. cache: of remote shards.

    Raises:
        DataError: split missing, or without a modality or task asked for.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        modalities: Sequence[str],
        tasks: Sequence[TaskSpec],
        image_size: tuple[int, int],
        micro_batch: int,
        rank: int,
        world: int,
        seed: int,
        accumulation: int = 1,
        workers: int = 0,
        augment: AugmentOptions | None = None,
        normalise: Mapping[str, tuple[float, float]] | None = None,
        complete_only: bool = False,
        max_bad_fraction: float = 0.001,
        last_batch: Literal["pad", "drop"] = "pad",
        weights: np.ndarray | None = None,
        contralateral: bool = False,
        cache: Cache | None = None,
    ) -> None:
        self.folder, self.manifest, self.cache = folder, Manifest.load(folder), cache
        lacking = [name for name in modalities if name not in self.manifest.modalities]
        lacking += [task.name for task in tasks if task.name not in {t.name for t in self.manifest.tasks}]
        if lacking:
            raise DataError(
                f"these shards have no {', '.join(lacking)}", str(folder), "change data.modalities or data.tasks"
            )
        self.micro_batch, self.accumulation, self.workers = micro_batch, accumulation, workers
        self.rank, self.world, self.seed = rank, world, seed
        self.last_batch = last_batch
        self.other_breast = _other_breasts(self.manifest) if contralateral else None
        if normalise is None:
            normalise = {n: (s["mean"], max(s["std"], 1e-6)) for n, s in self.manifest.pixel_statistics.items()}
        channels = dict(
            zip(DATASETS[self.manifest.dataset].modalities, DATASETS[self.manifest.dataset].channels, strict=True)
        )
        self.reading = Reading(
            tuple(modalities),
            tuple(channels[n] for n in modalities),
            tuple(tasks),
            image_size,
            dict(normalise),
            augment,
            seed,
        )
        present = self.manifest.sample_present(modalities)
        self.eligible: np.ndarray = np.asarray(present.all(1) if complete_only else present.any(1))
        self.num_samples = int(self.eligible.sum())
        self.weights = None if weights is None else np.where(self.eligible, weights, 0.0)
        self.quarantine = Quarantine(self.num_samples, max_bad_fraction)

    @property
    def global_batch(self) -> int:
        """Samples of one optimizer step over all ranks."""
        return self.micro_batch * self.world * self.accumulation

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
        batch = self.global_batch
        if self.num_samples < batch:
            raise DataError(
                f"{self.num_samples} samples do not fill one global batch of {batch}",
                str(self.folder),
                "lower train_batch_size in the DeepSpeed JSON",
            )
        left = max(0, self.num_samples - samples_done)
        return -(-left // batch) if self.last_batch == "pad" else left // batch

    def epoch(self, epoch: int, samples_done: int = 0) -> Iterator[list[Batch]]:
        """The rest of an epoch: each step is this rank's ``accumulation`` micro-batches.

        Args:
            samples_done: position in the epoch: samples used before by all ranks together, however many those were.
        """
        if self.weights is None:
            order = epoch_order(self.manifest, self.seed, epoch, self.eligible)
        else:
            order = weighted_order(self.manifest, self.seed, epoch, self.weights)
        sizes = {"micro_batch": self.micro_batch, "world": self.world, "accumulation": self.accumulation}
        items = []
        for step in range(self.steps_left(samples_done)):
            for micro in range(self.accumulation):
                places = [
                    samples_done + position(step, micro, self.rank, row, **sizes) for row in range(self.micro_batch)
                ]
                items.append(
                    [(*(map(int, order[at]) if at < len(order) else PADDING), epoch) for at in places]
                )  # fmt: skip
        held: list[Batch] = []
        for batch in self._batches(items, self.reading):
            held.append(batch)
            if len(held) == self.accumulation:
                yield held
                held = []

    def evaluation(self) -> Iterator[Batch]:
        """Every sample once over all ranks, in manifest order, never augmented; padded to as many batches on every rank."""
        samples = [item for item, keep in zip(self.manifest.samples(), self.eligible, strict=True) if keep]
        per_round = self.micro_batch * self.world
        samples += [PADDING] * (-len(samples) % per_round)
        items = []
        for start in range(0, len(samples), per_round):
            mine = samples[start + self.rank * self.micro_batch : start + (self.rank + 1) * self.micro_batch]
            items.append([(*item, 0) for item in mine])
        yield from self._batches(items, replace(self.reading, augment=None))

    def _batches(self, items: list[list[tuple[int, int, int]]], reading: Reading) -> Iterator[Batch]:
        if not items:
            return
        loader = DataLoader(
            _Samples(self.folder, self.manifest, reading, self.other_breast, self.cache),
            batch_sampler=items,  # type: ignore[arg-type]  # the items are the indices
            num_workers=self.workers,
            collate_fn=_as_list,
            worker_init_fn=_one_thread,
            prefetch_factor=4 if self.workers else None,
            pin_memory=False,  # samples arrive here; the batch is pinned when it is made
            # the loader must not draw from the global generator: training state would depend on it
            generator=torch.Generator().manual_seed(0),
        )
        found = iter(loader)  # reader processes start here, not in the thread
        if not self.workers:
            yield from self._collated(found, reading)
            return
        prepare = partial(torch.cuda.set_device, torch.cuda.current_device()) if torch.cuda.is_available() else None
        yield from prefetched(self._collated(found, reading), BATCHES_AHEAD, prepare)

    def _collated(self, found: Iterator[list[Sample | str | None]], reading: Reading) -> Iterator[Batch]:
        """Batches in page-locked memory where there is a GPU, so that they are copied to it while it works."""
        pin = torch.cuda.is_available()
        for several in found:
            samples = [self._accept(sample) for sample in several]
            batch = collate(
                samples, reading.modalities, reading.channels, reading.tasks, reading.image_size,
                contralateral=self.other_breast is not None,
            )  # fmt: skip
            yield batch.pin_memory() if pin else batch

    def _accept(self, sample: Sample | str | None) -> Sample | None:
        if isinstance(sample, str):
            where, _, reason = sample.partition("\n")
            self.quarantine.add(where, reason)
            return None
        return sample


def _as_list(samples: list[Any]) -> list[Any]:
    return samples


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)
