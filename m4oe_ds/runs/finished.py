"""A finished run, opened: configuration, model with its weights, manifests, batches and predictions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from m4oe_ds.config import Config
from m4oe_ds.data.batch import Batch
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.task_statistics import TaskStatistics, statistics_of, to_json
from m4oe_ds.models import build, spec_for
from m4oe_ds.models.interface import ModelSpec, MultiModalModel
from m4oe_ds.runs import assemble, weights
from m4oe_ds.runs.configuration import micro_batch, open_config
from m4oe_ds.runs.folder import RunFolder
from m4oe_ds.runs.training_data import TrainingData, kept_data


@dataclass(frozen=True)
class Run:
    """A trained model and its data.

    Attributes:
        folder: run folder.
        config: configuration it was trained with, augmentation switched off.
        spec: specification of the model.
        model: the model in evaluation mode, on ``device``.
        data: what it was trained on.
        manifests: of the splits it was opened for, and ``train`` of runs that kept nothing of their data.
        device: where the model is.
    """

    folder: Path
    config: Config
    spec: ModelSpec
    model: MultiModalModel
    data: TrainingData
    manifests: Mapping[str, Manifest]
    device: torch.device

    @property
    def micro_batch(self) -> int:
        """Samples per forward: ``evaluation.micro_batch``, or as in training."""
        return micro_batch(self.config, self.folder)

    @property
    def correction(self) -> dict[str, torch.Tensor]:
        """``{task: [C]}`` added to the logits at evaluation; see :func:`m4oe_ds.runs.assemble.prior_correction`."""
        return {task: torch.tensor(values, dtype=torch.float32) for task, values in self.data.correction.items()}

    @property
    def statistics(self) -> dict[str, TaskStatistics]:
        """What the training labels say of each task.

        Raises:
            DataError: the run kept nothing usable of a task.
        """
        return self.data.of_tasks(self.spec.tasks, str(RunFolder(self.folder).data))

    def batches(self, split: str, limit: int = 0) -> Iterator[Batch]:
        """Every sample of a split once, in manifest order, without augmentation.

        Args:
            split: one of those the run was opened for.
            limit: most samples to read, 0 = all.
        """
        normalise = self.data.normalisation()
        source = assemble.stream(self.config, split, self.spec, self.micro_batch, 1, self.manifests, normalise)
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


def open_run(
    folder: Path, split: str = "", data: str = "", device: torch.device | None = None, train: bool = False
) -> Run:
    """Loads a run's configuration, weights and manifests on this process.

    Pixels are standardised with the statistics that the run kept, whatever shards are read. Runs that kept none, which
    are older than ``data.json``, take them from the training split of the shards.

    Args:
        folder: a run folder with ``config.yaml`` and ``weights/``.
        split: split to be read; empty = none, for which a run that kept its statistics needs no shards.
        data: other shard folder, or empty.
        device: device of the model; None = the GPU if there is one.
        train: whether the training split is to be read as well.

    Raises:
        DataError: no such run or split, or nothing says what scale the run's numbers have.
        CheckpointError: weights missing or of another model.
    """
    config = open_config(folder, data)
    kept, spec = kept_data(RunFolder(folder)), spec_for(config)
    splits = dict.fromkeys((*(("train",) if train or kept is None else ()), *((split,) if split else ())))
    manifests = assemble.load_manifests(config, tuple(splits)) if splits else {}
    if kept is None:
        kept = training_data(config, spec, manifests["train"])
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build(config)
    weights.load(model, RunFolder(folder).weights)
    return Run(folder, config, spec, model.to(device).eval(), kept, manifests, device)


def training_data(config: Config, spec: ModelSpec, train: Manifest) -> TrainingData:
    """What a run keeps of its training split.

    Args:
        config: the resolved configuration.
        spec: specification of the model.
        train: manifest of the training split.
    """
    correction = assemble.prior_correction(config, spec, train)
    statistics = to_json(statistics_of(train, spec.tasks))
    return TrainingData.of(train, statistics, {task: values.tolist() for task, values in correction.items()})
