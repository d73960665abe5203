"""Partial information decomposition of continuous or high-dimensional sources, discrete target (the BATCH estimator).

After Liang et al., "Quantifying & Modeling Multimodal Interactions", NeurIPS 2023: discriminators give p(y|x1), p(y|x2)
and p(y|x1,x2); two small networks parametrise a coupling ``q(a, c, y)`` of the samples of a batch, brought to the
prescribed marginals by Sinkhorn scaling; the coupling that minimises ``I_q(X2;Y|X1)`` gives ``I_Q``, and with it
redundancy, unique informations and synergy as in :mod:`m4oe_ds.analysis.pid.solver`.

Deviations from the published estimator, all of them options of :class:`m4oe_ds.analysis.pid.settings.BatchSettings`:

* ``balance_mass``: in a finite batch the label masses of the two sources differ, so no coupling has both marginals and
  the scaling never converges. The marginals of each label are rescaled to their common mean mass first.
* the discriminators stop early on a validation split (whole patients): an over-confident discriminator inflates every
  term. They start at the label frequencies, so a source that never helps gets exactly zero information.
* the coupling can be read from either source or both (``anchor``); evaluation uses larger batches than training,
  because a finite batch overestimates the unique informations by 0.02 to 0.05 bits at 256 samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from m4oe_ds.analysis.information import (
    LN2,
    PARTS,
    PatientSplit,
    entropy,
    parts_of,
    patient_intervals,
    patient_split,
    permuted_labels,
)
from m4oe_ds.analysis.pid.networks import Problem, batches, network, train_discriminator
from m4oe_ds.analysis.pid.settings import BatchSettings
from m4oe_ds.errors import ConfigError, DataError

Array = NDArray[Any]


@dataclass(frozen=True)
class BatchDecomposition:
    """Estimated decomposition; all values in bits.

    The four parts are *not* clipped: ``redundancy + unique1 = information1``, ``redundancy + unique2 = information2``
    and their sum is ``total`` exactly. :meth:`parts` clips at 0 for tables and figures. ``interval[part]`` is the
    percentile 95 % interval over patients (networks fixed), ``marginal_error`` the largest error left by Sinkhorn
    scaling relative to one sample's mass, ``stopped_at`` the step chosen for each discriminator (0 = label
    frequencies), ``samples`` the rows used for training, validation and estimate, ``null[part]`` the estimates with
    permuted labels, clipped at 0.
    """

    redundancy: float
    unique1: float
    unique2: float
    synergy: float
    total: float
    information1: float
    information2: float
    target_entropy: float
    marginal_error: float
    samples: tuple[int, int, int]
    stopped_at: dict[str, int] = field(default_factory=dict)
    interval: dict[str, tuple[float, float]] | None = None
    null: dict[str, list[float]] | None = None

    def parts(self, *, clip: bool = True) -> dict[str, float]:
        """The four parts by their usual letters, in bits, negative estimates set to 0 unless ``clip`` is false."""
        values = dict(zip(PARTS, (self.redundancy, self.unique1, self.unique2, self.synergy), strict=True))
        return {part: max(0.0, value) if clip else value for part, value in values.items()}


@dataclass(frozen=True)
class Conditionals:
    """True conditionals for the oracle mode, one row per sample: p(y|x1), p(y|x2), p(y|x1,x2), each ``[N, K]``."""

    given_x1: ArrayLike
    given_x2: ArrayLike
    given_both: ArrayLike


def batch(
    x1: ArrayLike,
    x2: ArrayLike,
    y: ArrayLike,
    *,
    patients: ArrayLike | None = None,
    settings: BatchSettings | None = None,
    conditionals: Conditionals | None = None,
) -> BatchDecomposition:
    """Estimate redundancy, unique informations and synergy of features about a label (Liang et al. 2023), in bits.

    Args:
        x1: ``[N, d1]`` features of the first source.
        x2: ``[N, d2]`` features of the second source.
        y: ``[N]`` integer labels in ``0..K-1``.
        patients: ``[N]`` patient ids; a patient is never on two sides of a split. Default: every row its own patient.
        settings: options, see :class:`BatchSettings`.
        conditionals: oracle mode: the true conditionals in place of discriminators; no null is possible then.

    Returns:
        Estimates on the held-out patients, with bootstrap interval and, with ``permutations``, the null. Equal
        inputs and seed give equal results on one machine with one thread count.

    Raises:
        DataError: shapes that do not match, non-finite features, bad labels or conditionals, or too few patients.
        ConfigError: contradictory settings.
    """
    settings = settings or BatchSettings()
    if conditionals is not None and settings.permutations:
        raise ConfigError("permutation null together with true conditionals", "batch", "set permutations to 0")
    sources, labels, groups = _checked(x1, x2, y, patients)
    split = patient_split(groups, settings.held_out, settings.validation, settings.seed)
    problem = _problem(sources, labels, split, conditionals, settings)
    contributions, extras = _estimate(problem, settings, settings.seed)
    rng = np.random.default_rng([settings.seed, 1])
    interval = patient_intervals(contributions, groups[split.held_out], settings.bootstrap, rng)
    null = _null(sources, labels, groups, split, settings, rng) if settings.permutations else None
    i1, i2, i12, _ = (float(value) / LN2 for value in contributions.mean(0))
    redundancy, unique1, unique2, synergy = (value / LN2 for value in parts_of(contributions.mean(0)))
    h_y = entropy(np.bincount(labels) / len(labels))
    return BatchDecomposition(
        redundancy,
        unique1,
        unique2,
        synergy,
        total=i12,
        information1=i1,
        information2=i2,
        target_entropy=h_y,
        marginal_error=extras["marginal_error"],
        samples=(len(split.train), len(split.validation), len(split.held_out)),
        stopped_at=extras["stopped_at"],
        interval=interval,
        null=null,
    )


def _null(
    sources: tuple[Array, Array],
    labels: Array,
    groups: Array,
    split: PatientSplit,
    settings: BatchSettings,
    rng: np.random.Generator,
) -> dict[str, list[float]]:
    """The parts, clipped at 0 and in bits, of as many estimates with permuted labels as the settings say."""
    draws: dict[str, list[float]] = {part: [] for part in PARTS}
    for run in range(settings.permutations):
        shuffled = permuted_labels(labels, groups, rng)
        again = _problem(sources, shuffled, split, None, settings)
        permuted, _ = _estimate(again, settings, settings.seed + 1 + run)
        for part, value in zip(PARTS, parts_of(permuted.mean(0)), strict=True):
            draws[part].append(max(0.0, value) / LN2)
    return draws


def _checked(
    x1: ArrayLike, x2: ArrayLike, y: ArrayLike, patients: ArrayLike | None
) -> tuple[tuple[Array, Array], Array, Array]:
    """Arrays of the right types; patients as codes 0..P-1."""
    labels = np.asarray(y)
    if labels.ndim != 1 or labels.size == 0 or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise DataError(
            f"shape {labels.shape}, type {labels.dtype}",
            "labels",
            "give integers >= 0, one per row; leave out rows without label",
        )
    if len(np.unique(labels)) < 2:
        raise DataError("a single class", "labels", "nothing can be said about a constant label")
    sources = []
    for name, values in (("x1", x1), ("x2", x2)):
        array = np.asarray(values, dtype=np.float64)
        if array.ndim != 2 or len(array) != len(labels) or array.shape[1] == 0:
            raise DataError(f"shape {array.shape}", name, f"expected [{len(labels)}, d]")
        if not np.isfinite(array).all():
            raise DataError("NaN or infinite features", name, "leave out rows without this modality")
        sources.append(array)
    groups = np.arange(len(labels)) if patients is None else np.unique(np.asarray(patients), return_inverse=True)[1]
    if groups.shape != labels.shape:
        raise DataError(f"{groups.size} patient ids for {labels.size} rows", "patients", "give one id per row")
    return (sources[0], sources[1]), labels.astype(np.int64), groups


def _problem(
    sources: tuple[Array, Array],
    labels: Array,
    split: PatientSplit,
    oracle: Conditionals | None,
    settings: BatchSettings,
) -> Problem:
    """Tensors on the device; features standardised with training statistics, constant features set to 0."""
    tensors = []
    for values in sources:
        mean, std = values[split.train].mean(0), values[split.train].std(0)
        tensors.append(torch.tensor((values - mean) / np.where(std > 1e-12, std, np.inf), dtype=torch.float32))
    classes = int(labels.max()) + 1
    truth = None
    if oracle is not None:
        truth = _log_truth(oracle, len(labels), classes)
        classes = truth[0].shape[1]
    device = settings.device
    x = (tensors[0].to(device), tensors[1].to(device))
    return Problem(x, torch.tensor(labels, device=device), classes, split, truth)


def _log_truth(oracle: Conditionals, rows: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log conditionals of the oracle mode, of ``rows`` samples and at least ``classes`` classes."""
    arrays = [np.asarray(v, dtype=np.float64) for v in (oracle.given_x1, oracle.given_x2, oracle.given_both)]
    for array in arrays:
        if array.ndim != 2 or len(array) != rows or array.shape[1] < classes:
            raise DataError(f"shape {array.shape}", "conditionals", f"expected [{rows}, >= {classes}]")
        if not (array >= 0).all() or np.abs(array.sum(1) - 1).max() > 1e-4:
            raise DataError("rows are not distributions", "conditionals", "every row is >= 0 and sums to 1")
    if any(array.shape[1] != arrays[0].shape[1] for array in arrays):
        raise DataError("different numbers of classes", "conditionals", "give the same K everywhere")
    logs = [torch.log(torch.tensor(array).clamp_min(1e-12)).log_softmax(1) for array in arrays]
    return logs[0], logs[1], logs[2]


