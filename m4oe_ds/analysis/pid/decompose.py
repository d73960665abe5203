"""Partial information decomposition in one call: ``broja`` for tables, ``batch`` for features."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m4oe_ds.analysis.pid import estimator, solver
from m4oe_ds.analysis.pid.settings import BatchSettings
from m4oe_ds.errors import DataError


def broja(p: ArrayLike, **options: Any) -> dict[str, float]:
    """Exact redundancy R, unique informations U1, U2 and synergy S of a table ``p[x1, x2, y]``, in bits.

    Args:
        p: probabilities, sum 1.
        **options: keyword arguments of :func:`m4oe_ds.analysis.pid.solver.broja`.

    Raises:
        DataError: ``p`` is not a probability table with three axes.
    """
    return solver.broja(p, **options).parts()


def batch(x1: ArrayLike, x2: ArrayLike, y: ArrayLike, **options: Any) -> dict[str, float]:
    """Estimated R, U1, U2, S of features ``x1 [N, d1]``, ``x2 [N, d2]`` about labels ``y [N]``, in bits, clipped at 0.

    Args:
        **options: fields of :class:`m4oe_ds.analysis.pid.settings.BatchSettings`, or ``patients``, ``settings``,
            ``conditionals`` of :func:`m4oe_ds.analysis.pid.estimator.batch`.

    Raises:
        DataError: data that do not fit together.
        ConfigError: contradictory settings.
        TypeError: ``settings`` together with fields of it, or an unknown option.
    """
    direct = {name: options.pop(name) for name in ("patients", "settings", "conditionals") if name in options}
    if options:
        if "settings" in direct:
            raise TypeError("give either settings or its fields, not both")
        direct["settings"] = BatchSettings(**options)
    return estimator.batch(x1, x2, y, **direct).parts()


def principal_components(x: ArrayLike, present: ArrayLike, count: int, share: float = 0.95) -> NDArray[np.float64]:
    """``[N, c]`` principal components of standardised features, fitted on the rows present, zeros elsewhere.

    A few hundred patients do not determine networks on hundreds of inputs: the estimate would be mostly bias. The
    components that explain little are left out, because the estimator standardises its inputs and would blow them up.

    Args:
        x: ``[N, d]`` features.
        present: ``[N]`` bool.
        count: most components c.
        share: share of the variance to explain; no more components are kept than that takes.

    Raises:
        DataError: no row is present, or non-finite features.
    """
    values, rows = np.asarray(x, dtype=np.float64), np.asarray(present, dtype=bool)
    if not rows.any() or not np.isfinite(values[rows]).all():
        raise DataError("no rows, or NaN or infinite features", "principal components", "check the model's outputs")
    chosen = values[rows]
    deviation = chosen.std(0)
    scaled = (chosen - chosen.mean(0)) / np.where(deviation > 1e-12, deviation, np.inf)
    _, singular, directions = np.linalg.svd(scaled, full_matrices=False)
    explained = np.cumsum(singular**2) / max(float((singular**2).sum()), 1e-300)
    needed = int(np.searchsorted(explained, share - 1e-12)) + 1
    found = np.zeros((len(values), min(count, needed, len(directions))))
    found[rows] = scaled @ directions[: found.shape[1]].T
    return found
