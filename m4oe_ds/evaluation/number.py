"""Metrics of a number with patient-clustered intervals, next to always answering the median of the training labels.

The values come from scikit-learn and SciPy; the bootstrap uses formulas tested against them, which cost less.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import stats
from sklearn import metrics as sk

from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.data.task_statistics import TaskStatistics
from m4oe_ds.evaluation.intervals import Bootstrap, metric_entry


def mean_absolute_error(truth: np.ndarray, value: np.ndarray) -> float:
    """Mean of |value - truth|, in the unit of the number."""
    return float(np.abs(value - truth).mean())


def root_mean_square_error(truth: np.ndarray, value: np.ndarray) -> float:
    """Root of the mean of (value - truth)^2, in the unit of the number."""
    return float(np.sqrt(np.square(value - truth).mean()))


def explained_variance(truth: np.ndarray, value: np.ndarray) -> float:
    """R^2 = 1 - sum (value - truth)^2 / sum (truth - mean)^2; NaN where all truths are equal."""
    total = float(np.square(truth - truth.mean()).sum())
    return 1.0 - float(np.square(value - truth).sum()) / total if total > 0 else math.nan


def rank_correlation(truth: np.ndarray, value: np.ndarray) -> float:
    """Spearman's correlation; NaN where all truths or all values are equal."""
    if len(truth) < 2 or np.ptp(truth) == 0 or np.ptp(value) == 0:
        return math.nan
    return float(np.corrcoef(stats.rankdata(truth), stats.rankdata(value))[0, 1])


def evaluate_number(
    task: TaskSpec,
    truth: np.ndarray,
    value: np.ndarray,
    groups: np.ndarray,
    bootstrap: Bootstrap,
    train: TaskStatistics | None = None,
) -> dict[str, Any]:
    """JSON-ready metrics ``mae``, ``rmse`` (in the unit), ``r2`` and ``spearman``.

    Args:
        task: the task.
        truth: ``[N]`` labels, all known, in their unit.
        value: ``[N]`` predictions.
        groups: ``[N]`` patients.
        bootstrap: how intervals are made.
        train: training labels; without them the baseline is the median of ``truth`` itself, which flatters it.

    Returns:
        Also ``baseline`` (``value``, ``mae``, ``rmse`` of always answering the median; ``of``: whose), ``skill``: the
        share of the baseline's MAE that the model saves, and ``beats_chance``: the interval of it lies above 0.
    """
    trained = train is not None and train.known > 0
    entry: dict[str, Any] = {
        "kind": "number",
        "n": len(truth),
        "n_groups": len(np.unique(groups)),
        "unit": task.unit,
        "metrics": {},
        "beats_chance": False,
        "note": "" if len(truth) else "no labelled samples",
    }
    if not len(truth):
        return entry
    constant = float(train.median if train is not None and trained else np.median(truth))
    always = np.full_like(truth, constant)

    def statistics(index: np.ndarray) -> dict[str, float]:
        known, answer = truth[index], value[index]
        error, trivial = mean_absolute_error(known, answer), mean_absolute_error(known, always[index])
        return {
            "mae": error,
            "rmse": root_mean_square_error(known, answer),
            "r2": explained_variance(known, answer),
            "spearman": rank_correlation(known, answer),
            "skill": 1.0 - error / trivial if trivial > 0 else math.nan,
        }

    found = bootstrap.estimates(statistics, groups)
    values = _by_libraries(truth, value)
    for name, estimate in found.items():
        target = entry if name == "skill" else entry["metrics"]
        target[name] = metric_entry(values.get(name, estimate.value), estimate.low, estimate.high)
    error, root = mean_absolute_error(truth, always), root_mean_square_error(truth, always)
    whose = "training median" if trained else "median of this split"
    entry["baseline"] = {"value": constant, "of": whose, "mae": error, "rmse": root}
    low = entry["skill"]["low"]
    entry["beats_chance"] = bool(low is not None and low > 0)
    entry["undefined_resamples"] = max(estimate.undefined_resamples for estimate in found.values())
    return entry


def _by_libraries(truth: np.ndarray, value: np.ndarray) -> dict[str, float]:
    if not np.isfinite(value).all():
        return {}
    varied = len(truth) > 1 and np.ptp(truth) > 0
    return {
        "mae": float(sk.mean_absolute_error(truth, value)),
        "rmse": float(sk.root_mean_squared_error(truth, value)),
        "r2": float(sk.r2_score(truth, value)) if varied else math.nan,
        "spearman": float(stats.spearmanr(truth, value).statistic) if varied and np.ptp(value) > 0 else math.nan,
    }
