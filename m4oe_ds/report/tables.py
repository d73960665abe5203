"""The numbers behind the figures of the report, as rows for CSV files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

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


def confusions(split: Mapping[str, Any]) -> Rows:
    """Counts by task, true and predicted class."""
    return [
        {"task": name, "true": i, "predicted": j, "count": int(count)}
        for name, entry in split["tasks"].items()
        if entry.get("confusion")
        for (i, j), count in np.ndenumerate(np.array(entry["confusion"]))
    ]


def areas(split: Mapping[str, Any]) -> str:
    """Areas under the curves of the two-class tasks, as text."""
    known = {
        name: entry["metrics"].get("auroc", {}).get("value")
        for name, entry in split["tasks"].items()
        if len(entry.get("class_counts", ())) == 2
    }
    return ", ".join(f"{name} {value:.2f}" for name, value in known.items() if value is not None) or "none"


def curves(
    arrays: Mapping[str, np.ndarray], split: Mapping[str, Any]
) -> dict[str, tuple[float, np.ndarray, np.ndarray]]:
    """``{task: (area, false positive rates, true positive rates)}`` of the two-class tasks with both classes."""
    from sklearn.metrics import roc_curve

    found = {}
    for name, entry in split["tasks"].items():
        value = entry["metrics"].get("auroc", {}).get("value") if "metrics" in entry else None
        if len(entry.get("class_counts", ())) == 2 and value is not None:
            keep = arrays[f"label_{name}"] >= 0
            fpr, tpr, _ = roc_curve(arrays[f"label_{name}"][keep], arrays[f"prob_{name}"][keep, 1])
            found[name] = (float(value), fpr, tpr)
    return found


def roc(arrays: Mapping[str, np.ndarray], split: Mapping[str, Any]) -> Rows:
    """Points of the ROC curves."""
    return [
        {"task": name, "false_positive_rate": float(x), "true_positive_rate": float(y)}
        for name, (_, fpr, tpr) in curves(arrays, split).items()
        for x, y in zip(fpr, tpr, strict=True)
    ]


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


def dispatch_map(gallery: Mapping[str, np.ndarray], row: int) -> Rows:
    """Dispatch weight of every token with a place, per task."""
    return [
        {"task": task, "modality": name, "row": y, "column": x, "weight": float(weight)}
        for k, task in enumerate(gallery["tasks"].tolist())
        for i, name in enumerate(gallery["modalities"].tolist())
        if gallery["present"][row, i]
        for (y, x), weight in np.ndenumerate(gallery[f"map_{i}"][row, k])
    ]


def brightest(gallery: Mapping[str, np.ndarray], row: int) -> str:
    """View and place of every task's largest token, in words."""
    modalities = gallery["modalities"].tolist()
    found = []
    for k, task in enumerate(gallery["tasks"].tolist()):
        tops = [
            (float(gallery[f"map_{i}"][row, k].max()), i) for i in range(len(modalities)) if gallery["present"][row, i]
        ]
        if tops:
            _, i = max(tops)
            table = gallery[f"map_{i}"][row, k]
            y, x = np.unravel_index(int(table.argmax()), table.shape)
            height, width = table.shape
            vertical = ("top", "middle", "bottom")[min(3 * int(y) // height, 2)]
            horizontal = ("left", "centre", "right")[min(3 * int(x) // width, 2)]
            found.append(f"{task} {modalities[i]} {vertical} {horizontal}")
    return ", ".join(found)
