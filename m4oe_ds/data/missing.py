"""Which samples lack which modalities: in a split as it is, and taken away at random."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.order import generator

RARE = 0.01  # share of the samples below which a modality is hardly trained
MOST_LISTED = 64  # combinations that are listed, so that none comes twice; of more, random ones are drawn


@dataclass(frozen=True)
class Presence:
    """Which modalities the samples of a split have.

    Attributes:
        samples: samples with at least one of the modalities, or with all where only complete ones are used.
        lacking: ``{modality: how many of the samples lack it}``.
        complete: how many of the samples have all.
    """

    samples: int
    lacking: dict[str, int]
    complete: int

    def line(self) -> str:
        """What training samples lack, in words; empty if they lack nothing."""
        if not self.samples or self.complete == self.samples:
            return ""
        parts = [f"{name} in {self._percent(count)}" for name, count in self.lacking.items() if count]
        return (
            f"{self._percent(self.complete)} of the training samples have every modality; missing: {', '.join(parts)}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Fields by name, ready for JSON."""
        return {"samples": self.samples, "lacking": dict(self.lacking), "complete": self.complete}

    def never(self) -> list[str]:
        """Modalities that no sample has; none of a split without samples."""
        return [name for name, count in self.lacking.items() if self.samples and count == self.samples]

    def rare(self) -> list[str]:
        """Modalities that fewer than ``RARE`` of the samples have, but some."""
        there = {name: self.samples - count for name, count in self.lacking.items()}
        return [name for name, count in there.items() if 0 < count < RARE * self.samples]

    def _percent(self, count: int) -> str:
        """Share of the samples, never rounded to none or to all."""
        share = 100 * count / self.samples
        return "under 1 %" if 0 < share < 1 else "over 99 %" if 99 < share < 100 else f"{share:.0f} %"


def presence(manifest: Manifest, modalities: Sequence[str], complete_only: bool = False) -> Presence:
    """What the samples that a split gives have of some modalities."""
    there = manifest.sample_present(modalities)
    there = there[there.all(1) if complete_only else there.any(1)]
    lacking = {name: int((~there[:, i]).sum()) for i, name in enumerate(modalities)}
    return Presence(len(there), lacking, int(there.all(1).sum()))


def dropped(present: Sequence[str], probability: float, seed: int, epoch: int, key: str) -> frozenset[str]:
    """Modalities of a training sample that count as absent in an epoch; never all of them.

    Args:
        present: modalities that the sample has.
        probability: of each to be dropped; if that hits all, one of them, each as likely, stays.
        seed: seed of the run.
        epoch: number of the epoch.
        key: key of the sample.
    """
    if not probability or len(present) < 2:
        return frozenset()
    drawn = generator(seed, "modality_dropout", epoch, key).random(len(present))
    gone = drawn < probability
    if gone.all():
        gone[drawn.argmax()] = False
    return frozenset(name for name, lost in zip(present, gone, strict=True) if lost)


def taken(present: np.ndarray, count: int, draw: int, seed: int, key: str) -> np.ndarray:
    """``[m]`` bool: the modalities that are taken from an evaluated sample; none if it would have none left.

    Successive draws take different combinations until all have come, as far as they can be listed.

    Args:
        present: ``[m]`` bool, what the sample has.
        count: number of modalities to take.
        draw: number of the draw.
        seed: seed of the draws.
        key: what identifies the sample.
    """
    have = np.flatnonzero(present)
    gone = np.zeros(len(present), dtype=bool)
    if not 0 < count < len(have):
        return gone
    if math.comb(len(have), count) <= MOST_LISTED:
        ways = list(itertools.combinations(have.tolist(), count))
        order = generator(seed, "taken", count, key).permutation(len(ways))
        gone[list(ways[order[draw % len(ways)]])] = True
    else:
        gone[generator(seed, "taken", count, key, draw).permutation(have)[:count]] = True
    return gone
