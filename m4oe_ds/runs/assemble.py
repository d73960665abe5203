"""Configuration to objective, streams and stamps: the pieces the loop runs on."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m4oe_ds.config import Config, TaskLossConfig, to_dict
from m4oe_ds.data import sources
from m4oe_ds.data.augment import AugmentOptions
from m4oe_ds.data.cache import Cache
from m4oe_ds.data.manifest import Manifest, verify_shards
from m4oe_ds.data.order import balanced_weights
from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.data.stream import ShardStream
from m4oe_ds.errors import ConfigError, DataError
from m4oe_ds.losses.model_loss import ModelLoss
from m4oe_ds.losses.objective import InformationTerm, Objective, TaskLoss
from m4oe_ds.models.interface import ModelSpec
from m4oe_ds.models.registry import MODELS
from m4oe_ds.parallel import reduce


def load_manifests(config: Config, splits: tuple[str, ...]) -> dict[str, Manifest]:
    """Manifests of the splits.

    Raises:
        DataError: folder or manifest missing, or made for another data set.
    """
    root = config.data.root
    if not root or not (sources.is_remote(root) or Path(root).is_dir()):
        raise DataError(
            f"no shard folder {config.data.root!r}",
            "data.root",
            "convert an archive with `python -m data_tools.convert`",
        )
    manifests = {}
    for split in splits:
        manifests[split] = Manifest.load(sources.join(root, split))
        if manifests[split].dataset != config.data.dataset:
            raise DataError(
                f"holds {manifests[split].dataset}, but data.dataset is {config.data.dataset}",
                sources.shown(sources.join(root, split)),
            )
    return manifests


def verify(config: Config, manifests: Mapping[str, Manifest], device: torch.device) -> None:
    """Checks shards against their manifests, each rank a share, and stops every rank if any found a problem.

    Raises:
        DataError: one line per broken shard. Collectives: every rank must call it.
    """
    problems: list[str] = []
    for split, manifest in manifests.items():
        problems += verify_shards(
            sources.join(config.data.root, split),
            manifest,
            mode=config.data.verify,
            rank=reduce.rank(),
            world=reduce.world_size(),
        )
    problems = reduce.agree(problems, device)
    if problems:
        raise DataError("\n".join(problems))


def stream(
    config: Config, split: str, spec: ModelSpec, micro: int, accumulation: int, train_manifest: Manifest
) -> ShardStream:
    """This rank's stream of a split, standardised with the pixel statistics of the training split.

    Raises:
        ConfigError: the model compares breasts and the other one is not read.
    """
    pairs = config.model.options.get("pairs", "bilateral")  # of image types: the other breast is not read
    if MODELS[config.model.name].contralateral and not config.data.contralateral and pairs == "bilateral":
        raise ConfigError(f"{config.model.name} needs the other breast", "data.contralateral", "set it to true")
    statistics = train_manifest.pixel_statistics
    normalise = {
        name: (float(statistics[name]["mean"]), max(float(statistics[name]["std"]), 1e-6))
        for name in spec.modalities
        if name in statistics
    }
    options = {key: value for key, value in to_dict(config.data.augment).items() if key != "enabled"}
    augment = AugmentOptions(**options) if config.data.augment.enabled and split == "train" else None
    return ShardStream(
        sources.join(config.data.root, split),
        modalities=spec.modalities,
        tasks=spec.tasks,
        image_size=spec.image_size,
        micro_batch=micro,
        accumulation=accumulation,
        rank=reduce.rank(),
        world=reduce.world_size(),
        seed=config.run.seed,
        workers=config.data.workers,
        augment=augment,
        normalise=normalise,
        complete_only=config.data.complete_only,
        max_bad_fraction=config.data.max_bad_fraction,
        last_batch=config.data.last_batch,
        weights=sampling_weights(config, spec, train_manifest) if split == "train" else None,
        contralateral=config.data.contralateral,
        cache=cache(config),
    )


def cache(config: Config) -> Cache | None:
    """The cache of remote shards; None for local ones.

    Raises:
        ConfigError: remote shards that are to be verified, and nowhere to fetch them to.
    """
    if not sources.is_remote(config.data.root):
        return None
    if not config.data.cache_dir:
        if config.data.verify == "full":
            raise ConfigError(
                "is empty, and remote shards can only be verified when they are fetched whole", "data.cache_dir",
                "name a local folder, or set data.verify=size to read parts of shards unverified",
            )  # fmt: skip
        return None
    return Cache(Path(config.data.cache_dir), int(config.data.cache_gb * 1e9))


def sampling_weights(config: Config, spec: ModelSpec, manifest: Manifest) -> np.ndarray | None:
    """``[num_samples]`` weights of class-balanced sampling from the training labels; None for uniform sampling.

    Raises:
        ConfigError: no or unknown tasks, or tasks without classes.
    """
    sampling = config.data.sampling
    if sampling.kind == "uniform":
        return None
    classes = {task.name for task in spec.tasks if task.kind == "classification"}
    unknown = [name for name in sampling.tasks if name not in classes]
    if unknown or not sampling.tasks:
        what = f"{', '.join(unknown)} is not a classification task of this run" if unknown else "is empty"
        raise ConfigError(what, "data.sampling.tasks", f"choose among {', '.join(sorted(classes))}")
    labels = [manifest.sample_labels(name) for name in sampling.tasks]
    return balanced_weights(labels, sampling.strength, sampling.max_ratio)


def prior_correction(config: Config, spec: ModelSpec, manifest: Manifest) -> dict[str, torch.Tensor]:
    """``{task: [C]}`` added to the logits at evaluation: log(class share in the data / in the epochs drawn).

    Sampling by labels trains the posterior of a world with other class shares; by Bayes' rule this correction (Saerens et
    al., 2002; Menon et al., 2021) brings the probabilities back. Empty for uniform sampling.
    """
    weights = sampling_weights(config, spec, manifest)
    if weights is None or not config.data.sampling.correct_evaluation:
        return {}
    out = {}
    for task in spec.tasks:
        if task.kind != "classification":
            continue
        codes = manifest.sample_labels(task.name)
        known = codes >= 0
        data = np.bincount(codes[known], minlength=task.num_classes)
        drawn = np.bincount(codes[known], weights=weights[known], minlength=task.num_classes)
        # a class that training never saw has no share to correct
        ratio = np.where(
            data > 0, (data / max(data.sum(), 1)) / np.maximum(drawn / max(drawn.sum(), 1e-12), 1e-12), 1.0
        )
        out[task.name] = torch.tensor(np.log(ratio), dtype=torch.float32)
    return out


def objective(config: Config, spec: ModelSpec, manifest: Manifest, device: torch.device) -> Objective:
    """Task losses (with class weights from the training labels) and the mutual-information term."""
    losses = {
        task.name: _task_loss(config.loss.tasks.get(task.name, config.loss.default), task, manifest, device)
        for task in spec.tasks
    }
    mi = config.loss.mutual_information
    labels = torch.tensor(
        [float((manifest.sample_labels(task.name) >= 0).sum()) for task in spec.tasks], dtype=torch.float64
    )
    prior = {
        "batch": None,
        "dataset": (labels / labels.sum().clamp_min(1)).to(device),
        "uniform": torch.full_like(labels, 1.0 / len(spec.tasks)).to(device),
    }[mi.task_prior]
    term = InformationTerm(config.loss.alpha, mi.source, mi.aggregate, mi.task_weight, prior, mi.mask_by_label)
    return Objective(spec.tasks, losses, term, len(spec.modalities), model_loss=model_loss(config, spec))


def model_loss(config: Config, spec: ModelSpec) -> ModelLoss | None:
    """The losses that come with the model of a configuration, if any."""
    module, _, name = MODELS[config.model.name].model_loss.partition(":")
    if not module:
        return None
    loss: ModelLoss = getattr(importlib.import_module(module), name)(spec.tasks, config.model.options)
    return loss


def _task_loss(config: TaskLossConfig, task: TaskSpec, manifest: Manifest, device: torch.device) -> TaskLoss:
    kind = config.kind
    if kind == "auto":
        kind = "cross_entropy" if task.kind == "classification" else "bce_dice"
    if (kind == "bce_dice") != (task.kind == "segmentation"):
        raise ConfigError(f"loss {kind} does not fit the {task.kind} task {task.name}", f"loss.tasks.{task.name}.kind")
    weight = None
    if config.class_weight != "none" and task.kind == "classification":
        labels = manifest.sample_labels(task.name)
        counts = np.bincount(labels[labels >= 0], minlength=task.num_classes).astype(np.float64)
        if config.class_weight == "complement":
            values = 1.0 - counts / max(counts.sum(), 1.0)
        else:
            values = counts.sum() / (task.num_classes * np.maximum(counts, 1.0))
        weight = torch.tensor(values, dtype=torch.float32, device=device)
    return TaskLoss(kind, config.weight, config.gamma, config.label_smoothing, weight)


def stamp(config: Config, ds_config: Mapping[str, Any], topology: dict[str, Any], manifest: Manifest) -> dict[str, Any]:
    """What a checkpoint must share with the run that loads it."""
    import deepspeed

    precision = next((name for name in ("bf16", "fp16") if ds_config.get(name, {}).get("enabled")), "fp32")
    architecture = to_dict(config.model) | {"tasks": config.data.tasks, "modalities": config.data.modalities}
    return {
        **topology,
        "zero_stage": ds_config["zero_optimization"]["stage"],
        "precision": precision,
        "deepspeed": deepspeed.__version__,
        "model": _digest(architecture),
        "data": _digest({"manifest": manifest.digest, "seed": config.run.seed}),
    }


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=list).encode()).hexdigest()[:12]
