"""Shared memory that the reader processes of a run put their samples in."""

from __future__ import annotations

import math

from m4oe_ds.config import Config
from m4oe_ds.data.cards import find_card

AHEAD = 4  # batches that a reader keeps ready
_FLOAT = 4  # bytes


def sample_bytes(config: Config) -> int:
    """Bytes of one sample as it travels: every chosen modality at its training size, in float32."""
    card = find_card(config.data.dataset)
    total = 0
    for one in card.inputs:
        if config.data.modalities and one.name not in config.data.modalities:
            continue
        if one.kind == "table":
            total += _FLOAT * len(one.columns)
        else:
            solid = one.kind == "volume" and not one.flat
            size = config.data.volume_size if solid else config.data.image_size
            total += _FLOAT * max(one.channels, 1) * math.prod(size)
    return total * (2 if config.data.contralateral else 1)


def shared_memory_need(config: Config, ranks: int, micro: int = 1) -> int:
    """Bytes in ``/dev/shm`` of one machine.

    Args:
        config: the resolved tree.
        ranks: ranks on the machine.
        micro: samples of a micro-batch.
    """
    return sample_bytes(config) * micro * config.data.workers * AHEAD * ranks
