"""Evaluation of a finished run from its consolidated weights, at any number of ranks."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from m4oe_ds.coordinates import resolve
from m4oe_ds.data.batch import Batch
from m4oe_ds.evaluation.examples import exams_shown
from m4oe_ds.evaluation.inference import Predictions, predict_split
from m4oe_ds.evaluation.intervals import Bootstrap
from m4oe_ds.evaluation.metrics import evaluate_split
from m4oe_ds.evaluation.missing_modalities import observed
from m4oe_ds.parallel import launch, reduce
from m4oe_ds.progress import track
from m4oe_ds.runs import assemble
from m4oe_ds.runs.configuration import open_config
from m4oe_ds.runs.finished import Run, open_run
from m4oe_ds.runs.folder import RunFolder, write_json
from m4oe_ds.runs.objective import objective
from m4oe_ds.runs.result_name import DIGEST, result_name
from m4oe_ds.stored import read_json


def evaluate_run(folder: Path, split: str, data: str = "") -> tuple[str, dict[str, Any]] | None:
    """Metrics of ``split`` and the name they are stored under in ``metrics.json`` and ``predictions/``.

    Results on other shards than the run's own never replace those on its own: see
    :func:`m4oe_ds.runs.result_name.result_name`. Every rank holds the whole model; the samples are shared out.

    Args:
        folder: run folder with ``config.yaml`` and ``weights/``.
        split: name of the split.
        data: other shard folder, or empty.

    Returns:
        name and metrics; None on ranks other than 0.

    Raises:
        DataError: no such run.
        CheckpointError: weights missing or of another model.

    Collectives: starts and ends a process group; every rank must call it.
    """
    files = RunFolder(folder)
    everything = read_json(files.metrics, "remove it, or copy it again") if files.metrics.is_file() else {}
    timeout_minutes = open_config(folder).parallel.timeout_minutes
    device = launch.start(resolve(os.environ), timeout_minutes)
    run = open_run(folder, split, data, device)
    assemble.verify(run.config, {split: run.manifests[split]}, device)
    name = result_name(folder, split, data, run.manifests[split], everything)
    # the samples that the report shows are those of the last split that training evaluates
    shown = run.config.evaluation.num_examples if name in run.config.evaluation.splits[-1:] else 0
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
        exams=exams_shown(run.manifests[split], shown),
    )
    metrics = None
    if reduce.rank() == 0:
        predictions.save(files.predictions(name), run.spec)
        if shown:
            predictions.save_examples(files.examples)
        metrics = _metrics(run, predictions)
        metrics[DIGEST] = run.manifests[split].digest
        everything[name] = metrics
        write_json(files.metrics, everything)
    launch.stop()
    return None if metrics is None else (name, metrics)


def _metrics(run: Run, predictions: Predictions) -> dict[str, Any]:
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
    return metrics
