"""Synergy between pairs of modalities, per task: which pairs tell a task more together than the sum of their parts.

Works on cached features on one process. Synergy is bounded by the entropy of the target, so a rare outcome has small
values everywhere: compare patterns (share of H(Y), normalised entropy over the pairs, cosine between tasks) rather than
bits across tasks. Every estimate is biased upwards by finite samples; the permutation null stands next to it.
"""

from __future__ import annotations

import itertools
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from m4oe_ds.analysis.information import PARTS, normalised_entropy, permuted_labels
from m4oe_ds.analysis.pid.estimator import batch
from m4oe_ds.analysis.pid.settings import BatchSettings
from m4oe_ds.analysis.pid.solver import broja, cluster_features, count_table
from m4oe_ds.errors import ConfigError, DataError

log = logging.getLogger(__name__)

MISSING = -1
NAN = float("nan")


@dataclass(frozen=True)
class SynergySettings:
    """Options of :func:`synergy_matrices`.

    Attributes:
        estimator: ``batch`` (networks on the features) or ``broja`` (exact program on k-means clusters).
        batch: options of the networks and of both estimators' number of permutations and seed.
        clusters: number of clusters per modality (``broja`` estimator).
        components: number of principal components per modality (``broja`` estimator).
        class_balanced: resample rows with replacement to equal class frequencies (patients stay on one side of a
            split); makes tasks of different prevalence comparable.
        min_samples: a pair with fewer usable rows is skipped and counted.
    """

    estimator: Literal["batch", "broja"] = "batch"
    batch: BatchSettings = field(default_factory=lambda: BatchSettings(permutations=20))
    clusters: int = 5
    components: int = 5
    class_balanced: bool = False
    min_samples: int = 100

    def __post_init__(self) -> None:
        if self.estimator not in ("batch", "broja"):
            raise ConfigError(f"estimator = {self.estimator!r}", "SynergySettings", "use batch or broja")
        if self.clusters < 2 or self.components < 1 or self.min_samples < 2:
            raise ConfigError(
                "clusters, components or min_samples too small", "SynergySettings", "give at least 2, 1 and 2"
            )


@dataclass(frozen=True)
class PairSynergy:
    """Decomposition of one task's target by one pair of modalities; informations in bits, clipped at 0.

    ``null_mean`` and ``null_q95`` are the mean and 95 % quantile of the synergy with permuted labels (NaN without
    permutations), ``low`` and ``high`` the 95 % interval of the synergy over patients (NaN for ``broja``), ``samples``
    and ``patients`` the rows and patients used, ``missing_label`` and ``missing_modality`` the rows left out.
    """

    model: str
    task: str
    modality1: str
    modality2: str
    target: str
    estimator: str
    redundancy: float
    unique1: float
    unique2: float
    synergy: float
    total: float
    target_entropy: float
    null_mean: float
    null_q95: float
    low: float
    high: float
    permutations: int
    samples: int
    patients: int
    missing_label: int
    missing_modality: int

    @property
    def share_of_entropy(self) -> float:
        """S / H(Y)."""
        return self.synergy / self.target_entropy if self.target_entropy > 0 else NAN

    @property
    def share_of_information(self) -> float:
        """S / I(X1,X2;Y); NaN where the pair carries no information."""
        return self.synergy / self.total if self.total > 0 else NAN


