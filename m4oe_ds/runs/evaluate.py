"""Evaluation of a finished run from its consolidated weights, at any number of ranks."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from m4oe_ds import config_loader, deepspeed_json
from m4oe_ds.errors import DataError
from m4oe_ds.evaluation.inference import predict_split
from m4oe_ds.evaluation.metrics import evaluate_split
from m4oe_ds.models import build, spec_for
from m4oe_ds.parallel import launch, reduce
from m4oe_ds.runs import assemble, weights
from m4oe_ds.runs.folder import write_json


def evaluate_run(folder: Path, split: str, data: str = "") -> dict[str, Any] | None:
    """Metrics of ``split``, also written to ``metrics.json`` and ``predictions/``; None on ranks other than 0.

    Every rank holds the whole model; the samples are shared out.

    Args:
        folder: run folder with ``config.yaml`` and ``weights/``. split: name. data: other shard folder, or empty.

    Raises:
        DataError: no such run. CheckpointError: weights missing or of another model.

    Collectives: starts and ends a process group; every rank must call it.
    """
    if not (folder / "config.yaml").is_file():
        raise DataError("not a run folder (no config.yaml)", str(folder), "name a folder under runs/")
    config = config_loader.load(folder / "config.yaml")
    if data:
        config = replace(config, data=replace(config.data, root=data))
    place = launch.resolve(os.environ)
    device = launch.start(place, config.parallel.timeout_minutes)
    spec = spec_for(config)
    manifests = assemble.load_manifests(config, tuple(dict.fromkeys(("train", split))))
    assemble.verify(config, {split: manifests[split]}, device)
    model = build(config)
    weights.load(model, folder / "weights" / "model.safetensors")
    model.to(device).eval()
    sizes = deepspeed_json.batch_sizes(
        {"train_micro_batch_size_per_gpu": config.evaluation.micro_batch or 16}, place.world, "evaluation.micro_batch"
    )
    stream = assemble.stream(config, split, spec, sizes.micro, 1, manifests["train"])
    objective = assemble.objective(config, spec, manifests["train"], device)
    correction = assemble.prior_correction(config, spec, manifests["train"])
    predictions = predict_split(
        model, stream.evaluation(), spec, objective, device, torch.float32, correction=correction
    )
    metrics = None
    if reduce.rank() == 0:
        predictions.save(folder / "predictions" / f"{split}.npz", spec)
        metrics = evaluate_split(predictions.arrays(), spec.tasks, resamples=config.evaluation.resamples)
        metrics["loss"] = predictions.loss
        path = folder / "metrics.json"
        everything = json.loads(path.read_text()) if path.is_file() else {}
        everything[split] = metrics
        write_json(path, everything)
    launch.stop()
    return metrics
