"""The contact sheet of a card's check: some samples as they would be stored, with their masks drawn over them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_tools.convert.sample import SampleResult
from data_tools.inspect import tile
from data_tools.sheet import draw, exhibit
from m4oe_ds.data.cards import Card
from m4oe_ds.data.codecs import decode

SAMPLES_SHOWN = 8
_COLOURS = (  # one for each class of a mask
    (255, 64, 64), (64, 160, 255), (255, 208, 0), (0, 208, 128), (208, 96, 255), (255, 144, 0), (0, 224, 224),
    (255, 128, 192),
)  # fmt: skip


def write_sheet(card: Card, results: Sequence[SampleResult], path: Path) -> int:
    """Writes a PNG with samples as they would be stored; returns how many it shows.

    Args:
        card: the card.
        results: samples that were read.
        path: the PNG.
    """
    shown = [one for one in card.inputs if one.kind != "table"]
    read = [result for result in results if result.sums]
    if not shown or not read:
        return 0
    exhibits = []
    for result in read[:SAMPLES_SHOWN]:
        members = {name.split(".")[0]: (data, name.rsplit(".", 1)[-1]) for name, data in result.members.items()}
        pictures = {}
        for spec in shown:
            if spec.name not in members:
                continue
            picture = tile(decode(*members[spec.name]), spec.kind == "volume").astype(np.float32)
            for task in card.tasks:
                if task.dense and task.of == spec.name and task.name in members:
                    picture = _tinted(picture, decode(*members[task.name]), spec.kind == "volume", task.num_classes)
            pictures[spec.name] = picture.astype(np.uint8)
        exhibits.append(exhibit(result.meta, pictures, card))
    masks = ", masks in colour" if any(task.dense for task in card.tasks) else ""
    heading = f"{card.title}: {len(exhibits)} of {len(read)} samples that were read{masks}"
    draw(exhibits, card, heading).save(path, format="PNG")
    return len(exhibits)


def _tinted(picture: NDArray[Any], bits: NDArray[Any], volume: bool, classes: int) -> NDArray[Any]:
    """A picture with the classes of its mask in colours."""
    plane = bits[len(bits) // 2] if volume else bits
    height, width = picture.shape[:2]
    down = ((np.arange(height) + 0.5) * plane.shape[0] / height).astype(int)
    across = ((np.arange(width) + 0.5) * plane.shape[1] / width).astype(int)
    small = plane[down][:, across]
    for k in range(classes):
        inside = (small >> k & 1).astype(bool)
        picture[inside] = 0.6 * picture[inside] + 0.4 * np.array(_COLOURS[k], np.float32)
    return picture
