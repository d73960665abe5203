"""Memory of the host that training needs, roughly."""

from __future__ import annotations

import dataclasses

from m4oe_ds.config import Config

_TRAINED = 16  # bytes of a parameter: its value, gradient and two moments of Adam in fp32
_WRITTEN = 4  # of a parameter that rank 0 writes into the consolidated weights


def training_bytes(config: Config, ranks: int) -> int:
    """What the ranks of a machine hold in its own memory: with GPUs only the weights that are written at the end.

    Args:
        config: the resolved tree.
        ranks: ranks on the machine; on a CPU each has the whole of a model, as if no experts were shared.
    """
    import torch

    from m4oe_ds.models import build

    embedder = dataclasses.replace(config.model.embedder, weights="")  # nothing is fetched
    shapes = dataclasses.replace(config, model=dataclasses.replace(config.model, embedder=embedder, init_from=""))
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in build(shapes).parameters())
    return count * (_WRITTEN if torch.cuda.is_available() else _TRAINED * ranks)
