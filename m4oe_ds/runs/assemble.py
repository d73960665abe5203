"""Configuration to objective, streams and stamps: the pieces the loop runs on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m4oe_ds.config import Config, to_dict
from m4oe_ds.data import sources
from m4oe_ds.data.augment import AugmentOptions
from m4oe_ds.data.cache import Cache
from m4oe_ds.data.cards import Card, find_card
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.missing import RARE, Presence, presence
from m4oe_ds.data.order import Share, balanced_weights
from m4oe_ds.data.reading import Reading
from m4oe_ds.data.shard_reader import verify_shards
from m4oe_ds.data.stream import Sampling, ShardStream
from m4oe_ds.errors import ConfigError, DataError
from m4oe_ds.models.interface import ModelSpec
from m4oe_ds.models.systems import find_system
from m4oe_ds.parallel import reduce
from m4oe_ds.runs.configuration import without_sources
from m4oe_ds.runs.opening import check_card
from m4oe_ds.runs.request import check_cache

Normalise = Mapping[str, tuple[float, float]]  # mean and standard deviation by modality, or modality.column


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
            "make shards with `m4oe convert`",
        )
    manifests = {}
    for split in splits:
        manifests[split] = Manifest.load(sources.join(root, split))
        check_card(manifests[split].card, find_card(config.data.dataset), sources.shown(sources.join(root, split)))
    return manifests


def check_source(stored: Card, wanted: Card, where: str) -> None:
    """What a card says of answers, files and splits must be what the shards to be learnt from were made with.

    Shards of finished runs are not asked: those of another hospital have a table of their own.

    Raises:
        DataError: it was changed after the conversion, which training would not notice.
    """
    if stored.source is None or wanted.source is None:
        return
    names = ["sample", "group", "exam", "side", "split", "shares", "files", "ranges", "labels", "missing", "subgroups"]
    if wanted.source.reader:  # the reader says what is learnt; shards without subgroups are told where they are wanted
        names = []
    changed = [name for name in names if getattr(stored.source, name) != getattr(wanted.source, name)]
    if changed:
        raise DataError(
            f"was converted before the card of {wanted.name} was changed ({', '.join(changed)} of its source)",
            where,
            "convert it again, or undo the change",
        )


def verify(config: Config, manifests: Mapping[str, Manifest], device: torch.device) -> None:
    """Checks shards against their manifests, each rank a share, and stops every rank if any found a problem.

    Raises:
        DataError: one line per broken shard.

    Collectives: every rank must call it.
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


def training_presence(config: Config, spec: ModelSpec, train: Manifest) -> tuple[Presence, str]:
    """Which modalities the training samples have, and a warning if one is so rare that it is hardly trained.

    Raises:
        DataError: a modality that no training sample has: its embedder would answer with the noise it started from.
    """
    found = presence(train, spec.modalities, config.data.complete_only)
    if never := found.never():
        rest = [name for name in spec.modalities if name not in never]
        raise DataError(
            f"no training sample has {', '.join(never)}",
            sources.shown(sources.join(config.data.root, "train")),
            f"leave it out: data.modalities=[{', '.join(rest)}]",
        )
    if not found.rare():
        return found, ""
    return found, f"fewer than {RARE:.0%} of the training samples have {', '.join(found.rare())}: hardly trained"


def stream(
    config: Config,
    split: str,
    spec: ModelSpec,
    micro: int,
    accumulation: int,
    manifests: Mapping[str, Manifest],
    normalise: Normalise | None = None,
) -> ShardStream:
    """This rank's stream of a split, standardised with the pixel statistics of the training split.

    Args:
        config: the resolved configuration.
        split: name of the split to read.
        spec: specification of the model.
        micro: samples per batch.
        accumulation: batches per optimizer step.
        manifests: manifests of this split, and of ``train`` where nothing else says how to standardise.
        normalise: statistics of the training split; None = of its manifest.

    Raises:
        ConfigError: the model compares sides and the other one is not read.
        DataError: a split without a modality or task that is to be read.
    """
    if normalise is None:
        normalise = manifests["train"].normalisation()
    return ShardStream(
        sources.join(config.data.root, split),
        manifests[split],
        reading(config, spec, normalise, augmented=split == "train"),
        Share(reduce.rank(), reduce.world_size(), micro, accumulation),
        Sampling(
            seed=config.run.seed,
            complete_only=config.data.complete_only,
            weights=sampling_weights(config, spec, manifests[split]) if split == "train" else None,
            last_batch=config.data.last_batch,
        ),
        workers=config.data.workers,
        cache=cache(config),
        max_bad_fraction=config.data.max_bad_fraction,
    )


