"""Consolidated weights: one safetensors file with every expert, loadable at any number of ranks and any ep_size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import deepspeed
import deepspeed.comm as dist
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from m4oe_ds.errors import CheckpointError
from m4oe_ds.layers.experts import ExpertWeights
from m4oe_ds.parallel import reduce


def save(engine: Any, path: Path) -> None:
    """Writes all parameters and buffers, experts gathered from their owners, from rank 0.

    Memory: one tensor at a time on the ranks, the whole model in the host memory of rank 0.

    Collectives: one all-gather per expert tensor (and per tensor under ZeRO-3); every rank must call it.
    """
    module = engine.module
    owners = {
        f"{name}.{key}": layer
        for name, layer in _sharded_layers(module)
        for key, _ in layer.experts.named_parameters(prefix="experts")
    }
    collected: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=engine.zero_optimization_stage() == 3):
            value = parameter.detach()
            if name in owners:
                value = _gather_experts(value, owners[name])
            if reduce.rank() == 0:
                collected[name] = value.cpu().clone().contiguous()
    if reduce.rank() == 0:
        for name, buffer in module.named_buffers():
            collected[name] = buffer.detach().cpu().clone().contiguous()
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        save_file(collected, str(temporary), metadata={"format": "m4oe", "version": "1"})
        temporary.replace(path)
    reduce.barrier()


def load(model: nn.Module, path: Path) -> None:
    """Fills a model built at any ep_size from a consolidated file; each rank reads only the experts it holds.

    Raises:
        CheckpointError: missing file, or names and shapes that do not match the model, all listed.
    """
    if not path.is_file():
        raise CheckpointError("no consolidated weights", str(path), "train the run to its end first")
    experts = {
        f"{name}.{key}" if name else key: module.expert_ids
        for name, module in model.named_modules()
        if isinstance(module, ExpertWeights)
        for key in ("w1", "w2", "w3")
    }
    target = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with safe_open(str(path), framework="pt") as stored:
        names = set(stored.keys())
        problems = [f"missing {name}" for name in sorted(target.keys() - names)]
        problems += [f"unexpected {name}" for name in sorted(names - target.keys())]
        if problems:
            raise CheckpointError(f"{len(problems)} names do not match: {'; '.join(problems[:8])}", str(path))
        for name, tensor in target.items():
            source = stored.get_slice(name)
            ids = experts.get(name)
            value = (
                source[ids[0] : ids[-1] + 1]
                if ids is not None
                else source[:]
                if tensor.ndim
                else stored.get_tensor(name)
            )
            if tuple(value.shape) != tuple(tensor.shape):
                raise CheckpointError(
                    f"{name} has shape {tuple(source.get_shape())}, the model wants {tuple(tensor.shape)}", str(path)
                )
            with torch.no_grad():
                tensor.copy_(value)


def _sharded_layers(module: nn.Module) -> list[tuple[str, Any]]:
    from m4oe_ds.parallel.deepspeed_moe import ExpertParallelExperts

    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, ExpertParallelExperts)]


def _gather_experts(value: Tensor, layer: Any) -> Tensor:
    if layer.ep_size == 1:
        return value
    parts = [torch.empty_like(value) for _ in range(layer.ep_size)]
    dist.all_gather(parts, value.contiguous(), group=layer.ep_group)
    return torch.cat(parts)