@dataclass(frozen=True)
class SynergyReport:
    """Pairs of one or more models and tasks, and the pairs left out with the reason."""

    modalities: tuple[str, ...]
    pairs: tuple[PairSynergy, ...]
    skipped: tuple[tuple[str, str, str, str], ...] = ()  # task, modality1, modality2, reason

    @property
    def skip_counts(self) -> dict[str, int]:
        """Number of skipped pairs per reason."""
        return dict(Counter(reason for *_, reason in self.skipped))

    def matrix(self, task: str, value: str = "synergy", *, model: str | None = None) -> NDArray[np.float64]:
        """Symmetric ``[m, m]`` matrix in the order of ``modalities``; NaN on the diagonal and for skipped pairs.

        Args:
            task: task name.
            value: a number of :class:`PairSynergy`, e.g. ``synergy``, ``share_of_entropy``, ``null_q95``.
            model: needed if the report holds several models.

        Raises:
            ConfigError: nothing known about this task and model, several models without choosing one, or an asymmetric
                value (the unique informations belong to one source).
        """
        if value in ("unique1", "unique2"):
            raise ConfigError(f"{value} is not symmetric", "synergy matrix", "read it from to_rows()")
        chosen = self._of(task, model)
        index = {name: i for i, name in enumerate(self.modalities)}
        result = np.full((len(index), len(index)), np.nan)
        for pair in chosen:
            i, j = index[pair.modality1], index[pair.modality2]
            result[i, j] = result[j, i] = float(getattr(pair, value))
        return result

    def pattern(self, task: str, *, model: str | None = None) -> NDArray[np.float64]:
        """Synergies of all pairs in a fixed order (upper triangle, row by row); NaN for skipped pairs."""
        return self.matrix(task, model=model)[np.triu_indices(len(self.modalities), 1)]

    def pattern_entropy(self, task: str, *, model: str | None = None) -> float:
        """Normalised entropy of the synergies over the pairs: 1 = every pair alike, 0 = one pair has it all."""
        values = self.pattern(task, model=model)
        return normalised_entropy(values[np.isfinite(values)])

    def pattern_cosine(self, task1: str, task2: str, *, model: str | None = None) -> float:
        """Cosine of two tasks' synergy vectors over the pairs known for both; NaN if one is all zero."""
        a, b = self.pattern(task1, model=model), self.pattern(task2, model=model)
        both = np.isfinite(a) & np.isfinite(b)
        length = float(np.linalg.norm(a[both]) * np.linalg.norm(b[both]))
        return float(a[both] @ b[both]) / length if length > 0 else NAN

    def to_rows(self) -> list[dict[str, Any]]:
        """One flat dictionary per pair, same keys in the same order, for a CSV file."""
        return [
            asdict(pair)
            | {"share_of_entropy": pair.share_of_entropy, "share_of_information": pair.share_of_information}
            for pair in self.pairs
        ]

    def merged(self, other: SynergyReport) -> SynergyReport:
        """Both reports' pairs, e.g. of two models or of tasks with their own features.

        Raises:
            DataError: different modalities, or a pair that is in both.
        """
        if self.modalities != other.modalities:
            raise DataError("reports of different modalities", "synergy", "use the same modalities in the same order")
        pairs = self.pairs + other.pairs
        keys = Counter((pair.model, pair.task, pair.modality1, pair.modality2) for pair in pairs)
        if max(keys.values(), default=1) > 1:
            raise DataError("the same model, task and pair twice", "synergy", "name the models differently")
        return SynergyReport(self.modalities, pairs, self.skipped + other.skipped)

    def _of(self, task: str, model: str | None) -> list[PairSynergy]:
        chosen = [pair for pair in self.pairs if pair.task == task and model in (None, pair.model)]
        if not chosen and not any(entry[0] == task for entry in self.skipped):
            raise ConfigError(f"no pair of task {task!r}", "synergy", "see to_rows() for what there is")
        if len({pair.model for pair in chosen}) > 1:
            raise ConfigError("several models in this report", "synergy", "choose one with model=")
        return chosen


def synergy_matrices(
    features: Mapping[str, ArrayLike],
    labels: Mapping[str, ArrayLike],
    patients: ArrayLike,
    *,
    model: str = "",
    target: Literal["prediction", "label"] = "prediction",
    present: Mapping[str, ArrayLike] | None = None,
    settings: SynergySettings | None = None,
    done: Callable[[], None] = lambda: None,
) -> SynergyReport:
    """Synergy of every pair of modalities about every task's target.

    Args:
        features: ``{modality: [N, d]}``, e.g. the modality's token rows of the task's representation, mean-pooled.
        labels: ``{task: [N]}`` integer classes, -1 where missing: the model's predicted classes (what the model does
            with the pair) or the true ones (what the representation knows).
        patients: ``[N]`` patient ids.
        model: name written into the rows.
        target: which of the two ``labels`` holds; written into the rows.
        present: ``{modality: [N]}`` booleans, false where a sample lacks the modality; default: all present.
        settings: options, see :class:`SynergySettings`.
        done: called at every pair of a task, estimated or not.

    Returns:
        Report with one entry per task and pair; pairs that cannot be estimated are listed with the reason.

    Raises:
        DataError: fewer than two modalities, lengths that do not match, labels that are not integers >= -1.
    """
    settings = settings or SynergySettings()
    if len(features) < 2:
        raise DataError(f"{len(features)} modalities", "synergy", "a pair needs at least two")
    ids = np.unique(np.asarray(patients), return_inverse=True)[1]
    arrays, targets = _arrays(features), _arrays(labels)
    masks = {name: np.ones(len(ids), bool) for name in arrays} | _arrays(present or {})
    _check(arrays, targets, masks, ids)
    pairs, skipped = [], []
    for task, y in targets.items():
        known = y != MISSING
        for first, second in itertools.combinations(arrays, 2):
            usable = known & masks[first] & masks[second]
            reason = _unusable(y[usable], settings)
            done()
            if reason:
                skipped.append((task, first, second, reason))
                continue
            rows = np.flatnonzero(usable)
            if settings.class_balanced:
                rows = _balanced(rows, y, settings.batch.seed)
            numbers = _decompose(arrays[first][rows], arrays[second][rows], y[rows], ids[rows], settings)
            numbers |= {"missing_label": int((~known).sum()), "missing_modality": int((known & ~usable).sum())}
            pair = PairSynergy(model, task, first, second, target, settings.estimator, **numbers)
            log.info("synergy %s %s+%s: %.4f bits (null %.4f)", task, first, second, pair.synergy, pair.null_mean)
            pairs.append(pair)
    report = SynergyReport(tuple(arrays), tuple(pairs), tuple(skipped))
    for reason, count in report.skip_counts.items():
        log.warning("%d pairs without synergy estimate: %s", count, reason)
    return report


