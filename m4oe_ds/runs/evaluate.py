"""Evaluation of a finished run from its consolidated weights, at any number of ranks."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from m4oe_ds.coordinates import resolve
from m4oe_ds.data.batch import Batch
from m4oe_ds.evaluation.inference import predict_split
from m4oe_ds.evaluation.intervals import Bootstrap
from m4oe_ds.evaluation.metrics import evaluate_split
from m4oe_ds.evaluation.missing_modalities import observed
from m4oe_ds.parallel import launch, reduce
from m4oe_ds.progress import track
from m4oe_ds.runs import assemble
from m4oe_ds.runs.configuration import open_config
from m4oe_ds.runs.finished import open_run
from m4oe_ds.runs.folder import RunFolder, write_json
from m4oe_ds.runs.objective import objective


def evaluate_run(folder: Path, split: str, data: str = "") -> dict[str, Any] | None:
    """Metrics of ``split``, also written to ``metrics.json`` and ``predictions/``; None on ranks other than 0.

    Every rank holds the whole model; the samples are shared out.

    Args:
        folder: run folder with ``config.yaml`` and ``weights/``.
        split: name of the split.
        data: other shard folder, or empty.

    Raises:
        DataError: no such run.
        CheckpointError: weights missing or of another model.

    Collectives: starts and ends a process group; every rank must call it.
    """
    timeout_minutes = open_config(folder).parallel.timeout_minutes
    device = launch.start(resolve(os.environ), timeout_minutes)
    run = open_run(folder, split, data, device)
    assemble.verify(run.config, {split: run.manifests[split]}, device)
    batches: Iterable[Batch] = run.batches(split)
    if reduce.rank() == 0:
        batches = track(batches, f"{split} split", "batches", -(-run.num_batches(split) // reduce.world_size()))
    predictions = predict_split(
        run.model,
        batches,
        run.spec,
        objective(run.config, run.spec, run.statistics, device),
        device,
        torch.float32,
        correction=run.correction,
    )
    metrics = None
    if reduce.rank() == 0:
        files = RunFolder(folder)
        predictions.save(files.predictions(split), run.spec)
        metrics = evaluate_split(
            predictions.arrays(),
            run.spec.tasks,
            resamples=run.config.evaluation.resamples,
            train=run.statistics,
        )
        metrics["loss"] = predictions.loss
        if predictions.present is not None and not predictions.present.all():
            bootstrap = Bootstrap(run.config.evaluation.resamples)
            metrics["by_modalities_present"] = observed(
                run.spec.tasks, predictions.arrays(), predictions.present, bootstrap
            )
        everything = json.loads(files.metrics.read_text()) if files.metrics.is_file() else {}
        everything[split] = metrics
        write_json(files.metrics, everything)
    launch.stop()
    return metrics
