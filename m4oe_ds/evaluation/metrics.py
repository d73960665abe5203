"""Metrics of one split with patient-clustered intervals, next to the majority-class baseline.

The values come from scikit-learn; the bootstrap uses the rank formulas below, tested against it, because a thousand
resamples of it would take minutes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn import metrics as sk

from m4oe_ds.data.schema import MISSING, TaskSpec, follow_ups
from m4oe_ds.data.task_statistics import TaskStatistics
from m4oe_ds.errors import DataError
from m4oe_ds.evaluation.intervals import Bootstrap, metric_entry
from m4oe_ds.evaluation.masks import evaluate_mask
from m4oe_ds.evaluation.number import evaluate_number
from m4oe_ds.evaluation.time_to_event import evaluate_survival
from m4oe_ds.progress import track

Statistic = Callable[[np.ndarray, np.ndarray], float]  # labels [N], probabilities [N, C] -> value, NaN if undefined


def evaluate_split(
    predictions: Mapping[str, np.ndarray],
    tasks: Sequence[TaskSpec],
    resamples: int = 1000,
    seed: int = 0,
    train: Mapping[str, TaskStatistics] | None = None,
) -> dict[str, Any]:
    """JSON-ready metrics of every task.

    Args:
        predictions: the arrays of ``predictions/<split>.npz``.
        tasks: what to evaluate.
        resamples: bootstrap resamples of patients; 0 = no intervals.
        seed: seed of the bootstrap.
        train: training labels by task, for the baselines of numbers and survival; None: those of the split itself.
    """
    groups, bootstrap = np.asarray(predictions["groups"]), Bootstrap(resamples, seed)
    result: dict[str, Any] = {"n": len(groups), "n_groups": len(np.unique(groups)), "tasks": {}}
    for task in track(tasks, "metrics with their intervals", "tasks") if resamples else tasks:
        result["tasks"][task.name] = _entry(predictions, task, groups, bootstrap, (train or {}).get(task.name))
    result["risk_monotonicity_violations"] = _violations(predictions, tasks)
    return result


def _entry(
    predictions: Mapping[str, np.ndarray],
    task: TaskSpec,
    groups: np.ndarray,
    bootstrap: Bootstrap,
    train: TaskStatistics | None,
) -> dict[str, Any]:
    """Metrics of one task, by its kind, over the samples with a label."""
    name = task.name
    if task.coded:
        labels, probability = predictions[f"label_{name}"], predictions[f"prob_{name}"]
        keep = labels != MISSING
        return _classification(task, labels[keep], probability[keep].astype(float), groups[keep], bootstrap)
    if task.dense:
        dice, area = predictions[f"dice_{name}"], predictions.get(f"area_{name}")
        keep = _known_rows(dice)
        known = None if area is None else area[keep].astype(float)
        return evaluate_mask(task, dice[keep].astype(float), known, groups[keep], bootstrap)
    labels = predictions[f"label_{name}"]
    keep = _known_rows(labels)
    if task.kind == "survival":
        risks = predictions[f"risk_{name}"][keep].astype(float)
        return evaluate_survival(task, labels[keep], risks, groups[keep], bootstrap, train)
    value = predictions[f"value_{name}"][keep].astype(float)
    return evaluate_number(task, labels[keep].astype(float), value, groups[keep], bootstrap, train)


def _known_rows(values: np.ndarray) -> np.ndarray:
    """``[N]``: which rows of ``[N]`` or ``[N, C]`` hold no NaN."""
    return np.isfinite(values) if values.ndim == 1 else np.isfinite(values).all(1)


def _classification(
    task: TaskSpec, labels: np.ndarray, probability: np.ndarray, groups: np.ndarray, bootstrap: Bootstrap
) -> dict[str, Any]:
    counts = np.bincount(labels, minlength=task.num_classes) if len(labels) else np.zeros(task.num_classes, dtype=int)
    entry: dict[str, Any] = {
        "kind": "classification",
        "n": len(labels),
        "n_groups": len(np.unique(groups)),
        "class_names": list(task.class_names),
        "class_counts": counts.tolist(),
        "prior": float(counts.max() / counts.sum()) if len(labels) else None,
        "majority_class": int(counts.argmax()) if len(labels) else None,
        "metrics": {},
        "beats_chance": False,
        "note": "",
    }
    if not len(labels):
        entry["note"] = "no labelled samples"
        return entry
    statistics = dict(STATISTICS)
    if task.kind != "ordinal":
        del statistics["kappa"], statistics["class_error"]
    draws = bootstrap.draws(groups)
    undefined = 0
    for name, (value_of, fast) in statistics.items():
        interval = bootstrap.interval([fast(labels[index], probability[index]) for index in draws])
        undefined = max(undefined, interval.undefined)
        entry["metrics"][name] = metric_entry(value_of(labels, probability), interval.low, interval.high)
    if (counts > 0).sum() < 2:
        entry["note"] = "one class only: AUROC and AUPRC are undefined"
    entry["undefined_resamples"] = undefined
    low = entry["metrics"]["auroc"]["low"]
    entry["beats_chance"] = bool(low is not None and low > 0.5)
    entry["auprc_chance"] = _auprc_chance(counts)
    if task.kind == "ordinal":
        always = np.full_like(labels, int(np.median(labels)))
        entry["baseline"] = {"of": "median class of this split", "class_error": float(np.abs(labels - always).mean())}
    entry["confusion"] = sk.confusion_matrix(labels, probability.argmax(1), labels=range(task.num_classes)).tolist()
    return entry


def _positive(labels: np.ndarray, probability: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """(is class, score) of class 1 for two classes, else of every class that occurs (one against the rest)."""
    classes = [1] if probability.shape[1] == 2 else [c for c in range(probability.shape[1]) if (labels == c).any()]
    return [(labels == c, probability[:, c]) for c in classes]


def rank_auroc(positive: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve by mid-ranks; NaN with a single class."""
    count = int(positive.sum())
    if count == 0 or count == len(positive):
        return math.nan
    _, inverse, ties = np.unique(score, return_inverse=True, return_counts=True)
    mid = np.cumsum(ties) - (ties - 1) / 2.0
    return float((mid[inverse][positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count)))


