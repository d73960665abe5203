"""Model and DeepSpeed configuration to an engine whose expert parallelism is verified."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import deepspeed
import torch

from m4oe_ds import deepspeed_json
from m4oe_ds.config import Config
from m4oe_ds.errors import ConfigError
from m4oe_ds.models import build
from m4oe_ds.models.interface import MultiModalModel
from m4oe_ds.models.registry import expert_counts
from m4oe_ds.parallel import deepspeed_moe, topology
from m4oe_ds.training.parameter_groups import for_optimizer, parameter_groups

_logger = logging.getLogger(__name__)


def place(config: Config, world: int) -> topology.Topology:
    """This rank's place in the expert groups of a configuration.

    Raises:
        ConfigError: an ep_size that does not fit.

    Collectives: creates process groups the first time; every rank must call it.
    """
    return topology.create(topology.choose_ep_size(config.parallel.ep_size, world, expert_counts(config)))


def create(
    config: Config,
    ds_config: Mapping[str, Any],
    sizes: deepspeed_json.BatchSizes,
    world: int,
    fill: Callable[[MultiModalModel], None] | None = None,
) -> tuple[Any, topology.Topology]:
    """The DeepSpeed engine of a configuration and this rank's place in the expert groups.

    Args:
        config: the configuration of this package (YAML).
        ds_config: the DeepSpeed JSON as it was read.
        sizes: derived batch sizes.
        world: number of ranks.
        fill: gives the fresh model other initial values, before anything is partitioned or copied to the optimizer.

    Raises:
        ConfigError: an ep_size that does not fit, or a precision this device lacks.
        EnvironmentProblem: the engine did not recognise the mixture layers.

    Collectives: creates process groups and broadcasts parameters; every rank must call it.
    """
    _check_precision(ds_config)
    placed = place(config, world)
    model = build(config, deepspeed_moe.experts_factory(placed))
    if fill is not None:
        fill(model)
    groups = parameter_groups(model, config.optim, ds_config.get("optimizer", {}))
    resolved = dict(
        ds_config,
        train_batch_size=sizes.train,
        train_micro_batch_size_per_gpu=sizes.micro,
        gradient_accumulation_steps=sizes.accumulation,
    )
    apart = deepspeed_moe.with_experts_apart(for_optimizer(groups))
    with deepspeed_moe.experts_may_be_frozen(model):
        engine, _, _, _ = deepspeed.initialize(model=model, model_parameters=apart, config=resolved)
    deepspeed_moe.check_engine(engine, model)
    engine.parameter_table = groups
    return engine, placed


def compute_dtype(engine: Any) -> torch.dtype:
    """Dtype of the parameters and of the views fed to the model."""
    if engine.bfloat16_enabled():
        return torch.bfloat16
    return torch.float16 if engine.fp16_enabled() else torch.float32


def _check_precision(ds_config: Mapping[str, Any]) -> None:
    if ds_config.get("fp16", {}).get("enabled") and not torch.cuda.is_available():
        raise ConfigError(
            "fp16.enabled needs a GPU: DeepSpeed's CPU accelerator refuses it", fix="use bf16.json or zero2.json"
        )
