"""Figures of the finished cells: mean and spread over seeds, paired comparison with M4oE, the majority baseline."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m4oe_ds.compare.cells import Cell
from m4oe_ds.data.schema import MISSING
from m4oe_ds.errors import DataError
from m4oe_ds.evaluation.intervals import Bootstrap
from m4oe_ds.evaluation.metrics import statistic_named
from m4oe_ds.evaluation.paired import (
    PairedDifference,
    paired_difference,
    paired_mean_difference,
    paired_statistic,
)
from m4oe_ds.evaluation.survival import FollowUp, uno_c
from m4oe_ds.runs.folder import RunFolder
from m4oe_ds.stored import read_arrays, read_json

# what tables show of each kind of task, as metrics.json calls the kinds
METRICS = {
    "classification": ("accuracy", "auroc"),
    "segmentation": ("dice",),
    "number": ("mae",),
    "survival": ("uno_c",),
}


@dataclass(frozen=True)
class Figure:
    """One number of a table.

    Attributes:
        dataset: data set of the cells.
        setting: setting of the cells.
        method: method of the cells.
        task: task of the cells.
        sweep: sweep of the cells.
        metric: ``accuracy`` or ``dice`` (the paper's), ``auroc``; ``mae`` of a number, ``uno_c`` of a survival.
        seeds: seeds that were run.
        values: one per seed.
        mean: over the seeds.
        spread: standard deviation over the seeds (n - 1); None with one.
        majority: what a trivial answer reaches: the accuracy of the most frequent class, the error of the median, 0.5
            of a concordance; None for Dice and AUROC.
        n: number of test samples.
        difference: this minus M4oE ("Ours") in the same setting: the mean over the seeds that both have; None for
            M4oE itself, for a concordance, or where it is missing or undefined.
        low: lower bound of the difference, patients resampled together for both and for all seeds; None as there.
        high: upper bound of the difference; None as there.
        p: p of the difference, from the same resamples; None as there.
        unit: of a number.
    """

    dataset: str
    setting: str
    method: str
    task: str
    sweep: str
    metric: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    mean: float | None
    spread: float | None
    majority: float | None
    n: int
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    unit: str = ""


@dataclass(frozen=True)
class _Samples:
    """Test samples of one cell and task: correct or not, Dice, or absolute error; labels and probabilities of classes;
    of a survival time and event as labels, and the risk within the longest horizon as value.
    """

    keys: np.ndarray
    groups: np.ndarray
    value: np.ndarray
    labels: np.ndarray | None = None
    probability: np.ndarray | None = None


def collect(cells: Sequence[Cell], folder: Path, resamples: int = 2000) -> tuple[list[Figure], list[Cell]]:
    """Figures of all cells with results, and the cells without.

    Raises:
        DataError: two methods were evaluated on different samples.
    """
    groups: dict[tuple[str, str, str, str, str], list[tuple[Cell, dict[str, Any], _Samples]]] = {}
    missing = []
    for cell in cells:
        run = RunFolder(folder / "cells" / cell.name)
        if not run.metrics.is_file():
            missing.append(cell)
            continue
        fix = f"evaluate it again: `m4oe evaluate {run.path}`"
        metrics = read_json(run.metrics, fix, ("test",))["test"]["tasks"]
        arrays = read_arrays(run.predictions("test"), fix, ("keys",))
        for task in cell.scored:
            entry = (cell, metrics[task], _samples(arrays, task))
            groups.setdefault((cell.dataset, cell.setting, cell.method, task, cell.sweep), []).append(entry)
    figures = []
    for (dataset, setting, method, task, sweep), entries in groups.items():
        ours = None if method == "ours" and not sweep else groups.get((dataset, setting, "ours", task, ""))
        entries.sort(key=lambda entry: entry[0].seed)
        seeds = tuple(cell.seed for cell, _, _ in entries)
        first = entries[0][1]
        for metric in METRICS[first["kind"]]:
            values = tuple(_value(found["metrics"].get(metric, {}).get("value")) for _, found, _ in entries)
            known = [value for value in values if math.isfinite(value)]
            figures.append(
                Figure(
                    dataset,
                    setting,
                    method,
                    task,
                    sweep,
                    metric,
                    seeds,
                    tuple(value if math.isfinite(value) else math.nan for value in values),
                    statistics.mean(known) if known else None,
                    statistics.stdev(known) if len(known) > 1 else None,
                    _trivial(first, metric),
                    first["n"],
                    **(_paired(entries, ours, resamples, metric) if ours else {}),
                    unit=first.get("unit", ""),
                )
            )
    return figures, missing


def _trivial(entry: Mapping[str, Any], metric: str) -> float | None:
    """The metric of an answer that looks at nothing."""
    if metric == "accuracy":
        return entry["prior"]
    return entry.get("baseline", {}).get(metric)


def _value(value: float | None) -> float:
    return math.nan if value is None else value


def _samples(arrays: Any, task: str) -> _Samples:
    """Values are NaN without a label."""
    keys, groups = arrays["keys"], arrays["groups"]
    if f"dice_{task}" in arrays:
        dice = arrays[f"dice_{task}"].astype(float)
        return _Samples(keys, groups, dice if dice.ndim == 1 else dice.mean(1))
    labels = arrays[f"label_{task}"]
    if f"value_{task}" in arrays:
        return _Samples(keys, groups, np.abs(arrays[f"value_{task}"].astype(float) - labels))
    if f"risk_{task}" in arrays:
        risk = np.where(np.isfinite(labels).all(1), arrays[f"risk_{task}"][:, -1].astype(float), math.nan)
        return _Samples(keys, groups, risk, labels)
    probability = arrays[f"prob_{task}"]
    value = np.where(labels == MISSING, math.nan, probability.argmax(1) == labels)
    return _Samples(keys, groups, value, labels, probability)


def _paired(entries: list[Any], ours: list[Any], resamples: int, metric: str) -> dict[str, float | None]:
    """Difference to M4oE of the mean over seeds, seeds that both have."""
    shared = sorted({cell.seed for cell, _, _ in entries} & {cell.seed for cell, _, _ in ours})
    if not shared:
        return {}
    first = [samples for cell, _, samples in entries if cell.seed in shared]
    second = [samples for cell, _, samples in ours if cell.seed in shared]
    for other in (*first, *second):
        if not (np.array_equal(other.keys, first[0].keys) and np.array_equal(other.groups, first[0].groups)):
            raise DataError("methods were evaluated on different test samples", fix="run them on the same shards")
    if metric == "auroc":
        found = _paired_auroc(first, second, resamples)
    elif metric == "uno_c":
        found = _paired_concordance(first, second, entries[0][1]["horizons"][-1]["horizon"], resamples)
    else:
        a = np.mean([samples.value for samples in first], axis=0)
        b = np.mean([samples.value for samples in second], axis=0)
        found = paired_mean_difference(a, b, first[0].groups, bootstrap=Bootstrap(resamples))
    return {"difference": found.difference, "low": found.low, "high": found.high, "p": found.p}


def _paired_auroc(first: list[_Samples], second: list[_Samples], resamples: int) -> PairedDifference:
    """Difference of the mean AUROC over the seeds, which stand side by side in the columns."""
    statistic, seeds = statistic_named("auroc"), len(first)

    def mean(labels: np.ndarray, columns: np.ndarray) -> float:
        return float(np.mean([statistic(labels, part) for part in np.split(columns, seeds, axis=1)]))

    a, b = (np.concatenate([samples.probability for samples in side], axis=1) for side in (first, second))
    labels = first[0].labels
    assert labels is not None  # of a classification
    return paired_difference(labels, a, b, first[0].groups, mean, Bootstrap(resamples))


def _paired_concordance(
    first: list[_Samples], second: list[_Samples], horizon: float, resamples: int
) -> PairedDifference:
    """Difference of the mean over the seeds of Uno's concordance up to the longest horizon."""
    labels = first[0].labels
    assert labels is not None  # of a survival
    keep = np.isfinite(labels).all(1)
    data = FollowUp(labels[keep, 0], labels[keep, 1])
    tau, once = float(labels.dtype.type(horizon)), Bootstrap(0)

    def mean(index: np.ndarray, side: list[_Samples]) -> float:
        drawn = data.at(index)
        found = [uno_c(drawn, one.value[keep][index], tau, bootstrap=once).value for one in side]
        return float(np.mean([math.nan if value is None else value for value in found]))

    return paired_statistic(
        lambda index: (mean(index, first), mean(index, second)), first[0].groups[keep], "uno_c", Bootstrap(resamples)
    )


def write(figures: Sequence[Figure], missing: Mapping[str, str], path: Path, facts: dict[str, Any]) -> Path:
    """Writes figures as JSON, undefined values as null.

    Args:
        missing: name of each cell without result, and why.
        path: path of the file.
        facts: what is written next to the figures.
    """
    rows = []
    for figure in figures:
        row = asdict(figure)
        row["values"] = [None if math.isnan(value) else value for value in figure.values]
        rows.append(row)
    content = {**facts, "figures": rows, "missing": dict(missing)}
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path