def step_average_precision(positive: np.ndarray, score: np.ndarray) -> float:
    """Average precision (sum of precision times recall steps, ties together); NaN without a positive."""
    if not positive.any():
        return math.nan
    order = np.argsort(-score, kind="stable")
    hits, ordered = np.cumsum(positive[order]), score[order]
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)  # end of each group of ties
    recall = hits[last] / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * hits[last] / (last + 1)))


def _auroc(labels: np.ndarray, probability: np.ndarray) -> float:
    return _mean([rank_auroc(is_class, score) for is_class, score in _positive(labels, probability)])


def _auroc_sklearn(labels: np.ndarray, probability: np.ndarray) -> float:
    if len(np.unique(labels)) < 2:
        return math.nan
    return _mean([sk.roc_auc_score(is_class, score) for is_class, score in _positive(labels, probability)])


def _auprc(labels: np.ndarray, probability: np.ndarray) -> float:
    return _mean([step_average_precision(is_class, score) for is_class, score in _positive(labels, probability)])


def _auprc_sklearn(labels: np.ndarray, probability: np.ndarray) -> float:
    pairs = _positive(labels, probability)
    if not all(is_class.any() for is_class, _ in pairs):
        return math.nan
    return _mean([sk.average_precision_score(is_class, score) for is_class, score in pairs])


def _auprc_chance(counts: np.ndarray) -> float:
    shares = counts / counts.sum()
    return float(shares[1]) if len(counts) == 2 else float(shares[shares > 0].mean())


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _confusion(labels: np.ndarray, probability: np.ndarray) -> np.ndarray:
    classes = probability.shape[1]
    return np.bincount(labels * classes + probability.argmax(1), minlength=classes**2).reshape(classes, classes)


def _accuracy(labels: np.ndarray, probability: np.ndarray) -> float:
    return float((labels == probability.argmax(1)).mean())


