"""Shared memory that the reader processes of a run put their samples in."""

from __future__ import annotations

import math
import shutil

from m4oe_ds.config import Config
from m4oe_ds.data.cards import find_card
from m4oe_ds.data.shared_memory import AHEAD, FIX, FOLDER

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


def shortage(config: Config, ranks: int, micro: int, folder: str = FOLDER) -> str:
    """What to say of a machine whose shared memory may not do; empty where it does.

    Args:
        config: the resolved tree.
        ranks: ranks on the machine.
        micro: samples of a micro-batch.
        folder: where shared memory is mounted.
    """
    need = shared_memory_need(config, ranks, micro)
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        free = 0
    if need <= free:
        return ""
    return f"{folder} has {free / 1e9:.2f} GB free, reader processes may need {need / 1e9:.2f} GB: {FIX}"
