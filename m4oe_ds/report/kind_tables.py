"""Tables and answers of tasks without classes, in the words of the card: numbers, times to an event, masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from m4oe_ds.data.cards import Card
from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.report.clinical_tables import Table, number
from m4oe_ds.report.words import Words


def tables_of(split: Mapping[str, Any], card: Card | None) -> list[Table]:
    """One table per kind of task that the metrics of a split have besides classes.

    Args:
        split: one split of ``metrics.json``.
        card: card of the data set, for the words; None if it is not known.
    """
    words = Words(card)
    by_kind: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, entry in split["tasks"].items():
        by_kind.setdefault(entry["kind"], {})[words.task(name)] = entry
    makers = {"number": _numbers, "survival": _survivals, "segmentation": _masks}
    return [make(by_kind[kind]) for kind, make in makers.items() if kind in by_kind]


def _numbers(entries: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = []
    for label, entry in entries.items():
        values, baseline = entry["metrics"], entry.get("baseline", {})
        if not entry["n"]:
            rows.append([label, 0, "no labels", *[""] * 5])
            continue
        unit = f" {entry['unit']}" if entry.get("unit") else ""
        trivial = f"{baseline['mae']:.3f}{unit} ({baseline['of']}, {baseline['value']:g}{unit})"
        cells = [f"{number(values[name])}{unit if name in ('mae', 'rmse') else ''}" for name in _NUMBER]
        rows.append([label, entry["n"], cells[0], trivial, number(entry.get("skill")), *cells[1:]])
    return {
        "title": "Numbers",
        "note": "MAE: mean absolute error. Saved: share of the error of always the same answer that the model saves.",
        "header": ["question", "n", "MAE", "MAE of always the same", "saved", "RMSE", "R²", "Spearman"],
        "rows": rows,
    }


_NUMBER = ("mae", "rmse", "r2", "spearman")


def _survivals(entries: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = []
    notes = ["Uno's C weighs for censoring, estimated from the split itself; 0.5 is chance."]
    for label, entry in entries.items():
        if not entry["n"]:
            rows.append([label, 0, "no labels", *[""] * 6])
            continue
        values, baseline = entry["metrics"], entry["baseline"]
        notes.append(
            f"{label[:1].upper()}{label[1:]}: {entry['events']} of {entry['n']} with the event ({entry['event']}); "
            f"Uno's C {number(values['uno_c'])}, Harrell's {number(values['harrell_c'])}"
            + (
                f", integrated Brier score {number(values['integrated_brier'])} "
                f"({baseline['of']}: {number({'value': baseline['integrated_brier']})})."
                if "integrated_brier" in values
                else "."
            )
        )
        for one in entry["horizons"]:
            key = f"{one['horizon']:g}"
            rows.append(
                [
                    f"{label}, within {key} {entry['unit']}",
                    entry["n"],
                    f"{one['events']} / {one['controls']} / {one['excluded']}",
                    number(values[f"auc_{key}"]),
                    number(values[f"brier_{key}"]),
                    number({"value": baseline[f"brier_{key}"]}),
                    f"{100 * one['predicted']:.1f} %",
                    f"{100 * one['observed']:.1f} %",
                ]
            )
    return {
        "title": "Times to an event",
        "note": " ".join(notes),
        "header": [
            "question", "n", "event / free / unknown", "AUC", "Brier", "Brier of Kaplan-Meier", "mean risk predicted",
            "share observed (Kaplan-Meier)",
        ],
        "rows": rows,
    }  # fmt: skip


def _masks(entries: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = []
    for label, entry in entries.items():
        if not entry["n"]:
            rows.append([label, 0, "", "no labels", ""])
            continue
        baseline = entry.get("baseline", {})
        names = entry.get("class_names", [])
        single = names[0] if len(names) == 1 else "mean"
        for name, value in entry["metrics"].items():
            part = single if name == "dice" else name.removeprefix("dice_")
            rows.append([label, entry["n"], part, number(value), number({"value": baseline.get(name)})])
    return {
        "title": "Masks",
        "note": "Dice 1: the masks agree; two empty ones do. The trivial mask covers the whole picture.",
        "header": ["question", "n", "class", "Dice", "Dice of the trivial mask"],
        "rows": rows,
    }


def answer(arrays: Mapping[str, np.ndarray], name: str, row: int, task: TaskSpec | None) -> dict[str, Any] | None:
    """A sample's answer and label in words; None for a task with classes, or without predictions.

    Args:
        arrays: ``predictions/<split>.npz``.
        name: name of the task.
        row: row of the sample.
        task: the task of the card; None if it is not known.
    """
    unit = f" {task.unit}" if task and task.unit else ""
    if f"value_{name}" in arrays:
        label = float(arrays[f"label_{name}"][row])
        truth = "unknown" if np.isnan(label) else f"{label:.4g}{unit}"
        return {"said": f"{float(arrays[f'value_{name}'][row]):.4g}{unit}", "truth": truth, "right": None}
    if f"risk_{name}" in arrays:
        risks = arrays[f"risk_{name}"][row].tolist()
        places = [f"{horizon:g}" for horizon in task.horizons] if task else [str(k + 1) for k in range(len(risks))]
        said = ", ".join(f"{100 * risk:.0f} % within {place}" for risk, place in zip(risks, places, strict=True)) + unit
        time, event = arrays[f"label_{name}"][row].tolist()
        word = task.event if task and task.event else "event"
        truth = f"{word} at {time:.3g}{unit}" if event else f"no {word} for {time:.3g}{unit}"
        return {"said": said, "truth": "unknown" if np.isnan(time) else truth, "right": None}
    if f"dice_{name}" in arrays:
        dice = np.atleast_1d(arrays[f"dice_{name}"][row])
        names = task.class_names if task and len(dice) > 1 else ("",) * len(dice)
        said = "Dice " + ", ".join(f"{part} {value:.2f}".strip() for part, value in zip(names, dice, strict=True))
        return {"said": "mask" if np.isnan(dice).any() else said, "truth": "–", "right": None}
    return None


def scatter_rows(arrays: Mapping[str, np.ndarray], split: Mapping[str, Any]) -> list[dict[str, Any]]:
    """True and predicted value of every labelled sample, by task."""
    return [
        {"task": name, "true": float(truth), "predicted": float(value)}
        for name, entry in split["tasks"].items()
        if entry["kind"] == "number" and f"value_{name}" in arrays
        for truth, value in zip(arrays[f"label_{name}"], arrays[f"value_{name}"], strict=True)
        if np.isfinite(truth)
    ]