def _log_sum(matrix: Tensor, potential: Tensor) -> Tensor:
    """``log(matrix @ exp(potential))`` per label: logsumexp with the bounded logits already exponentiated."""
    peak = potential.detach().amax(-1, keepdim=True)
    return torch.log((matrix @ torch.exp(potential - peak)[..., None])[..., 0]) + peak


def _sinkhorn(
    logits: Tensor, log1: Tensor, log2: Tensor, settings: BatchSettings, tolerance: float
) -> tuple[Tensor, Tensor, float]:
    """Potentials ``u [K,b], v [K,b]`` so that ``exp(logits + u + v)`` has rows p(y|x1_a) and columns p(y|x2_c).

    Log domain: ``u = log p(y|x1) - logsumexp_c(logits + v)`` and the same for ``v``. ``logits`` are bounded, so the sum
    is a matrix product with ``exp(logits)``; the unbounded potentials never leave the log domain.

    Args:
        logits: ``[K, b, b]``.
        log1: ``[K, b]`` log conditionals of the rows.
        log2: ``[K, b]`` log conditionals of the columns.
        settings: rounds and mass balance.
        tolerance: largest error of a row sum at which to stop.

    Returns:
        Potentials, each the update by the other's last value (so that normalising rows with ``v`` and columns with
        ``u`` are equally far converged), and the largest absolute error of the row sums before the last update.
    """
    if settings.balance_mass:
        mass1, mass2 = log1.logsumexp(1, keepdim=True), log2.logsumexp(1, keepdim=True)
        common = torch.logaddexp(mass1, mass2) - math.log(2.0)
        log1, log2 = log1 - mass1 + common, log2 - mass2 + common
    matrix = torch.exp(logits)
    transposed = matrix.transpose(1, 2)
    v = torch.zeros_like(log2)
    rows = _log_sum(matrix, v)
    error = math.inf
    for _ in range(settings.sinkhorn_rounds):
        u = log1 - rows
        v = log2 - _log_sum(transposed, u)
        rows = _log_sum(matrix, v)
        error = float((torch.exp(u + rows) - torch.exp(log1)).detach().abs().max())
        if error < tolerance:
            break
    return log1 - rows, v, error


