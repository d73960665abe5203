"""Embedded pictures of the report: image, size, description for who cannot see it, and the numbers behind it."""

from __future__ import annotations

import base64
import csv
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from m4oe_ds.report import kind_tables, tables
from m4oe_ds.runs.folder import RunFolder

MOST_ROWS, MOST_COLUMNS = 64, 10  # of the numbers shown under a picture; the CSV next to it has all
# the numbers to show of tables that are too wide to read
COLUMNS = {
    "fig4_synergy": (
        "model",
        "task",
        "modality1",
        "modality2",
        "synergy",
        "low",
        "high",
        "null_q95",
        "share_of_entropy",
        "samples",
    )
}


@dataclass(frozen=True)
class Picture:
    """One figure.

    Attributes:
        image: the PNG as a data address.
        width: width in pixels.
        height: height in pixels.
        alt: what it shows, in words.
        header: names of the columns of its numbers.
        rows: numbers behind it as text, or empty where they are too many to read.
        note: how to read it, where that depends on the data set.
    """

    image: str
    width: int
    height: int
    alt: str
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    note: str = ""


def picture(png: bytes, alt: str, numbers: Path | None = None) -> Picture:
    """A picture from PNG bytes; ``numbers`` is its CSV."""
    width, height = struct.unpack(">II", png[16:24])
    header, rows = ((), ()) if numbers is None else _numbers(numbers)
    return Picture(embedded(png), width, height, alt, header, rows)


def embedded(png: bytes) -> str:
    """PNG bytes as a data address."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _numbers(path: Path) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    if not path.is_file():
        return (), ()
    with path.open(newline="", encoding="utf-8") as stream:
        lines = list(csv.reader(stream))
    if chosen := COLUMNS.get(path.stem):
        kept = [lines[0].index(name) for name in chosen if name in lines[0]]
        lines = [[line[i] for i in kept] for line in lines]
    if not 1 < len(lines) <= MOST_ROWS + 1 or len(lines[0]) > MOST_COLUMNS:
        return (), ()
    return tuple(lines[0]), tuple(tuple(_short(cell) for cell in line) for line in lines[1:])


def _short(cell: str) -> str:
    try:
        value = float(cell)
    except ValueError:
        return cell
    return cell if value == int(value) and len(cell) < 8 else f"{value:.4g}"


def run_pictures(
    folder: Path,
    records: Sequence[Mapping[str, Any]],
    split: Mapping[str, Any] | None,
    arrays: Mapping[str, np.ndarray],
    clinical: Mapping[str, Any],
    gallery: Mapping[str, np.ndarray],
) -> dict[str, Picture]:
    """The figures that the files of a run give, drawn into ``figures/``; those whose data are missing are left out."""
    from m4oe_ds.report import figures, gallery_figures

    train = [record for record in records if record.get("event", "train") == "train"]
    validation = [record for record in records if record.get("event") == "validation"]
    made: dict[str, tuple[Any, list[dict[str, Any]], str]] = {}
    if train:
        first, last = train[0], train[-1]
        made["losses"] = (
            figures.losses(train, validation),
            tables.losses(train, validation),
            f"Loss over optimizer steps: the objective goes from {first['loss']:.2f} to {last['loss']:.2f} nats",
        )
        made["signals"] = (
            figures.signals(train),
            tables.signals(train),
            "Mutual information, learning rate and gradient norm over optimizer steps",
        )
    if split and any(entry.get("confusion") for entry in split["tasks"].values()):
        made["confusions"] = (figures.confusions(split), tables.confusions(split), "Confusion matrix of every task")
    if split and arrays:
        areas = tables.areas(split)
        made["roc"] = (figures.roc(arrays, split), tables.roc(arrays, split), f"ROC curves; area: {areas}")
    if split and (rows := kind_tables.scatter_rows(arrays, split)):
        made["numbers"] = (figures.numbers(rows, split), rows, "Predicted over true value of every task for a number")
    if "contribution" in arrays:
        made["contribution"] = (
            figures.contribution(arrays),
            tables.contribution(arrays),
            "Mean modality contribution per task",
        )
    if clinical:
        made["calibration"] = (
            figures.calibration(clinical),
            tables.calibration(clinical),
            "Reliability curves of every task next to the diagonal of perfect calibration",
        )
    if gallery:
        made["experts"] = (
            gallery_figures.expert_patches(gallery),
            tables.experts(gallery),
            "Patches with the largest dispatch weight of the most used experts, one row per expert",
        )
    target = RunFolder(folder).figures
    return {
        name: picture(figures.save(figure, target, name, rows), alt, target / f"{name}.csv")
        for name, (figure, rows, alt) in made.items()
        if figure is not None
    }


def dispatch_maps(folder: Path, gallery: Mapping[str, np.ndarray]) -> dict[str, Picture]:
    """Dispatch maps by sample key."""
    if not gallery:
        return {}
    from m4oe_ds.report import figures, gallery_figures

    found = {}
    for row, key in enumerate(gallery["keys"].tolist()):
        name = f"dispatch_map_{row + 1}"
        figure = gallery_figures.dispatch_maps(gallery, row)
        png = figures.save(figure, RunFolder(folder).figures, name, tables.dispatch_map(gallery, row))
        made = picture(
            png, f"Dispatch weight over the modalities, one row per task. Largest: {tables.brightest(gallery, row)}"
        )
        header, rows = tables.by_column(gallery, row)
        found[key] = replace(made, header=header, rows=rows, note=_how_to_read(tables.kinds(gallery)))
    return found


def _how_to_read(kinds: Sequence[str]) -> str:
    """What a dispatch map shows of volumes and tables, if there are any."""
    notes = {
        "volume": " Volumes: the middle slice under the mean of the weights over the depth.",
        "table": " Tables: the weight of each column; dotted: uniform routing.",
    }
    return "".join(text for kind, text in notes.items() if kind in kinds)
