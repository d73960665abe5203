"""Losses that come with a model and take the place of the configured ones for some of its tasks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.losses.inputs import Labels, Output
from m4oe_ds.losses.tasks import LossParts

Generic = Callable[[str, Tensor, Tensor, Tensor], LossParts]  # task, logits, labels, mask [B]


class ModelLoss:
    """Base: nothing is replaced.

    Args:
        tasks: names of the tasks, in the order of ``label_mask``.
        options: ``model.options``.

    Attributes:
        epoch: number of the epoch, from 0, set by the training loop.
    """

    def __init__(self, tasks: Sequence[TaskSpec], options: Mapping[str, Any]) -> None:
        self.tasks, self.options = tuple(tasks), dict(options)
        self.epoch = 0

    def mask(self, batch: Labels) -> Tensor:
        """``[B, p]`` bool: the labels that count, a subset of ``batch.label_mask`` that depends on labels alone."""
        return batch.label_mask

    def parts(self, output: Output, batch: Labels, mask: Tensor, generic: Generic) -> dict[str, LossParts]:
        """Unweighted loss sum and count of the tasks whose configured loss is replaced; counts must equal the mask's.

        Args:
            output: output of the model.
            batch: what it answered.
            mask: the mask that :meth:`mask` returned.
            generic: the configured loss of a task on given logits.
        """
        return {}
