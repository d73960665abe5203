"""ROC and decision curves from the predictions of a split."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Rows = list[dict[str, Any]]
MOST_POINTS = 400  # of a drawn ROC curve
THRESHOLDS = np.round(np.arange(0.01, 1.0, 0.01), 2)


@dataclass(frozen=True)
class Roc:
    """One class of a task against the others.

    Attributes:
        task: name of the task.
        code: code of the class.
        area: area under the curve.
        fpr: false positive rates, ascending.
        tpr: true positive rates.
        positives: samples of the class.
        negatives: the others.
    """

    task: str
    code: int
    area: float
    fpr: np.ndarray
    tpr: np.ndarray
    positives: int
    negatives: int


def roc_curves(arrays: Mapping[str, np.ndarray], split: Mapping[str, Any]) -> list[Roc]:
    """Curves of all tasks with classes: of two classes that of code 1, of more each class against the others.

    What a split has no case of, or nothing else of, has no curve.

    Args:
        arrays: predictions of the split.
        split: its entry in ``metrics.json``.
    """
    found = []
    for name in split["tasks"]:
        if f"prob_{name}" not in arrays:
            continue
        keep = arrays[f"label_{name}"] >= 0
        labels, probability = arrays[f"label_{name}"][keep], arrays[f"prob_{name}"][keep]
        classes = probability.shape[1]
        for code in range(1, 2) if classes == 2 else range(classes):
            truth = labels == code
            if truth.any() and not truth.all():
                fpr, tpr = roc_points(truth, probability[:, code])
                area = float(np.trapezoid(tpr, fpr))
                found.append(Roc(name, code, area, fpr, tpr, int(truth.sum()), int((~truth).sum())))
    return found


def roc_points(truth: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates ``[T]`` over the thresholds, from (0, 0) to (1, 1); equal scores move together.

    Args:
        truth: ``[N]`` bool, both values occur.
        score: ``[N]``, larger is more.
    """
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)  # the last of every run of equal scores
    true = np.cumsum(truth[order])[ends] / truth.sum()
    false = np.cumsum(~truth[order])[ends] / (~truth).sum()
    return np.concatenate([[0.0], false]), np.concatenate([[0.0], true])


def net_benefit(labels: np.ndarray, probability: np.ndarray, thresholds: np.ndarray = THRESHOLDS) -> np.ndarray:
    """Net benefit ``[T]`` of acting on the samples whose probability reaches a threshold.

    True positives minus false positives weighted by the odds of the threshold, per sample (Vickers & Elkin 2006, Med.
    Decis. Making 26:565-574).

    Args:
        labels: ``[N]`` 0 or 1.
        probability: ``[N]`` P(y = 1).
        thresholds: ``[T]`` in (0, 1).
    """
    acted = probability[None] >= thresholds[:, None]
    true = (acted & (labels == 1)[None]).mean(1)
    false = (acted & (labels == 0)[None]).mean(1)
    return np.asarray(true - false * thresholds / (1 - thresholds))


def decision_rows(arrays: Mapping[str, np.ndarray], split: Mapping[str, Any]) -> Rows:
    """Net benefit of the model, of acting on all and on none, by two-class task and threshold."""
    found = []
    for name in split["tasks"]:
        if f"prob_{name}" not in arrays or arrays[f"prob_{name}"].shape[1] != 2:
            continue
        keep = arrays[f"label_{name}"] >= 0
        labels, probability = arrays[f"label_{name}"][keep], arrays[f"prob_{name}"][keep, 1]
        if len(set(labels.tolist())) < 2:
            continue
        model = net_benefit(labels, probability)
        everyone = net_benefit(labels, np.ones(len(labels)))
        found += [
            {"task": name, "threshold": float(at), "model": float(mine), "act on all": float(every), "act on none": 0.0}
            for at, mine, every in zip(THRESHOLDS, model, everyone, strict=True)
        ]
    return found


def thinned(curve: Roc) -> tuple[np.ndarray, np.ndarray]:
    """Points of a curve to draw: all of them, or some that keep its ends."""
    if len(curve.fpr) <= MOST_POINTS:
        return curve.fpr, curve.tpr
    kept = np.unique(np.linspace(0, len(curve.fpr) - 1, MOST_POINTS).round().astype(int))
    return curve.fpr[kept], curve.tpr[kept]
