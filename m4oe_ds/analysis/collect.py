"""One streaming pass over a split that gathers everything the analyses need from a trained model.

Population values are running sums over all samples. Values per sample (modality shares; mean-pooled features for probes
and information decomposition) are kept of a limited number only, chosen by their keys. So memory does not grow with
the split.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from m4oe_ds.analysis.attribution import ablation, recorded_attention, rollout, saliency
from m4oe_ds.analysis.expert_task import ExpertTaskSums, expert_outputs, mixture_of
from m4oe_ds.analysis.routing_statistics import RoutingSums, routing_view
from m4oe_ds.data.batch import Batch
from m4oe_ds.errors import DataError
from m4oe_ds.layers.block import MToEBlock
from m4oe_ds.models.interface import ModelOutput, ModelSpec, MultiModalModel, Tokens
from m4oe_ds.models.towers import SoftMoETower

Array = np.ndarray
MOST_ROWS = 20_000  # samples whose shares are kept by default


@dataclass
class Features:
    """Mean-pooled features of a split, rows in the order of the stream.

    Attributes:
        keys: ``[N]`` sample keys.
        groups: ``[N]`` patients of the samples.
        present: ``[N, m]`` bool.
        labels: ``{task: [N] int64}`` of classification tasks, -1 missing.
        predicted: ``{task: [N] int64}`` of classification tasks, -1 missing.
        encoder: ``{modality: [N, d_i]}`` of the embedder alone.
        task: ``{task: {modality: [N, d]}}`` of the tokens of the modality in the task's representation.
        representation: what ``task`` holds: ``mtoe`` (G_k), ``tower`` (Soft-MoE tower) or ``encoder``.
        means: mean encoder output over the present samples, as :class:`Tokens` of one row.
    """

    keys: Array
    groups: Array
    present: Array
    labels: dict[str, Array]
    predicted: dict[str, Array]
    encoder: dict[str, Array]
    task: dict[str, dict[str, Array]]
    representation: str
    means: Tokens


@dataclass
class Collected:
    """Result of :func:`collect`.

    Attributes:
        samples: all that were seen; the N rows below are all of them or a sample.
        uniform: ``[m]`` mean over all samples of ``token_share``.
        keys: ``[N]`` sample keys.
        groups: ``[N]`` patients of the samples.
        present: ``[N, m]`` bool.
        token_share: ``[N, m]`` share of uniform routing.
        labels: ``{task: [N]}``, -1 missing.
        predicted: ``{task: [N]}``, -1 missing.
        contribution: ``[N, p, m]`` routing shares, or None.
        rollout: ``[N, p, m]`` attention-rollout shares, or None.
        saliency: ``[N, p, m]`` saliency shares.
        divergence: ``[N, p, m]`` of :class:`m4oe_ds.analysis.attribution.Ablation`.
        loss_increase: ``[N, p, m]`` of :class:`m4oe_ds.analysis.attribution.Ablation`.
        routing: population values of :meth:`RoutingSums.result`, or None.
        experts: result of :meth:`ExpertTaskSums.result`.
        features: see :class:`Features`.
    """

    samples: int
    uniform: Array
    keys: Array
    groups: Array
    present: Array
    token_share: Array
    labels: dict[str, Array]
    predicted: dict[str, Array]
    contribution: Array | None
    rollout: Array | None
    saliency: Array
    divergence: Array
    loss_increase: Array
    routing: dict[str, Any] | None
    experts: dict[str, Any] | None
    features: Features


@contextmanager
def _task_tokens(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Collects the tokens from which tasks are answered: ``mtoe [B, p, M, d]`` or ``tower [B, M, d]`` over all
    modalities.
    """
    found: dict[str, Tensor] = {}
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, MToEBlock):
            handles.append(module.register_forward_hook(lambda _m, _a, out: found.__setitem__("mtoe", out[0])))
        elif isinstance(module, SoftMoETower) and name == "tower":
            handles.append(module.register_forward_hook(lambda _m, _a, out: found.__setitem__("tower", out[0])))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