def reading(config: Config, spec: ModelSpec, normalise: Normalise, *, augmented: bool = False) -> Reading:
    """How a sample becomes tensors.

    Args:
        config: the resolved configuration.
        spec: specification of the model.
        normalise: ``{modality: (mean, std)}`` of the training split.
        augmented: for training: with the augmentation and modality dropout of the configuration.

    Raises:
        ConfigError: the model compares sides and the other one is not read.
    """
    pairs = config.model.options.get("pairs", "bilateral")  # of image types: the other side is not read
    if find_system(config.model.name).contralateral and not config.data.contralateral and pairs == "bilateral":
        raise ConfigError(f"{config.model.name} needs the other side", "data.contralateral", "set it to true")
    options = {key: value for key, value in to_dict(config.data.augment).items() if key != "enabled"}
    return Reading(
        inputs=spec.inputs,
        tasks=spec.tasks,
        image_size=spec.image_size,
        volume_size=spec.volume_size,
        normalise=normalise,
        augment=AugmentOptions(**options) if config.data.augment.enabled and augmented else None,
        seed=config.run.seed,
        modality_dropout=config.data.modality_dropout if augmented else 0.0,
        contralateral=config.data.contralateral,
    )


def cache(config: Config) -> Cache | None:
    """The cache of remote shards; None for local ones.

    Raises:
        ConfigError: remote shards that are to be verified, and nowhere to fetch them to.
    """
    if not sources.is_remote(config.data.root):
        return None
    check_cache(config)
    if not config.data.cache_dir:
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
    classes = {task.name for task in spec.tasks if task.coded}
    unknown = [name for name in sampling.tasks if name not in classes]
    if unknown or not sampling.tasks:
        what = f"{', '.join(unknown)} is not a classification task of this run" if unknown else "is empty"
        raise ConfigError(what, "data.sampling.tasks", f"choose among {', '.join(sorted(classes))}")
    labels = [manifest.sample_labels(name) for name in sampling.tasks]
    return balanced_weights(labels, sampling.strength, sampling.max_ratio)


def prior_correction(config: Config, spec: ModelSpec, manifest: Manifest) -> dict[str, torch.Tensor]:
    """``{task: [C]}`` added to the logits at evaluation: log(class share in the data / in the epochs drawn).

    Sampling by labels trains the posterior of a world with other class shares; by Bayes' rule this correction (Saerens
    et al., 2002; Menon et al., 2021) brings the probabilities back. Empty for uniform sampling.
    """
    weights = sampling_weights(config, spec, manifest)
    if weights is None or not config.data.sampling.correct_evaluation:
        return {}
    out = {}
    for task in spec.tasks:
        if not task.coded:
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


def stamp(config: Config, ds_config: Mapping[str, Any], topology: dict[str, Any], manifest: Manifest) -> dict[str, Any]:
    """What a checkpoint must share with the run that loads it."""
    import deepspeed

    precision = next((name for name in ("bf16", "fp16") if ds_config.get(name, {}).get("enabled")), "fp32")
    # not where the values came from, and as versions without init_from wrote it, so that their checkpoints are accepted
    architecture = {
        key: value
        for key, value in to_dict(without_sources(config).model).items()
        if key not in ("init_from", "init_map") and not (key == "freeze" and not value)
    }
    architecture |= {"tasks": config.data.tasks, "modalities": config.data.modalities}
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
