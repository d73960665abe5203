"""What a run keeps of the data it was trained on, so that it opens where its shards are not. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from m4oe_ds.data.manifest import Manifest, normalisation
from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.data.task_statistics import TaskStatistics, from_json
from m4oe_ds.errors import DataError
from m4oe_ds.runs.folder import RunFolder, write_json

VERSION = 1
_FIX = "restore it from the run, or remove it and give the run's shards as --data"


@dataclass(frozen=True)
class TrainingData:
    """The manifest of the training split without its shards, and what was computed from their labels.

    Attributes:
        dataset: name of the data set.
        synthetic: whether the data are phantoms.
        digest: digest of the manifest.
        num_samples: samples of the training split.
        num_groups: patients of the training split.
        label_histograms: ``{task: {"-1": n, "0": n, ...}}``.
        modality_counts: samples that have each modality.
        pixel_statistics: ``{modality, or table modality.column: {mean, std}}``.
        preprocessing: how images were stored.
        statistics: what the training labels say of each task (:mod:`m4oe_ds.data.task_statistics`): without centre and
            spread the answers to a question for a number have no unit.
        correction: ``{task: [C]}`` added to the logits at evaluation; see
            :func:`m4oe_ds.runs.assemble.prior_correction`.
    """

    dataset: str
    synthetic: bool
    digest: str
    num_samples: int
    num_groups: int
    label_histograms: Mapping[str, Mapping[str, int]]
    modality_counts: Mapping[str, int]
    pixel_statistics: Mapping[str, Mapping[str, float]]
    preprocessing: Mapping[str, Any]
    statistics: Mapping[str, Any]
    correction: Mapping[str, Sequence[float]]

    @classmethod
    def of(
        cls, manifest: Manifest, statistics: Mapping[str, Any], correction: Mapping[str, Sequence[float]]
    ) -> TrainingData:
        """What is kept of a training split.

        Args:
            manifest: its manifest.
            statistics: see the class.
            correction: see the class.
        """
        names = {field.name for field in fields(cls)} - {"statistics", "correction"}
        return cls(
            **{name: getattr(manifest, name) for name in names},
            statistics=dict(statistics),
            correction={task: [float(value) for value in values] for task, values in correction.items()},
        )

    @classmethod
    def load(cls, path: Path) -> TrainingData:
        """What a run kept.

        Raises:
            DataError: damaged, or of another version.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content.pop("version")
            found = cls(**content)
            found.normalisation()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"is damaged ({type(error).__name__})", str(path), _FIX) from None
        if version != VERSION:
            raise DataError(f"has version {version!r}, this package reads {VERSION}", str(path), _FIX)
        return found

    def save(self, path: Path) -> None:
        """Writes it as JSON."""
        write_json(path, {"version": VERSION, **asdict(self)})

    def of_tasks(self, tasks: Sequence[TaskSpec], where: str = "") -> dict[str, TaskStatistics]:
        """What the training labels say of each task.

        Args:
            tasks: the tasks.
            where: file that this was read from, for the message.

        Raises:
            DataError: nothing usable is said of a task.
        """
        return from_json(self.statistics, tasks, where)

    def normalisation(self) -> dict[str, tuple[float, float]]:
        """See :meth:`m4oe_ds.data.manifest.Manifest.normalisation`."""
        return normalisation(self.pixel_statistics)


def kept_data(files: RunFolder) -> TrainingData | None:
    """What a run kept of its data; None of runs older than that.

    Raises:
        DataError: see :meth:`TrainingData.load`.
    """
    return TrainingData.load(files.data) if files.data.is_file() else None