def _conditional_information(logits: Tensor, other: Tensor, log_p: Tensor) -> Tensor:
    """``I_q(X_other; Y | X_anchor)`` in nats per anchor sample ``[b]``.

    With ``q(c|a,y)`` the row-normalised coupling and ``w = p(y|x_a) q(c|a,y)``:
    ``sum_{c,y} w log q(c|a,y) - sum_c W log W``, ``W(a,c) = sum_y w``.

    Args:
        logits: ``[K, b_anchor, b_other]``.
        other: ``[K, b_other]`` potential of the other source.
        log_p: ``[K, b_anchor]`` conditionals of the anchor.
    """
    log_q = (logits + other[:, None, :]).log_softmax(2)
    weight = torch.exp(log_q + log_p[..., None])
    mixture = weight.sum(0)
    return (weight * log_q).sum((0, 2)) - torch.xlogy(mixture, mixture.clamp_min(1e-30)).sum(1)


class _Alignment(nn.Module):
    """The two alignment networks and the objective of one batch."""

    def __init__(self, problem: Problem, settings: BatchSettings) -> None:
        super().__init__()
        self.settings, self.classes = settings, problem.classes
        outputs = problem.classes * settings.embedding
        self.first = network(problem.x[0].shape[1], outputs, settings)
        self.second = network(problem.x[1].shape[1], outputs, settings)

    def embed(self, half: nn.Module, x: Tensor) -> Tensor:
        """Standardised vectors ``[K, b, e]``."""
        vectors = half(x).view(len(x), self.classes, self.settings.embedding).transpose(0, 1)
        return nn.functional.layer_norm(vectors, (self.settings.embedding,))

    def forward(self, x1: Tensor, x2: Tensor, log1: Tensor, log2: Tensor) -> tuple[Tensor, Tensor, float]:
        """``I_q(X2;Y|X1)`` per row and ``I_q(X1;Y|X2)`` per column (nats, ``[b]``), and the marginal error."""
        vectors1, vectors2 = self.embed(self.first, x1), self.embed(self.second, x2)
        logits = (vectors1 @ vectors2.transpose(1, 2)) * self.settings.scale
        settings = self.settings
        tolerance = settings.sinkhorn_tolerance if self.training else settings.evaluation_tolerance
        u, v, error = _sinkhorn(logits, log1.T, log2.T, settings, tolerance)
        nothing = torch.zeros(len(x1), device=x1.device)
        anchor = settings.anchor
        by_rows = nothing if anchor == "x2" else _conditional_information(logits, v, log1.T)
        by_columns = nothing if anchor == "x1" else _conditional_information(logits.transpose(1, 2), u, log2.T)
        return by_rows, by_columns, error


