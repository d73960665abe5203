"""Gradient conflict (M4oE Fig. 6a) from the cosines that training wrote to ``log.jsonl``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from m4oe_ds.runs.folder import RunFolder
from m4oe_ds.stored import read_log
from m4oe_ds.training.shared_gradients import CONFLICT_THRESHOLD


def conflict_rows(folder: Path, pair: tuple[str, str] | None = None) -> list[dict[str, Any]]:
    """Shares of conflicting, neutral and enhancing pairs of task gradients per epoch (M4oE Fig. 6a).

    cosine < -0.01 conflicts, within +-0.01 is neutral, above enhances; pairs without a gradient are left out.

    Args:
        folder: run folder, whose ``log.jsonl`` is read.
        pair: only this pair of tasks; None = all pairs.

    Returns:
        Rows ``epoch``, ``pairs``, ``mean_cosine``, ``conflict``, ``neutral``, ``enhance``; empty if training did not
        measure it (``run.conflict_every_steps``) or there is no log.
    """
    cosines: dict[int, list[float]] = {}
    for record in _conflict_records(folder):
        found = record["gradient_conflict"]
        names = found["tasks"]
        for a in range(len(names)):
            for b in range(a):
                value = found["cosines"][a][b]
                if value is not None and (pair is None or {names[a], names[b]} == set(pair)):
                    cosines.setdefault(int(record["epoch"]), []).append(float(value))
    return [{"epoch": epoch, "pairs": len(values), **_shares(values)} for epoch, values in sorted(cosines.items())]


def _shares(cosines: Sequence[float]) -> dict[str, float]:
    """Mean of some cosines, and the shares of them that conflict, are neutral and enhance."""
    array = np.array(cosines)
    return {
        "mean_cosine": float(array.mean()),
        "conflict": float((array < -CONFLICT_THRESHOLD).mean()),
        "neutral": float((np.abs(array) <= CONFLICT_THRESHOLD).mean()),
        "enhance": float((array > CONFLICT_THRESHOLD).mean()),
    }


def conflict_pairs(folder: Path) -> dict[str, Any]:
    """The same measurement per pair of tasks, over all steps.

    Returns:
        ``tasks``; symmetric tables ``[q][q]`` (NaN on the diagonal and for pairs never measured) ``conflict``,
        ``neutral``, ``enhance``, ``mean_cosine`` and ``steps`` (how many steps the pair was measured in); ``measured``
        steps in all; ``undefined`` pairs left out because a gradient was zero or a task had no label; ``dimension`` D
        of the gradients, None in old logs. Random directions have cosines of standard deviation 1 / sqrt(D).
    """
    records = list(_conflict_records(folder))
    tasks = list(dict.fromkeys(name for record in records for name in record["gradient_conflict"]["tasks"]))
    at = {name: i for i, name in enumerate(tasks)}
    values: dict[tuple[int, int], list[float]] = {}
    for record in records:
        found = record["gradient_conflict"]
        for a, first in enumerate(found["tasks"]):
            for b, second in enumerate(found["tasks"][:a]):
                value = found["cosines"][a][b]
                if value is not None:
                    low, high = sorted((at[first], at[second]))
                    values.setdefault((low, high), []).append(float(value))
    tables = {name: np.full((len(tasks),) * 2, np.nan) for name in ("conflict", "neutral", "enhance", "mean_cosine")}
    steps = np.zeros((len(tasks),) * 2, dtype=np.int64)
    for (a, b), cosines in values.items():
        for name, share in _shares(cosines).items():
            tables[name][a, b] = tables[name][b, a] = share
        steps[a, b] = steps[b, a] = len(cosines)
    possible = len(records) * len(tasks) * (len(tasks) - 1) // 2
    dimensions = {record["gradient_conflict"].get("dimension") for record in records}
    return {
        "tasks": tasks,
        **tables,
        "steps": steps,
        "measured": len(records),
        "undefined": possible - sum(len(found) for found in values.values()),
        "dimension": dimensions.pop() if len(dimensions) == 1 else None,
    }


def _conflict_records(folder: Path) -> Iterator[dict[str, Any]]:
    """Lines of ``log.jsonl`` that hold a measurement; nothing without a log."""
    path = RunFolder(folder).log
    if not path.is_file():
        return
    for record in read_log(path, "copy the log of the run again"):
        if record.get("gradient_conflict"):
            yield record