def _balanced_accuracy(labels: np.ndarray, probability: np.ndarray) -> float:
    table = _confusion(labels, probability)
    occurring = table.sum(1) > 0
    return float((np.diag(table)[occurring] / table.sum(1)[occurring]).mean())


def _macro_f1(labels: np.ndarray, probability: np.ndarray) -> float:
    """Mean F1 over the classes that occur or are predicted (as scikit-learn's macro average)."""
    table = _confusion(labels, probability)
    total = table.sum(0) + table.sum(1)
    seen = total > 0
    return float((2 * np.diag(table)[seen] / total[seen]).mean())


def _class_error(labels: np.ndarray, probability: np.ndarray) -> float:
    """Mean number of classes between answer and label."""
    return float(np.abs(labels - probability.argmax(1)).mean())


def _kappa(labels: np.ndarray, probability: np.ndarray) -> float:
    """Cohen's kappa with quadratic weights; NaN where chance agreement is perfect."""
    table = _confusion(labels, probability).astype(float)
    classes = len(table)
    weight = (np.arange(classes)[:, None] - np.arange(classes)[None]) ** 2
    expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
    disagreement = float((weight * expected).sum())
    return 1.0 - float((weight * table).sum()) / disagreement if disagreement else math.nan


def _kappa_sklearn(labels: np.ndarray, probability: np.ndarray) -> float:
    if math.isnan(_kappa(labels, probability)):
        return math.nan
    return float(
        sk.cohen_kappa_score(
            labels, probability.argmax(1), weights="quadratic", labels=list(range(probability.shape[1]))
        )
    )


def _brier(labels: np.ndarray, probability: np.ndarray) -> float:
    """Mean squared error of P(y = 1), or of the whole probability vector for more classes."""
    if probability.shape[1] == 2:
        return float(((probability[:, 1] - labels) ** 2).mean())
    truth = np.eye(probability.shape[1])[labels]
    return float(((probability - truth) ** 2).sum(1).mean())


# by name: the value of a split, and the same by a formula fast enough for a thousand resamples
STATISTICS: dict[str, tuple[Statistic, Statistic]] = {
    "accuracy": (lambda y, p: float(sk.accuracy_score(y, p.argmax(1))), _accuracy),
    "balanced_accuracy": (_balanced_accuracy, _balanced_accuracy),
    "macro_f1": (lambda y, p: float(sk.f1_score(y, p.argmax(1), average="macro", zero_division=0.0)), _macro_f1),
    "auroc": (_auroc_sklearn, _auroc),
    "auprc": (_auprc_sklearn, _auprc),
    "kappa": (_kappa_sklearn, _kappa),
    "class_error": (lambda y, p: float(sk.mean_absolute_error(y, p.argmax(1))), _class_error),
    "brier": (_brier, _brier),
}


def statistic_named(name: str) -> Statistic:
    """The function ``(labels [N], probabilities [N, C]) -> value`` of a metric of :data:`STATISTICS`.

    Raises:
        DataError: an unknown name.
    """
    if name not in STATISTICS:
        raise DataError(f"unknown metric {name!r}", fix=f"use one of {', '.join(STATISTICS)}")
    return STATISTICS[name][1]


def named_statistic(metric: str | Statistic) -> tuple[str, Statistic]:
    """Name and function of a metric given as either."""
    if isinstance(metric, str):
        return metric, statistic_named(metric)
    return getattr(metric, "__name__", "metric"), metric


def _violations(predictions: Mapping[str, np.ndarray], tasks: Sequence[TaskSpec]) -> float | None:
    """Share of samples for which an event is predicted less likely within a longer time than within a shorter one."""
    found = [
        (np.diff(np.stack([predictions[f"prob_{task.name}"][:, 1] for task in several], axis=1), axis=1) < 0).any(1)
        for several in follow_ups(tasks).values()
        if len(several) > 1
    ]
    if not found or not len(predictions["keys"]):
        return None
    return float(np.any(found, axis=0).mean())
