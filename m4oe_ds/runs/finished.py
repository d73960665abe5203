"""A finished run, opened: configuration, model with its weights, manifests and batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from m4oe_ds import config_loader
from m4oe_ds.config import Config
from m4oe_ds.data.batch import Batch
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.errors import DataError
from m4oe_ds.models import build, spec_for
from m4oe_ds.models.interface import ModelSpec, MultiModalModel
from m4oe_ds.runs import assemble, weights


@dataclass(frozen=True)
class Run:
    """A trained model and its data.

    Attributes:
        folder: run folder. config: augmentation switched off. spec, model: in evaluation mode on ``device``.
        manifests: ``train`` and the split analysed.
    """

    folder: Path
    config: Config
    spec: ModelSpec
    model: MultiModalModel
    manifests: Mapping[str, Manifest]
    device: torch.device

    def batches(self, split: str, limit: int = 0) -> Iterator[Batch]:
        """Every sample of a split once, in manifest order, without augmentation.

        Args:
            limit: only so many samples, 0 = all.
        """
        micro = self.config.evaluation.micro_batch or 16
        source = assemble.stream(self.config, split, self.spec, micro, 1, self.manifests).evaluation()
        left = limit or None
        for batch in source:
            if left is None:
                yield batch
                continue
            valid = batch.valid & (batch.valid.cumsum(0) <= left)
            left -= int(valid.sum())
            yield replace(batch, valid=valid, label_mask=batch.label_mask & valid[:, None])
            if left <= 0:
                return

    def num_batches(self, split: str, limit: int = 0) -> int:
        """Number of batches that :meth:`batches` gives, for progress bars."""
        count = self.manifests[split].num_samples
        return -(-min(count, limit or count) // (self.config.evaluation.micro_batch or 16))


def open_run(folder: Path, split: str, data: str = "") -> Run:
    """Loads a run's configuration, weights and manifests on this process.

    Args:
        folder: with ``config.yaml`` and ``weights/``. data: other shard folder, or empty.

    Raises:
        DataError: no such run or split. CheckpointError: weights missing or of another model.
    """
    if not (folder / "config.yaml").is_file():
        raise DataError("not a run folder (no config.yaml)", str(folder), "name a folder under runs/")
    config = config_loader.load(folder / "config.yaml")
    config = replace(
        config,
        data=replace(config.data, root=data or config.data.root, augment=replace(config.data.augment, enabled=False)),
    )
    manifests = assemble.load_manifests(config, tuple(dict.fromkeys(("train", split))))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build(config)
    weights.load(model, folder / "weights" / "model.safetensors")
    return Run(folder, config, spec_for(config), model.to(device).eval(), manifests, device)
