"""What the experts look at: dispatch maps over the views of a few samples, and the patches each expert takes most of.

A token of a transformer has seen its whole image through attention; a map shows which tokens are read, not which pixels
decided.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from m4oe_ds.data.batch import Batch
from m4oe_ds.errors import DataError
from m4oe_ds.layers.routing import Routing
from m4oe_ds.models.interface import ModelOutput, ModelSpec

CONTEXT = 1  # patches of surroundings on each side of a gallery patch
LARGEST = 512  # pixels: larger views are reduced for the report


@torch.no_grad()
def dispatch_map(routing: Routing) -> Tensor:
    """Weight of every token in the answer of every task ``[B, p, M]``; rows sum to 1.

    w[b,k,t] = sum_j e[b,j,k] D[b,t,j,k] with e of :func:`m4oe_ds.layers.routing.modality_contribution`, whose sum over
    the tokens of a modality is that modality's contribution.
    """
    dispatch, combine = routing.dispatch, routing.combine
    share = combine.sum(1)  # [B, n, p]
    share = share / share.sum(1, keepdim=True).clamp_min(torch.finfo(share.dtype).tiny)
    return torch.einsum("btjk,bjk->bkt", dispatch, share)


@dataclass(frozen=True)
class Grid:
    """Where the tokens of a modality lie: ``prefix`` tokens without a place, then ``rows * columns``, row by row."""

    start: int
    prefix: int
    rows: int
    columns: int

    def place(self, weights: Tensor) -> Tensor:
        """``[..., M] -> [..., rows, columns]``, the tokens of this modality that have a place."""
        first = self.start + self.prefix
        return weights[..., first : first + self.rows * self.columns].unflatten(-1, (self.rows, self.columns))


def grids(model: nn.Module, spec: ModelSpec, lengths: list[int]) -> list[Grid]:
    """Token grid of every modality.

    Args:
        model: a model with ``embedders``.
        lengths: tokens of each modality, in order.

    Raises:
        DataError: the model has no image embedders, or tokens that do not form a grid.
    """
    embedders: Any = getattr(model, "embedders", None)
    if embedders is None:
        raise DataError(f"{type(model).__name__} has no image embedders", fix="maps need model.name: m4oe")
    found, start = [], 0
    for name, length in zip(spec.modalities, lengths, strict=True):
        embedder = embedders.by_modality["shared" if embedders.shared else name]
        if embedder.is_transformer:
            rows, columns = embedder.backbone.patch_embed.grid_size
        else:
            step = embedder.backbone.feature_info[-1]["reduction"]
            rows, columns = (-(-side // step) for side in spec.image_size)
        if embedder.num_prefix_tokens + rows * columns != length:
            raise DataError(
                f"{length} tokens of {name} are not a {rows} x {columns} grid", fix="choose another backbone"
            )
        found.append(Grid(start, embedder.num_prefix_tokens, rows, columns))
        start += length
    return found


class GalleryCollector:
    """Keeps, in one pass and in bounded memory, what :meth:`result` returns.

    Args:
        model: whose outputs are given to :meth:`add`.
        spec: specification of the model.
        num_examples: samples to keep with their maps.
        per_expert: patches to keep per expert.
        keys: samples to keep with their maps; None = the first.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: ModelSpec,
        num_examples: int = 6,
        per_expert: int = 8,
        keys: Collection[str] | None = None,
    ) -> None:
        self.model, self.spec = model, spec
        self._wanted = None if keys is None else frozenset(keys)
        self.num_examples, self.per_expert = num_examples, per_expert
        self._grids: list[Grid] | None = None
        self._examples: dict[str, list[Any]] = {"keys": [], "views": [], "present": [], "maps": []}
        self._weights: Tensor | None = None  # [n, K]
        self._patches: list[list[np.ndarray | None]] = []
        self._sources: np.ndarray | None = None  # [n, K, 2] modality, task
        self._usage: Tensor | None = None  # [n]
        self._samples = 0

    @torch.no_grad()
    def add(self, batch: Batch, output: ModelOutput) -> None:
        """Takes a batch into account.

        Raises:
            DataError: the model has no task-slotted routing, or no token grid.
        """
        routing = output.routing.get("mtoe")
        if routing is None or output.modality_of_token is None:
            raise DataError("this model has no MToE", fix="maps and galleries need task-slotted routing")
        if self._grids is None:
            lengths = torch.bincount(output.modality_of_token, minlength=len(self.spec.modalities)).tolist()
            self._grids = grids(self.model, self.spec, lengths)
        valid = batch.valid.nonzero().flatten()
        self._keep_examples(batch, routing, valid)
        self._keep_patches(batch, routing, valid)

    def _keep_examples(self, batch: Batch, routing: Routing, valid: Tensor) -> None:
        wanted = valid
        if self._wanted is not None:
            wanted = valid[[batch.keys[b] in self._wanted for b in valid.tolist()]]
        wanted = wanted[: self.num_examples - len(self._examples["keys"])]
        if not len(wanted):
            return
        weights = dispatch_map(routing)[wanted].float().cpu()  # [E, p, M]
        assert self._grids is not None
        for row, b in enumerate(wanted.tolist()):
            self._examples["keys"].append(batch.keys[b])
            self._examples["present"].append(batch.present[b].cpu().numpy())
            self._examples["views"].append([_grey(batch.views[name][b]) for name in self.spec.modalities])
            self._examples["maps"].append([grid.place(weights[row]).numpy() for grid in self._grids])

    def _keep_patches(self, batch: Batch, routing: Routing, valid: Tensor) -> None:
        assert self._grids is not None
        dispatch = routing.dispatch[valid].float()  # [V, M, n, p]
        share = routing.combine[valid].float().sum((1, 3))  # [V, n]
        share = share / share.sum(1, keepdim=True).clamp_min(torch.finfo(share.dtype).tiny)
        self._usage = share.sum(0).cpu() + (0 if self._usage is None else self._usage)
        self._samples += len(valid)
        placed = torch.cat(
            [torch.arange(g.start + g.prefix, g.start + g.prefix + g.rows * g.columns) for g in self._grids]
        ).to(dispatch.device)
        weight, task = dispatch[:, placed].max(3)  # [V, T, n]
        flat, experts = weight.flatten(0, 1), weight.shape[2]  # [V*T, n]
        best, index = flat.topk(min(self.per_expert, len(flat)), dim=0)  # [K, n]
        if self._weights is None:
            self._weights = torch.full((experts, self.per_expert), -1.0)
            self._patches = [[None] * self.per_expert for _ in range(experts)]
            self._sources = np.zeros((experts, self.per_expert, 2), dtype=np.int64)
        assert self._sources is not None
        tokens = len(placed)
        seen: dict[tuple[int, int], np.ndarray] = {}  # grey views of this batch
        for j in range(experts):
            for value, position in zip(best[:, j].tolist(), index[:, j].tolist(), strict=True):
                lowest = int(self._weights[j].argmin())
                if value <= float(self._weights[j, lowest]):
                    break
                row, token = divmod(position, tokens)
                sample = int(valid[row])
                modality, patch = self._cut(batch, sample, token, seen)
                self._weights[j, lowest] = value
                self._patches[j][lowest] = patch
                self._sources[j, lowest] = modality, int(task[row, token, j])

    def _cut(
        self, batch: Batch, sample: int, token: int, seen: dict[tuple[int, int], np.ndarray]
    ) -> tuple[int, np.ndarray]:
        """Modality index and surroundings of the ``token``-th token with a place."""
        assert self._grids is not None
        modality = 0
        while token >= self._grids[modality].rows * self._grids[modality].columns:
            token -= self._grids[modality].rows * self._grids[modality].columns
            modality += 1
        grid = self._grids[modality]
        row, column = divmod(token, grid.columns)
        if (sample, modality) not in seen:
            seen[sample, modality] = _grey(batch.views[self.spec.modalities[modality]][sample])
        view = seen[sample, modality]
        high, wide = view.shape[0] // grid.rows, view.shape[1] // grid.columns
        padded = np.pad(view, ((CONTEXT * high,) * 2, (CONTEXT * wide,) * 2))
        span = 2 * CONTEXT + 1
        return modality, padded[row * high : (row + span) * high, column * wide : (column + span) * wide]

    def result(self) -> dict[str, np.ndarray]:
        """Arrays ready for ``numpy.savez``.

        Returns:
            ``keys [E]``, ``present [E, m]``, ``modalities``, ``tasks``; per modality i ``view_i [E, H, W]`` uint8 and
            ``map_i [E, p, h, w]`` float32 (rows of all modalities together sum to at most 1: tokens without a place
            are left out); ``expert_usage [n]``, ``expert_weight [n, K]``, ``expert_source [n, K, 2]`` (modality, task)
            and ``expert_patch [n, K, h', w']`` uint8.

        Raises:
            DataError: no sample was added, or none of ``keys``.
        """
        if self._weights is None or self._usage is None or self._sources is None:
            raise DataError("no sample to show", fix="check that the split has samples")
        if not self._examples["keys"]:
            raise DataError("none of the chosen samples was added", fix="give keys of the split")
        arrays: dict[str, np.ndarray] = {
            "keys": np.array(self._examples["keys"]),
            "present": np.array(self._examples["present"]),
            "modalities": np.array(self.spec.modalities),
            "tasks": np.array(self.spec.task_names),
            "expert_usage": (self._usage / max(self._samples, 1)).numpy(),
            "expert_weight": self._weights.numpy(),
            "expert_source": self._sources,
        }
        for i in range(len(self.spec.modalities)):
            arrays[f"view_{i}"] = np.stack([views[i] for views in self._examples["views"]])
            arrays[f"map_{i}"] = np.stack([maps[i] for maps in self._examples["maps"]]).astype(np.float32)
        shape = max((p.shape for row in self._patches for p in row if p is not None), key=lambda s: s[0] * s[1])
        order = np.argsort(-arrays["expert_weight"], axis=1)
        pictures = np.zeros((*arrays["expert_weight"].shape, *shape), dtype=np.uint8)
        for j, row in enumerate(self._patches):
            for slot, patch in enumerate(row):
                if patch is not None:
                    high, wide = min(shape[0], patch.shape[0]), min(shape[1], patch.shape[1])
                    pictures[j, slot, :high, :wide] = patch[:high, :wide]
        arrays["expert_patch"] = np.take_along_axis(pictures, order[:, :, None, None], axis=1)
        arrays["expert_source"] = np.take_along_axis(arrays["expert_source"], order[:, :, None], axis=1)
        arrays["expert_weight"] = np.take_along_axis(arrays["expert_weight"], order, axis=1)
        return arrays


def save(arrays: dict[str, np.ndarray], path: Path) -> None:
    """Writes ``analysis/gallery.npz`` (arrays only, no pickled objects)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # none is called allow_pickle


def _grey(view: Tensor) -> np.ndarray:
    """``[C, H, W]`` as ``[H, W]`` uint8: mean over channels, stretched to its own range, reduced to a sane size."""
    image = view.float().mean(0)
    step = max(1, -(-max(image.shape) // LARGEST))
    if step > 1:
        image = nn.functional.avg_pool2d(image[None], step)[0]
    low, high = image.min(), image.max()
    grey = ((image - low) / (high - low).clamp_min(1e-6) * 255).to(torch.uint8)
    result: np.ndarray = grey.cpu().numpy()
    return result
