"""Is an explanation right? Modality shares scored against a planted truth and against what happens without the
modality.

An explanation gives every sample, task and modality a share. Two references exist: the truth of synthetic data (share
of the evidence each image carries, ``truth.json``) and the effect of leaving the modality out, on any data. Three
levels:

* ``sample``: over all (sample, modality) cells of a task, after subtracting what uniform weights over the modalities
  present would say; otherwise samples with fewer images would correlate with anything that sums to 1.
* ``within``: the correlation over the modalities of one sample, averaged over samples with at least three modalities.
* ``population``: over all (task, modality) cells of the mean shares.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from scipy import stats

from m4oe_ds.analysis.truth import read_files
from m4oe_ds.errors import DataError
from m4oe_ds.evaluation.intervals import percentile, resampled_indices

Array = np.ndarray
COEFFICIENTS = ("pearson", "spearman", "kendall")
MIN_CELLS = 3
MIN_MODALITIES = 3


class Correlations(TypedDict):
    """Coefficients (None if undefined) over ``n`` cells or samples."""

    n: int
    pearson: float | None
    spearman: float | None
    kendall: float | None


def correlations(x: Array, y: Array) -> Correlations:
    """Pearson, Spearman and Kendall (tau-b) of two ``[N]`` arrays, pairs with NaN left out.

    None for fewer than three pairs, or where one side is constant.
    """
    known = np.isfinite(x) & np.isfinite(y)
    a, b = x[known], y[known]
    if len(a) < MIN_CELLS or _constant(a) or _constant(b):
        return {"n": len(a), "pearson": None, "spearman": None, "kendall": None}
    return {
        "n": len(a),
        "pearson": float(np.corrcoef(a, b)[0, 1]),
        "spearman": float(stats.spearmanr(a, b).statistic),
        "kendall": float(stats.kendalltau(a, b).statistic),
    }


def _constant(values: Array) -> bool:
    # shares are sums of float32 terms: equal ones differ in the last digits, and their ranks would be noise
    return float(np.ptp(values)) <= 1e-6 * max(1.0, float(np.abs(values).max()))


def excess(share: Array, present: Array) -> Array:
    """Shares minus 1 / (number of modalities present), ``[N, m]``; NaN for absent modalities and lone ones.

    Args:
        share: ``[N, m]``.
        present: ``[N, m]`` bool.
    """
    count = present.sum(1, keepdims=True)
    return np.where(present & (count > 1), share - 1.0 / np.maximum(count, 1), np.nan)


def normalised(effect: Array, present: Array) -> Array:
    """Non-negative effects ``[N, m]`` as shares of the modalities present; NaN where nothing has an effect."""
    value = np.where(present, effect, 0.0)
    total = value.sum(1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(present & (total > 0), value / total, np.nan)


def within_samples(explanation: Array, reference: Array, present: Array) -> Correlations:
    """Mean over the samples of the correlation across their modalities; arguments ``[N, m]``.

    Samples with fewer than three modalities, or where one side is constant or unknown, have no correlation and are left
    out.
    """
    rows = within_rows(explanation, reference, present)
    values = {name: value[np.isfinite(value)] for name, value in rows.items()}
    mean = {name: float(value.mean()) if len(value) else None for name, value in values.items()}
    return {"n": len(values["pearson"]), **mean}  # type: ignore[typeddict-item]  # COEFFICIENTS are its fields


def within_rows(explanation: Array, reference: Array, present: Array) -> dict[str, Array]:
    """Each coefficient ``[N]`` across the modalities of every sample; NaN for those that have none."""
    found = {name: np.full(len(present), math.nan) for name in COEFFICIENTS}
    for pattern in np.unique(present, axis=0):
        rows = (present == pattern).all(1)
        if pattern.sum() < MIN_MODALITIES:
            continue
        a, b = explanation[rows][:, pattern], reference[rows][:, pattern]
        known = np.isfinite(a).all(1) & np.isfinite(b).all(1)
        known[known] &= ~(_constant_rows(a[known]) | _constant_rows(b[known]))
        a, b, place = a[known], b[known], np.flatnonzero(rows)[known]
        found["pearson"][place] = _row_pearson(a, b)
        found["spearman"][place] = _row_pearson(stats.rankdata(a, axis=1), stats.rankdata(b, axis=1))
        left, right = np.triu_indices(a.shape[1], 1)
        order_a, order_b = np.sign(a[:, left] - a[:, right]), np.sign(b[:, left] - b[:, right])
        found["kendall"][place] = _row_cosine(order_a, order_b)  # tau-b
    return found


def _constant_rows(values: Array) -> Array:
    return np.asarray(np.ptp(values, axis=1) <= 1e-6 * np.maximum(1.0, np.abs(values).max(1)))


def _row_pearson(a: Array, b: Array) -> Array:
    return _row_cosine(a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True))


def _row_cosine(a: Array, b: Array) -> Array:
    return np.asarray((a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)))


def score(
    explanation: Array,
    reference: Array,
    present: Array,
    tasks: tuple[str, ...],
    groups: Array,
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """Agreement of an explanation with a reference on all levels.

    Args:
        explanation: ``[N, p, m]`` shares; NaN = unknown.
        reference: ``[N, p, m]`` shares it is held against; NaN = unknown.
        present: ``[N, m]`` bool.
        tasks: names of the p tasks.
        groups: ``[N]`` patients.
        resamples: bootstrap resamples of patients, for the intervals of the Spearman coefficients over all tasks.
        seed: seed of the resampling.

    Returns:
        ``sample`` and ``within``: coefficients by task and ``all`` (mean over the tasks that have them);
        ``population``: coefficients over the cells; ``all`` and ``population`` also have ``low`` and ``high``;
        ``means``: the population shares of both sides, ``[p][m]`` (None = unknown); ``samples``: rows with a reference.
    """
    sample: dict[str, Any] = {}
    within: dict[str, Any] = {}
    cells: list[tuple[Array, Array]] = []
    for k, task in enumerate(tasks):
        a, b = excess(explanation[:, k], present), excess(reference[:, k], present)
        cells.append((a, b))
        sample[task] = correlations(a.ravel(), b.ravel())
        within[task] = within_samples(explanation[:, k], reference[:, k], present)
    sample["all"], within["all"] = _mean(sample), _mean(within)

    inside = [within_rows(explanation[:, k], reference[:, k], present)["spearman"] for k in range(len(tasks))]
    both = np.isfinite(explanation) & np.isfinite(reference) & present[:, None]
    mean_a, mean_b = _masked_mean(explanation, both), _masked_mean(reference, both)
    population: dict[str, Any] = {**correlations(mean_a.ravel(), mean_b.ravel())}

    def spearman(rows: Array) -> tuple[float, float, float]:
        """The coefficient of each level over the rows of a resample."""
        means = [_masked_mean(values[rows], both[rows]).ravel() for values in (explanation, reference)]
        return (
            _known_mean([_fast_spearman(a[rows].ravel(), b[rows].ravel()) for a, b in cells]),
            _known_mean([_known_mean(values[rows].tolist()) for values in inside]),
            _fast_spearman(*means),
        )

    drawn = [spearman(rows) for rows in resampled_indices(groups, resamples, seed)] if resamples else []
    for number, entry in enumerate((sample["all"], within["all"], population)):
        interval = percentile([values[number] for values in drawn])
        entry |= {"low": interval.low, "high": interval.high}
    return {
        "samples": int(np.isfinite(reference).any((1, 2)).sum()),
        "sample": sample,
        "within": within,
        "population": population,
        "means": {"explanation": _plain(mean_a), "reference": _plain(mean_b)},
    }


def _known_mean(values: list[float]) -> float:
    known = [value for value in values if math.isfinite(value)]
    return float(np.mean(known)) if known else math.nan


def _fast_spearman(x: Array, y: Array) -> float:
    known = np.isfinite(x) & np.isfinite(y)
    a, b = x[known], y[known]
    if len(a) < MIN_CELLS or _constant(a) or _constant(b):
        return math.nan
    return float(np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1])


def _mean(by_task: Mapping[str, Any]) -> dict[str, Any]:
    """Mean of each coefficient over the tasks that have it; ``n`` sums."""
    found: dict[str, Any] = {"n": sum(entry["n"] for entry in by_task.values())}
    for name in COEFFICIENTS:
        values = [entry[name] for entry in by_task.values() if entry[name] is not None]
        found[name] = float(np.mean(values)) if values else None
    return found


def _masked_mean(values: Array, mask: Array) -> Array:
    count = mask.sum(0)
    total = np.where(mask, values, 0.0).sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _plain(values: Array) -> list[list[float | None]]:
    return [[float(value) if math.isfinite(value) else None for value in row] for row in values]


def read_truth(
    path: Path, mapping: Path, keys: Array, tasks: tuple[str, ...], modalities: tuple[str, ...], present: Array
) -> Array:
    """Planted share of the evidence ``[N, p, m]`` per sample key; NaN where nothing is planted or nothing is known.

    The shares are those of the modalities that the sample has here; if conversion lost an image, or the model does not
    read one, the others are rescaled to sum to 1.

    Args:
        path: ``truth.json``.
        mapping: the converter's ``<out>.mapping.csv``, which says which key is which exam.
        keys: ``[N]``.
        present: ``[N, m]`` bool.

    Raises:
        DataError: a file is missing or no key of it is among ``keys``.
    """
    planted, source = read_files(path, mapping)
    found = np.full((len(keys), len(tasks), len(modalities)), np.nan)
    matched = 0
    for row, key in enumerate(keys.tolist()):
        information = planted.get(source.get(key, ("", "", "")))
        matched += information is not None
        for k, task in enumerate(tasks):
            if information and task in information:
                found[row, k] = [information[task].get(name, np.nan) for name in modalities]
    if len(keys) and not matched:
        raise DataError(f"none of {len(keys)} samples is in it", str(path), f"is {mapping} of the same archive?")
    found = np.where(present[:, None], found, np.nan)
    total = np.nansum(found, axis=2, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, found / total, np.nan)


def verify(
    explanations: Mapping[str, Array],
    references: Mapping[str, Array],
    present: Array,
    tasks: tuple[str, ...],
    groups: Array,
    resamples: int = 200,
) -> dict[str, dict[str, Any]]:
    """``{reference: {explanation: score(...)}}`` for every combination."""
    return {
        name: {
            rival: score(values, reference, present, tasks, groups, resamples)
            for rival, values in explanations.items()
            if rival != name
        }
        for name, reference in references.items()
    }
