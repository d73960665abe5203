"""Finds the first tensor that is not finite, so that a diverged run says more than ``loss is nan``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from m4oe_ds.data.batch import Batch
from m4oe_ds.errors import UserError
from m4oe_ds.parallel import reduce


def tensors_of(value: Any) -> list[Tensor]:
    """Floating-point tensors of a module's output: itself, or in tuples, lists and dicts."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in tensors_of(item)]
    if isinstance(value, (tuple, list)):
        return [tensor for item in value for tensor in tensors_of(item)]
    return []


def bad(tensor: Tensor) -> bool:
    """True if any element is infinite or not a number."""
    return not bool(torch.isfinite(tensor.detach()).all())


def describe(tensor: Tensor) -> str:
    """Shape, dtype and how much of it is bad."""
    values = tensor.detach()
    nan, inf = int(values.isnan().sum()), int(values.isinf().sum())
    return f"{nan} nan and {inf} infinite of {values.numel()} values, shape {tuple(values.shape)}, {values.dtype}"


@torch.no_grad()
def first_bad_tensor(module: nn.Module, batch: Batch) -> str | None:
    """Where this rank's values first stop being finite: an input, a parameter, or the output of a module.

    Args:
        module: the model itself, not the engine.
        batch: a batch on the model's device and in its dtype.

    Returns:
        One line, or None if everything up to the model's outputs is finite (then it is the loss that is not).

    Collectives: one forward; every rank of an expert-parallel group must call it.
    """
    found: list[str] = []
    for name, view in {**batch.views, **batch.extras}.items():
        if view.is_floating_point() and bad(view):
            rows = [batch.keys[i] for i in range(len(batch.keys)) if bad(view[i])]
            found.append(f"input {name} of sample {', '.join(rows[:3])}: {describe(view)}")
    for name, parameter in [*module.named_parameters(), *module.named_buffers()]:
        if parameter.is_floating_point() and parameter.numel() and bad(parameter):
            found.append(f"parameter {name}: {describe(parameter)}")
            break
    handles = []

    def watch(name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not found:
                found.extend(f"output of {name}: {describe(t)}" for t in tensors_of(output) if bad(t))

        return hook

    # A module's hook runs after those of its children, so the first to fire is the innermost one.
    for name, child in module.named_modules():
        handles.append(child.register_forward_hook(watch(name or "the model")))
    try:
        output = module(batch)
    finally:
        for handle in handles:
            handle.remove()
    found.extend(f"logits of {task}: {describe(t)}" for task, t in output.logits.items() if bad(t))
    return found[0] if found else None


def stop_if_bad(module: nn.Module, batches: Sequence[Batch], losses: Sequence[Tensor], where: str) -> None:
    """Stops all ranks, before the optimizer touches the weights, if a loss of any rank is not finite.

    Args:
        module: the model.
        batches: micro-batches of the step, on any device.
        losses: losses of these batches, scalars.

    Raises:
        UserError: names the first bad tensor.

    Collectives: an all-reduce of one number; if a loss is bad, a forward per micro-batch and a gather of text.
    """
    device = losses[0].device
    flag = torch.stack([loss.detach() for loss in losses]).isfinite().all().logical_not().float()
    if not bool(reduce.maximum_over_ranks(flag.reshape(1))):
        return
    problems: list[str] = []
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)
    for batch in batches:
        line = first_bad_tensor(module, batch.to(device, dtype))
        if line and not problems:
            problems.append(line if reduce.world_size() == 1 else f"rank {reduce.rank()}, {line}".replace("\n", " "))
    # Slots carry a rank's bad values to the experts of others: an input or a parameter is nearer to the cause.
    order = ("input ", "parameter ", "")
    gathered = reduce.agree(problems, device)
    gathered.sort(key=lambda text: next(i for i, kind in enumerate(order) if kind in text.split(":")[0]))
    shown = gathered or ["every output of the model is finite: it is the loss that is not"]
    raise UserError(
        f"the loss is not finite; {shown[0]}",
        where,
        "nothing was changed: look at that tensor, lower the learning rate, or resume from an earlier checkpoint",
    )
