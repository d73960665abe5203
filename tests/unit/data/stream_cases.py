"""Shards of the RSNA kind whose pixels and labels follow from the number of a sample, and streams over them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m4oe_ds.data import codecs
from m4oe_ds.data.augment import AugmentOptions
from m4oe_ds.data.batch import Batch
from m4oe_ds.data.cards import find_card
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.order import Share
from m4oe_ds.data.reading import Reading
from m4oe_ds.data.schema import SCHEMA_VERSION
from m4oe_ds.data.shard_writer import ShardWriter
from m4oe_ds.data.stream import Sampling, ShardStream

SPEC = find_card("rsna")
COUNT, GLOBAL = 53, 24
HEIGHT, WIDTH = 8, 6
AUGMENT = AugmentOptions(10.0, 0.04, 0.08, 0.15, 0.1, 0.01, True)


def pixels(number: int, view: int) -> np.ndarray:
    return np.random.default_rng((number, view)).integers(1, 65536, (HEIGHT, WIDTH)).astype(np.uint16)


def modalities_of(number: int) -> tuple[str, ...]:
    """Every fourth sample lacks its second view."""
    return SPEC.modalities[:1] if number % 4 == 0 else SPEC.modalities


def labels_of(number: int) -> dict[str, int]:
    """Every third sample lacks its density."""
    return {"density": -1 if number % 3 == 0 else number % 4, "birads": number % 3}


def write(folder: Path, count: int = COUNT, statistics: dict[str, Any] | None = None) -> Path:
    writer = ShardWriter(
        folder,
        SPEC,
        "train",
        samples_per_shard=7,
        synthetic=True,
        preprocessing={},
    )
    for number in range(count):
        views = modalities_of(number)
        meta = {
            "schema_version": SCHEMA_VERSION,
            "dataset": "rsna",
            "split": "train",
            "key": f"rsna-{number:016x}-l",
            "group": f"{number:016x}",
            "exam": f"{number:016x}",
            "side": "l",
            "labels": labels_of(number),
            "modalities": list(views),
            "geometry": {},
            "screening": None,
            "vendor": "other",
        }
        writer.write(meta, {f"{name}.b2": codecs.encode(pixels(number, i)) for i, name in enumerate(views)})
    writer.close(statistics or {})
    return folder / "train"


def stream(folder: Path, rank: int = 0, world: int = 1, **options: Any) -> ShardStream:
    """One rank's stream of a split; options go to the object that has a field of their name."""
    manifest = Manifest.load(folder)
    settings: dict[str, Any] = {
        "modalities": SPEC.modalities,
        "tasks": SPEC.tasks,
        "image_size": (HEIGHT, WIDTH),
        "normalise": manifest.normalisation(),
        "accumulation": 1,
        "seed": 3,
        "last_batch": "drop",
        **options,
    }
    settings.setdefault("micro_batch", GLOBAL // (world * settings["accumulation"]))
    settings["inputs"] = tuple(find_card("embed").modality(name) for name in settings.pop("modalities"))  # RSNA's too

    def fields(cls: type) -> dict[str, Any]:
        return {field.name: settings[field.name] for field in dataclasses.fields(cls) if field.name in settings}

    rest = {name: settings[name] for name in ("workers", "cache", "max_bad_fraction") if name in settings}
    share = Share(rank, world, settings["micro_batch"], settings["accumulation"])
    return ShardStream(folder, manifest, Reading(**fields(Reading)), share, Sampling(**fields(Sampling)), **rest)


def number_of(key: str) -> int:
    return int(key.split("-")[1], 16)


def keys(batches: list[Batch]) -> list[str]:
    return [key for batch in batches for key in batch.keys]


def same(a: Batch, b: Batch) -> bool:
    return (
        a.keys == b.keys
        and torch.equal(a.present, b.present)
        and torch.equal(a.label_mask, b.label_mask)
        and torch.equal(a.valid, b.valid)
        and all(torch.equal(a.views[name], b.views[name]) for name in a.views)
        and all(torch.equal(a.labels[name], b.labels[name]) for name in a.labels)
    )
