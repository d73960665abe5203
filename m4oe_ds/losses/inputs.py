"""What losses read: from a model's output, and from a batch."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from m4oe_ds.layers.routing import Routing


class Output(Protocol):
    """What losses read from a model's output."""

    logits: dict[str, Tensor]
    routing: dict[str, Routing]
    modality_of_token: Tensor | None
    extras: dict[str, Tensor]


class Labels(Protocol):
    """What losses read from a batch."""

    @property
    def labels(self) -> dict[str, Tensor]: ...
    @property
    def label_mask(self) -> Tensor: ...
    @property
    def valid(self) -> Tensor: ...