class _Rows:
    """Named per-sample arrays of the valid rows, in the order of the stream: all, or a sample of at most ``limit``.

    The sample is that of the smallest hashes of the keys, so it depends on neither order nor batch size, and no more
    than twice ``limit`` rows are ever held.
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit, self.count, self.seen = limit, 0, 0
        self._columns: dict[str, list[Array]] = {}
        self._ranks: list[Array] = []

    def add(self, valid: Tensor, columns: Mapping[str, Tensor | Array]) -> None:
        """Adds the valid rows of ``columns``, among them ``key``."""
        keep = valid.nonzero().flatten().cpu()
        for name, value in columns.items():
            rows = value[keep.numpy()] if isinstance(value, np.ndarray) else value.detach()[keep.to(value.device)].cpu()
            self._columns.setdefault(name, []).append(rows if isinstance(rows, np.ndarray) else rows.numpy())
        if self.limit:
            hashes = [blake2b(str(key).encode(), digest_size=8).digest() for key in self._columns["key"][-1]]
            self._ranks.append(np.array([int.from_bytes(value, "big") for value in hashes], dtype=np.uint64))
        self.count += len(keep)
        self.seen += len(keep)
        if self.limit and self.count > 2 * self.limit:
            self._prune()

    def _prune(self) -> None:
        ranks = np.concatenate(self._ranks)
        chosen = np.sort(np.argsort(ranks, kind="stable")[: self.limit])
        self._columns = {name: [np.concatenate(parts)[chosen]] for name, parts in self._columns.items()}
        self._ranks, self.count = [ranks[chosen]], len(chosen)

    def get(self, name: str) -> Array:
        """The column, one row per sample kept."""
        if self.limit and self.count > self.limit:
            self._prune()
        return np.concatenate(self._columns[name])


class FeatureCollector:
    """Gathers :class:`Features` from forwards.

    Args:
        spec: specification of the model.
        tasks: whose representations are kept.
        limit: most rows to keep, 0 = all; the means use all.
    """

    def __init__(self, spec: ModelSpec, tasks: Iterable[str], limit: int = 0) -> None:
        self.spec, self.tasks = spec, tuple(tasks)
        self._rows = _Rows(limit)
        self._sums: dict[str, Tensor] = {}
        self._map_sums: dict[str, list[Tensor]] = {}
        self._counts = torch.zeros(len(spec.modalities), dtype=torch.float64)
        self._representation = "encoder"

    def add(self, batch: Batch, tokens: Tokens, output: ModelOutput, task_tokens: Mapping[str, Tensor]) -> None:
        """Adds the valid samples of a batch."""
        columns: dict[str, Tensor | Array] = {
            "key": np.array(batch.keys),
            "group": np.array(batch.groups),
            "present": batch.present,
        }
        lengths = [tokens.by_modality[name].shape[1] for name in self.spec.modalities]
        for i, name in enumerate(self.spec.modalities):
            value = tokens.by_modality[name].detach()
            columns[f"encoder.{name}"] = value.float().mean(1)
            rows = batch.valid & batch.present[:, i]
            self._counts[i] += float(rows.sum())
            total = value[rows].double().sum(0).cpu()
            self._sums[name] = total + self._sums.get(name, 0)
            if name in tokens.maps:
                parts = [stage.detach()[rows].double().sum(0).cpu() for stage in tokens.maps[name]]
                before = self._map_sums.get(name)
                self._map_sums[name] = parts if before is None else [a + b for a, b in zip(before, parts, strict=True)]
        self._representation = next((name for name in ("mtoe", "tower") if name in task_tokens), "encoder")
        for name in self.tasks:
            k = self.spec.task_names.index(name)
            for modality, value in self._pooled(k, lengths, columns, task_tokens).items():
                columns[f"task.{name}.{modality}"] = value
        for k, task in enumerate(self.spec.tasks):
            if task.coded:
                columns[f"predicted.{task.name}"] = output.logits[task.name].argmax(1)
                labels = batch.labels[task.name]
                columns[f"label.{task.name}"] = torch.where(batch.label_mask[:, k], labels, torch.full_like(labels, -1))
        self._rows.add(batch.valid, columns)

    def _pooled(
        self, k: int, lengths: list[int], columns: Mapping[str, Any], task_tokens: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        if self._representation == "encoder":
            return {name: columns[f"encoder.{name}"] for name in self.spec.modalities}
        h = task_tokens[self._representation].detach()
        h = h[:, k] if h.ndim == 4 else h
        return {
            name: part.float().mean(1) for name, part in zip(self.spec.modalities, h.split(lengths, 1), strict=True)
        }

    def result(self) -> Features:
        """All rows.

        Raises:
            DataError: no sample was added.
        """
        if not self._rows.seen:
            raise DataError("no samples to analyse", fix="check that the split has samples")
        get = self._rows.get
        classify = [task.name for task in self.spec.tasks if task.coded]
        count = {name: max(float(c), 1.0) for name, c in zip(self.spec.modalities, self._counts, strict=True)}
        means = Tokens(
            {name: (total / count[name]).float()[None] for name, total in self._sums.items()},
            torch.ones(1, len(count), dtype=torch.bool),
            {name: [(p / count[name]).float()[None] for p in parts] for name, parts in self._map_sums.items()},
        )
        return Features(
            keys=get("key"),
            groups=get("group"),
            present=get("present"),
            labels={name: get(f"label.{name}").astype(np.int64) for name in classify},
            predicted={name: get(f"predicted.{name}").astype(np.int64) for name in classify},
            encoder={name: get(f"encoder.{name}") for name in self.spec.modalities},
            task={t: {name: get(f"task.{t}.{name}") for name in self.spec.modalities} for t in self.tasks},
            representation=self._representation,
            means=means,
        )


@torch.no_grad()
def collect_features(
    model: MultiModalModel, batches: Iterable[Batch], tasks: Iterable[str], device: torch.device, limit: int = 0
) -> Features:
    """Features of a split from forwards alone.

    Args:
        model: a model in evaluation mode, on ``device``.
        tasks: see :class:`FeatureCollector`.
        limit: see :class:`FeatureCollector`.

    Raises:
        DataError: no samples.
    """
    collector = FeatureCollector(model.spec, tasks, limit)
    with _task_tokens(model) as task_tokens:
        for host in batches:
            batch = host.to(device, torch.float32)
            tokens = model.encode(batch)
            output = model.predict(model.fuse(tokens, batch))
            collector.add(batch, tokens, output, task_tokens)
    return collector.result()


@dataclass
class _Pass:
    """Accumulators of :func:`collect`."""

    spec: ModelSpec
    features: FeatureCollector
    sums: RoutingSums
    experts: ExpertTaskSums
    rows: _Rows
    token_share: Array | float = 0.0  # running sum
    has_routing: bool = False
    has_rollout: bool = False


def collect(
    model: MultiModalModel,
    batches: Iterable[Batch],
    tasks: Iterable[str],
    device: torch.device,
    limit: int = 0,
    most_rows: int = MOST_ROWS,
) -> Collected:
    """Routing sums, expert dependency, modality shares of every sample and features, in one pass.

    Per batch: one forward with a graph, two backwards per task (to the pixels, and to the expert outputs) and one
    forward per modality left out.

    Args:
        model: a model in evaluation mode, on ``device``.
        tasks: whose representations are kept.
        limit: most rows of features, 0 = all.
        most_rows: most samples whose shares are kept, 0 = all.

    Raises:
        DataError: no samples.
    """
    spec = model.spec
    state = _Pass(spec, FeatureCollector(spec, tasks, limit), RoutingSums(spec), ExpertTaskSums(spec), _Rows(most_rows))
    layer = ""
    for number, host in enumerate(batches):
        batch = host.to(device, torch.float32)
        if number == 0:
            layer = _layer_of(model, batch)
        _one_batch(model, batch, layer, state)
    features = state.features.result()
    get = state.rows.get
    classify = [task.name for task in spec.tasks if task.coded]
    return Collected(
        samples=state.rows.seen,
        uniform=np.asarray(state.token_share) / state.rows.seen,
        keys=get("key"),
        groups=get("group"),
        present=get("present"),
        token_share=get("token_share"),
        labels={name: get(f"label.{name}").astype(np.int64) for name in classify},
        predicted={name: get(f"predicted.{name}").astype(np.int64) for name in classify},
        contribution=get("contribution") if state.has_routing else None,
        rollout=get("rollout") if state.has_rollout else None,
        saliency=get("saliency"),
        divergence=get("divergence"),
        loss_increase=get("loss_increase"),
        routing=None if state.sums.empty else state.sums.result(),
        experts=state.experts.result() if layer and state.experts.labels.any() else None,
        features=features,
    )


@torch.no_grad()
def _layer_of(model: MultiModalModel, batch: Batch) -> str:
    """Name of the layer that the routing analyses read; empty if the model has none."""
    tokens = model.encode(batch)
    output = model.predict(model.fuse(tokens, batch))
    view = routing_view(output, _lengths(tokens, model.spec), model.spec)
    return "" if view is None else view.layer


def _lengths(tokens: Tokens, spec: ModelSpec) -> list[int]:
    return [tokens.by_modality[name].shape[1] for name in spec.modalities]


def _one_batch(model: MultiModalModel, batch: Batch, layer: str, state: _Pass) -> None:
    spec = state.spec
    views = {name: view.detach().requires_grad_() for name, view in batch.views.items()}
    watched = replace(batch, views=views)
    with recorded_attention(model) as attention, _task_tokens(model) as task_tokens:
        if layer:
            with expert_outputs(mixture_of(model, layer)) as outputs:
                tokens, output = _forward(model, watched)
        else:
            outputs = []
            tokens, output = _forward(model, watched)
    lengths = _lengths(tokens, spec)
    if outputs:
        state.experts.add(batch, output, outputs)
    shares = saliency(views, output, spec)
    effect = ablation(model, batch, output, spec)
    takes_part = _taking_part(output, batch.present)
    token_share = takes_part * torch.tensor(lengths, dtype=torch.float32, device=batch.present.device)
    token_share = token_share / token_share.sum(1, keepdim=True).clamp_min(1)
    state.token_share = state.token_share + token_share[batch.valid].double().sum(0).cpu().numpy()
    columns: dict[str, Tensor | Array] = {
        "key": np.array(batch.keys),
        "group": np.array(batch.groups),
        "present": batch.present,
        "token_share": token_share,
        "saliency": shares,
        "divergence": effect.divergence,
        "loss_increase": effect.loss_increase,
    }
    with torch.no_grad():
        view = routing_view(output, lengths, spec) if layer else None
        if view is not None:
            state.sums.add(view, batch.valid, batch.label_mask)
            columns["contribution"] = _per_spec_task(view.contribution(), view.tasks, spec)
            state.has_routing = True
        rolled = rollout(attention, takes_part, lengths, spec)
        if rolled is not None:
            columns["rollout"] = rolled.expand(-1, len(spec.tasks), -1)
            state.has_rollout = True
        for k, task in enumerate(spec.tasks):
            if task.coded:
                labels = batch.labels[task.name]
                columns[f"predicted.{task.name}"] = output.logits[task.name].argmax(1)
                columns[f"label.{task.name}"] = torch.where(batch.label_mask[:, k], labels, torch.full_like(labels, -1))
    state.rows.add(batch.valid, columns)
    state.features.add(batch, tokens, output, task_tokens)


def _forward(model: MultiModalModel, batch: Batch) -> tuple[Tokens, ModelOutput]:
    tokens = model.encode(batch)
    return tokens, model.predict(model.fuse(tokens, batch))


def _taking_part(output: ModelOutput, present: Tensor) -> Tensor:
    """``[B, m]`` modalities whose tokens the MToE sees: more than those present where a bank fills in missing ones."""
    routing, of_token = output.routing.get("mtoe"), output.modality_of_token
    if routing is None or routing.token_mask is None or of_token is None:
        return present
    return torch.zeros_like(present, dtype=torch.float32).index_add(1, of_token, routing.token_mask.float()) > 0


def _per_spec_task(share: Tensor, tasks: tuple[str, ...], spec: ModelSpec) -> Tensor:
    """Contributions in the order of the specification's tasks; shared slots repeat, tasks without slots are NaN."""
    if not tasks:
        return share.expand(-1, len(spec.tasks), -1)
    found = share.new_full((len(share), len(spec.tasks), share.shape[2]), torch.nan)
    found[:, [spec.task_names.index(name) for name in tasks]] = share
    return found
