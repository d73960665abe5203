"""The run folder: the name of every file in it, once, and how they are written. Imports no torch."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

CHECKPOINTS = "checkpoints"
WEIGHTS = "model.safetensors"
LATEST, BEST = "LATEST", "BEST"  # files next to the checkpoints that hold the tag of one
_STEP, _STATE, _MANIFEST = "step-", "state-", "manifest.json"


@dataclass(frozen=True)
class RunFolder:
    """Paths of the files of one run.

    Attributes:
        path: the folder itself, ``runs/<name>``.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The configuration as resolved; what makes a folder a run folder."""
        return self.path / "config.yaml"

    @property
    def card(self) -> Path:
        """The card of the data set."""
        return self.path / "card.yaml"

    @property
    def data(self) -> Path:
        """What is kept of the training data: statistics, preprocessing, numbers of labels."""
        return self.path / "data.json"

    @property
    def ds_config(self) -> Path:
        """DeepSpeed's JSON as used."""
        return self.path / "ds_config.json"

    @property
    def environment(self) -> Path:
        """Versions, hardware, seeds, sizes of the model and of the batches."""
        return self.path / "environment.json"

    @property
    def log(self) -> Path:
        """One JSON object per logged step."""
        return self.path / "log.jsonl"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard events."""
        return self.path / "tensorboard"

    @property
    def trackers(self) -> Path:
        """Under which identities services know the run."""
        return self.path / "trackers.json"

    @property
    def profile(self) -> Path:
        """Folder of recorded profiles."""
        return self.path / "profile"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def weights(self) -> Path:
        """Consolidated weights of the best checkpoint; several files have an index next to this name."""
        return self.path / "weights" / WEIGHTS

    @property
    def origin(self) -> tuple[Path, ...]:
        """What makes weights usable elsewhere: how the model was configured, and what it was trained on."""
        return self.config, self.card, self.data, self.environment

    @property
    def metrics(self) -> Path:
        """Metrics by split and task."""
        return self.path / "metrics.json"

    @property
    def predictions_folder(self) -> Path:
        """Folder of the predictions."""
        return self.path / "predictions"

    def predictions(self, split: str) -> Path:
        """Keys, labels and probabilities of a split."""
        return self.predictions_folder / f"{split}.npz"

    @property
    def examples(self) -> Path:
        """Images and predictions of a few samples that the report shows."""
        return self.predictions_folder / "examples.npz"

    @property
    def analysis(self) -> Path:
        """Results of ``m4oe analyze``."""
        return self.path / "analysis.json"

    def analysis_arrays(self, name: str) -> Path:
        """Arrays of ``m4oe analyze``: shares per sample by split, ``gallery``, ``own-<split>``."""
        return self.path / "analysis" / f"{name}.npz"

    @property
    def clinical(self) -> Path:
        """Calibration, operating points, survival and subgroups."""
        return self.path / "clinical.json"

    @property
    def figures(self) -> Path:
        """Folder of figures and their tables."""
        return self.path / "figures"

    @property
    def patients(self) -> Path:
        """Folder of the report's pages, one per patient."""
        return self.path / "patients"

    @property
    def planted(self) -> Path:
        """What was planted in the samples that the report shows; of synthetic data only."""
        return self.predictions_folder / "planted.json"

    @property
    def report(self) -> Path:
        """The self-contained page."""
        return self.path / "report.html"


@dataclass(frozen=True)
class CheckpointFolder:
    """Paths of the files of one checkpoint.

    Attributes:
        path: the folder itself, ``checkpoints/<tag>``.
    """

    path: Path

    @property
    def manifest(self) -> Path:
        """What the checkpoint holds, with checksums; written last, so that it makes the folder a checkpoint."""
        return self.path / _MANIFEST

    def state(self, rank: int) -> Path:
        """Tensors that a rank wrote."""
        return self.path / f"{_STATE}{rank:05d}.safetensors"

    def states(self) -> list[Path]:
        """The state files that are there, by rank."""
        return sorted(self.path.glob(f"{_STATE}*.safetensors"))


def checkpoint_tag(step: int) -> str:
    """Name of the checkpoint after that many steps; tags sort as their steps do."""
    return f"{_STEP}{step:08d}"


def checkpoint_tags(checkpoints: Path) -> list[str]:
    """Tags of the complete checkpoints in a folder of checkpoints, oldest first."""
    return sorted(path.parent.name for path in checkpoints.glob(f"{_STEP}*/{_MANIFEST}"))


def write_json(path: Path, content: Any) -> None:
    """Writes JSON through a temporary file, so that a reader never sees half of it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(path)


def write_yaml(path: Path, content: Any) -> None:
    """Writes YAML that :mod:`m4oe_ds.config_loader` reads back."""
    path.write_text(yaml.safe_dump(content, sort_keys=False, default_flow_style=None), encoding="utf-8")


def plain(value: Any) -> Any:
    """Nested arrays and numbers as JSON-ready data; NaN and infinity become None."""
    import numpy as np  # not for names alone

    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
