"""A data set with a task of every kind, its shards with one planted quantity: how bright a picture is."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from m4oe_ds.data import codecs
from m4oe_ds.data.cards import Card, read_card
from m4oe_ds.data.shard_writer import ShardWriter
from tests.integration import shards

CARD = """
name: lamps
title: Lamps
unit: one lamp
modalities:
  front: {kind: image, label: front view}
  back: {kind: image, label: back view}
tasks:
  make: {kind: classes, classes: [red, green, blue], label: make of the lamp}
  lit: {kind: binary, label: lamp is lit}
  grade: {kind: ordinal, classes: [dim, fair, bright, glaring], label: brightness grade}
  age: {kind: number, unit: months, label: age of the lamp}
  failure: {kind: survival, horizons: [1, 2.5, 5], unit: years, event: failure, label: failure of the lamp}
  parts: {kind: mask, of: front, classes: [bulb, socket], label: parts of the lamp}
"""
SMALL = (*shards.SMALL, "data.modalities=[]")
KINDS = ("classes", "binary", "ordinal", "number", "survival", "mask")
SIDE = 32


def card(folder: Path) -> Path:
    """Writes the card; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lamps.yaml"
    path.write_text(CARD)
    return path


def labels(bright: float, random: np.random.Generator) -> dict[str, object]:
    """Answers that follow from brightness in [0, 1]; each of the first five is missing in a fifth of the samples."""
    failing, leaving = random.exponential(6 * np.exp(-4 * bright)), random.exponential(4)
    found: dict[str, object] = {
        "make": int(3 * bright),
        "lit": int(bright > 0.5),
        "grade": int(4 * bright),
        "age": round(60 + 40 * bright + float(random.normal(0, 2)), 3),
        "failure": [round(float(min(failing, leaving)), 3), int(failing <= leaving)],
    }
    for name, nothing in (("make", -1), ("lit", -1), ("grade", -1), ("age", None), ("failure", None)):
        if random.random() < 0.2:
            found[name] = nothing
    return found


def write(folder: Path, sizes: dict[str, int], seed: int = 0) -> tuple[Path, Path]:
    """Card and shards; a third of the lamps lacks the back view, every fourth the mask. Returns both paths."""
    path = card(folder)
    spec: Card = read_card(path)
    random = np.random.default_rng(seed)
    for split, count in sizes.items():
        writer = ShardWriter(
            folder / "shards",
            spec,
            split,
            samples_per_shard=10,
            synthetic=True,
            preprocessing={"image_size": [SIDE, SIDE]},
        )
        for i in range(count):
            bright = float(random.uniform(0, 0.999))
            names = list(spec.modalities if i % 3 else spec.modalities[:1])
            mask = np.zeros((SIDE, SIDE), dtype=np.uint8)
            top, left = (int(random.integers(0, SIDE - 12)) for _ in range(2))
            mask[top : top + 12, left : left + 12] |= 1  # the bulb
            mask[top + 8 : top + 12, left : left + 12] |= 2  # the socket, part of it
            members = {}
            for name in names:
                image = random.integers(0, 6000, (SIDE, SIDE)) + 30000 * bright
                if name == "front":
                    image = image + 25000.0 * (mask & 1)
                members[f"{name}.b2"] = codecs.encode(image.clip(0, 65535).astype(np.uint16), "b2")
            if i % 4:
                members["parts.png"] = codecs.encode(mask, "png")
            known = {**labels(bright, random), "parts": 1 if i % 4 else -1}
            number = f"{random.integers(2**62):016x}"
            meta = {
                "schema_version": 2,
                "dataset": "lamps",
                "split": split,
                "key": f"lamps-{number}",
                "group": number,
                "exam": number,
                "labels": known,
                "modalities": names,
            }
            writer.write(meta, members)
        writer.close({name: {"mean": 0.3, "std": 0.2} for name in spec.modalities})
    return path, folder / "shards"
