"""A finished run as the analyses need it: model, batches, and what training and comparison wrote down."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m4oe_ds.compare.ablations import SWEEP_COLUMNS, SweepRow
from m4oe_ds.errors import ConfigError, DataError
from m4oe_ds.runs.folder import RunFolder
from m4oe_ds.stored import read_json
from m4oe_ds.yaml_tree import nearest


def sweep_rows(path: Path, metric: str) -> list[dict[str, Any]]:
    """Points of the ablation sweeps (M4oE Fig. 7) from the ``sweep.csv`` of ``m4oe compare --sweep``.

    Returns:
        Rows ``sweep``, ``value``, ``task``, ``mean``, ``sd`` (NaN for one seed), ``seeds``, of one metric; the task is
        prefixed with data set or method where the file holds several.

    Raises:
        DataError: no such file, columns missing, a value that is not a number, or no row of the metric.
    """
    if not path.is_file():
        raise DataError("no such file", str(path), "make it with `m4oe compare --sweep experts=16,32`")
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            columns, table = reader.fieldnames or (), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"is no CSV ({error})", str(path), "give a sweep.csv of m4oe compare") from None
    if missing := set(SWEEP_COLUMNS) - set(columns):
        raise DataError(f"has no column {', '.join(sorted(missing))}", str(path), "give a sweep.csv of m4oe compare")
    chosen = [row for row in table if row["metric"] == metric]
    if not chosen:
        known = sorted({str(row["metric"]) for row in table})
        raise DataError(f"no row of metric {metric!r}{nearest(metric, known)}", "--metric", f"choose one of {path}")
    try:
        rows = [SweepRow.parsed(row) for row in chosen]
    except (ValueError, TypeError) as error:
        raise DataError(f"cannot be read ({error})", str(path), "make it again with m4oe compare --collect") from None
    prefixes = [name for name in ("dataset", "method") if len({getattr(row, name) for row in rows}) > 1]
    return [
        {
            "sweep": row.option,
            "value": row.value,
            "task": " ".join([*(getattr(row, name) for name in prefixes), row.task]),
            "mean": row.mean,
            "sd": math.nan if row.spread is None else row.spread,
            "seeds": row.seeds,
        }
        for row in rows
    ]


def analysed(folder: Path) -> dict[str, Any]:
    """``analysis.json`` of another run, to be drawn next to this one.

    Raises:
        DataError: it was not analysed.
    """
    path = RunFolder(folder).analysis
    if not path.is_file():
        raise DataError("not analysed yet (no analysis.json)", str(folder), f"run `m4oe analyze {folder}` first")
    return read_json(path, f"run `m4oe analyze {folder}` again", ("modalities", "tasks"))


def twin_folders(pairs: Sequence[str], modalities: Sequence[str]) -> dict[str, Path]:
    """``MODALITY=RUN`` options as a mapping.

    Raises:
        ConfigError: not of that form, an unknown modality, or one that is there twice.
    """
    found = {}
    for text in pairs:
        name, equals, folder = text.partition("=")
        if not equals or not folder or name not in modalities:
            raise ConfigError(f"cannot use {text!r}", "--unimodal", f"write MODALITY=RUN with {', '.join(modalities)}")
        if name in found:
            raise ConfigError(f"has {name} twice", "--unimodal", "leave one out")
        found[name] = Path(folder)
    return found
