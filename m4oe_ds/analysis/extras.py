"""What the report shows beside the paper's analyses: gallery and dispatch maps, and the clinical figures of a split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from m4oe_ds.analysis.gallery import GalleryCollector, save
from m4oe_ds.analysis.inputs import Run
from m4oe_ds.evaluation.clinical import write_report


def gallery(run: Run, split: str, limit: int) -> dict[str, Any]:
    """Writes ``analysis/gallery.npz``: maps of a few samples, and the patches that every expert takes most of.

    Raises:
        DataError: a model without task-slotted routing or without a grid of image tokens.
    """
    count = run.config.evaluation.num_examples or 6
    collector = GalleryCollector(
        run.model, run.spec, count, keys=None if limit else shown(run.folder / "predictions", split)
    )
    with torch.no_grad():
        for host in run.batches(split, limit):
            batch = host.to(run.device)
            collector.add(batch, run.model(batch))
    path = run.folder / "analysis" / "gallery.npz"
    arrays = collector.result()
    save(arrays, path)
    return {"samples": len(arrays["keys"]), "experts": len(arrays["expert_usage"]), "file": "analysis/gallery.npz"}


def shown(folder: Path, split: str) -> list[str] | None:
    """Keys of the samples that the report shows, if they are of this split: their maps belong beside them."""
    examples, predictions = folder / "examples.npz", folder / f"{split}.npz"
    if not (examples.is_file() and predictions.is_file()):
        return None
    with np.load(examples, allow_pickle=False) as kept, np.load(predictions, allow_pickle=False) as known:
        keys: list[str] = kept["keys"].tolist()
        return keys if set(keys) <= set(known["keys"].tolist()) else None


def clinical(run: Run, split: str, resamples: int) -> dict[str, Any]:
    """Writes ``clinical.json``: calibration, operating points, risk over time, subgroups.

    Raises:
        DataError: the split has no stored predictions.
    """
    train = run.manifests["train"]
    labels = {
        f"label_{task.name}": train.sample_labels(task.name) for task in run.spec.tasks if task.kind == "classification"
    }
    write_report(run.folder, split, run.config.data.root, run.spec.tasks, resamples, labels)
    return {"split": split, "file": "clinical.json"}
