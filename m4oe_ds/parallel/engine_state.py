"""The engine's master weights and optimizer state as intervals of flattened global parameters, whatever the layout.

ZeRO cuts every parameter into pieces and expert parallelism cuts stacked experts along their first axis. Seen as an
interval of the flattened *global* tensor (all experts in order of their id) each piece has a place that does not depend
on the number of ranks, ``ep_size`` or the stage. Every rank can therefore write exactly what it holds and read exactly
what it needs, with no communication, and a run can continue in any other layout.

All knowledge of where DeepSpeed keeps these tensors is in this module and covered by contract tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from m4oe_ds.errors import EnvironmentProblem
from m4oe_ds.layers.experts import ExpertWeights

MASTER = "master"
SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
COUNTERS = ("global_steps", "global_samples", "micro_steps", "skipped_steps")

Read = Callable[[str, str, int, int], Tensor]  # (kind, parameter, start, stop) -> 1-D tensor


@dataclass(frozen=True)
class Place:
    """Where a parameter of this rank lies in the flattened global tensor.

    Attributes:
        name: module path.
        shape: shape of the global tensor, all experts included.
        start: start of this rank's part.
        numel: number of elements of this rank's part before ZeRO cuts it.
    """

    name: str
    shape: tuple[int, ...]
    start: int
    numel: int


@dataclass(frozen=True)
class Piece:
    """One interval held by this rank: a view into the engine's memory.

    Attributes:
        kind: ``master`` or an optimizer state such as ``exp_avg``.
        name: name of the parameter.
        start: start of the interval.
        values: the elements, 1-D.
    """

    kind: str
    name: str
    start: int
    values: Tensor


def places(module: nn.Module) -> dict[str, Place]:
    """Global place of every parameter, by name; valid for a bare model and for an engine's module."""
    experts: dict[int, tuple[int, int]] = {}
    for layer in module.modules():
        total = getattr(layer, "num_experts", None)
        for child in layer.children():
            if isinstance(child, ExpertWeights) and isinstance(total, int):
                experts.update({id(parameter): (total, child.expert_ids[0]) for parameter in child.parameters()})
    found = {}
    for name, parameter in module.named_parameters():
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        numel = int(torch.Size(shape).numel())
        if id(parameter) in experts:
            total, first = experts[id(parameter)]
            per_expert = numel // shape[0]
            found[name] = Place(name, (total, *shape[1:]), first * per_expert, numel)
        else:
            found[name] = Place(name, shape, 0, numel)
    return found


def pieces(engine: Any) -> Iterator[Piece]:
    """What this rank holds of the trainable parameters: masters in fp32 and every optimizer state of the same shape."""
    link(engine)
    where = places(engine.module)
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        start = where[name].start
        if hasattr(parameter, "ds_id"):
            yield from _pieces_of_stage_3(engine.optimizer, parameter, name, start)
        else:
            mapping = _mapping(parameter, name)
            if mapping is None:  # another rank of the group holds all of it
                continue
            start += mapping.lp_fragment_address.start
            yield Piece(MASTER, name, start, mapping.hp_fragment)
            for kind in mapping.get_optim_state_keys():
                yield Piece(kind, name, start, mapping.get_optim_state_fragment(kind))


def _mapping(parameter: nn.Parameter, name: str) -> Any:
    if not hasattr(parameter, "_hp_mapping"):
        raise EnvironmentProblem(
            f"DeepSpeed keeps no master weights of {name} where expected", fix="use ZeRO stage 1, 2 or 3"
        )
    return parameter._hp_mapping


def _pieces_of_stage_3(optimizer: Any, parameter: Any, name: str, start: int) -> Iterator[Piece]:
    group, _, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
    if optimizer._swappable_optimizer_subgroup(group):
        raise EnvironmentProblem(
            "checkpoints of optimizer states swapped to NVMe are not supported", fix="offload to the CPU instead"
        )
    begin = size * optimizer._get_param_partition_rank(parameter)
    valid = min(size, parameter.ds_numel - begin)  # the last partitions are padded
    if valid <= 0:
        return
    state = optimizer.optimizer.state[optimizer.fp32_partitioned_groups_flat[group]]
    kinds = [None, *(kind for kind, value in state.items() if torch.is_tensor(value) and value.ndim)]
    for kind in kinds:
        value, _ = optimizer._get_fp32_opt_state_partition(parameter, False, kind)
        yield Piece(kind or MASTER, name, start + begin, value[:valid])


def link(engine: Any) -> None:
    """Makes the optimizer states exist and be connected with their parameters, as they are after a first step."""
    _materialise(engine)
    connect = getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
    if connect is not None:
        # DeepSpeed connects all groups after the step of the first one, when the others have no states yet
        engine.optimizer._hp_optimizer_states_linked = False
        connect()