def _arrays(values: Mapping[str, ArrayLike]) -> dict[str, NDArray[Any]]:
    return {name: np.asarray(value) for name, value in values.items()}


def _check(
    features: Mapping[str, NDArray[Any]],
    labels: Mapping[str, NDArray[Any]],
    present: Mapping[str, NDArray[Any]],
    ids: NDArray[np.int64],
) -> None:
    """Raise DataError for anything whose length, type or name does not fit."""
    for name, values in features.items():
        if values.ndim != 2 or len(values) != len(ids):
            raise DataError(f"shape {values.shape}", f"features[{name!r}]", f"expected [{len(ids)}, d]")
    for name, values in labels.items():
        if values.shape != ids.shape or not np.issubdtype(values.dtype, np.integer) or (values < MISSING).any():
            raise DataError(
                f"shape {values.shape}, type {values.dtype}",
                f"labels[{name!r}]",
                f"expected [{len(ids)}] integers >= 0, -1 where missing",
            )
    for name, values in present.items():
        if name not in features or values.shape != ids.shape or values.dtype != np.bool_:
            raise DataError(
                f"shape {values.shape}, type {values.dtype}",
                f"present[{name!r}]",
                f"expected [{len(ids)}] booleans of a known modality",
            )


def _unusable(y: NDArray[Any], settings: SynergySettings) -> str:
    """Why nothing can be estimated from these labels; empty if something can."""
    if len(y) < settings.min_samples:
        return "too few rows with label and both modalities"
    if len(np.unique(y)) < 2:
        return "a single class"
    return ""


def _balanced(rows: NDArray[np.int64], y: NDArray[Any], seed: int) -> NDArray[np.int64]:
    """About as many rows drawn with replacement, equally many of every class."""
    rng = np.random.default_rng([seed, 2])
    classes = np.unique(y[rows])
    size = max(1, len(rows) // len(classes))
    return np.sort(np.concatenate([rng.choice(rows[y[rows] == label], size) for label in classes]))


def _decompose(
    x1: NDArray[Any], x2: NDArray[Any], y: NDArray[Any], ids: NDArray[np.int64], settings: SynergySettings
) -> dict[str, Any]:
    """The numbers of a :class:`PairSynergy` by name, from one estimator and these rows."""
    if settings.estimator == "batch":
        estimate = batch(x1, x2, y, patients=ids, settings=settings.batch)
        parts, total, entropy = estimate.parts(), estimate.total, estimate.target_entropy
        low, high = estimate.interval["S"] if estimate.interval else (NAN, NAN)
        draws = estimate.null["S"] if estimate.null else []
    else:
        codes = [
            cluster_features(x, clusters=settings.clusters, components=settings.components, seed=settings.batch.seed)
            for x in (x1, x2)
        ]
        exact = broja(count_table(codes[0], codes[1], y))
        parts, total, entropy = exact.parts(), exact.total, exact.target_entropy
        low = high = NAN
        rng = np.random.default_rng([settings.batch.seed, 1])
        groups = np.unique(ids, return_inverse=True)[1]
        shuffled = [permuted_labels(y, groups, rng) for _ in range(settings.batch.permutations)]
        draws = [broja(count_table(codes[0], codes[1], labels, warn=False)).synergy for labels in shuffled]
    names = ("redundancy", "unique1", "unique2", "synergy")
    return dict(zip(names, (parts[part] for part in PARTS), strict=True)) | {
        "total": total,
        "target_entropy": entropy,
        "null_mean": float(np.mean(draws)) if draws else NAN,
        "null_q95": float(np.quantile(draws, 0.95)) if draws else NAN,
        "low": low,
        "high": high,
        "permutations": settings.batch.permutations,
        "samples": len(y),
        "patients": len(np.unique(ids)),
    }
