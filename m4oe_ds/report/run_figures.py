"""Which figures the files of a run give: drawn into ``figures/`` with their numbers, and embedded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from m4oe_ds.report import curves, kind_tables, tables
from m4oe_ds.report.pictures import Picture, picture
from m4oe_ds.report.words import NAMES, Words
from m4oe_ds.runs.folder import RunFolder

Rows = list[dict[str, Any]]
Made = tuple[Any, Rows, str]  # figure (None = nothing to draw), numbers behind it, description
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Found:
    """What the figures are made of; empty where the run has none.

    Attributes:
        train: training records of ``log.jsonl``.
        validation: its validation records.
        split: entry of the shown split in ``metrics.json``.
        arrays: its predictions.
        clinical: content of ``clinical.json``.
        gallery: arrays of ``analysis/gallery.npz``.
        chosen: step whose weights were kept; None = not known.
        base_rate: base learning rate of the optimizer; None = not known.
        words: labels.
    """

    train: Sequence[Mapping[str, Any]] = ()
    validation: Sequence[Mapping[str, Any]] = ()
    split: Mapping[str, Any] = field(default_factory=dict)
    arrays: Arrays = field(default_factory=dict)
    clinical: Mapping[str, Any] = field(default_factory=dict)
    gallery: Arrays = field(default_factory=dict)
    chosen: int | None = None
    base_rate: float | None = None
    words: Words = NAMES


def run_pictures(folder: Path, found: Found, done: Callable[[], object] = lambda: None) -> dict[str, Picture]:
    """The figures by name; those whose data are missing are left out.

    Args:
        folder: run folder.
        found: what they are made of.
        done: called after each one.
    """
    from m4oe_ds.report import figures

    target = RunFolder(folder).figures
    pictures = {}
    for name, make in MAKERS.items():
        made = make(found)
        if made is not None and made[0] is not None:
            figure, rows, alt = made
            figures.save(figure, target, name, rows)
            pictures[name] = picture(target / f"{name}.png", alt, found.words)
        done()
    return pictures


def _losses(found: Found) -> Made | None:
    from m4oe_ds.report import training_figures

    if not found.train:
        return None
    first, last = found.train[0], found.train[-1]
    kept = f"; the weights of step {found.chosen} were kept" if found.chosen is not None else ""
    return (
        training_figures.losses(found.train, found.validation, found.chosen, found.words),
        tables.losses(found.train, found.validation),
        "Loss of training and validation over optimizer steps, of all tasks together and of each: the objective goes "
        f"from {first['loss']:.2f} to {last['loss']:.2f} nats{kept}",
    )


def _signals(found: Found) -> Made | None:
    from m4oe_ds.report import training_figures

    if not found.train:
        return None
    top = training_figures.peak(found.train)
    text = "Mutual information, learning rate and gradient norm over optimizer steps"
    return (
        training_figures.signals(found.train, found.chosen, found.base_rate),
        tables.signals(found.train),
        text + (f"; the highest learning rate is {top[1]:.3g}, at step {top[0]}" if top else ""),
    )


def _confusions(found: Found) -> Made | None:
    from m4oe_ds.report import figures

    if not any(entry.get("confusion") for entry in found.split.get("tasks", {}).values()):
        return None
    return (
        figures.confusions(found.split, found.words),
        tables.confusions(found.split, found.words),
        "Confusion matrix of every task",
    )


def _roc(found: Found) -> Made | None:
    from m4oe_ds.report import figures

    if not found.split or not found.arrays:
        return None
    drawn = curves.roc_curves(found.arrays, found.split)
    counts = {one.task: found.arrays[f"prob_{one.task}"].shape[1] for one in drawn}
    classes = {name: found.words.classes(name, found.split["tasks"][name], count) for name, count in counts.items()}
    several = {name: names for name, names in classes.items() if counts[name] > 2}
    return (
        figures.roc(found.arrays, found.split, found.words),
        tables.roc(drawn, classes),
        f"ROC curves; area: {tables.areas(drawn, found.words, several)}",
    )


def _decision(found: Found) -> Made | None:
    from m4oe_ds.report import figures

    rows = curves.decision_rows(found.arrays, found.split) if found.split and found.arrays else []
    if not rows:
        return None
    return (
        figures.decision(rows, found.words),
        rows,
        "Net benefit over the threshold, next to acting on all and on none: " + tables.benefits(rows, found.words),
    )


def _numbers(found: Found) -> Made | None:
    from m4oe_ds.report import figures

    rows = kind_tables.scatter_rows(found.arrays, found.split) if found.split else []
    if not rows:
        return None
    return figures.numbers(rows, found.split, found.words), rows, "Predicted over true value of every task for a number"


def _contribution(found: Found) -> Made | None:
    from m4oe_ds.report import figures

    if "contribution" not in found.arrays:
        return None
    return (
        figures.contribution(found.arrays, found.words),
        tables.contribution(found.arrays),
        "Mean modality contribution per task",
    )


def _calibration(found: Found) -> Made | None:
    from m4oe_ds.report import figures

    if not found.clinical:
        return None
    return (
        figures.calibration(found.clinical, found.words),
        tables.calibration(found.clinical),
        "Reliability curves of every task next to the diagonal of perfect calibration",
    )


def _experts(found: Found) -> Made | None:
    from m4oe_ds.report import gallery_figures

    if not found.gallery:
        return None
    return (
        gallery_figures.expert_patches(found.gallery, words=found.words),
        tables.experts(found.gallery),
        "Patches with the largest dispatch weight of the most used experts, one row per expert",
    )


MAKERS: dict[str, Callable[[Found], Made | None]] = {
    "losses": _losses,
    "signals": _signals,
    "confusions": _confusions,
    "roc": _roc,
    "decision": _decision,
    "numbers": _numbers,
    "contribution": _contribution,
    "calibration": _calibration,
    "experts": _experts,
}
