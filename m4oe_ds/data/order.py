"""Training order as a pure function of (manifest, seed, epoch), and who reads which position of it.

A position is a global sample count. It knows nothing of ranks or workers, so a run resumes at any number of either.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from m4oe_ds.data.manifest import Manifest

WINDOW_SAMPLES = 4096


@dataclass(frozen=True)
class Share:
    """What one reader reads of every optimizer step.

    Attributes:
        rank: rank of this reader.
        world: readers in all.
        micro_batch: samples per batch.
        accumulation: batches per optimizer step.
    """

    rank: int
    world: int
    micro_batch: int
    accumulation: int = 1

    @property
    def global_batch(self) -> int:
        """Samples of one optimizer step over all ranks."""
        return self.micro_batch * self.world * self.accumulation

    def position(self, step: int, micro: int, row: int) -> int:
        """Position in the epoch of a row of a micro-batch: micro-batches of a step follow each other, ranks in them."""
        return ((step * self.accumulation + micro) * self.world + self.rank) * self.micro_batch + row


def generator(seed: int, *purpose: object) -> np.random.Generator:
    """Random generator of one purpose; the same on every machine and NumPy version that has Philox."""
    text = "/".join(map(str, (seed, *purpose)))
    key = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key))


def epoch_order(
    manifest: Manifest,
    seed: int,
    epoch: int,
    eligible: np.ndarray | None = None,
    window_samples: int = WINDOW_SAMPLES,
) -> np.ndarray:
    """Order of an epoch: ``[N, 2]`` rows (shard, index in shard).

    Shards are permuted, then samples are shuffled within windows of consecutive shards that hold about
    ``window_samples``: close to a full shuffle, while only a few shards are being read at a time.

    Args:
        eligible: ``[num_samples]`` bool in manifest order; samples to use, default all.
    """
    counts = np.ones(manifest.num_samples, np.int64) if eligible is None else eligible.astype(np.int64)
    return _shuffled(manifest, generator(seed, "order", epoch), counts, window_samples)


def weighted_order(
    manifest: Manifest, seed: int, epoch: int, weights: np.ndarray, window_samples: int = WINDOW_SAMPLES
) -> np.ndarray:
    """Order of an epoch in which sample i comes about ``N w_i / sum(w)`` times, N = samples with a positive weight.

    Systematic sampling: the copies of a sample are the rounded-down or rounded-up expected number, never further off,
    so rare classes come at their rate in every epoch and common samples rotate through the epochs.

    Args:
        weights: ``[num_samples]`` non-negative, in manifest order; 0 leaves a sample out.

    Returns:
        ``[N, 2]`` rows (shard, index in shard).
    """
    random = generator(seed, "weighted", epoch)
    total = int((weights > 0).sum())
    if total == 0:
        return np.zeros((0, 2), dtype=np.int64)
    # a random order first, or neighbours would exclude each other in every epoch
    shuffle = random.permutation(len(weights))
    edges = np.cumsum(weights[shuffle] / weights.sum() * total)
    edges[-1] = total  # rounding of the sum must not lose a draw
    drawn = np.searchsorted(edges, np.arange(total) + random.random(), side="right")
    counts = np.bincount(shuffle[np.minimum(drawn, len(weights) - 1)], minlength=len(weights))
    return _shuffled(manifest, random, counts, window_samples)


@dataclass(frozen=True)
class ShuffleQuality:
    """How well epochs are shuffled.

    Attributes:
        correlation: largest absolute rank correlation between the orders of two epochs; 0 is unrelated.
        chance: what the largest of as many correlations of unrelated orders would be, about.
        spread: median over shards and epochs of the share of the epoch between a shard's first and last sample.
        least_spread: the smallest of those shares.
    """

    correlation: float
    chance: float
    spread: float
    least_spread: float


def shuffle_quality(
    manifest: Manifest, seed: int = 0, epochs: int = 6, window_samples: int = WINDOW_SAMPLES
) -> ShuffleQuality:
    """Rank correlation between the first epochs and the spread of every source shard over each of them.

    Raises:
        ValueError: fewer than two samples or epochs.
    """
    if manifest.num_samples < 2 or epochs < 2:
        raise ValueError("a shuffle is judged on at least two samples and two epochs")
    starts = np.cumsum([0, *(shard.num_samples for shard in manifest.shards)])
    places, spreads = [], []
    for epoch in range(epochs):
        order = epoch_order(manifest, seed, epoch, window_samples=window_samples)
        place = np.empty(len(order), np.int64)
        place[starts[order[:, 0]] + order[:, 1]] = np.arange(len(order))
        places.append(place)
        several = [(a, b) for a, b in itertools.pairwise(starts) if b - a > 1]
        spreads += [int(np.ptp(place[a:b])) / (len(order) - 1) for a, b in several]
    # places are ranks, so their plain correlation is the rank correlation
    pairs = np.abs(np.asarray(np.corrcoef(places))[np.triu_indices(epochs, 1)])
    blocks = min(len(manifest.shards), manifest.num_samples)  # what is permuted as a whole where windows are short
    free = manifest.num_samples if manifest.num_samples <= window_samples else blocks
    chance = math.sqrt(2 * math.log(len(pairs) + 1) / max(free - 1, 1))
    return ShuffleQuality(
        float(pairs.max()), min(1.0, chance), float(np.median(spreads)) if spreads else 1.0, min(spreads, default=1.0)
    )


def balanced_weights(labels: Sequence[np.ndarray], strength: float, max_ratio: float) -> np.ndarray:
    """Weight of every sample for class-balanced sampling: the mean over tasks of (largest class / its class)^strength.

    A sample without a label for a task counts 1 there, as one of the largest class does. With the five risk horizons
    this is risk-aware sampling: the sooner a cancer comes, the more horizons are positive, the larger the weight.

    Args:
        labels: per task ``[num_samples]`` codes, -1 missing.
        strength: 0 = as they come, 1 = fully balanced.
        max_ratio: no sample weighs more than this many times the least.
    """
    per_task = []
    for codes in labels:
        known = codes >= 0
        weight = np.ones(len(codes))
        if known.any():
            counts = np.bincount(codes[known])
            weight[known] = (counts.max() / counts[codes[known]]) ** strength
        per_task.append(weight)
    mean: np.ndarray = np.mean(per_task, axis=0)
    return np.minimum(mean, max_ratio * mean.min())


def _shuffled(manifest: Manifest, random: np.random.Generator, counts: np.ndarray, window_samples: int) -> np.ndarray:
    starts = np.cumsum([0, *(shard.num_samples for shard in manifest.shards)])
    pieces: list[np.ndarray] = []
    window: list[np.ndarray] = []
    held = 0
    for shard in random.permutation(len(manifest.shards)):
        indices = np.repeat(np.arange(manifest.shards[shard].num_samples), counts[starts[shard] : starts[shard + 1]])
        window.append(np.stack([np.full_like(indices, shard), indices], axis=1))
        held += len(indices)
        if held >= window_samples:
            pieces.append(random.permutation(np.concatenate(window)))
            window, held = [], 0
    if window:
        pieces.append(random.permutation(np.concatenate(window)))
    return np.concatenate(pieces) if pieces else np.zeros((0, 2), dtype=np.int64)
