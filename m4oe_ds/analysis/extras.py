"""What the report shows beside the paper's analyses: gallery and dispatch maps, and the clinical figures of a split."""

from __future__ import annotations

from typing import Any

import torch

from m4oe_ds.analysis.gallery import GalleryCollector, save
from m4oe_ds.analysis.runs import Run
from m4oe_ds.evaluation.clinical import write_report


def gallery(run: Run, split: str, limit: int) -> dict[str, Any]:
    """Writes ``analysis/gallery.npz``: maps of a few samples, and the patches that every expert takes most of.

    Raises:
        DataError: a model without task-slotted routing or without a grid of image tokens.
    """
    collector = GalleryCollector(run.model, run.spec, run.config.evaluation.num_examples or 6)
    with torch.no_grad():
        for host in run.batches(split, limit):
            batch = host.to(run.device)
            collector.add(batch, run.model(batch))
    path = run.folder / "analysis" / "gallery.npz"
    arrays = collector.result()
    save(arrays, path)
    return {"samples": len(arrays["keys"]), "experts": len(arrays["expert_usage"]), "file": "analysis/gallery.npz"}


def clinical(run: Run, split: str, resamples: int) -> dict[str, Any]:
    """Writes ``clinical.json``: calibration, operating points, risk over time, subgroups.

    Raises:
        DataError: the split has no stored predictions.
    """
    write_report(run.folder, split, run.config.data.root, run.spec.tasks, resamples)
    return {"split": split, "file": "clinical.json"}
