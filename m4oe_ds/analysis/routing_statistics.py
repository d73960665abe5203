"""Utilisation, contribution and expert use read from the routing of any mixture layer over the tokens of all
modalities.

Letters: B samples b, m modalities i, M tokens t, n experts j, p slots per expert k (tasks where the layer has task
slots); D dispatch and C combine weights. All of it follows from two small tensors per batch, so one pass in constant
memory does:

    W[b,i,j,k] = sum_{t of i} D[b,t,j,k]      (sums to 1 over i)        V[b,j,k] = sum_t C[b,t,j,k]
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from m4oe_ds.analysis.information import entropy, normalised_entropy
from m4oe_ds.errors import DataError
from m4oe_ds.layers.routing import Routing
from m4oe_ds.models.interface import ModelOutput, ModelSpec

Table = NDArray[np.float64]
Slots = Literal["task", "shared"]


@dataclass(frozen=True)
class RoutingView:
    """What the analyses read from one layer and batch.

    Attributes:
        layer: name in ``ModelOutput.routing``.
        tasks: task of every slot column k; empty if slots belong to no task.
        mass: W ``[B, m, n, p]``.
        weight: V ``[B, n, p]``.
        tokens: ``[B]`` tokens that take part.
    """

    layer: str
    tasks: tuple[str, ...]
    mass: Tensor
    weight: Tensor
    tokens: Tensor

    @property
    def slots(self) -> Slots:
        """Whether every slot column belongs to one task."""
        return "task" if self.tasks else "shared"

    def contribution(self) -> Tensor:
        """Share of each modality ``[B, p, m]`` (task slots) or ``[B, 1, m]`` (shared slots); rows sum to 1.

        c[b,k,i] = sum_j e[b,j,k] W[b,i,j,k],  e[b,j,k] = V[b,j,k] / sum_j' V[b,j',k]        (M4oE Fig. 5)

        Shared slots have no task axis: e is normalised over experts and slots together, and every task gets the same
        answer. Routing mass is not causal importance: compare with :func:`m4oe_ds.analysis.attribution.ablation`.
        """
        axes = (1,) if self.tasks else (1, 2)
        share = self.weight / self.weight.sum(axes, keepdim=True).clamp_min(torch.finfo(self.weight.dtype).tiny)
        found = torch.einsum("bjk,bijk->bki", share, self.mass)
        return found if self.tasks else found.sum(1, keepdim=True)


def routing_view(output: ModelOutput, lengths: Sequence[int], spec: ModelSpec) -> RoutingView | None:
    """The layer of a model in which modalities meet experts, or None if the model has none.

    In this order: the MToE (task slots); the last layer over the tokens of all modalities (plain Soft-MoE: slots shared
    by the tasks); the last fusion layer over one token per modality, applied to each task (ablation without MToE).

    Args:
        output: the model's output of one forward.
        lengths: tokens of each modality, as encoded, in order.
        spec: specification of the model.
    """
    found = output.routing.get("mtoe")
    if found is not None and output.modality_of_token is not None:
        return view_of("mtoe", found, output.modality_of_token, spec.task_names, len(spec.modalities))
    count = len(spec.modalities)
    of_token = torch.repeat_interleave(torch.arange(count), torch.tensor(list(lengths)))
    classify = tuple(task.name for task in spec.tasks if not task.dense)
    rows = len(next(iter(output.logits.values())))
    over_tokens, over_modalities = [], []
    for name, routing in output.routing.items():
        size, length = routing.logits.shape[:2]
        if length == len(of_token) and size == rows and not name.startswith("msoe."):
            over_tokens.append((name, routing))
        elif length == count + 1 and size == rows * len(classify):
            over_modalities.append((name, routing))
    if over_tokens:
        name, routing = over_tokens[-1]
        return view_of(name, routing, of_token.to(routing.logits.device), (), count)
    if over_modalities:
        return _per_task(*over_modalities[-1], classify, rows)
    return None


def view_of(
    layer: str, routing: Routing, modality_of_token: Tensor, tasks: tuple[str, ...], num_modalities: int
) -> RoutingView:
    """View of a layer whose tokens are those of all modalities.

    Args:
        routing: ``[B, M, n, p]``.
        modality_of_token: ``[M]`` integers, in any order.
        tasks: names of the tasks of the p slots, or empty.
    """
    dispatch, combine = routing.dispatch, routing.combine
    batch, length, experts, slots = dispatch.shape
    mass = dispatch.new_zeros(batch, num_modalities, experts, slots).index_add(1, modality_of_token, dispatch)
    present = routing.token_mask
    tokens = dispatch.new_full((batch,), length) if present is None else present.sum(1).to(dispatch.dtype)
    return RoutingView(layer, tasks, mass, combine.sum(1), tokens)


def _per_task(layer: str, routing: Routing, tasks: tuple[str, ...], batch: int) -> RoutingView:
    """View of a layer over [task token; one token per modality] whose rows are (sample, task): rows become columns k.

    The task token belongs to no modality: W is normalised over the others.
    """
    mass = routing.dispatch[:, 1:].flatten(2).unflatten(0, (batch, len(tasks)))  # [B, p, m, n]
    mass = (mass / mass.sum(2, keepdim=True).clamp_min(torch.finfo(mass.dtype).tiny)).permute(0, 2, 3, 1)
    weight = routing.combine.sum(1).flatten(1).unflatten(0, (batch, len(tasks))).transpose(1, 2)  # [B, n, p]
    mask = routing.token_mask
    length = routing.logits.shape[1]
    tokens = mass.new_full((batch,), length) if mask is None else mask.unflatten(0, (batch, -1))[:, 0].sum(1)
    return RoutingView(layer, tasks, mass, weight, tokens.to(mass.dtype))


class RoutingSums:
    """Running sums over batches that give every population value; of one size for any number of samples."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.layer, self.tasks = "", tuple[str, ...]()
        self.samples, self.tokens = 0, 0.0
        self._mass: Tensor | None = None  # [m, n, p]
        self._weight: Tensor | None = None  # [n, p]
        self._contribution: Tensor | None = None  # [q, m]
        self._labelled: Tensor | None = None  # [q]

    def add(self, view: RoutingView, valid: Tensor, label_mask: Tensor) -> None:
        """Adds the valid samples of a batch.

        Args:
            valid: ``[B]`` bool.
            label_mask: ``[B, p]`` bool, columns in the order of the specification's tasks: the population contribution
                of a task is the mean over its labelled samples.
        """
        mass, weight = view.mass[valid].double(), view.weight[valid].double()
        share = view.contribution()[valid].double()  # [V, q, m]
        if view.tasks:
            columns = [self.spec.task_names.index(name) for name in view.tasks]
            known = label_mask[valid][:, columns].double()
        else:
            known = share.new_ones(share.shape[:2])
        parts = mass.sum(0), weight.sum(0), torch.einsum("vqm,vq->qm", share, known), known.sum(0)
        if self._mass is None:
            self.layer, self.tasks = view.layer, view.tasks
            self._mass, self._weight, self._contribution, self._labelled = (part.cpu() for part in parts)
        else:
            for total, part in zip((self._mass, self._weight, self._contribution, self._labelled), parts, strict=True):
                assert total is not None
                total += part.cpu()
        self.samples += int(valid.sum())
        self.tokens += float(view.tokens[valid].double().sum())

    def reduce(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Replaces this rank's sums by those over all ranks; how experts are shared out makes no difference to them.

        Args:
            sum_over_ranks: sums a tensor elementwise over the ranks.

        Collectives: one all-reduce of m n p + n p + q m + q + 2 numbers; every rank must have added a batch, or none.
        """
        if self._mass is None or self._weight is None or self._contribution is None or self._labelled is None:
            return
        parts = [self._mass, self._weight, self._contribution, self._labelled]
        sizes = self._mass.new_tensor([float(self.samples), self.tokens])
        total = sum_over_ranks(torch.cat([*(part.flatten() for part in parts), sizes]))
        *values, sizes = total.cpu().split([*(part.numel() for part in parts), 2])
        reduced = (value.view_as(part) for value, part in zip(values, parts, strict=True))
        self._mass, self._weight, self._contribution, self._labelled = reduced
        self.samples, self.tokens = int(sizes[0]), float(sizes[1])

    @property
    def empty(self) -> bool:
        """No sample was added: the model has no such layer."""
        return self._mass is None

    def result(self) -> dict[str, Any]:
        """Population values; arrays named with their axes, ``float64``.

        Returns:
            ``layer``, ``slots``, ``tasks``, ``samples``; ``utilisation_ij`` (mean over samples and slots of W),
            ``utilisation_i`` (mean over experts; sums to 1), ``utilisation_ik`` (mean over experts, per slot column),
            ``utilisation_entropy`` (1 = all modalities alike), ``utilisation_largest``; ``information_k``
            (:func:`modality_information`); ``contribution_ki`` (zeros for a task without labels; one row for shared
            slots); ``expert_mass_jk`` (mean over samples and tokens of C) and,
            for task slots, :func:`expert_dependency` of it.

        Raises:
            DataError: nothing was added.
        """
        if self._mass is None or self._weight is None or self._contribution is None or self._labelled is None:
            raise DataError("no routing to summarise", fix="choose a model with a mixture layer over all modalities")
        mass = (self._mass / self.samples).numpy()
        used = mass.mean((1, 2))
        found: dict[str, Any] = {
            "layer": self.layer,
            "slots": "task" if self.tasks else "shared",
            "tasks": self.tasks,
            "samples": self.samples,
            "utilisation_ij": mass.mean(2),
            "utilisation_i": used,
            "utilisation_ik": mass.mean(1),
            "utilisation_entropy": normalised_entropy(used),
            "utilisation_largest": float(used.max()),
            "information_k": modality_information(mass),
            "contribution_ki": (self._contribution / self._labelled.clamp_min(1.0)[:, None]).numpy(),
            "labelled_k": self._labelled.numpy(),
            "expert_mass_jk": (self._weight / self.tokens).numpy(),
        }
        if self.tasks:
            found |= expert_dependency(found["expert_mass_jk"])
        return found


def modality_information(mass: ArrayLike) -> np.ndarray:
    """I(M; E | T = k) of the population in nats, ``[p]``: the mutual information of the mean dispatch mass.

    Args:
        mass: ``[m, n, p]`` dispatch mass of modality i in expert j and slot column k, averaged over samples.
    """
    table = np.asarray(mass, dtype=np.float64)
    joint = table / table.sum((0, 1), keepdims=True)
    independent = joint.sum(1, keepdims=True) * joint.sum(0, keepdims=True)
    ratio = np.divide(joint, independent, out=np.ones_like(joint), where=joint > 0)
    return np.asarray((joint * np.log(ratio)).sum((0, 1)))


def expert_dependency(mass: ArrayLike) -> dict[str, Any]:
    """P(E_j | T_k) and its sparsity (M4oE Fig. 6b).

    Args:
        mass: ``[n, p]`` non-negative use of expert j by task k.

    Returns:
        ``p_expert_given_task_jk`` with columns that sum to 1; per task ``sparsity_entropy_k`` (H / log n: 1 = all
        experts alike), ``sparsity_hoyer_k`` and ``sparsity_gini_k`` (0 = all alike); ``task_divergence_bits``, the mean
        Jensen-Shannon divergence of two columns (0 = all tasks use the same experts, at most 1; NaN for one task).

    Raises:
        DataError: negative or non-finite values.
    """
    table = np.asarray(mass, dtype=np.float64)
    if table.ndim != 2 or not np.isfinite(table).all() or (table < 0).any():
        raise DataError(f"shape {table.shape}, or values below 0 or not finite", "expert mass", "give [n, p] >= 0")
    total = table.sum(0)
    share = np.divide(table, total, out=np.zeros_like(table), where=total > 0)
    used = [k for k in range(table.shape[1]) if total[k] > 0]
    pairs = [jensen_shannon(share[:, a], share[:, b]) for a, b in itertools.combinations(used, 2)]
    return {
        "p_expert_given_task_jk": share,
        "sparsity_entropy_k": np.array([normalised_entropy(column) for column in table.T]),
        "sparsity_hoyer_k": np.array([hoyer(column) for column in table.T]),
        "sparsity_gini_k": np.array([gini(column) for column in table.T]),
        "task_divergence_bits": float(np.mean(pairs)) if pairs else float("nan"),
    }


def hoyer(weights: ArrayLike) -> float:
    """Hoyer's sparsity ``(sqrt n - |x|_1 / |x|_2) / (sqrt n - 1)``: 0 = even, 1 = one entry; NaN for n < 2 or all 0."""
    x = np.asarray(weights, dtype=np.float64)
    norm = float(np.sqrt((x**2).sum()))
    if x.size < 2 or norm == 0:
        return float("nan")
    return float((np.sqrt(x.size) - np.abs(x).sum() / norm) / (np.sqrt(x.size) - 1.0))


def gini(weights: ArrayLike) -> float:
    """Gini coefficient ``sum_i (2 i - n - 1) x_(i) / (n sum x)``: 0 = even, (n-1)/n = one entry; NaN for n < 2 or all
    0.
    """
    x = np.sort(np.asarray(weights, dtype=np.float64))
    if x.size < 2 or x.sum() == 0:
        return float("nan")
    rank = 2.0 * np.arange(1, x.size + 1) - x.size - 1.0
    return float((rank * x).sum() / (x.size * x.sum()))


def jensen_shannon(p: ArrayLike, q: ArrayLike) -> float:
    """Jensen-Shannon divergence of two distributions in bits, between 0 and 1.

    Raises:
        DataError: not probability vectors.
    """
    a, b = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    return max(0.0, entropy((a + b) / 2) - (entropy(a) + entropy(b)) / 2)
