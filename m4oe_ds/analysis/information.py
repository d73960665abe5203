"""Entropy and mutual information of discrete tables in bits; splits, permutations and intervals that respect patients.

numpy, float64. Shared by the two estimators of the partial information decomposition.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m4oe_ds.errors import DataError

Table = NDArray[np.float64]
LN2 = float(np.log(2.0))
MASS_TOLERANCE = 1e-6
MIN_PER_SPLIT = 8
PARTS = ("R", "U1", "U2", "S")


def probability_table(values: ArrayLike, *, ndim: int | None = None, name: str = "table") -> Table:
    """Checked float64 copy of a probability table, rescaled to sum exactly to 1.

    Args:
        values: probabilities, any shape; the sum may differ from 1 by at most 1e-6 (rounded tables).
        ndim: required number of axes, or None for any.
        name: what the table is called in the error.

    Raises:
        DataError: not numeric, wrong number of axes, empty, NaN or infinite, negative, or not summing to 1.
    """
    try:
        table = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"not a rectangular array of numbers ({error})", name, "pass nested lists or an array"
        ) from error
    if ndim is not None and table.ndim != ndim:
        raise DataError(f"{table.ndim} axes, expected {ndim}", name, "index it as p[x1, x2, y]" if ndim == 3 else "")
    if table.size == 0:
        raise DataError(f"no cells, shape {table.shape}", name, "every variable needs at least one symbol")
    if not np.isfinite(table).all():
        raise DataError("NaN or infinite probabilities", name, "drop or count the undefined cells first")
    if (table < 0).any():
        raise DataError(f"negative probability {table.min():.3g}", name, "probabilities are >= 0")
    mass = float(table.sum())
    if abs(mass - 1.0) > MASS_TOLERANCE:
        raise DataError(f"probabilities sum to {mass:.6g}, not 1", name, "divide counts by their total")
    return table / mass


def xlogy(weight: NDArray[Any], value: NDArray[Any]) -> Table:
    """Elementwise ``weight * ln(value)`` with ``0 * ln(anything) = 0`` (natural logarithm)."""
    weight, value = np.broadcast_arrays(np.asarray(weight, np.float64), np.asarray(value, np.float64))
    used = weight != 0
    return weight * np.log(np.where(used, value, 1.0))


def entropy(p: ArrayLike) -> float:
    """Shannon entropy ``-sum p log2 p`` in bits of a probability table of any shape.

    Raises:
        DataError: ``p`` is not a probability table.
    """
    table = probability_table(p)
    return max(0.0, float(-xlogy(table, table).sum() / LN2))


def mutual_information(p: ArrayLike) -> float:
    """Mutual information ``I(A;B) = sum p log2 [p(a,b) / (p(a) p(b))]`` in bits of a table ``p[a, b]``.

    Raises:
        DataError: ``p`` is not a probability table with two axes.
    """
    table = probability_table(p, ndim=2)
    outer = table.sum(1, keepdims=True) * table.sum(0, keepdims=True)
    # one ratio inside the logarithm: a difference of entropies would lose digits near independence
    ratio = np.divide(table, outer, out=np.ones_like(table), where=table > 0)
    return max(0.0, float(xlogy(table, ratio).sum() / LN2))


def normalised_entropy(weights: ArrayLike) -> float:
    """Entropy of non-negative weights divided by its maximum ``log n``: 1 = spread evenly, 0 = one entry holds all.

    The weights are normalised first; NaN if all are 0 or there is a single one (no pattern to speak of).

    Raises:
        DataError: negative or non-finite weights.
    """
    values = np.asarray(weights, dtype=np.float64).ravel()
    if not np.isfinite(values).all() or (values < 0).any():
        raise DataError("weights must be finite and >= 0", "normalised entropy", "clip estimates at 0 first")
    if values.size < 2 or values.sum() == 0:
        return float("nan")
    return entropy(values / values.sum()) / float(np.log2(values.size))


def parts_of(informations: NDArray[Any]) -> tuple[float, float, float, float]:
    """R, U1, U2, S from I(X1;Y), I(X2;Y), I(X1,X2;Y), I_Q (Bertschinger et al. 2014), any unit."""
    i1, i2, i12, i_q = (float(value) for value in informations)
    return i1 + i2 - i_q, i_q - i2, i_q - i1, i12 - i_q


@dataclass(frozen=True)
class PatientSplit:
    """Row indices of the three splits; no patient is in two of them."""

    train: NDArray[Any]
    validation: NDArray[Any]
    held_out: NDArray[Any]


def patient_split(patients: NDArray[Any], held_out: float, validation: float, seed: int) -> PatientSplit:
    """Whole patients, in random order, into training, validation and held-out rows.

    Args:
        patients: ``[N]`` codes ``0..P-1``.
        held_out: fraction of the patients for the estimate.
        validation: fraction of the other patients for early stopping.
        seed: seed of the order.

    Raises:
        DataError: a split would have fewer than 8 rows.
    """
    count = int(patients.max()) + 1
    order = np.random.default_rng([seed, 0]).permutation(count)
    held = max(1, round(held_out * count))
    checked = max(1, round(validation * (count - held)))
    parts = np.split(order, [count - held - checked, count - held])
    rows = [np.flatnonzero(np.isin(patients, part)) for part in parts]
    if min(len(part) for part in rows) < MIN_PER_SPLIT:
        raise DataError(
            f"{count} patients, splits of {[len(part) for part in rows]} rows",
            "batch",
            f"every split needs at least {MIN_PER_SPLIT} rows",
        )
    return PatientSplit(*rows)


def permuted_labels(labels: NDArray[Any], patients: NDArray[Any], rng: np.random.Generator) -> NDArray[Any]:
    """Labels permuted between patients with equally many rows, so that rows of one patient stay together.

    Permuting rows alone would break the correlation within patients and make the null too narrow. Patients whose
    number of rows nobody shares have their rows permuted together.

    Args:
        labels: ``[N]`` integers.
        patients: ``[N]`` integer codes of the patients.
        rng: source of randomness.
    """
    result = labels.copy()
    rows_of = [np.flatnonzero(patients == code) for code in range(int(patients.max()) + 1)]
    sizes = np.array([len(rows) for rows in rows_of])
    alone = []
    for size in np.unique(sizes):
        members = np.flatnonzero(sizes == size)
        if len(members) == 1:
            alone.append(rows_of[members[0]])
            continue
        target = np.stack([rows_of[member] for member in members])
        result[target] = labels[target[rng.permutation(len(members))]]
    if alone:
        rows = np.concatenate(alone)
        result[rows] = labels[rng.permutation(rows)]
    return result


def patient_intervals(
    contributions: NDArray[Any], patients: NDArray[Any], resamples: int, rng: np.random.Generator
) -> dict[str, tuple[float, float]] | None:
    """Percentile 95 % intervals in bits of R, U1, U2, S, resampling whole patients; None without resamples.

    Args:
        contributions: ``[N, 4]`` nats each row adds to the mean I(X1;Y), I(X2;Y), I(X1,X2;Y) and I_Q.
        patients: ``[N]`` patient of every row.
        resamples: number of bootstrap draws.
        rng: source of randomness.
    """
    if resamples == 0:
        return None
    codes = np.unique(patients, return_inverse=True)[1]
    count = int(codes.max()) + 1
    sums = np.zeros((count, contributions.shape[1]))
    np.add.at(sums, codes, contributions)
    sizes = np.bincount(codes, minlength=count)
    draws = rng.multinomial(count, np.full(count, 1.0 / count), size=resamples)
    means = (draws @ sums) / (draws @ sizes)[:, None]
    values = np.array([parts_of(row) for row in means]) / LN2
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    return {part: (float(low[i]), float(high[i])) for i, part in enumerate(PARTS)}
