"""A finished run as the analyses need it: model, batches, and what training and comparison wrote down."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m4oe_ds import config_loader
from m4oe_ds.config import Config
from m4oe_ds.data.batch import Batch
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.errors import ConfigError, DataError
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
        source = assemble.stream(self.config, split, self.spec, micro, 1, self.manifests["train"]).evaluation()
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


def sweep_rows(path: Path, metric: str) -> list[dict[str, Any]]:
    """Points of the ablation sweeps (M4oE Fig. 7) from the ``sweep.csv`` of ``m4oe compare --sweep``.

    Returns:
        Rows ``sweep``, ``value``, ``task``, ``mean``, ``sd`` (NaN for one seed), ``seeds``, of one metric; the task is
        prefixed with data set or method where the file holds several.

    Raises:
        DataError: no such file, columns missing, a value that is no number, or no row of the metric.
    """
    if not path.is_file():
        raise DataError("no such file", str(path), "make it with `m4oe compare --sweep experts=16,32`")
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.DictReader(stream)
        needed = {"option", "value", "data set", "method", "task", "metric", "mean", "spread", "seeds"}
        if missing := needed - set(reader.fieldnames or ()):
            raise DataError(
                f"has no column {', '.join(sorted(missing))}", str(path), "give a sweep.csv of m4oe compare"
            )
        rows = [row for row in reader if row["metric"] == metric]
    if not rows:
        raise DataError(f"no row of metric {metric}", str(path), "choose another with --metric")
    prefixes = [name for name in ("data set", "method") if len({row[name] for row in rows}) > 1]
    try:
        return [
            {
                "sweep": row["option"],
                "value": float(row["value"]),
                "task": " ".join([*(row[name] for name in prefixes), row["task"]]),
                "mean": float(row["mean"]),
                "sd": float(row["spread"]) if row["spread"] else math.nan,
                "seeds": int(row["seeds"]),
            }
            for row in rows
        ]
    except ValueError as error:
        raise DataError(f"cannot be read ({error})", str(path), "make it again with m4oe compare --collect") from None


def analysed(folder: Path) -> dict[str, Any]:
    """``analysis.json`` of another run, to be drawn beside this one.

    Raises:
        DataError: it was not analysed.
    """
    path = folder / "analysis.json"
    if not path.is_file():
        raise DataError("not analysed yet (no analysis.json)", str(folder), f"run `m4oe analyze {folder}` first")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def twin_folders(pairs: Sequence[str], modalities: Sequence[str]) -> dict[str, Path]:
    """``MODALITY=RUN`` options as a mapping.

    Raises:
        ConfigError: not of that form, or an unknown modality.
    """
    found = {}
    for text in pairs:
        name, equals, folder = text.partition("=")
        if not equals or not folder or name not in modalities:
            raise ConfigError(f"cannot use {text!r}", "--unimodal", f"write MODALITY=RUN with {', '.join(modalities)}")
        found[name] = Path(folder)
    return found


def plain(value: Any) -> Any:
    """Nested arrays and numbers as JSON-ready data; NaN and infinity become None."""
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
