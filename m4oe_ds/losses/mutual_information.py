"""Conditional mutual information I(M;E|T) between modality and expert given the task, from router logits.

The paper's equations 3 to 6 cannot be used as printed (raw logits, free indices); docs/decisions/0002 derives the form
implemented here. P(M,E|T) is the mass that a softmax of the logits puts on the tokens of each modality.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from m4oe_ds.errors import ShapeError
from m4oe_ds.layers.reduction import ONE_RANK, Reduce, Reduction

Source = Literal["dispatch", "gate", "joint", "combine"]
Aggregate = Literal["batch", "sample"]
TaskWeight = Literal["prior", "sum"]


@dataclass(frozen=True)
class InformationOptions:
    """Which of the information terms is meant.

    Attributes:
        source: what P(M,E|T) is made of, see :func:`modality_expert_probability`.
        aggregate: ``batch``: I_k of the average of P_b over the samples labelled for task k. ``sample``: average over
            those samples of the I_k of each; needs no communication for its gradient.
        task_weight: ``prior`` weights I_k by P(T_k) (bounded by log m); ``sum`` adds the I_k (M4oE eq. 6 as printed).
        task_prior: P(T) ``[p]``; None = the share of labels of each task in the (global) batch.

    Raises:
        ValueError: unknown ``aggregate`` or ``task_weight``; an unknown source is found where it is used.
    """

    source: Source = "dispatch"
    aggregate: Aggregate = "batch"
    task_weight: TaskWeight = "prior"
    task_prior: Tensor | None = None

    def __post_init__(self) -> None:
        if self.aggregate not in ("batch", "sample"):
            raise ValueError(f"aggregate must be batch or sample, got {self.aggregate!r}")
        if self.task_weight not in ("prior", "sum"):
            raise ValueError(f"task_weight must be prior or sum, got {self.task_weight!r}")


def modality_expert_probability(
    logits: Tensor | Callable[[], Tensor],
    modality_of_token: Tensor,
    num_modalities: int,
    *,
    source: Source = "dispatch",
    token_mask: Tensor | None = None,
    mass: Tensor | None = None,
) -> Tensor:
    """P_b(i, j | k): joint distribution of modality and expert given the task, for every sample.

    A_b(i,j,k) = sum over tokens t of modality i of R[b,t,j,k];   P_b(i,j|k) = A_b(i,j,k) / sum_{i',j'} A_b(i',j',k)

    R is a softmax of the logits over tokens (``dispatch``), over experts (``gate``), over tokens and experts together
    (``joint``), or over experts and tasks together (``combine``).

    Args:
        logits: ``[B, M, n, p]``, or a function that makes them.
        modality_of_token: ``[M]`` integers below ``num_modalities``.
        num_modalities: m.
        source: which softmax R is.
        token_mask: ``[B, M]`` bool, True = token takes part.
        mass: A_b of source ``dispatch`` ``[B, m, n, p]`` where the layer has computed it; then no logits are needed.

    Returns:
        ``[B, m, n, p]`` in float32 (float64 for float64 logits); sums to 1 over (m, n).

    Raises:
        ShapeError: ranks or sizes disagree.
        ValueError: unknown source.
    """
    if mass is not None and source == "dispatch":
        total = mass.sum(dim=(1, 2), keepdim=True)
        return mass / total.clamp_min(torch.finfo(mass.dtype).tiny)
    if callable(logits):
        logits = logits()
    if logits.ndim != 4 or modality_of_token.shape != logits.shape[1:2]:
        raise ShapeError(
            f"logits [B, M, n, p] {tuple(logits.shape)} and modality_of_token [M] {tuple(modality_of_token.shape)}"
        )
    weights = _softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), source, token_mask)
    batch, _, experts, tasks = logits.shape
    mass = weights.new_zeros(batch, num_modalities, experts, tasks).index_add(1, modality_of_token, weights)
    total = mass.sum(dim=(1, 2), keepdim=True)  # dispatch: n; gate: tokens; joint: 1; combine: depends on the sample
    return mass / total.clamp_min(torch.finfo(mass.dtype).tiny)


def _softmax(logits: Tensor, source: Source, token_mask: Tensor | None) -> Tensor:
    """R ``[B, M, n, p]``; tokens that do not take part have no weight in it."""
    if token_mask is not None:
        masked = ~token_mask[:, :, None, None]
        logits = logits.masked_fill(masked, torch.finfo(logits.dtype).min)
    if source == "dispatch":
        weights = logits.softmax(dim=1)
    elif source == "gate":
        weights = logits.softmax(dim=2)
    elif source == "joint":
        weights = logits.flatten(1, 2).softmax(dim=1).view_as(logits)
    elif source == "combine":
        weights = logits.flatten(2, 3).softmax(dim=2).view_as(logits)
    else:
        raise ValueError(f"source must be dispatch, gate, joint or combine, got {source!r}")
    if token_mask is not None and source in ("gate", "combine"):
        weights = weights.masked_fill(masked, 0.0)  # rows of absent tokens carry no mass
    return weights


def information(probability: Tensor) -> Tensor:
    """I(M;E) in nats of ``probability [..., m, n, p]``, one value per leading index and task: ``[..., p]``, float64.

    sum_ij P_ij log r with r = P_ij / (P_i P_j), written as sum_ij P_i P_j (r log r - r + 1) - (s^2 - s), s = sum_ij
    P_ij: the same number, but every term is non-negative and second order in the dependence, so that it is exactly 0 at
    independence and accurate where I is 1e-6 nats. Cells without mass give 0 and a zero (not infinite) gradient.
    """
    p = probability.double()
    tiny = torch.finfo(p.dtype).tiny
    p = p / p.sum(dim=(-3, -2), keepdim=True).clamp_min(tiny)
    of_modality = p.sum(dim=-2, keepdim=True)  # [..., m, 1, p]
    of_expert = p.sum(dim=-3, keepdim=True)  # [..., 1, n, p]
    product = of_modality * of_expert
    ratio = p / product.clamp_min(tiny)
    cells = ratio * ratio.clamp_min(tiny).log() - ratio + 1.0
    return (product * cells).sum(dim=(-3, -2))


def conditional_mutual_information(
    logits: Tensor | Callable[[], Tensor],
    modality_of_token: Tensor,
    *,
    mass: Tensor | None = None,
    label_mask: Tensor | None = None,
    task_prior: Tensor | None = None,
    source: Source = "dispatch",
    aggregate: Aggregate = "batch",
    task_weight: TaskWeight = "prior",
    token_mask: Tensor | None = None,
    num_modalities: int | None = None,
    reduce: Reduce | None = None,
    world: int = 1,
) -> Tensor:
    """I(M;E|T) = sum_k P(T_k) I_k in nats; subtract alpha times it from the loss (M4oE eq. 6 and 7 as resolved).

    Args:
        logits: router logits ``[B, M, n, p]``, or a function that makes them.
        modality_of_token: ``[M]`` integers.
        mass: see :func:`modality_expert_probability`.
        label_mask: ``[B, p]`` bool or float, 1 = sample counts for task k; default all.
        task_prior: see :class:`InformationOptions`.
        source: see :class:`InformationOptions`.
        aggregate: see :class:`InformationOptions`.
        task_weight: see :class:`InformationOptions`.
        token_mask: ``[B, M]`` bool, False for tokens of an absent modality.
        num_modalities: m; default the largest value in ``modality_of_token`` + 1 (costs a device synchronisation).
        reduce: see :class:`Reduction`.
        world: see :class:`Reduction`.

    Returns:
        Scalar float32 (float64 for float64 logits) in nats, in [0, min(log m, log n)] with ``task_weight="prior"``.

    Raises:
        ShapeError: ranks or sizes disagree.
        ValueError: unknown option.
    """
    options = InformationOptions(source, aggregate, task_weight, task_prior)
    modalities = int(modality_of_token.max()) + 1 if num_modalities is None else num_modalities
    probability = modality_expert_probability(
        logits, modality_of_token, modalities, source=source, token_mask=token_mask, mass=mass
    )
    return information_given_task(probability, label_mask, options, Reduction(reduce, world))


def information_given_task(
    probability: Tensor, label_mask: Tensor | None, options: InformationOptions, reduction: Reduction = ONE_RANK
) -> Tensor:
    """I(M;E|T) of the distributions of :func:`modality_expert_probability`.

    Args:
        probability: ``[B, m, n, p]``, P_b of every sample.
        label_mask: ``[B, p]`` bool or float, 1 = sample counts for task k; None = all.
        options: which term is computed.
        reduction: ranks over which the sums run.

    Returns:
        Scalar in the dtype of ``probability``.

    Raises:
        ShapeError: ``label_mask`` is not ``[B, p]``.
    """
    dtype = probability.dtype
    probability = probability.double()  # the reductions below are small, the signal is too
    batch, tasks = probability.shape[0], probability.shape[3]
    if label_mask is None:
        mask = probability.new_ones(batch, tasks)
    elif label_mask.shape == (batch, tasks):
        mask = label_mask.to(probability.dtype)
    else:
        raise ShapeError(f"label_mask must be [{batch}, {tasks}], got {tuple(label_mask.shape)}")

    counts = mask.sum(0)  # [p]
    if options.aggregate == "batch":
        local = torch.einsum("bk,bijk->ijk", mask, probability)
        total, counts = reduction.total(local, counts)
        per_task = information(total / counts.clamp_min(1.0))  # [p]
    else:
        local = torch.einsum("bk,bk->k", mask, information(probability))
        total, counts = reduction.total(local, counts)
        per_task = total / counts.clamp_min(1.0)
    # index 0 of an unlabelled task is 0/1 = 0 mass: its information is finite, its weight 0
    return (_task_weights(counts, per_task, options) * per_task).sum().to(dtype)


def _task_weights(counts: Tensor, per_task: Tensor, options: InformationOptions) -> Tensor:
    """``[p]`` in the dtype of ``per_task``, 0 for tasks without labels."""
    labelled = (counts > 0).to(per_task.dtype)
    if options.task_weight == "sum":
        return labelled
    if options.task_prior is not None:
        return options.task_prior.to(per_task) * labelled
    return counts / counts.sum().clamp_min(1.0)


def official_token_task_information(logits: Tensor) -> Tensor:
    """Mutual information between token and task slot, as the authors' release computes it; summed over the batch.

    One softmax over all (token, expert, slot) of a sample, experts summed out, tokens not grouped by modality:
    I(token; T), not I(M;E|T). Offered for parity with that release only (``mutual_information.source: official``).

    Args:
        logits: ``[B, M, n, p]``.

    Returns:
        Scalar in nats, not negated.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    joint = logits.flatten(1).softmax(dim=1).view_as(logits).sum(dim=2)  # [B, M, p]
    return information(joint[..., None]).sum().to(logits.dtype)
