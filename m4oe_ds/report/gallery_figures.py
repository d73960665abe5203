"""Pictures of ``analysis/gallery.npz``: where the experts of each task read, and which patches each expert takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt

from m4oe_ds.report import tables
from m4oe_ds.report.figures import COLOURS, STYLE, wrapped
from m4oe_ds.report.words import NAMES, Words

# panels of equal size lie where they are put: searching for their layout costs more than all the rest
PICTURE: Any = {
    **STYLE,
    "figure.constrained_layout.use": False,
    "axes.grid": False,
    "axes.spines.left": False,
    "axes.spines.bottom": False,
}
MOST_EXPERTS = 12


def dispatch_maps(gallery: Mapping[str, np.ndarray], row: int, words: Words = NAMES) -> Any:
    """One sample: a column per view, a row per task, the dispatch weight of the tokens over the grey view.

    Every task has one colour scale over its views, from uniform routing (transparent) to its largest token. Volumes:
    the middle slice under the mean over the depth. Tables: bars by column, a line where uniform routing is.
    """
    tasks, modalities = gallery["tasks"].tolist(), gallery["modalities"].tolist()
    present = gallery["present"][row]
    kinds, layers = tables.kinds(gallery), gallery.get("layers", np.ones(len(modalities), dtype=int))
    tokens = sum(gallery[f"map_{i}"][row, 0].size * int(layers[i]) for i in range(len(modalities)) if present[i])
    sizes = [gallery[f"view_{i}"].shape[1:] for i, kind in enumerate(kinds) if kind != "table"]
    height, width = sizes[0] if sizes else (1, 1)
    side = 1.25  # inches of a view
    titles = wrapped([words.modality(name) for name in modalities], 17)
    rows = wrapped([words.task(name) for name in tasks], 14)
    with mpl.rc_context(PICTURE):
        cell = (side, side * min(height / width, 2.0))
        figure, axes = _grid(len(tasks), len(modalities), cell, left=0.8, above=0.5, between=(0.06, 0.06))
        for k in range(len(tasks)):
            top = max(float(gallery[f"map_{i}"][row, k].max()) for i in range(len(modalities)))
            uniform = 1.0 / max(tokens, 1)
            for i in range(len(modalities)):
                axis = axes[k, i]
                axis.set(xticks=[], yticks=[])
                if k == 0:
                    axis.set_title(titles[i], fontsize=8)
                if i == 0:
                    axis.set_ylabel(rows[k], fontsize=8)
                if not present[i]:
                    axis.text(0.5, 0.5, "absent", ha="center", va="center", transform=axis.transAxes, fontsize=8)
                    continue
                view, weight = gallery[f"view_{i}"][row], gallery[f"map_{i}"][row, k]
                if kinds[i] == "table":
                    _bars(axis, weight[0], gallery[f"columns_{i}"].tolist(), top, uniform)
                    continue
                extent = (0, view.shape[1], view.shape[0], 0)
                axis.imshow(view, cmap="gray", extent=extent)
                above = np.clip((weight - uniform) / max(top - uniform, 1e-12), 0, 1)
                axis.imshow(above, cmap="inferno", vmin=0, vmax=1, alpha=0.75 * above, extent=extent)
        return figure


def _grid(
    rows: int, columns: int, cell: tuple[float, float], left: float, above: float, between: tuple[float, float]
) -> tuple[Any, Any]:
    """A figure and its ``[rows, columns]`` axes of equal size.

    Args:
        rows: number of rows.
        columns: number of columns.
        cell: width and height of one, inches.
        left: room left of the first column.
        above: room above the first row.
        between: room between columns, and between rows.
    """
    width = left + columns * cell[0] + (columns - 1) * between[0] + 0.05
    height = above + rows * cell[1] + (rows - 1) * between[1] + 0.05
    figure, axes = plt.subplots(rows, columns, squeeze=False, figsize=(width, height))
    figure.subplots_adjust(
        left=left / width,
        right=1 - 0.05 / width,
        bottom=0.05 / height,
        top=1 - above / height,
        wspace=between[0] / cell[0],
        hspace=between[1] / cell[1],
    )
    return figure, axes


def _bars(axis: Any, weights: np.ndarray, columns: list[str], top: float, uniform: float) -> None:
    """Dispatch weight of every column of a table, the first at the top, on the scale of the task's other views."""
    places = np.arange(len(columns))
    axis.barh(places, weights, color=COLOURS[1], height=0.8)
    axis.axvline(uniform, ls=":", color="black", lw=0.8)
    axis.set(xlim=(0, 1.05 * max(top, uniform)), ylim=(len(columns) - 0.4, -0.6))
    size = min(7.0, 60 / len(columns))  # points: the rows of a panel share its height
    for place, name in zip(places, columns, strict=True):
        axis.text(0.02, place, name, fontsize=size, va="center", transform=axis.get_yaxis_transform())


def expert_patches(gallery: Mapping[str, np.ndarray], most: int = MOST_EXPERTS, words: Words = NAMES) -> Any:
    """A row per expert, most used first: the patches (with their surroundings) it takes with the largest weights.

    A column of a table is its name.
    """
    tasks = wrapped([words.task(name) for name in gallery["tasks"].tolist()], 18)
    modalities = wrapped([words.modality(name) for name in gallery["modalities"].tolist()], 18)
    usage, source = gallery["expert_usage"], gallery["expert_source"]
    order = np.argsort(-usage)[:most]
    count = gallery["expert_patch"].shape[1]
    with mpl.rc_context(PICTURE):
        lines = max(text.count("\n") + 1 for text in modalities) + max(text.count("\n") + 1 for text in tasks)
        gap = (0.15, 0.15 * lines)  # the titles stand in it
        figure, axes = _grid(len(order), count, (1.1, 1.1), left=0.6, above=gap[1], between=gap)
        for line, expert in enumerate(order):
            for k in range(count):
                axis = axes[line, k]
                axis.set(xticks=[], yticks=[])
                if gallery["expert_weight"][expert, k] < 0:
                    axis.set_axis_off()
                    continue
                modality, task, *column = source[expert, k].tolist()
                if column and column[0] >= 0:  # of a table: no picture, its name
                    name = gallery[f"columns_{modality}"][column[0]]
                    axis.text(0.5, 0.5, name, ha="center", va="center", transform=axis.transAxes, fontsize=8, wrap=True)
                else:
                    axis.imshow(gallery["expert_patch"][expert, k], cmap="gray", vmin=0, vmax=255)
                axis.set_title(f"{modalities[modality]}\n{tasks[task]}", fontsize=7)
                if k == 0:
                    axis.set_ylabel(f"expert {expert}\n{usage[expert]:.1%}", fontsize=8)
        return figure
