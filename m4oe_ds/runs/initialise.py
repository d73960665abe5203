"""Initial values from a trained model of other modalities, tasks and image sizes: by name, never by position.

What belongs to a modality or task starts from that of the same name in the source, or from the one that
``model.init_map`` names. Slots of a task follow its name, positions of another grid are interpolated, everything that
does not fit keeps its fresh values, and all of it is said.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from m4oe_ds.errors import CheckpointError, ConfigError
from m4oe_ds.layers import MToE, MToEBlock
from m4oe_ds.layers.block import Block
from m4oe_ds.models.adaptation import adapt_channels, first_weights, resample_positions
from m4oe_ds.models.interface import ModelSpec
from m4oe_ds.models.missing_bank import MissingBank
from m4oe_ds.runs.initial_source import Source
from m4oe_ds.runs.source_files import OPTION
from m4oe_ds.runs.weights import expert_rows

MAP = "model.init_map"
BY_MODALITY = "by_modality"  # holds the embedders
SHARED = "shared"  # the embedder of all modalities
# names, seen from an embedder, of its positions, and of the weights whose last axes are those of a patch
POSITIONS = {"backbone.pos_embed": "backbone.patch_embed.proj.weight", "position": "patch.weight"}
_KINDS = ("modality", "task")


@dataclass
class Taken:
    """What a model started from another one with; names of tensors are dotted.

    Attributes:
        source: name of the source.
        taken: tensors as they are in the source.
        adapted: ``{tensor: how}``, those changed to fit, such as interpolated positions.
        new: ``{tensor: why}``, those that keep their fresh values.
        left_out: ``{tensor of the source: why}``.
        values: values that come from the source, over all experts.
        total: all values of the model.
        parts: ``{tensor of the model: the part it is shown under}``.
        parts_left_out: ``{tensor of the source: the part it is shown under}``.
    """

    source: str
    taken: list[str] = field(default_factory=list)
    adapted: dict[str, str] = field(default_factory=dict)
    new: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    values: int = 0
    total: int = 0
    parts: dict[str, str] = field(default_factory=dict)
    parts_left_out: dict[str, str] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        """Numbers of tensors and values, for the record of the run."""
        return {
            "taken": len(self.taken),
            "adapted": len(self.adapted),
            "new": len(self.new),
            "left_out": len(self.left_out),
            "values": self.values,
            "total_values": self.total,
        }

    def table(self) -> str:
        """A few lines for the person who starts the run: one per reason, with the parts it holds for."""
        count = len(self.taken) + len(self.adapted) + len(self.new)
        share = 100 * self.values / max(self.total, 1)
        lines = [f"started from {self.source}: {len(self.taken)} of {count} tensors taken, {share:.1f} % of the values"]
        lines += [f"  adapted   {name}: {how}" for name, how in self.adapted.items()]
        for title, entries, part_of in (
            ("new", self.new, self.parts),
            ("left out", self.left_out, self.parts_left_out),
        ):
            for why in dict.fromkeys(entries.values()):
                parts = Counter(part_of[name] for name, reason in entries.items() if reason == why)
                lines.append(f"  {title:9} {', '.join(f'{part} ({n})' for part, n in parts.items())}: {why}")
        return "\n".join(lines)


@dataclass(frozen=True)
class _Copy:
    """A tensor of the model, and what makes its value out of the fresh one."""

    name: str
    source: str
    value: Callable[[Tensor], Tensor]
    values: int
    how: str = ""  # empty = as it is


class _Refused(Exception):
    """Why a tensor keeps its fresh values."""


def initialise(model: nn.Module, spec: ModelSpec, source: Source, init_map: Mapping[str, str] | None = None) -> Taken:
    """Fills what fits of a fresh model, built at any ``ep_size``; each rank reads only the experts it holds.

    Args:
        model: the model, before any of its parameters is partitioned.
        spec: its modalities, tasks and image size.
        source: the trained model.
        init_map: ``{modality or task: the one of the source it starts from}`` where names differ; empty = from none.

    Raises:
        CheckpointError: no weight of an embedder and no expert fits; the model is as it was.
        ConfigError: a name in ``init_map`` that is neither of the model nor of the source.
    """
    plan = _Plan(model, spec, source, dict(init_map or {}))
    copies: list[_Copy] = []
    taken = Taken(source.name)
    for name, value in plan.target.items():
        taken.total += plan.numel(name, value)
        taken.parts[name] = plan.part(name)
        try:
            copies.append(plan.copy(name, value))
        except _Refused as reason:
            taken.new[name] = str(reason)
    _check_anything(copies, plan, spec, source)
    used = {copy.source for copy in copies}
    for name in sorted(source.weights.names - used - plan.derived):
        taken.left_out[name] = plan.unused(name)
        taken.parts_left_out[name] = plan.part_of_source(name)
    with torch.no_grad():
        for copy in copies:
            plan.target[copy.name].copy_(copy.value(plan.target[copy.name]))
            taken.values += copy.values
            if copy.how:
                taken.adapted[copy.name] = copy.how
            else:
                taken.taken.append(copy.name)
    return taken


def _check_anything(copies: Iterable[_Copy], plan: _Plan, spec: ModelSpec, source: Source) -> None:
    """Refuses a start that would be one from scratch: norms and biases fit nearly anywhere and carry nothing."""
    for copy in copies:
        value = plan.target[copy.name]
        if copy.name in plan.experts or (plan.in_embedder(copy.name) and value.ndim >= 2 and value.shape[0] > 1):
            return
    raise CheckpointError(
        f"nothing of {source.name} fits: no embedder and no expert; "
        f"it is {_described(source.spec, source.config.model)}, this model {_described(spec, plan.options)}",
        OPTION,
        f"give both the same model.name, dim, backbone or numbers of experts, or say in {MAP} what starts from what",
    )


def _described(spec: ModelSpec, options: object) -> str:
    facts = {key: getattr(options, key) for key in ("name", "dim") if hasattr(options, key)}
    width = ", ".join(f"{key} {value}" for key, value in facts.items())
    return f"[{width}; modalities {', '.join(spec.modalities)}; tasks {', '.join(spec.task_names)}]"


class _Plan:
    """Where every tensor of a model starts from."""

    def __init__(self, model: nn.Module, spec: ModelSpec, source: Source, init_map: dict[str, str]) -> None:
        self.source, self.stored, self.spec = source, source.weights, spec
        self.options = getattr(model, "config", None)
        # buffers that a state dict leaves out, such as tables of indices, follow from the model and its image size
        self.derived = dict(model.named_buffers()).keys() - model.state_dict().keys()
        buffers = {name: value for name, value in model.named_buffers() if name not in self.derived}
        self.target: dict[str, Tensor] = {**dict(model.named_parameters()), **buffers}
        self.experts = expert_rows(model)
        modules = dict(model.named_modules())
        # places in a name where a modality or task stands, not any word that is also the name of one
        self.named = {name for name, module in modules.items() if isinstance(module, nn.ModuleDict | nn.ParameterDict)}
        self.embedders = {name: module for name, module in modules.items() if name.split(".")[-2:-1] == [BY_MODALITY]}
        self.free = (*self.embedders, *(n for n, m in modules.items() if isinstance(m, Block | MToEBlock)))
        self.banks = tuple(name for name, module in modules.items() if isinstance(module, MissingBank))
        self.task_axes = {"task_query.weight": 0}
        for name, module in modules.items():
            if isinstance(module, MToE):
                self.task_axes |= {_join(name, "router.phi"): 2, _join(name, "task_embed"): 0}
        self.origin = self._mapped(init_map)
        self.same_modalities = tuple(map(self.origin.get, spec.modalities)) == source.spec.modalities
        self.same_tasks = tuple(map(self.origin.get, spec.task_names)) == source.spec.task_names
        self.misfits = self._misfits()

    def _mapped(self, init_map: dict[str, str]) -> dict[str, str | None]:
        """``{modality, task or "shared": its name in the source, None if there is none}``."""
        own = {"modality": self.spec.modalities, "task": self.spec.task_names}
        theirs = {"modality": self.source.spec.modalities, "task": self.source.spec.task_names}
        if any(name.rpartition(".")[2] == SHARED for name in self.embedders):
            own["modality"] = (*own["modality"], SHARED)
        if any(f".{SHARED}." in name for name in self.stored.names):
            theirs["modality"] = (*theirs["modality"], SHARED)
        for name, other in init_map.items():
            kind = next((kind for kind in _KINDS if name in own[kind]), "")
            if not kind:
                known = (*own["modality"], *own["task"])
                raise ConfigError(f"{name!r} is no modality or task of this run", MAP, _nearest(name, known))
            if other and other not in theirs[kind]:
                raise ConfigError(
                    f"{name}: {other!r} is no {kind} of {self.source.name}", MAP, _nearest(other, theirs[kind])
                )
        origin: dict[str, str | None] = {}
        for kind in _KINDS:
            for name in own[kind]:
                origin[name] = init_map.get(name, name if name in theirs[kind] else "") or None
        self.refused = {name for name, other in init_map.items() if not other}
        return origin

    def _misfits(self) -> dict[str, str]:
        """Mixtures whose experts differ in number or size, with the reason: their router sorts for other experts."""
        found = {}
        for name, (_, count) in self.experts.items():
            mixture, _, last = name.rpartition(".experts.experts.")
            if last not in ("w1", "w2"):
                continue
            there = self.source_name(name)
            if there is None or there not in self.stored.names:
                continue
            wanted, stored = [count, *self.target[name].shape[1:]], self.stored.shape(there)
            if stored[0] != count:
                found[mixture] = f"{stored[0]} experts in the source, {count} here"
            elif stored != wanted:
                found.setdefault(mixture, f"experts of another size in the source ({stored}, here {wanted})")
        return found

    def _segment(self, name: str) -> int | None:
        """Position of the part of a dotted name that is a modality or task (or the shared embedder)."""
        parts = name.split(".")
        for i, part in enumerate(parts):
            if part in self.origin and ".".join(parts[:i]) in self.named:
                return i
        return None

    def source_name(self, name: str) -> str | None:
        """Name of a tensor's counterpart in the source, which need not exist; None if its modality or task does not."""
        i = self._segment(name)
        if i is None:
            return name
        parts = name.split(".")
        other = self.origin[parts[i]]
        if parts[i - 1] == BY_MODALITY and parts[i] not in self.refused:
            there = {n.split(".")[i] for n in self.stored.names if n.startswith(".".join(parts[:i]) + ".")}
            if there == {SHARED}:  # the source has one embedder for all its modalities: any may start from it
                other = SHARED
        return None if other is None else ".".join([*parts[:i], other, *parts[i + 1 :]])

    def copy(self, name: str, value: Tensor) -> _Copy:
        """How a tensor is filled; raises _Refused with the reason if it is not."""
        there = self.source_name(name)
        if there is None:
            word = name.split(".")[self._segment(name) or 0]
            if word in self.refused:
                raise _Refused(f"fresh, as {MAP} says")
            if word == SHARED:
                raise _Refused(f"the source has an embedder per modality; {MAP} can name one for {SHARED}")
            raise _Refused("the source has no modality or task of that name")
        if there not in self.stored.names:
            raise _Refused("not in the source")
        if misfit := next((why for mixture, why in self.misfits.items() if _within(name, mixture)), ""):
            raise _Refused(misfit)
        if any(_within(name, bank) for bank in self.banks) and not self.same_modalities:
            raise _Refused("its rows stand for combinations of other modalities")
        if name in self.task_axes:
            return self._slots(name, there, value, self.task_axes[name])
        if (inside := self.in_embedder(name)) is not None:
            return self._of_embedder(name, there, value, self.embedders[inside], name[len(inside) + 1 :])
        if not self._position_free(name) and not (self.same_modalities and self.same_tasks):
            raise _Refused("may depend on the order of modalities or tasks, which differ")
        return self._whole(name, there, value)

    def _position_free(self, name: str) -> bool:
        return self._segment(name) is not None or any(_within(name, prefix) for prefix in self.free)

    def _whole(self, name: str, there: str, value: Tensor) -> _Copy:
        rows, count = self.experts.get(name, (None, 0))
        wanted, stored = list(value.shape), self.stored.shape(there)
        if rows is not None:
            wanted[0] = count
        if stored != wanted:
            raise _Refused(f"shape {stored} in the source, {wanted} here")
        return _Copy(name, there, lambda _: self.stored.read(there, rows), self.numel(name, value))

    def _slots(self, name: str, there: str, value: Tensor, axis: int) -> _Copy:
        """Slices of the tasks that both have; tasks are found by name, whatever their order."""
        stored, tasks = self.stored.shape(there), self.source.spec.task_names
        if self.same_tasks and stored == list(value.shape):
            return self._whole(name, there, value)
        wanted = list(value.shape)
        wanted[axis] = len(tasks)
        if stored != wanted:
            raise _Refused(f"shape {stored} in the source, {list(value.shape)} here")
        both = {k: (own, other) for k, own in enumerate(self.spec.task_names) if (other := self.origin[own])}
        if not both:
            raise _Refused("slots of tasks, and none is in both")

        def filled(fresh: Tensor) -> Tensor:
            content, result = self.stored.read(there), fresh.clone()
            for k, (_, other) in both.items():
                result.select(axis, k).copy_(content.select(axis, tasks.index(other)))
            return result

        words = ", ".join(own if own == other else f"{own} from {other}" for own, other in both.values())
        rest = len(self.spec.tasks) - len(both)
        how = f"task slots {words}" + (f"; {rest} fresh" if rest else "")
        return _Copy(name, there, filled, value.numel() // value.shape[axis] * len(both), how)

    def _of_embedder(self, name: str, there: str, value: Tensor, embedder: Any, inner: str) -> _Copy:
        """Tensors of an embedder: positions of another grid and inputs of other channels are adapted."""
        own, other = (self._columns(spec, word) for spec, word in self._named_in(name, there))
        if own != other:
            raise _Refused("the columns of its table differ")
        if inner in POSITIONS:
            return self._positions(name, there, value, embedder, inner)
        shape = self.stored.shape(there)
        outer, _, rest = inner.partition(".")
        if outer == "backbone" and rest in first_weights(embedder.backbone) and len(shape) == value.ndim:
            channels = (shape[1], value.shape[1])
            if channels[0] != channels[1] and [shape[0], *shape[2:]] == [value.shape[0], *value.shape[2:]]:
                if 1 not in channels and channels[0] != 3:
                    raise _Refused(f"{channels[0]} channels in the source, {channels[1]} here")
                return _Copy(
                    name,
                    there,
                    lambda _: adapt_channels(self.stored.read(there), channels[1]),
                    value.numel(),
                    f"channels {channels[0]} -> {channels[1]}",
                )
        return self._whole(name, there, value)

    def _named_in(self, name: str, there: str) -> tuple[tuple[ModelSpec, str], tuple[ModelSpec, str]]:
        """The modality of an embedder's tensor here and in the source, each with its specification."""
        i = self._segment(name) or 0
        return (self.spec, name.split(".")[i]), (self.source.spec, there.split(".")[i])

    def _columns(self, spec: ModelSpec, modality: str) -> list[Any]:
        """Columns of a table, whose tensors have no names for them; empty for anything else."""
        found = [one for one in spec.inputs if one.name == modality]
        return [(column.name, column.kind, column.values) for one in found for column in one.columns]

    def _positions(self, name: str, there: str, value: Tensor, embedder: Any, inner: str) -> _Copy:
        """Position vectors, interpolated where the patches form another grid, even one of as many patches."""
        shape = self.stored.shape(there)
        grid = tuple(getattr(embedder, "grid", None) or embedder.backbone.patch_embed.grid_size)
        size, here = (spec.image_size if len(grid) == 2 else spec.volume_size for spec in (self.source.spec, self.spec))
        prefix = value.shape[1] - math.prod(grid)
        patch = there.removesuffix(inner) + POSITIONS[inner]
        kernel = self.stored.shape(patch)[-len(grid) :] if patch in self.stored.names else []
        old = tuple(side // step for side, step in zip(size, kernel, strict=False))
        if math.prod(old) + prefix != shape[1] and tuple(size) == tuple(here):
            old = grid  # of an embedder whose patches come out of other layers, for the same image
        if len(old) != len(grid) or shape != [1, math.prod(old) + prefix, value.shape[2]]:
            raise _Refused(f"positions {shape} in the source, {list(value.shape)} here, and its grid is not known")
        if old == grid:
            return self._whole(name, there, value)
        return _Copy(
            name,
            there,
            lambda _: resample_positions(self.stored.read(there), old, grid, prefix),
            value.numel(),
            f"positions {'x'.join(map(str, old))} -> {'x'.join(map(str, grid))}",
        )

    def in_embedder(self, name: str) -> str | None:
        """Name of the embedder that a tensor belongs to."""
        return next((prefix for prefix in self.embedders if _within(name, prefix)), None)

    def numel(self, name: str, value: Tensor) -> int:
        """Values of a tensor over all its experts, wherever they are held."""
        rows, count = self.experts.get(name, ((0, 1), 1))
        return value.numel() // (rows[1] - rows[0]) * count

    def part(self, name: str) -> str:
        """The part of the model that a tensor is shown under."""
        i = self._segment(name)
        mixture = next((mixture for mixture in self.misfits if _within(name, mixture)), "")
        return mixture or (".".join(name.split(".")[: i + 1]) if i is not None else name.partition(".")[0])

    def part_of_source(self, name: str) -> str:
        """The part of the source that a tensor is shown under."""
        words = {*self.source.spec.modalities, *self.source.spec.task_names, SHARED}
        parts = name.split(".")
        depth = next((i + 1 for i, part in enumerate(parts) if i and part in words), 1)
        return ".".join(parts[:depth])

    def unused(self, name: str) -> str:
        """Why a tensor of the source is left out."""
        word = self.part_of_source(name).rpartition(".")[2]
        if word in self.source.spec.modalities or word in self.source.spec.task_names:
            return "does not fit" if word in self.origin.values() else "nothing here starts from it"
        return "does not fit" if name in self.target else "not in this model"


def _nearest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return (f"did you mean {close[0]}? " if close else "") + f"known: {', '.join(names)}"


def _within(name: str, prefix: str) -> bool:
    return name.startswith(f"{prefix}.")


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
