"""Figures of a run, each written as PNG and SVG and returned as PNG bytes for embedding."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt

# Okabe-Ito: distinguishable with every common colour vision
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
DASHES = ("-", "--", "-.", ":")  # curves differ without colour too
STYLE: Any = {
    "font.size": 10,
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
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)
    (folder / f"{name}.png").write_bytes(stream.getvalue())
    if rows:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as table:
            writer = csv.DictWriter(table, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return stream.getvalue()


def losses(train: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]) -> Any:
    """Objective and validation loss over steps (left), training loss of each task (right)."""
    with mpl.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.0))
        steps = [r["step"] for r in train]
        left.plot(steps, [r["loss"] for r in train], color=COLOURS[0], lw=1, label="training objective")
        if validation:
            left.plot(
                [r["step"] for r in validation],
                [r["loss"] for r in validation],
                "o-",
                color=COLOURS[1],
                ms=3,
                label="validation task losses",
            )
        for number, task in enumerate(train[0]["losses"]):
            values = [np.nan if r["losses"][task] is None else r["losses"][task] for r in train]
            right.plot(steps, values, lw=1, color=COLOURS[number % len(COLOURS)], label=task)
        for axis, title in ((left, "Loss"), (right, "Training loss per task")):
            axis.set(title=title, xlabel="optimizer step", ylabel="loss (nats)")
            axis.legend(fontsize=8, ncols=4, loc="upper center", bbox_to_anchor=(0.5, -0.18))
        return figure


def signals(train: Sequence[Mapping[str, Any]]) -> Any:
    """Mutual information, learning rate and gradient norm over steps."""
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(1, 3, figsize=(10, 2.8))
        steps = [r["step"] for r in train]
        for axis, key, title, unit in zip(
            axes,
            ("mi", "lr", "grad_norm"),
            ("I(M;E|T)", "Learning rate", "Gradient norm"),
            ("nats", "", ""),
            strict=True,
        ):
            values = [np.nan if r.get(key) is None else r[key] for r in train]
            axis.plot(steps, values, lw=1, color=COLOURS[2])
            axis.set(title=title, xlabel="optimizer step", ylabel=unit)
        return figure


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


def confusions(split: Mapping[str, Any]) -> Any:
    """Confusion matrix of every classification task: counts, shaded by the share of the true class."""
    tasks = [(name, entry) for name, entry in split["tasks"].items() if entry.get("confusion")]
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        figure, axes = panels(len(tasks))
        for axis, (name, entry) in zip(axes, tasks, strict=True):
            table = np.array(entry["confusion"], dtype=float)
            share = table / np.maximum(table.sum(1, keepdims=True), 1)
            axis.imshow(share, cmap="Blues", vmin=0, vmax=1)
            for (i, j), count in np.ndenumerate(table):
                axis.text(j, i, int(count), ha="center", va="center", color="white" if share[i, j] > 0.5 else "black")
            ticks = range(len(table))
            axis.set(title=name, xlabel="predicted", ylabel="true", xticks=ticks, yticks=ticks)
        return figure


def roc(arrays: Mapping[str, np.ndarray], split: Mapping[str, Any]) -> Any | None:
    """ROC curves of the two-class tasks; None if there is none with both classes."""
    from m4oe_ds.report.tables import curves as curves_of

    curves = curves_of(arrays, split)
    if not curves:
        return None
    with mpl.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(4.6, 4.4))
        for number, (name, (value, fpr, tpr)) in enumerate(curves.items()):
            style: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "ls": DASHES[number % len(DASHES)]}
            axis.step(fpr, tpr, where="post", label=f"{name} ({value:.2f})", **style)
        axis.plot([0, 1], [0, 1], ":", color="#999999", label="chance")
        axis.set(title="ROC (area)", xlabel="1 - specificity", ylabel="sensitivity", aspect="equal")
        axis.legend(fontsize=8, loc="lower right")
        return figure


def numbers(rows: Sequence[Mapping[str, Any]], split: Mapping[str, Any]) -> Any:
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
            axis.set(title=name, xlabel=f"true{unit}", ylabel=f"predicted{unit}")
            axis.legend(fontsize=8)
        return figure


def calibration(clinical: Mapping[str, Any]) -> Any | None:
    """Reliability of every task: observed frequency over predicted probability, bins of equal counts; None without any.

    Two classes: P(y = 1). More classes: probability of the predicted class against the share predicted correctly.
    """
    curves = {
        name: [(b["mean_predicted"], b["observed"], b["n"]) for b in entry["calibration"]["bins"] if b["n"]]
        for name, entry in clinical["tasks"].items()
        if "calibration" in entry
    }
    if not curves:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = panels(len(curves))
        for axis, (name, points) in zip(axes, curves.items(), strict=True):
            predicted, observed, count = np.array(points).T
            axis.plot([0, 1], [0, 1], ":", color="#999999")
            axis.plot(predicted, observed, color=COLOURS[0], lw=1)
            axis.scatter(predicted, observed, s=4 + 60 * count / count.sum(), color=COLOURS[0])
            ece = clinical["tasks"][name]["calibration"]["ece"]["value"]
            axis.set(title=f"{name}, ECE {ece:.3f} (corrected)", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
            axis.set(xlabel="predicted", ylabel="observed")
        return figure


def contribution(arrays: Mapping[str, np.ndarray]) -> Any:
    """Mean share of each modality per task over the split, with the share uniform routing would give."""
    tasks, modalities = arrays["tasks"].tolist(), arrays["modalities"].tolist()
    mean = arrays["contribution"].mean(0)  # [p, m]
    with mpl.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(10, 3.4))
        width = 0.8 / len(modalities)
        for i, modality in enumerate(modalities):
            centre = np.arange(len(tasks)) + (i - (len(modalities) - 1) / 2) * width
            axis.bar(centre, mean[:, i], width, color=COLOURS[i % len(COLOURS)], label=modality)
            for x in centre:
                axis.plot([x - width / 2, x + width / 2], [arrays["token_share"][i]] * 2, color="black", lw=1)
        axis.set(xticks=range(len(tasks)), xticklabels=tasks, ylabel="share of routing mass")
        figure.legend(ncols=len(modalities), fontsize=8, loc="outside lower center")
        return figure


def view_png(image: np.ndarray) -> bytes:
    """PNG of one grey view ``[H, W]`` uint8."""
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="PNG")
    return stream.getvalue()