def _materialise(engine: Any) -> None:
    """Creates missing optimizer states through a step of length zero with zero gradients; changes no weight.

    The step count this leaves behind is overwritten by :func:`set_counters`, or cleared where there is none to load.
    """
    inner, wrapper = _inner(engine), engine.optimizer
    flat = getattr(
        wrapper, "fp32_partitioned_groups_flat", None
    )  # ZeRO-3 lends its sub-groups to the optimizer in turn
    tensors = flat if flat is not None else [tensor for group in inner.param_groups for tensor in group["params"]]
    if all(inner.state.get(tensor) for tensor in tensors):
        return
    rates = [group["lr"] for group in inner.param_groups]
    gradients = [tensor.grad for tensor in tensors]
    for group in inner.param_groups:
        group["lr"] = 0.0
    for tensor in tensors:
        tensor.grad = torch.zeros_like(tensor)
    if flat is None:
        inner.step()
    else:
        for number in range(len(flat)):
            wrapper._optimizer_step(number)
    for tensor, gradient in zip(tensors, gradients, strict=True):
        tensor.grad = gradient
    for group, rate in zip(inner.param_groups, rates, strict=True):
        group["lr"] = rate
    _set_optimizer_steps(engine, 0.0)


def working_pieces(engine: Any) -> Iterator[tuple[str, int, Tensor]]:
    """(name, start, 1-D view) of the working copy that forward uses; under ZeRO-3 this rank's partition of it."""
    where = places(engine.module)
    for name, parameter in engine.module.named_parameters():
        start = where[name].start
        if hasattr(parameter, "ds_tensor"):
            size = parameter.ds_tensor.numel()
            group = getattr(parameter, "ds_process_group", None)
            begin = size * torch.distributed.get_rank(group)
            valid = min(size, parameter.ds_numel - begin)
            if valid > 0:
                yield name, start + begin, parameter.ds_tensor.data.view(-1)[:valid]
        else:
            yield name, start, parameter.data.view(-1)


def restore(engine: Any, read: Read) -> None:
    """Fills masters, optimizer states and working copies of this rank from ``read``.

    Args:
        read: returns interval [start, stop) of a kind and parameter; trainable parameters have ``master`` and the
            optimizer's kinds, frozen ones only ``master``.
    """
    for piece in pieces(engine):
        piece.values.copy_(read(piece.kind, piece.name, piece.start, piece.start + piece.values.numel()))
    restore_working(engine, read)


def restore_working(engine: Any, read: Read) -> None:
    """Fills only the working copies that forward uses, for evaluation; see :func:`restore`."""
    for name, start, values in working_pieces(engine):
        values.copy_(read(MASTER, name, start, start + values.numel()))
    _refresh_persistent(engine)


def _refresh_persistent(engine: Any) -> None:
    """ZeRO-3 keeps small parameters gathered on every rank: partition and gather them again, as its load does."""
    persistent = getattr(engine.optimizer, "persistent_parameters", None)
    if persistent:
        persistent[0].partition(persistent)
        persistent[0].all_gather(persistent)


def frozen(engine: Any) -> Iterator[Piece]:
    """Pieces of parameters that are not trained; every rank holds all of them (a partition under ZeRO-3)."""
    trainable = {name for name, parameter in engine.module.named_parameters() if parameter.requires_grad}
    for name, start, values in working_pieces(engine):
        if name not in trainable:
            yield Piece(MASTER, name, start, values)


def optimizer_steps(engine: Any) -> float:
    """Adam's step count, equal in all groups (0 for optimizers without one)."""
    for state in _inner(engine).state.values():
        if "step" in state:
            return float(state["step"])
    return 0.0


def counters(engine: Any) -> dict[str, Any]:
    """Counters of the engine and the loss scaler's state, ready for JSON."""
    found: dict[str, Any] = {name: int(getattr(engine, name)) for name in COUNTERS}
    found["optimizer_steps"] = optimizer_steps(engine)
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    found["scaler"] = {name: getattr(scaler, name) for name in SCALER_FIELDS if hasattr(scaler, name)}
    return found


def set_counters(engine: Any, values: dict[str, Any]) -> None:
    """Puts :func:`counters` back. Loss-scaler fields that this precision lacks are left out."""
    for name in COUNTERS:
        setattr(engine, name, values[name])
    _set_optimizer_steps(engine, values["optimizer_steps"])
    scaler = getattr(engine.optimizer, "loss_scaler", None)
    for name, value in values["scaler"].items():
        if hasattr(scaler, name):
            setattr(scaler, name, value)


def _set_optimizer_steps(engine: Any, steps: float) -> None:
    for state in _inner(engine).state.values():
        if torch.is_tensor(state.get("step")):
            state["step"].fill_(steps)
        elif "step" in state:
            state["step"] = type(state["step"])(steps)


def _inner(engine: Any) -> torch.optim.Optimizer:
    """The optimizer below DeepSpeed's wrapper."""
    inner: torch.optim.Optimizer = engine.optimizer.optimizer
    return inner
