"""The numbers behind the figures of the report, as rows for CSV files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from m4oe_ds.report.curves import Roc
from m4oe_ds.report.words import NAMES, Words

Rows = list[dict[str, Any]]


def losses(train: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]]) -> Rows:
    """Objective and task losses per logged step, in nats."""
    return [
        {"kind": kind, "step": record["step"], "loss": record["loss"], **record["losses"]}
        for kind, part in (("training", train), ("validation", validation))
        for record in part
    ]


def signals(train: Sequence[Mapping[str, Any]]) -> Rows:
    """Mutual information (nats), learning rate and gradient norm per logged step."""
    return [{name: record.get(name) for name in ("step", "mi", "lr", "grad_norm")} for record in train]


def confusions(split: Mapping[str, Any], words: Words = NAMES) -> Rows:
    """Counts by task, true and predicted class."""
    found = []
    for name, entry in split["tasks"].items():
        table = np.array(entry.get("confusion") or np.zeros((0, 0)))
        classes = words.classes(name, entry, len(table))
        found += [
            {"task": name, "true": classes[i], "predicted": classes[j], "count": int(count)}
            for (i, j), count in np.ndenumerate(table)
        ]
    return found


def areas(found: Sequence[Roc], words: Words, classes: Mapping[str, Sequence[str]]) -> str:
    """Areas under curves, as text.

    Args:
        found: the curves.
        words: labels of the tasks.
        classes: names of the classes of the tasks with more than two.
    """
    named = [
        f"{words.task(one.task)}{f' ({classes[one.task][one.code]})' if one.task in classes else ''} {one.area:.2f}"
        for one in found
    ]
    return ", ".join(named) or "none"


def roc(found: Sequence[Roc], classes: Mapping[str, Sequence[str]]) -> Rows:
    """Points of the ROC curves."""
    return [
        {
            "task": one.task,
            "class": classes[one.task][one.code],
            "false_positive_rate": float(x),
            "true_positive_rate": float(y),
        }
        for one in found
        for x, y in zip(one.fpr, one.tpr, strict=True)
    ]


def benefits(rows: Rows, words: Words = NAMES) -> str:
    """Where each task's model does better than acting on all and on none, in words."""
    found = []
    for name in dict.fromkeys(row["task"] for row in rows):
        better = [row["threshold"] for row in rows if row["task"] == name and row["model"] > max(row["act on all"], 0)]
        share = f"at {len(better)} of {sum(row['task'] == name for row in rows)} thresholds" if better else "nowhere"
        found.append(f"{words.task(name)}: the model is better {share}")
    return "; ".join(found)


def contribution(arrays: Mapping[str, np.ndarray]) -> Rows:
    """Mean contribution and share under uniform routing, per task and modality."""
    mean = arrays["contribution"].mean(0)
    return [
        {"task": task, "modality": name, "contribution": float(mean[k, i]), "uniform": float(arrays["token_share"][i])}
        for k, task in enumerate(arrays["tasks"].tolist())
        for i, name in enumerate(arrays["modalities"].tolist())
    ]


def calibration(clinical: Mapping[str, Any]) -> Rows:
    """Bins of the reliability curves."""
    return [
        {"task": name, "predicted": one["mean_predicted"], "observed": one["observed"], "n": one["n"]}
        for name, entry in clinical["tasks"].items()
        if "calibration" in entry
        for one in entry["calibration"]["bins"]
        if one["n"]
    ]


def experts(gallery: Mapping[str, np.ndarray]) -> Rows:
    """Use of every expert, and modality, task and dispatch weight of its patches."""
    tasks, modalities = gallery["tasks"].tolist(), gallery["modalities"].tolist()
    return [
        {
            "expert": j,
            "usage": float(gallery["expert_usage"][j]),
            "patch": k,
            "modality": modalities[source[0]],
            "task": tasks[source[1]],
            "weight": float(gallery["expert_weight"][j, k]),
        }
        for j in np.argsort(-gallery["expert_usage"]).tolist()
        for k, source in enumerate(gallery["expert_source"][j].tolist())
        if gallery["expert_weight"][j, k] >= 0
    ]


def kinds(gallery: Mapping[str, np.ndarray]) -> list[str]:
    """Kind of every modality of a gallery: ``image``, ``volume`` or ``table``."""
    found = gallery.get("kinds")
    return ["image"] * len(gallery["modalities"]) if found is None else list(map(str, found))


def _column(gallery: Mapping[str, np.ndarray], i: int, x: int) -> Any:
    """Name of a column of a table, or the number of a column of patches."""
    names = gallery.get(f"columns_{i}")
    return x if names is None else str(names[x])


def dispatch_map(gallery: Mapping[str, np.ndarray], row: int) -> Rows:
    """Dispatch weight of every token with a place, per task; of a volume the mean over its depth."""
    return [
        {"task": task, "modality": name, "row": y, "column": _column(gallery, i, x), "weight": float(weight)}
        for k, task in enumerate(gallery["tasks"].tolist())
        for i, name in enumerate(gallery["modalities"].tolist())
        if gallery["present"][row, i]
        for (y, x), weight in np.ndenumerate(gallery[f"map_{i}"][row, k])
    ]


def by_column(
    gallery: Mapping[str, np.ndarray], row: int, words: Words = NAMES
) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Header and lines with the dispatch weight of every column of the tables, a line per task; empty without any."""
    chosen = [i for i, kind in enumerate(kinds(gallery)) if kind == "table" and gallery["present"][row, i]]
    if not chosen:
        return (), ()
    names = gallery["modalities"].tolist()
    header = (
        "task",
        *(f"{words.modality(names[i])}: {column}" for i in chosen for column in gallery[f"columns_{i}"].tolist()),
    )
    lines = tuple(
        (words.task(task), *(f"{weight:.3f}" for i in chosen for weight in gallery[f"map_{i}"][row, k, 0]))
        for k, task in enumerate(gallery["tasks"].tolist())
    )
    return header, lines


def brightest(gallery: Mapping[str, np.ndarray], row: int, words: Words = NAMES) -> str:
    """View and place of every task's largest token, in words; of a table the name of the column."""
    modalities = gallery["modalities"].tolist()
    found = []
    for k, task in enumerate(gallery["tasks"].tolist()):
        tops = [
            (float(gallery[f"map_{i}"][row, k].max()), i) for i in range(len(modalities)) if gallery["present"][row, i]
        ]
        if tops:
            _, i = max(tops)
            place = f"{words.task(task)} {words.modality(modalities[i])}"
            table = gallery[f"map_{i}"][row, k]
            y, x = np.unravel_index(int(table.argmax()), table.shape)
            if f"columns_{i}" in gallery:
                found.append(f"{place} {_column(gallery, i, int(x))}")
                continue
            height, width = table.shape
            vertical = ("top", "middle", "bottom")[min(3 * int(y) // height, 2)]
            horizontal = ("left", "centre", "right")[min(3 * int(x) // width, 2)]
            found.append(f"{place} {vertical} {horizontal}")
    return ", ".join(found)
