"""Training order as a pure function of (manifest, seed, epoch), and who reads which position of it.

A position is a global sample count. It knows nothing of ranks or workers, so a run resumes at any number of either.
"""

from __future__ import annotations

import hashlib

import numpy as np

from m4oe_ds.data.manifest import Manifest

WINDOW_SAMPLES = 4096


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
    random = generator(seed, "order", epoch)
    starts = np.cumsum([0, *(shard.num_samples for shard in manifest.shards)])
    pieces: list[np.ndarray] = []
    window: list[np.ndarray] = []
    held = 0
    for shard in random.permutation(len(manifest.shards)):
        indices = np.arange(manifest.shards[shard].num_samples)
        if eligible is not None:
            indices = indices[eligible[starts[shard] : starts[shard + 1]]]
        window.append(np.stack([np.full_like(indices, shard), indices], axis=1))
        held += len(indices)
        if held >= window_samples:
            pieces.append(random.permutation(np.concatenate(window)))
            window, held = [], 0
    if window:
        pieces.append(random.permutation(np.concatenate(window)))
    return np.concatenate(pieces) if pieces else np.zeros((0, 2), dtype=np.int64)


def position(step: int, micro: int, rank: int, row: int, *, micro_batch: int, world: int, accumulation: int) -> int:
    """Position in the epoch of one row of one rank's micro-batch: micro-batches of a step follow each other, ranks in them."""
    return ((step * accumulation + micro) * world + rank) * micro_batch + row
