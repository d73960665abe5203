"""What the experts look at: dispatch maps over the views of a few samples, and the patches each expert takes most of.

A volume shows its middle slice under the mean of the weights over its depth, and patches from their own slice; a table
has a row of columns, and no picture.

A token of a transformer has seen its whole image through attention; a map shows which tokens are read, not which pixels
decided.
"""

from __future__ import annotations

import math
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
    """Where the tokens of a modality lie: ``prefix`` tokens without a place, then row by row, and layer by layer in a
    volume; the columns of a table are one row.
    """

    start: int
    prefix: int
    rows: int
    columns: int
    layers: int = 1

    @property
    def places(self) -> range:
        """Numbers of the tokens that have a place."""
        first = self.start + self.prefix
        return range(first, first + self.layers * self.rows * self.columns)

    def place(self, weights: Tensor) -> Tensor:
        """``[..., M] -> [..., rows, columns]``, the tokens of this modality that have a place, the mean over layers."""
        placed = weights[..., self.places.start : self.places.stop]
        placed = placed.unflatten(-1, (self.layers, self.rows, self.columns))
        return placed[..., 0, :, :] if self.layers == 1 else placed.mean(-3)


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
        embedder, layers = embedders.of(name), 1
        if spec.modality(name).kind == "table":
            rows, columns = 1, len(spec.modality(name).columns)
        elif embedder.is_transformer:
            *deep, rows, columns = embedder.grid
            layers = math.prod(deep)
        else:
            step = embedder.backbone.feature_info[-1]["reduction"]
            rows, columns = (-(-side // step) for side in spec.image_size)
        if embedder.num_prefix_tokens + layers * rows * columns != length:
            raise DataError(
                f"{length} tokens of {name} are not a {rows} x {columns} grid", fix="choose another backbone"
            )
        found.append(Grid(start, embedder.num_prefix_tokens, rows, columns, layers))
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
        placed = torch.tensor([token for grid in self._grids for token in grid.places], device=dispatch.device)
        weight, task = dispatch[:, placed].max(3)  # [V, T, n]
        flat, experts = weight.flatten(0, 1), weight.shape[2]  # [V*T, n]
        best, index = flat.topk(min(self.per_expert, len(flat)), dim=0)  # [K, n]
        if self._weights is None:
            self._weights = torch.full((experts, self.per_expert), -1.0)
            self._patches = [[None] * self.per_expert for _ in range(experts)]
            self._sources = np.zeros((experts, self.per_expert, 3), dtype=np.int64)
        assert self._sources is not None
        tokens = len(placed)
        seen: dict[tuple[int, int, int], np.ndarray] = {}  # grey slices of this batch
        for j in range(experts):
            for value, position in zip(best[:, j].tolist(), index[:, j].tolist(), strict=True):
                lowest = int(self._weights[j].argmin())
                if value <= float(self._weights[j, lowest]):
                    break
                row, token = divmod(position, tokens)
                sample = int(valid[row])
                modality, column, patch = self._cut(batch, sample, token, seen)
                self._weights[j, lowest] = value
                self._patches[j][lowest] = patch
                self._sources[j, lowest] = modality, int(task[row, token, j]), column

    def _cut(
        self, batch: Batch, sample: int, token: int, seen: dict[tuple[int, int, int], np.ndarray]
    ) -> tuple[int, int, np.ndarray]:
        """Modality index, column of a table or -1, and surroundings of the ``token``-th token with a place."""
        assert self._grids is not None
        modality = 0
        while token >= len(self._grids[modality].places):
            token -= len(self._grids[modality].places)
            modality += 1
        grid, spec = self._grids[modality], self.spec.inputs[modality]
        layer, place = divmod(token, grid.rows * grid.columns)
        row, column = divmod(place, grid.columns)
        if spec.kind == "table":
            return modality, column, np.zeros((1, 1), dtype=np.uint8)
        if (sample, modality, layer) not in seen:
            seen[sample, modality, layer] = _grey(batch.views[spec.name][sample], (layer + 0.5) / grid.layers)
        view = seen[sample, modality, layer]
        high, wide = view.shape[0] // grid.rows, view.shape[1] // grid.columns
        padded = np.pad(view, ((CONTEXT * high,) * 2, (CONTEXT * wide,) * 2))
        span = 2 * CONTEXT + 1
        return modality, -1, padded[row * high : (row + span) * high, column * wide : (column + span) * wide]

    def result(self) -> dict[str, np.ndarray]:
        """Arrays ready for ``numpy.savez``.

        Returns:
            ``keys [E]``, ``present [E, m]``, ``modalities``, ``tasks``, ``kinds [m]`` (image, volume or table),
            ``layers [m]`` (of a volume, over which its map is the mean; else 1); per modality i ``view_i [E, H, W]``
            uint8, ``map_i [E, p, h, w]`` float32 (times layers, rows of all modalities together sum to at most 1:
            tokens without a place are left out), and ``columns_i`` names of a table's; ``expert_usage [n]``,
            ``expert_weight [n, K]``, ``expert_source [n, K, 3]`` (modality, task, column of a table or -1) and
            ``expert_patch [n, K, h', w']`` uint8.

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
            "kinds": np.array(["image" if one.flat else one.kind for one in self.spec.inputs]),
            "layers": np.array([grid.layers for grid in self._grids or []]),
        }
        for i, one in enumerate(self.spec.inputs):
            if one.kind == "table":
                arrays[f"columns_{i}"] = np.array([column.name for column in one.columns])
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


def _grey(view: Tensor, depth: float = 0.5) -> np.ndarray:
    """``[C, H, W]`` as ``[H, W]`` uint8: mean over channels, stretched to its own range, reduced to a sane size.

    Args:
        view: of a volume ``[C, D, H, W]``; of a table ``[columns, 2]``, which gives ``[1, columns]`` zeros.
        depth: where along the depth of a volume the slice is taken, between 0 and 1.
    """
    if view.ndim == 2:
        return np.zeros((1, len(view)), dtype=np.uint8)
    if view.ndim == 4:
        view = view[:, min(int(depth * view.shape[1]), view.shape[1] - 1)]
    image = view.float().mean(0)
    step = max(1, -(-max(image.shape) // LARGEST))
    if step > 1:
        image = nn.functional.avg_pool2d(image[None], step)[0]
    low, high = image.min(), image.max()
    grey = ((image - low) / (high - low).clamp_min(1e-6) * 255).to(torch.uint8)
    result: np.ndarray = grey.cpu().numpy()
    return result
