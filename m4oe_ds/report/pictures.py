"""Embedded pictures of the report: image, size, description for who cannot see it, and the numbers behind it."""

from __future__ import annotations

import base64
import csv
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from m4oe_ds.report import tables
from m4oe_ds.report.words import NAMES, Words
from m4oe_ds.runs.folder import RunFolder

MOST_ROWS, MOST_COLUMNS = 64, 10  # of the numbers shown under a picture; the CSV next to it has all
LARGEST_SVG = 600_000  # bytes; of a larger drawing the page has the PNG
LARGEST_CSV = 150_000  # bytes inside the page; a larger one is linked where it lies
POINTS_TO_PIXELS = 96 / 72
PNG_SCALE = 96 / 110  # PNGs have 110 dots per inch, and are shown as large as the drawings
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
        image: the drawing, or the PNG, as a data address.
        width: width in CSS pixels.
        height: height in CSS pixels.
        alt: what it shows, in words.
        header: names of the columns of its numbers.
        rows: numbers behind it as text, or empty where they are too many to read.
        note: how to read it, where that depends on the data set.
        csv: address of its CSV; empty if there is none.
        csv_name: file name of the CSV.
    """

    image: str
    width: int
    height: int
    alt: str
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    note: str = ""
    csv: str = ""
    csv_name: str = ""


def picture(png: Path, alt: str, words: Words = NAMES) -> Picture:
    """The picture of a figure that was saved as PNG, with the SVG and the CSV of the same name if they are there.

    Args:
        png: the file.
        alt: what it shows, in words.
        words: labels of tasks and modalities in the numbers that are shown; the CSV has names.
    """
    header, rows = _numbers(png.with_suffix(".csv"), words)
    address, width, height = _image(png)
    download, name = _download(png.with_suffix(".csv"))
    return Picture(address, width, height, alt, header, rows, csv=download, csv_name=name)


def _image(png: Path) -> tuple[str, int, int]:
    """Data address, and size in CSS pixels."""
    drawing = png.with_suffix(".svg")
    if drawing.is_file() and drawing.stat().st_size <= LARGEST_SVG:
        data = drawing.read_bytes()
        sizes = [re.search(rb'<svg[^>]*? %s="([0-9.]+)pt"' % side, data[:4096]) for side in (b"width", b"height")]
        if sizes[0] and sizes[1]:
            width, height = (round(float(size.group(1)) * POINTS_TO_PIXELS) for size in sizes if size)
            return "data:image/svg+xml;base64," + base64.b64encode(data).decode("ascii"), width, height
    data = png.read_bytes()
    width, height = struct.unpack(">II", data[16:24])
    return embedded(data), round(width * PNG_SCALE), round(height * PNG_SCALE)


def embedded(png: bytes) -> str:
    """PNG bytes as a data address."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _download(path: Path) -> tuple[str, str]:
    """Address and name of a CSV: inside the page, which can then be sent alone, or where it lies if it is large."""
    if not path.is_file():
        return "", ""
    data = path.read_bytes()
    if len(data) > LARGEST_CSV:
        return f"{path.parent.name}/{path.name}", path.name
    return "data:text/csv;base64," + base64.b64encode(data).decode("ascii"), path.name


def _numbers(path: Path, words: Words) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    if not path.is_file():
        return (), ()
    with path.open(newline="", encoding="utf-8") as stream:
        lines = list(csv.reader(stream))
    if chosen := COLUMNS.get(path.stem):
        kept = [lines[0].index(name) for name in chosen if name in lines[0]]
        lines = [[line[i] for i in kept] for line in lines]
    if not 1 < len(lines) <= MOST_ROWS + 1 or len(lines[0]) > MOST_COLUMNS:
        return (), ()
    header = tuple(lines[0])
    return tuple(map(words.column, header)), tuple(
        tuple(_said(name, cell, words) for name, cell in zip(header, line, strict=False)) for line in lines[1:]
    )


def _said(column: str, cell: str, words: Words) -> str:
    """A cell in words, if it names a task or a modality, or with few digits."""
    if column == "task":
        return words.task(cell)
    return words.modality(cell) if column.rstrip("12") == "modality" else _short(cell)


def _short(cell: str) -> str:
    try:
        value = float(cell)
    except ValueError:
        return cell
    return cell if value == int(value) and len(cell) < 8 else f"{value:.4g}"


def dispatch_maps(folder: Path, gallery: Mapping[str, np.ndarray], words: Words = NAMES) -> dict[str, Picture]:
    """Dispatch maps by sample key."""
    if not gallery:
        return {}
    from m4oe_ds.report import figures, gallery_figures

    found = {}
    target = RunFolder(folder).figures
    for row, key in enumerate(gallery["keys"].tolist()):
        name = f"dispatch_map_{row + 1}"
        figure = gallery_figures.dispatch_maps(gallery, row, words)
        figures.save(figure, target, name, tables.dispatch_map(gallery, row))
        brightest = tables.brightest(gallery, row, words)
        made = picture(
            target / f"{name}.png",
            f"Dispatch weight over the modalities, one row per task. Largest: {brightest}",
            words,
        )
        header, rows = tables.by_column(gallery, row, words)
        found[key] = replace(made, header=header, rows=rows, note=_how_to_read(tables.kinds(gallery)))
    return found


def _how_to_read(kinds: Sequence[str]) -> str:
    """What a dispatch map shows of volumes and tables, if there are any."""
    notes = {
        "volume": " Volumes: the middle slice under the mean of the weights over the depth.",
        "table": " Tables: the weight of each column; dotted: uniform routing.",
    }
    return "".join(text for kind, text in notes.items() if kind in kinds)
