"""Dice of masks per class with patient-clustered intervals, next to calling every pixel the class."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.evaluation.intervals import Bootstrap, metric_entry


def everything(area: np.ndarray) -> np.ndarray:
    """Dice of the mask that covers the whole picture, for true masks that cover a share f of it: 2 f / (1 + f)."""
    return 2.0 * area / (1.0 + area)


def evaluate_mask(
    task: TaskSpec, dice: np.ndarray, area: np.ndarray | None, groups: np.ndarray, bootstrap: Bootstrap
) -> dict[str, Any]:
    """JSON-ready metrics: ``dice`` the mean over classes and samples, of several classes also ``dice_<class>``.

    Args:
        task: the task.
        dice: ``[N]`` or ``[N, C]``, all known.
        area: as ``dice``: share of the picture that the true mask covers; None = not known, then without baseline.
        groups: ``[N]`` patients.
        bootstrap: how intervals are made.

    Returns:
        Also ``baseline``: the same metrics of the mask that covers the whole picture.
    """
    table = dice[:, None] if dice.ndim == 1 else dice
    names = task.class_names if table.shape[1] > 1 else ()
    entry: dict[str, Any] = {
        "kind": "segmentation",
        "n": len(table),
        "n_groups": len(np.unique(groups)),
        "class_names": list(task.class_names),
        "metrics": {},
        "note": "" if len(table) else "no labelled samples",
    }

    def statistics(index: np.ndarray) -> dict[str, float]:
        return _means(table[index], names)

    for name, one in bootstrap.estimates(statistics, groups).items():
        entry["metrics"][name] = metric_entry(one.value, one.low, one.high)
    if area is not None and len(table):
        entry["baseline"] = {"of": "the whole picture", **_means(everything(area.reshape(table.shape)), names)}
    return entry


def _means(table: np.ndarray, names: tuple[str, ...]) -> dict[str, float]:
    if not len(table):
        return dict.fromkeys(("dice", *(f"dice_{name}" for name in names)), math.nan)
    each = table.mean(0)
    return {"dice": float(table.mean()), **{f"dice_{name}": float(each[k]) for k, name in enumerate(names)}}