def _log_conditionals(
    problem: Problem, log_prior: Tensor, settings: BatchSettings, seeds: list[int]
) -> tuple[list[Tensor], dict[str, int]]:
    """Log p(y|x1), p(y|x2) and p(y|x1,x2) of all rows, and the step at which each discriminator was kept."""
    if problem.oracle is not None:
        return [values.to(settings.device) for values in problem.oracle], {}
    logs, stopped = [], {}
    for name, x, own in zip(("x1", "x2", "both"), (*problem.x, torch.cat(problem.x, 1)), seeds, strict=True):
        values, stopped[name] = train_discriminator(x, problem, log_prior.float(), settings, own)
        logs.append(values)
    return logs, stopped


def _estimate(problem: Problem, settings: BatchSettings, seed: int) -> tuple[Array, dict[str, Any]]:
    """Contributions of the held-out rows ``[n, 4]`` in nats to I(X1;Y), I(X2;Y), I(X1,X2;Y) and I_Q, and a report."""
    seeds = [int(value) for value in np.random.SeedSequence(seed).generate_state(4)]
    train, held = torch.as_tensor(problem.split.train), torch.as_tensor(problem.split.held_out)
    counts = torch.bincount(problem.y[train], minlength=problem.classes).double().clamp_min(0.5)
    log_prior = torch.log(counts / counts.sum())
    logs, stopped = _log_conditionals(problem, log_prior, settings, seeds[:3])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seeds[3])
        alignment = _Alignment(problem, settings)
    optimizer = torch.optim.Adam(alignment.parameters(), lr=settings.learning_rate)
    generator = torch.Generator().manual_seed(seeds[3])
    short = [values.float() for values in logs]

    def couple(rows: Tensor) -> tuple[Tensor, Tensor, float]:
        result: tuple[Tensor, Tensor, float] = alignment(
            problem.x[0][rows], problem.x[1][rows], short[0][rows], short[1][rows]
        )
        return result

    for index in batches(len(train), settings.batch_size, settings.alignment_steps, generator):
        by_rows, by_columns, _ = couple(train[index])
        optimizer.zero_grad()
        (by_rows.mean() + by_columns.mean()).backward()
        optimizer.step()
    if settings.mi == "soft":
        single = [(torch.exp(v[held]) * (v[held] - log_prior)).sum(1) for v in logs]
    else:
        label = problem.y[held]
        single = [v[held].gather(1, label[:, None])[:, 0] - log_prior[label] for v in logs]
    alignment.eval()
    i_q, error = torch.zeros(len(held), dtype=torch.float64), 0.0
    order = np.random.default_rng(seed).permutation(len(held))
    for chunk in np.array_split(order, math.ceil(len(held) / settings.evaluation_batch)):
        index = torch.as_tensor(chunk)
        with torch.no_grad():
            by_rows, by_columns, left = couple(held[index])
        from_x1, from_x2 = by_rows.double() + single[0][index], by_columns.double() + single[1][index]
        weight = {"x1": 1.0, "x2": 0.0, "mean": 0.5}[settings.anchor]
        i_q[index] = (weight * from_x1 + (1 - weight) * from_x2).cpu()
        error = max(error, left)
    contributions = torch.stack([*(values.cpu() for values in single), i_q], 1).numpy()
    return contributions, {"marginal_error": error, "stopped_at": stopped}
