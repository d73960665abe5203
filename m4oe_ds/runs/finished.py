"""A finished run, opened: configuration, model with its weights, manifests, batches and predictions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from m4oe_ds import config_loader
from m4oe_ds.config import Config
from m4oe_ds.data.batch import Batch
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.errors import DataError
from m4oe_ds.models import build, spec_for
from m4oe_ds.models.interface import ModelSpec, MultiModalModel
from m4oe_ds.runs import assemble, weights
from m4oe_ds.runs.folder import RunFolder

UNRECORDED_MICRO_BATCH = 16  # of runs whose environment.json does not say what they were trained with


@dataclass(frozen=True)
class Run:
    """A trained model and its data.

    Attributes:
        folder: run folder.
        config: configuration it was trained with, augmentation switched off.
        spec: specification of the model.
        model: the model in evaluation mode, on ``device``.
        manifests: ``train`` and the split it was opened for.
        device: where the model is.
    """

    folder: Path
    config: Config
    spec: ModelSpec
    model: MultiModalModel
    manifests: Mapping[str, Manifest]
    device: torch.device

    @property
    def micro_batch(self) -> int:
        """Samples per forward: ``evaluation.micro_batch``, or as in training."""
        return micro_batch(self.config, self.folder)

    def batches(self, split: str, limit: int = 0) -> Iterator[Batch]:
        """Every sample of a split once, in manifest order, without augmentation.

        Args:
            split: one of those the run was opened for.
            limit: most samples to read, 0 = all.
        """
        source = assemble.stream(self.config, split, self.spec, self.micro_batch, 1, self.manifests)
        left = limit or None
        for batch in source.evaluation():
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
        return -(-min(count, limit or count) // self.micro_batch)


def open_config(folder: Path, data: str = "") -> Config:
    """The configuration of a finished run, with augmentation switched off.

    Args:
        folder: run folder.
        data: other shard folder, or empty.

    Raises:
        DataError: not a run folder.
    """
    path = RunFolder(folder).config
    if not path.is_file():
        raise DataError("not a run folder (no config.yaml)", str(folder), "name a folder under runs/")
    config = config_loader.load(path)
    augment = replace(config.data.augment, enabled=False)
    return replace(config, data=replace(config.data, root=data or config.data.root, augment=augment))


def micro_batch(config: Config, folder: Path) -> int:
    """Samples per forward at evaluation: ``evaluation.micro_batch``, or what the run was trained with.

    Raises:
        DataError: ``environment.json`` is not readable.
    """
    if config.evaluation.micro_batch:
        return config.evaluation.micro_batch
    path = RunFolder(folder).environment
    if not path.is_file():
        return UNRECORDED_MICRO_BATCH
    try:
        recorded: Any = json.loads(path.read_text(encoding="utf-8"))
        return int(recorded.get("batch", {}).get("micro", UNRECORDED_MICRO_BATCH))
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(f"cannot be read ({error})", str(path), "set evaluation.micro_batch, or restore it") from None


def open_run(folder: Path, split: str, data: str = "", device: torch.device | None = None) -> Run:
    """Loads a run's configuration, weights and manifests on this process.

    Args:
        folder: a run folder with ``config.yaml`` and ``weights/``.
        split: split to be read, next to ``train``, whose statistics standardise the pixels.
        data: other shard folder, or empty.
        device: device of the model; None = the GPU if there is one.

    Raises:
        DataError: no such run or split.
        CheckpointError: weights missing or of another model.
    """
    config = open_config(folder, data)
    manifests = assemble.load_manifests(config, tuple(dict.fromkeys(("train", split))))
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build(config)
    weights.load(model, RunFolder(folder).weights)
    return Run(folder, config, spec_for(config), model.to(device).eval(), manifests, device)
