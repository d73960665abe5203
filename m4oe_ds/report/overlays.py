"""What a patient's page lays over the views: where the experts of each task read, and what was planted."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from m4oe_ds.report import tables
from m4oe_ds.report.pictures import embedded
from m4oe_ds.report.words import Words

BLACK = 3  # grey value of 255 up to which a pixel is background; views are stretched to their own range
Arrays = Mapping[str, np.ndarray]


def lay(sample: dict[str, Any], gallery: Arrays, planted: Mapping[str, Any], words: Words) -> None:
    """Adds ``overlays`` and ``planted`` to the views of a sample, and says in ``reading`` what can be said of the maps.

    Args:
        sample: a sample of :func:`patients.patients`.
        gallery: ``analysis/gallery.npz``.
        planted: outlines by modality, fractions of the view; of synthetic data only.
        words: labels of the tasks.
    """
    sample["tasks"], sample["reading"] = [], ""
    for view in sample["views"]:
        view["planted"] = [
            {**one, "label": ", ".join(map(words.task, one["tasks"]))} for one in planted.get(view["modality"], ())
        ]
    keys = gallery["keys"].tolist() if gallery else []
    if sample["key"] not in keys:
        return
    row, names = keys.index(sample["key"]), gallery["modalities"].tolist()
    sample["tasks"] = list(map(words.task, gallery["tasks"].tolist()))
    heights = above_uniform(gallery, row)
    for view in sample["views"]:
        i = names.index(view["modality"]) if view["modality"] in names else -1
        if i >= 0 and view["image"] and tables.kinds(gallery)[i] != "table":
            view["overlays"] = [embedded(heat_png(heights[i][k])) for k in range(len(sample["tasks"]))]
    sample["reading"] = _black_share(gallery, row, words)


def above_uniform(gallery: Arrays, row: int) -> list[np.ndarray]:
    """Per modality ``[p, h, w]``: 0 = no more than uniform routing, 1 = the largest token of the task anywhere."""
    maps = [gallery[f"map_{i}"][row] for i in range(len(gallery["modalities"]))]
    tops, uniform = _scale(gallery, row)
    spread = np.maximum(tops - uniform, 1e-12)[:, None, None]
    return [np.clip((one - uniform) / spread, 0, 1) for one in maps]


def largest_over_uniform(gallery: Arrays, row: int) -> np.ndarray:
    """``[p]``: largest weight of a token over all modalities, in units of what uniform routing would give it."""
    tops, uniform = _scale(gallery, row)
    return tops / uniform


def _scale(gallery: Arrays, row: int) -> tuple[np.ndarray, float]:
    """Largest weight ``[p]`` of each task, and the weight of every token under uniform routing."""
    count = len(gallery["modalities"])
    present, layers = gallery["present"][row], gallery.get("layers", np.ones(count, dtype=int))
    maps = [gallery[f"map_{i}"][row] for i in range(count)]
    tokens = sum(maps[i][0].size * int(layers[i]) for i in range(count) if present[i])
    return np.array([[one[k].max() for one in maps] for k in range(len(maps[0]))]).max(1), 1.0 / max(tokens, 1)


def _times(ratios: np.ndarray) -> str:
    low, high = f"{ratios.min():.1f}", f"{ratios.max():.1f}"
    return f"{low} times" if low == high else f"{low} to {high} times"


def heat_png(height: np.ndarray) -> bytes:
    """PNG of a map ``[h, w]`` in 0..1, a pixel per token: the brighter the colour the less transparent."""
    from matplotlib import colormaps
    from PIL import Image

    colour = colormaps["inferno"](0.15 + 0.85 * height)
    colour[..., 3] = np.sqrt(height)
    stream = io.BytesIO()
    Image.fromarray((255 * colour).astype(np.uint8), "RGBA").save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _black_share(gallery: Arrays, row: int, words: Words) -> str:
    """How far the maps are from uniform routing, and how much of the weight lies where there is no picture."""
    black = total = area = 0.0
    times = _times(largest_over_uniform(gallery, row))
    ratio = f"The brightest token of a question has {times} the weight of uniform routing."
    for i, kind in enumerate(tables.kinds(gallery)):
        if kind != "image" or not gallery["present"][row, i]:
            continue
        weight = gallery[f"map_{i}"][row].sum(0)
        empty = empty_tokens(gallery[f"view_{i}"][row], weight.shape)
        black, total, area = black + weight[empty].sum(), total + weight.sum(), area + empty.mean()
    images = sum(
        kind == "image" and bool(there)
        for kind, there in zip(tables.kinds(gallery), gallery["present"][row], strict=True)
    )
    if not images or not total or not area:
        return ratio
    return (
        f"{ratio} {black / total:.0%} of the weight on images lies on tokens outside the {words.unit}, where the "
        f"picture is black; they are {area / images:.0%} of the area."
    )


def empty_tokens(view: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """``[h, w]`` bool: tokens all of whose pixels are black.

    Args:
        view: grey values ``[H, W]`` uint8.
        grid: rows and columns of tokens.
    """
    rows = np.linspace(0, view.shape[0], grid[0] + 1).round().astype(int)
    columns = np.linspace(0, view.shape[1], grid[1] + 1).round().astype(int)
    found = np.zeros(grid, dtype=bool)
    for y in range(grid[0]):
        for x in range(grid[1]):
            # a grid finer than the pixels looks at the nearest one
            bottom, right = max(rows[y + 1], rows[y] + 1), max(columns[x + 1], columns[x] + 1)
            found[y, x] = (view[rows[y] : bottom, columns[x] : right] <= BLACK).all()
    return found
