"""Figures of a run, each written as PNG and SVG and returned as PNG bytes for embedding."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt

from m4oe_ds.report import curves
from m4oe_ds.report.words import NAMES, Words

# Okabe-Ito: distinguishable with every common colour vision
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
DASHES = ("-", "--", "-.", ":")  # curves differ without colour too
PANEL = (3.0, 2.9)  # inches of one of several panels; four of them fill the page
STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "svg.hashsalt": "m4oe",  # equal runs give equal files
    "figure.constrained_layout.use": True,
}


def save(figure: Any, folder: Path, name: str, rows: Sequence[Mapping[str, Any]] = ()) -> bytes:
    """Writes ``name.png`` and ``name.svg``, and the numbers behind them as ``name.csv``; returns the PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    # second: the layout of panels of equal sides is only right when it was computed before
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    plt.close(figure)
    (folder / f"{name}.png").write_bytes(stream.getvalue())
    if rows:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as table:
            writer = csv.DictWriter(table, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return stream.getvalue()


def panels(count: int, size: tuple[float, float] = (2.6, 2.6), most: int = 4) -> tuple[Any, list[Any]]:
    """A figure and its first ``count`` axes in rows; the places left over in the last row stay empty.

    Args:
        count: number of panels, at least 1.
        size: width and height of one, inches.
        most: panels of a row.
    """
    columns = min(most, count)
    rows = -(-count // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(size[0] * columns, size[1] * rows), squeeze=False)
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    return figure, list(axes.flat[:count])


def wrapped(names: Sequence[str], width: int = 11) -> list[str]:
    """Names as labels of an axis: in lines of at most so many letters, where words allow."""
    return ["\n".join(textwrap.wrap(name, width, break_long_words=False)) or name for name in names]


def confusions(split: Mapping[str, Any], words: Words = NAMES) -> Any:
    """Confusion matrix of every classification task: counts, shaded by the share of the true class."""
    tasks = [(name, entry) for name, entry in split["tasks"].items() if entry.get("confusion")]
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure, axes = panels(len(tasks), PANEL)
        for axis, (name, entry) in zip(axes, tasks, strict=True):
            table = np.array(entry["confusion"], dtype=float)
            share = table / np.maximum(table.sum(1, keepdims=True), 1)
            edges = np.arange(len(table) + 1) - 0.5
            axis.pcolormesh(edges, edges, share, cmap="Blues", vmin=0, vmax=1, edgecolors="white", linewidth=1)
            axis.set(aspect="equal", ylim=(len(table) - 0.5, -0.5))
            for (i, j), count in np.ndenumerate(table):
                axis.text(j, i, int(count), ha="center", va="center", color="white" if share[i, j] > 0.5 else "black")
            ticks, shown = range(len(table)), wrapped(words.classes(name, entry, len(table)))
            axis.set(title=words.task(name), xlabel="predicted", ylabel="true", xticks=ticks, yticks=ticks)
            axis.set_xticklabels(shown, fontsize=8, rotation=90 if sum(map(len, shown)) > 40 else 0)
            axis.set_yticklabels(shown, fontsize=8)
            axis.tick_params(length=0)
            axis.spines[:].set_visible(False)
        return figure


def roc(arrays: Mapping[str, np.ndarray], split: Mapping[str, Any], words: Words = NAMES) -> Any | None:
    """ROC curves: those of the two-class tasks in one panel, each class against the others in a panel per further
    task; None if there is none.
    """
    found = curves.roc_curves(arrays, split)
    if not found:
        return None
    two = [curve for curve in found if arrays[f"prob_{curve.task}"].shape[1] == 2]
    several: dict[str, list[curves.Roc]] = {}
    for curve in found:
        if curve not in two:
            several.setdefault(curve.task, []).append(curve)
    with mpl.rc_context(STYLE):
        figure, axes = panels(bool(two) + len(several), (4.0, 3.9), most=3)
        if two:
            title = words.task(two[0].task) if len(two) == 1 else "Questions with two answers"
            _roc_panel(axes[0], title, [(words.task(curve.task), curve) for curve in two])
        for axis, (name, mine) in zip(axes[bool(two) :], several.items(), strict=True):
            classes = words.classes(name, split["tasks"][name], arrays[f"prob_{name}"].shape[1])
            _roc_panel(axis, f"{words.task(name)}: each class", [(classes[curve.code], curve) for curve in mine])
        return figure


def _roc_panel(axis: Any, title: str, named: Sequence[tuple[str, curves.Roc]]) -> None:
    for number, (name, curve) in enumerate(named):
        style: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "ls": DASHES[number % len(DASHES)]}
        axis.step(*curves.thinned(curve), where="post", label=f"{name} ({curve.area:.2f})", **style)
    axis.plot([0, 1], [0, 1], ":", color="#999999", label="chance (0.50)")
    axis.set(title=title, xlabel="1 - specificity", ylabel="sensitivity", aspect="equal")
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axis.legend(fontsize=8, loc="lower right", title="area under the curve", title_fontsize=8)


def decision(rows: Sequence[Mapping[str, Any]], words: Words = NAMES) -> Any:
    """Net benefit over the threshold, one panel per task of :func:`curves.decision_rows`, of which there is one."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    with mpl.rc_context(STYLE):
        figure, axes = panels(len(tasks), PANEL)
        for axis, name in zip(axes, tasks, strict=True):
            mine = [row for row in rows if row["task"] == name]
            at = [row["threshold"] for row in mine]
            top = max(max(row["model"], row["act on all"]) for row in mine)
            axis.plot(at, [row["act on all"] for row in mine], color="#666666", lw=1, ls="--", label="act on all")
            axis.axhline(0, color="#666666", lw=1, ls=":", label="act on none")
            axis.plot(at, [row["model"] for row in mine], color=COLOURS[0], lw=1.4, label="model")
            axis.set(title=words.task(name), xlabel="threshold", ylabel="net benefit", xlim=(0, 1))
            axis.set_ylim(-0.25 * top if top > 0 else -0.1, 1.1 * top if top > 0 else 0.1)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9)
        return figure


def numbers(rows: Sequence[Mapping[str, Any]], split: Mapping[str, Any], words: Words = NAMES) -> Any:
    """Predicted over true value, one panel per task with at least one row of ``task, true, predicted``."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    with mpl.rc_context(STYLE):
        figure, axes = panels(len(tasks), (4.2, 4.0), most=3)
        for axis, name in zip(axes, tasks, strict=True):
            entry = split["tasks"][name]
            points = np.array([(row["true"], row["predicted"]) for row in rows if row["task"] == name])
            ends = [float(points.min()), float(points.max())]
            axis.plot(ends, ends, ":", color="#999999", label="agreement")
            axis.axhline(entry["baseline"]["value"], ls="--", lw=1, color=COLOURS[1], label=entry["baseline"]["of"])
            axis.scatter(points[:, 0], points[:, 1], s=14, alpha=0.6, color=COLOURS[0])
            unit = f" ({entry['unit']})" if entry.get("unit") else ""
            axis.set(title=words.task(name), xlabel=f"true{unit}", ylabel=f"predicted{unit}")
            axis.legend(fontsize=8)
        return figure


def calibration(clinical: Mapping[str, Any], words: Words = NAMES) -> Any | None:
    """Reliability of every task: observed frequency over predicted probability, bins of equal counts; None without any.

    Two classes: P(y = 1). More classes: probability of the predicted class against the share predicted correctly.
    """
    points_of = {
        name: [(b["mean_predicted"], b["observed"], b["n"]) for b in entry["calibration"]["bins"] if b["n"]]
        for name, entry in clinical["tasks"].items()
        if "calibration" in entry
    }
    if not points_of:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = panels(len(points_of), PANEL)
        for axis, (name, points) in zip(axes, points_of.items(), strict=True):
            predicted, observed, count = np.array(points).T
            axis.plot([0, 1], [0, 1], ":", color="#999999")
            axis.plot(predicted, observed, color=COLOURS[0], lw=1)
            axis.scatter(predicted, observed, s=4 + 60 * count / count.sum(), color=COLOURS[0])
            ece = clinical["tasks"][name]["calibration"]["ece"]["value"]
            axis.set(title=f"{words.task(name)}\nECE {ece:.3f}, corrected", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
            axis.set(aspect="equal")
            axis.set(xlabel="predicted", ylabel="observed")
        return figure


def contribution(arrays: Mapping[str, np.ndarray], words: Words = NAMES) -> Any:
    """Mean share of each modality per task over the split, with the share uniform routing would give."""
    tasks, modalities = arrays["tasks"].tolist(), arrays["modalities"].tolist()
    mean = arrays["contribution"].mean(0)  # [p, m]
    with mpl.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(max(6.0, min(12.0, 1.7 * len(tasks))), 3.4))
        width = 0.8 / len(modalities)
        for i, modality in enumerate(modalities):
            centre = np.arange(len(tasks)) + (i - (len(modalities) - 1) / 2) * width
            axis.bar(centre, mean[:, i], width, color=COLOURS[i % len(COLOURS)], label=words.modality(modality))
            for number, x in enumerate(centre):
                ends, share = [x - width / 2, x + width / 2], [arrays["token_share"][i]] * 2
                label = "uniform routing" if i == len(modalities) - 1 and not number else None
                axis.plot(ends, share, color="black", lw=1.5, label=label)
        shown = wrapped([words.task(task) for task in tasks], 16)
        axis.set(xticks=range(len(tasks)), xticklabels=shown, ylabel="share of routing mass")
        axis.grid(axis="x", visible=False)
        figure.legend(ncols=min(5, len(modalities) + 1), fontsize=9, loc="outside lower center")
        return figure


def view_png(image: np.ndarray) -> bytes:
    """PNG of one grey view ``[H, W]`` uint8."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="PNG")
    return stream.getvalue()
