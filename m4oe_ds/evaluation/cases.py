"""The labelled rows of a split, checked before anything is computed from them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from m4oe_ds.data.schema import MISSING
from m4oe_ds.errors import DataError
from m4oe_ds.evaluation.intervals import owners


def labelled_binary(
    labels: ArrayLike, *columns: ArrayLike, groups: ArrayLike | None = None
) -> tuple[np.ndarray, list[np.ndarray], np.ndarray]:
    """Rows with a known binary label.

    Args:
        labels: ``[N]``, 0, 1 or -1 for missing.
        *columns: ``[N, ...]`` scores, made float64.
        groups: ``[N]`` patients; None = every row its own.

    Returns:
        ``is positive [K]``, the columns ``[K, ...]`` and groups ``[K]``.

    Raises:
        DataError: unequal lengths, other labels, or a score that is not finite.
    """
    known = np.asarray(labels)
    if known.ndim != 1 or not np.isin(known, (MISSING, 0, 1)).all():
        raise DataError("labels must be a vector of 0, 1 and -1 (missing)", fix="pass one binary task")
    owner = owners(groups, len(known))
    arrays = [np.asarray(column, dtype=float) for column in columns]
    for array in (owner, *arrays):
        if len(array) != len(known):
            raise DataError(f"{len(array)} scores or groups for {len(known)} labels", fix="pass one row per label")
    keep = known != MISSING
    arrays = [array[keep] for array in arrays]
    if not all(np.isfinite(array).all() for array in arrays):
        raise DataError("a score of a labelled case is not finite", fix="look for a diverged model")
    return known[keep] == 1, arrays, owner[keep]


def class_probabilities(labels: ArrayLike, probability: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Labels ``[N]`` int64 and probabilities ``[N, C]`` float64 (a vector is taken as P(y = 1)), checked.

    Raises:
        DataError: unequal lengths, a label outside -1..C-1, or a labelled row that is not finite.
    """
    known, table = np.asarray(labels), np.asarray(probability, dtype=float)
    if table.ndim == 1:
        table = np.stack([1.0 - table, table], axis=1)
    if known.ndim != 1 or table.ndim != 2 or len(known) != len(table):
        raise DataError(f"probabilities {table.shape} for labels {known.shape}", fix="pass [N, C] and [N]")
    if not np.isin(known, np.arange(MISSING, table.shape[1])).all():
        raise DataError(f"a label lies outside -1..{table.shape[1] - 1}", fix="check the number of classes")
    if not np.isfinite(table[known != MISSING]).all():
        raise DataError("a probability of a labelled case is not finite", fix="look for a diverged model")
    return known.astype(np.int64), table
