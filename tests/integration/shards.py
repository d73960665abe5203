"""Small EMBED shards with a visible signal, written by the package's own writer (no DICOM involved)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from m4oe_ds.data import codecs
from m4oe_ds.data.cards import find_card
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.order import Share
from m4oe_ds.data.reading import Reading
from m4oe_ds.data.shard_writer import ShardWriter
from m4oe_ds.data.stream import Sampling, ShardStream

SIZES = {"train": 72, "val": 21, "test": 30}


def write(folder: Path, sizes: dict[str, int] | None = None, seed: int = 0) -> Path:
    """Shards of random 32 x 32 views: a bright square for risk, the background level for density; a third lacks 2DS."""
    spec, random = find_card("embed"), np.random.default_rng(seed)
    for split, count in (sizes or SIZES).items():
        writer = ShardWriter(
            folder,
            spec,
            split,
            samples_per_shard=10,
            synthetic=True,
            preprocessing={"image_size": [32, 32]},
        )
        for i in range(count):
            labels = {task.name: int(random.integers(task.num_classes)) for task in spec.tasks}
            for name in labels:
                if random.random() < 0.3:
                    labels[name] = -1
            modalities = list(spec.modalities if i % 3 else spec.modalities[:2])
            key = f"embed-{random.integers(2**62):016x}-{'lr'[i % 2]}"
            members = {}
            for name in modalities:
                image = random.integers(0, 8000, (32, 32)).astype(np.uint16)
                image += np.uint16(6000 * max(labels["density"], 0))
                if labels["risk1"] == 1:
                    image[8:16, 8:16] += 30000
                members[f"{name}.b2"] = codecs.encode(image, "b2")
            meta = {
                "schema_version": 2,
                "dataset": "embed",
                "split": split,
                "key": key,
                "group": key[6:22],
                "exam": key[6:22],
                "side": key[-1],
                "labels": labels,
                "modalities": modalities,
                "geometry": {},
                "screening": True,
                "vendor": "other",
            }
            writer.write(meta, members)
        writer.close({name: {"mean": 0.25, "std": 0.2} for name in spec.modalities})
    return folder


def stream(
    folder: Path | str, spec: Any, micro_batch: int, image_size: tuple[int, int] = (16, 16), **options: Any
) -> ShardStream:
    """All of a split in one process; ``spec`` is of a data set or of a model."""
    manifest = Manifest.load(folder)
    reading = Reading(spec.inputs, spec.tasks, image_size, normalise=manifest.normalisation())
    return ShardStream(folder, manifest, reading, Share(0, 1, micro_batch), Sampling(), **options)


SMALL = (
    "model.dim=16",
    "model.embedder.backbone=vit_tiny_patch16_224",
    "model.embedder.options={patch_size: 8, embed_dim: 16, depth: 1, num_heads: 2}",
    "model.msoe={num_experts: 4, depth: 1, num_heads: 2}",
    "model.mtoe={num_experts: 8, num_heads: 2}",
    "model.fusion={num_experts: 4, depth: 1, num_heads: 2}",
    "data.image_size=[32, 32]",
    "data.workers=0",
    "run.tensorboard=false",
    "run.expects={}",
    "evaluation.resamples=50",
)
