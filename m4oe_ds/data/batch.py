"""The batch every model takes and the trainer moves between devices."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """B samples by name; positions carry no meaning except in ``present`` and ``label_mask``.

    Attributes:
        views: ``{modality: tensor}`` float32, standardised; absent modalities are zeros. Images ``[B, C, H, W]``,
            volumes ``[B, C, D, H, W]``, tables ``[B, columns, 2]``: the number or the category's code, and 1 if known.
        present: ``[B, m]`` bool, columns in the order of ``modalities``; True = the modality exists.
        labels: ``{task: [B] int64}`` codes (-1 missing); ``[B]`` float32 for a number; ``[B, 2]`` float32, time and
            event, for a survival; ``[B, C, H, W]`` or ``[B, C, D, H, W]`` float32 for a mask.
        label_mask: ``[B, p]`` bool, columns in the order of ``tasks``; True = the label exists and the sample is valid.
        valid: ``[B]`` bool; False = padding sample that must leave no trace.
        keys: B sample keys.
        groups: B patient pseudonyms.
        modalities: names of the columns of ``present``.
        tasks: names of the columns of ``label_mask``.
        extras: further tensors by name, such as the views of the other side (``contralateral.<modality>``).
        exams: B exam pseudonyms, which the two sides of an exam share; empty where they are not known.
    """

    views: dict[str, Tensor]
    present: Tensor
    labels: dict[str, Tensor]
    label_mask: Tensor
    valid: Tensor
    keys: tuple[str, ...]
    groups: tuple[str, ...]
    modalities: tuple[str, ...]
    tasks: tuple[str, ...]
    extras: dict[str, Tensor] = field(default_factory=dict)
    exams: tuple[str, ...] = ()

    def __len__(self) -> int:
        return int(self.valid.shape[0])

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        """Copy on another device; ``dtype`` is applied to images and volumes only.

        Tables stay float32: half precision has no place for the codes of more than 256 categories.
        """
        return replace(
            self,
            views={name: _moved(view, device, dtype) for name, view in self.views.items()},
            present=self.present.to(device, non_blocking=True),
            labels={name: label.to(device, non_blocking=True) for name, label in self.labels.items()},
            label_mask=self.label_mask.to(device, non_blocking=True),
            valid=self.valid.to(device, non_blocking=True),
            extras={
                name: _moved(extra, device, dtype if extra.is_floating_point() else None)
                for name, extra in self.extras.items()
            },
        )

    def pin_memory(self) -> Batch:
        """Copy in page-locked memory (called by ``torch.utils.data.DataLoader``)."""
        return replace(
            self,
            views={name: view.pin_memory() for name, view in self.views.items()},
            present=self.present.pin_memory(),
            labels={name: label.pin_memory() for name, label in self.labels.items()},
            label_mask=self.label_mask.pin_memory(),
            valid=self.valid.pin_memory(),
            extras={name: extra.pin_memory() for name, extra in self.extras.items()},
        )


def _moved(tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None) -> Tensor:
    """On a device, and of a dtype unless it is a table ``[B, columns, 2]``."""
    return tensor.to(device=device, dtype=dtype if tensor.ndim > 3 else None, non_blocking=True)
