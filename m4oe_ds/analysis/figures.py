"""Figures of the analyses in the layout of the paper, each drawn from plain data and written as PNG, SVG and CSV."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

from m4oe_ds.report.figures import COLOURS, STYLE
from m4oe_ds.report.words import Words

Row = Mapping[str, Any]
CLEAN: Any = {**STYLE, "axes.grid": False}
CHANCE = 0.5  # AUROC of a coin
REFERENCES = {"truth": "the planted truth", "ablation": "the effect of leaving a modality out"}
PARTS = (("conflict", COLOURS[1]), ("neutral", COLOURS[7]), ("enhance", COLOURS[0]))


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def competition(rows: Sequence[Row], modalities: Sequence[str], task: str, words: Words | None = None) -> Any:
    """Fig. 3a: AUROC of each modality's encoder, from the multi-modal model and (where trained) on its own.

    Args:
        rows: mappings with ``task``, ``modality``, ``protocol`` and the figures of each model.
        modalities: their names, in order.
        task: name of the task to draw.
        words: what the names are called in the figure; None = as they are.
    """
    chosen = [row for row in rows if row["task"] == task]
    bars: list[tuple[str, str, list[Row | None]]] = []

    def series(protocol: str, side: str, label: str, colour: str) -> None:
        by_name = {row["modality"]: row.get(side) for row in chosen if row["protocol"] == protocol}
        if any(by_name.values()):
            bars.append((label, colour, [(by_name.get(name) or {}).get("auroc") for name in modalities]))

    series("linear", "unimodal", "trained alone, linear probe", COLOURS[7])
    series("linear", "multimodal", "from the multi-modal model, linear probe", COLOURS[0])
    series("mask", "multimodal", "multi-modal model, other modalities at their mean", COLOURS[4])
    with mpl.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(1.5 * len(modalities) + 2.5, 3.7))
        width, lowest = 0.8 / max(len(bars), 1), CHANCE
        for number, (label, colour, entries) in enumerate(bars):
            x = np.arange(len(modalities)) + (number - (len(bars) - 1) / 2) * width
            value = np.array([_number(entry and entry["value"]) for entry in entries])
            low = np.array([_number(entry and entry["low"]) for entry in entries])
            high = np.array([_number(entry and entry["high"]) for entry in entries])
            axis.bar(x, value - CHANCE, width, bottom=CHANCE, color=colour, label=label)
            span = np.nan_to_num(np.clip(np.stack([value - low, high - value]), 0, None))
            axis.errorbar(x, value, span, fmt="none", ecolor="black", lw=1, capsize=2)
            lowest = min([lowest, *value[np.isfinite(value)], *low[np.isfinite(low)]])
        axis.axhline(CHANCE, ls=":", color="black", lw=1)
        bottom = math.floor(10 * lowest) / 10
        labels = words.modalities(modalities) if words else modalities
        axis.set(xticks=range(len(modalities)), ylabel="AUROC", ylim=(bottom, 1.02))
        axis.set_xticklabels([textwrap.fill(label, 14) for label in labels])
        title = words.task(task) if words else task
        axis.set_title(f"Modality competition, {title} (bars from chance, dotted)", fontsize=10)
        figure.legend(fontsize=8, ncols=2, loc="outside lower center")
        return figure


def utilisation(panels: Mapping[str, Mapping[str, Any]], modalities: Sequence[str]) -> Any:
    """Fig. 3b and c: per model the modality shares (left bar, black lines: uniform routing) and those of every expert.

    Args:
        panels: ``{model: {utilisation_i [m], utilisation_ij [m][n], token_share [m]}}``.
    """
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(panels), 2, figsize=(9, 2.6 * len(panels) + 0.4), squeeze=False, width_ratios=(1, 2.2)
        )
        for (left, right), (name, panel) in zip(axes, panels.items(), strict=True):
            share, uniform = panel["utilisation_i"], panel["token_share"]
            for i, value in enumerate(share):
                left.bar(i, value, color=COLOURS[i % len(COLOURS)])
                left.plot([i - 0.4, i + 0.4], [uniform[i]] * 2, color="black", lw=1.2)
            left.set(xticks=range(len(modalities)), ylabel="share of dispatch", title=name)
            left.set_xticklabels(list(modalities), rotation=30, ha="right", fontsize=7)
            table = np.array(panel["utilisation_ij"])
            bottom = np.zeros(table.shape[1])
            for i, row in enumerate(table):
                right.bar(range(len(row)), row, bottom=bottom, color=COLOURS[i % len(COLOURS)], label=modalities[i])
                bottom += row
            right.set(xlabel="expert", xlim=(-0.6, table.shape[1] - 0.4), ylim=(0, 1))
            right.set_title("modalities within each expert", fontsize=10)
        figure.legend(
            *axes[0, 1].get_legend_handles_labels(),
            ncols=min(len(modalities), 4),
            fontsize=8,
            loc="outside lower center",
        )
        return figure


def synergy(panels: Mapping[str, Mapping[str, Any]], modalities: Sequence[str]) -> Any:
    """Fig. 4: a matrix of pairwise synergy per model (row) and task (column); grey: not estimated.

    Every cell: S in bits, S / H(Y), and the 95 % quantile of S with permuted labels. Cells whose S is above that null
    are framed.

    Args:
        panels: ``{model: {task: {synergy, share_of_entropy, null_q95 [m][m]}}}``, None = not estimated or no null; a
            task of which nothing is known has ``{note: why}``.
    """
    tasks = list(dict.fromkeys(task for panel in panels.values() for task in panel))
    side = 0.95 * len(modalities)
    with mpl.rc_context(CLEAN):
        figure, axes = plt.subplots(
            len(panels), len(tasks), figsize=((side + 1.4) * len(tasks), (side + 0.9) * len(panels)), squeeze=False
        )
        for row, (model, panel) in zip(axes, panels.items(), strict=True):
            for axis, task in zip(row, tasks, strict=True):
                _synergy_panel(figure, axis, panel.get(task), modalities)
                if task in panel:
                    axis.set_title(f"{model}: {task}", fontsize=10)
        figure.supxlabel("framed: above the 95 % quantile with permuted labels; grey: not estimated", fontsize=8)
        return figure


def _synergy_panel(figure: Any, axis: Any, entry: Row | None, modalities: Sequence[str]) -> None:
    """One model and task: its matrix, why there is none, or an empty place where the model does not know the task."""
    if entry is None:
        axis.set_axis_off()
        return
    if "synergy" not in entry:
        axis.set(xticks=[], yticks=[], facecolor="#eeeeee", aspect="equal")
        text = f"not estimated:\n{textwrap.fill(entry['note'], 26)}"
        axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes, fontsize=8)
        return
    table = np.array(entry["synergy"], dtype=float)
    share = np.array(entry.get("share_of_entropy", np.full_like(table, np.nan)), dtype=float)
    null = np.array(entry["null_q95"], dtype=float)
    # the scale reaches to the null: what is not above it stays dark
    known = [float(value) for value in (*table.flat, *null.flat) if math.isfinite(value)]
    top = max([0.01, *known])
    colours = mpl.colormaps["viridis"].with_extremes(bad="#dddddd")
    image = axis.imshow(table, cmap=colours, vmin=0, vmax=top)
    for (i, j), value in np.ndenumerate(table):
        if math.isfinite(value):
            _synergy_cell(axis, (i, j), (float(value), float(share[i, j]), float(null[i, j])), top)
    ticks = range(len(modalities))
    axis.set(xticks=ticks, yticks=ticks, yticklabels=list(modalities))
    axis.set_xticklabels(list(modalities), rotation=30, ha="right")
    axis.tick_params(labelsize=8)
    figure.colorbar(image, ax=axis, shrink=0.8).set_label("synergy (bits)", fontsize=8)


def _synergy_cell(axis: Any, place: tuple[int, int], numbers: tuple[float, float, float], top: float) -> None:
    """Writes synergy, share of the entropy and null into a cell; frames it where the synergy is above the null.

    Args:
        axis: axes of the matrix.
        place: row and column.
        numbers: synergy in bits, its share of the entropy and the null; NaN where the last two are not known.
        top: end of the colour scale, which decides on black or white text.
    """
    (i, j), (value, share, null) = place, numbers
    lines = [f"{value:.3f}"]
    lines += [f"{share:.0%} of H"] if math.isfinite(share) else []
    lines += [f"null {null:.3f}"] if math.isfinite(null) else []
    tone = "white" if value < 0.6 * top else "black"
    axis.text(j, i, "\n".join(lines), ha="center", va="center", fontsize=7.5, color=tone)
    if value > null:
        axis.add_patch(Rectangle((j - 0.46, i - 0.46), 0.92, 0.92, fill=False, ec=COLOURS[1], lw=2))


def contribution(
    population: Any, uniform: Any, patients: Sequence[Row], tasks: Sequence[str], modalities: Sequence[str]
) -> Any:
    """Fig. 5: modality contributions of two samples and of the population, for every task.

    Args:
        population: ``[p][m]``.
        uniform: ``[m]`` shares of uniform routing.
        patients: rows with ``title`` and ``contribution [p][m]``.
    """
    panels = [*((row["title"], row["contribution"]) for row in patients), ("all samples", population)]
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(panels), figsize=(3.4 * len(panels), 0.34 * len(tasks) + 1.3), squeeze=False, sharey=True
        )
        for axis, (title, table) in zip(axes[0], panels, strict=True):
            left = np.zeros(len(tasks))
            for i, name in enumerate(modalities):
                values = np.array([_number(row[i]) for row in table])
                axis.barh(range(len(tasks)), values, left=left, color=COLOURS[i % len(COLOURS)], label=name)
                left = left + np.nan_to_num(values)
            axis.set(yticks=range(len(tasks)), yticklabels=list(tasks), xlim=(0, 1), xlabel="share of routing mass")
            axis.set_title(title, fontsize=9)
        axes[0, 0].invert_yaxis()
        for edge in np.cumsum(uniform)[:-1]:
            axes[0, -1].axvline(edge, color="black", ls=":", lw=1)
        figure.legend(
            *axes[0, 0].get_legend_handles_labels(),
            ncols=min(len(modalities), 4),
            fontsize=8,
            loc="outside upper center",
        )
        figure.supxlabel("routing mass is not causal importance; dotted: uniform routing over the tokens", fontsize=7)
        return figure


def conflict(
    panels: Mapping[str, Sequence[Row]], pairs: Mapping[str, Row] | None = None, words: Words | None = None
) -> Any:
    """Fig. 6a: shares of conflicting, neutral and enhancing task gradients, a row per model.

    Left: all steps together; middle: per epoch; right: share of conflicts of every pair of tasks (grey: never
    measured).

    Args:
        panels: ``{model: rows with epoch, pairs, conflict, neutral, enhance}``.
        pairs: ``{model: {tasks, conflict [q][q]}}``; models without have no right part.
        words: what the tasks are called in the figure; None = their names.
    """
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(panels), 3, figsize=(11, 3.1 * len(panels) + 0.4), squeeze=False, width_ratios=(0.7, 1.5, 1.8)
        )
        for (whole, epochs, square), (model, rows) in zip(axes, panels.items(), strict=True):
            weight = np.array([row["pairs"] for row in rows], dtype=float)
            bottom, below = np.zeros(len(rows)), 0.0
            for name, colour in PARTS:
                values = np.array([row[name] for row in rows])
                epochs.bar([row["epoch"] for row in rows], values, bottom=bottom, color=colour, label=name, width=0.85)
                bottom += values
                share = float((values * weight).sum() / weight.sum())
                whole.bar(0, share, bottom=below, color=colour)
                if share > 0.06:
                    tone = "black" if colour == COLOURS[7] else "white"
                    whole.text(0, below + share / 2, f"{share:.0%}", ha="center", va="center", fontsize=9, color=tone)
                below += share
            whole.set_title(model, fontsize=10)
            whole.set(xticks=[], ylim=(0, 1), ylabel="share of task pairs")
            epochs.set(xlabel="epoch", ylim=(0, 1))
            epochs.set_title(f"by epoch{_measured((pairs or {}).get(model))}", fontsize=10)
            _pair_conflicts(figure, square, (pairs or {}).get(model), words)
        figure.legend(*axes[0, 1].get_legend_handles_labels(), ncols=3, fontsize=9, loc="outside lower center")
        return figure


def _measured(table: Row | None) -> str:
    """How much was measured: steps, and D of the gradients (unrelated ones have cosines of about 1 / sqrt(D))."""
    if not table:
        return ""
    dimension = f", D = {table['dimension']:,}" if table.get("dimension") else ""
    return f" ({table['measured']} steps{dimension})"


def _pair_conflicts(figure: Any, axis: Any, table: Row | None, words: Words | None) -> None:
    """Heat map of the share of conflicts per pair of tasks."""
    axis.grid(visible=False)
    if not table:
        axis.set_axis_off()
        return
    values = np.array(table["conflict"], dtype=float)
    np.fill_diagonal(values, np.nan)
    colours = mpl.colormaps["viridis"].with_extremes(bad="#dddddd")
    image = axis.imshow(values, cmap=colours, vmin=0, vmax=1)
    ticks = range(len(values))
    labels = words.tasks(table["tasks"]) if words else list(table["tasks"])
    axis.set(xticks=ticks, yticks=ticks, yticklabels=labels)
    axis.set_title("conflicts by pair", fontsize=10)
    axis.set_xticklabels(labels, rotation=60, ha="right")
    axis.tick_params(labelsize=8)
    figure.colorbar(image, ax=axis, shrink=0.8)


def experts(panels: Mapping[str, Any], tasks: Sequence[str], notes: Mapping[str, str] | None = None) -> Any:
    """Fig. 6b: heat map of P(expert | task) per model and measure, experts ordered by their main task.

    Args:
        panels: ``{title: [n][p]}`` with columns that sum to 1; panels whose titles share the first line (the model)
            have the same order, that of the first.
        notes: text below panels, by title.
    """
    order_of: dict[str, np.ndarray] = {}
    with mpl.rc_context(CLEAN):
        deepest = max(len(table) for table in panels.values())
        figure, axes = plt.subplots(
            1, len(panels), figsize=((0.38 * len(tasks) + 1.9) * len(panels), 0.16 * deepest + 2.2), squeeze=False
        )
        for axis, (title, table) in zip(axes[0], panels.items(), strict=True):
            values = np.array(table, dtype=float)
            order = order_of.setdefault(title.split("\n")[0], np.lexsort((-values.max(1), values.argmax(1))))
            image = axis.imshow(values[order], cmap="viridis", vmin=0, aspect="auto")
            axis.set(xticks=range(len(tasks)), yticks=range(len(values)), yticklabels=order, ylabel="expert")
            axis.set_xticklabels(list(tasks), rotation=60, ha="right", fontsize=8)
            axis.tick_params(axis="y", labelsize=7)
            axis.set_title(title, fontsize=9)
            axis.set_xlabel((notes or {}).get(title, ""), fontsize=7.5)
            figure.colorbar(image, ax=axis, shrink=0.8).set_label("P(expert | task)", fontsize=8)
        return figure


def sweeps(rows: Sequence[Row], metric: str) -> Any:
    """Fig. 7: mean and standard deviation over the seeds of a metric against the expert count and alpha.

    Args:
        rows: mappings with ``sweep``, ``value``, ``task``, ``mean``, ``sd``.
        metric: name for the axis.
    """
    names = list(dict.fromkeys(row["sweep"] for row in rows))
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(names), figsize=(4.4 * len(names), 3.2), squeeze=False, sharey=True)
        for axis, name in zip(axes[0], names, strict=True):
            chosen = [row for row in rows if row["sweep"] == name]
            for number, task in enumerate(dict.fromkeys(row["task"] for row in chosen)):
                points = sorted((row for row in chosen if row["task"] == task), key=lambda row: row["value"])
                axis.errorbar(
                    range(len(points)),
                    [row["mean"] for row in points],
                    [row["sd"] for row in points],
                    marker="o",
                    ms=3,
                    capsize=2,
                    lw=1,
                    color=COLOURS[number % len(COLOURS)],
                    label=task,
                )
                axis.set(xticks=range(len(points)), xticklabels=[f"{row['value']:g}" for row in points])
            axis.set(xlabel=name, title=f"Ablation: {name}")
        axes[0, 0].set_ylabel(metric)
        figure.legend(*axes[0, 0].get_legend_handles_labels(), fontsize=8, ncols=4, loc="outside lower center")
        return figure


def interpretability(rows: Sequence[Row]) -> Any:
    """Agreement of explanations with references: Spearman coefficients over samples, within samples and of the means.

    Args:
        rows: mappings with ``reference``, ``explanation``, ``level``, ``spearman``, ``low`` and ``high``.
    """
    references = list(dict.fromkeys(row["reference"] for row in rows))
    levels = {"sample": "over samples", "within": "within a sample", "population": "of the means"}
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(references), figsize=(4.8 * len(references), 3.2), squeeze=False, sharey=True
        )
        for axis, reference in zip(axes[0], references, strict=True):
            chosen = [row for row in rows if row["reference"] == reference]
            names = list(dict.fromkeys(row["explanation"] for row in chosen))
            for number, (level, label) in enumerate(levels.items()):
                entries = {row["explanation"]: row for row in chosen if row["level"] == level}
                x = np.arange(len(names)) + (number - 1) * 0.27
                value = np.array([_number(entries.get(name, {}).get("spearman")) for name in names])
                axis.bar(x, value, 0.27, color=COLOURS[number], label=label)
                low = np.array([_number(entries.get(name, {}).get("low")) for name in names])
                high = np.array([_number(entries.get(name, {}).get("high")) for name in names])
                if np.isfinite(low).any():
                    span = np.nan_to_num(np.clip(np.stack([value - low, high - value]), 0, None))
                    axis.errorbar(x, value, span, fmt="none", ecolor="black", lw=1, capsize=2)
            axis.axhline(0, color="black", lw=0.8)
            axis.set(xticks=range(len(names)), xticklabels=names, ylim=(-1, 1))
            axis.set_title(f"agreement with {REFERENCES.get(reference, reference)}", fontsize=9)
        axes[0, 0].set_ylabel("Spearman coefficient")
        figure.legend(*axes[0, 0].get_legend_handles_labels(), ncols=3, fontsize=8, loc="outside lower center")
        return figure
