"""What a run keeps of the data it was trained on, so that it opens where its shards are not. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from m4oe_ds.data.manifest import Manifest, normalisation
from m4oe_ds.data.schema import MISSING
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
    correction: Mapping[str, Sequence[float]]

    @classmethod
    def of(cls, manifest: Manifest, correction: Mapping[str, Sequence[float]]) -> TrainingData:
        """What is kept of a training split.

        Args:
            manifest: its manifest.
            correction: see the class.
        """
        names = {field.name for field in fields(cls)} - {"correction"}
        return cls(
            **{name: getattr(manifest, name) for name in names},
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
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"is damaged ({type(error).__name__})", str(path), _FIX) from None
        if version != VERSION:
            raise DataError(f"has version {version!r}, this package reads {VERSION}", str(path), _FIX)
        return found

    def save(self, path: Path) -> None:
        """Writes it as JSON."""
        write_json(path, {"version": VERSION, **asdict(self)})

    def normalisation(self) -> dict[str, tuple[float, float]]:
        """See :meth:`m4oe_ds.data.manifest.Manifest.normalisation`."""
        return normalisation(self.pixel_statistics)

    def labels(self, task: str) -> np.ndarray:
        """``[N]`` int64 codes of a task, as often as the training split has each, in the order of the codes.

        For what depends on their numbers alone: the weights of classes and the prior of tasks.
        """
        counts = {
            int(code): number
            for code, number in self.label_histograms.get(task, {}).items()
            if code.removeprefix("-").isdigit()  # answers without codes are counted in words
        } or {MISSING: self.num_samples}
        return np.repeat(np.array(list(counts), dtype=np.int64), list(counts.values()))


def kept_data(files: RunFolder) -> TrainingData | None:
    """What a run kept of its data; None of runs older than that.

    Raises:
        DataError: see :meth:`TrainingData.load`.
    """
    return TrainingData.load(files.data) if files.data.is_file() else None
