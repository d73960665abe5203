"""A finished run, opened: configuration, model with its weights, manifests, batches and predictions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from m4oe_ds.config import Config
from m4oe_ds.data.batch import Batch
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.data.task_statistics import TaskStatistics, from_json, statistics_of
from m4oe_ds.errors import DataError
from m4oe_ds.models import build, spec_for
from m4oe_ds.models.interface import ModelSpec, MultiModalModel
from m4oe_ds.runs import assemble, weights
from m4oe_ds.runs.configuration import micro_batch, open_config
from m4oe_ds.runs.folder import RunFolder


@dataclass(frozen=True)
class Run:
    """A trained model and its data.

    Attributes:
        folder: run folder.
        config: configuration it was trained with, augmentation switched off.
        spec: specification of the model.
        model: the model in evaluation mode, on ``device``.
        manifests: ``train`` and the split it was opened for.
        statistics: of the labels it was trained with, by task.
        device: where the model is.
    """

    folder: Path
    config: Config
    spec: ModelSpec
    model: MultiModalModel
    manifests: Mapping[str, Manifest]
    statistics: Mapping[str, TaskStatistics]
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


def open_run(folder: Path, split: str, data: str = "", device: torch.device | None = None) -> Run:
    """Loads a run's configuration, weights and manifests on this process.

    Args:
        folder: a run folder with ``config.yaml`` and ``weights/``.
        split: split to be read, next to ``train``, whose statistics standardise the pixels.
        data: other shard folder, or empty.
        device: device of the model; None = the GPU if there is one.

    Raises:
        DataError: no such run or split, or nothing says what scale the run's numbers have.
        CheckpointError: weights missing or of another model.
    """
    config = open_config(folder, data)
    manifests = assemble.load_manifests(config, tuple(dict.fromkeys(("train", split))))
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build(config)
    weights.load(model, RunFolder(folder).weights)
    spec = spec_for(config)
    statistics = trained_with(RunFolder(folder), spec.tasks, manifests["train"])
    return Run(folder, config, spec, model.to(device).eval(), manifests, statistics, device)


def trained_with(files: RunFolder, tasks: Sequence[TaskSpec], train: Manifest) -> dict[str, TaskStatistics]:
    """Statistics of the labels that a run was trained with, from its folder; of runs older than them from the shards.

    Raises:
        DataError: they are damaged, or missing in a run that answers with numbers: other shards have another scale.
    """
    path = files.task_statistics
    if path.is_file():
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"not valid JSON: {error}", str(path), "restore it from the run") from None
        return from_json(content, tasks, str(path))
    numbers = [task.name for task in tasks if task.kind == "number"]
    if numbers:
        raise DataError(f"is missing: the scale of {', '.join(numbers)} is in it", str(path), "restore it from the run")
    return statistics_of(train, tasks)
