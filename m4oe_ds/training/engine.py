"""Model and DeepSpeed configuration to an engine whose expert parallelism is verified."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import deepspeed
import torch

from m4oe_ds import deepspeed_json
from m4oe_ds.config import Config
from m4oe_ds.errors import ConfigError
from m4oe_ds.models import build
from m4oe_ds.models.registry import expert_counts
from m4oe_ds.parallel import deepspeed_moe, topology

_logger = logging.getLogger(__name__)


def create(
    config: Config, ds_config: Mapping[str, Any], sizes: deepspeed_json.BatchSizes, world: int
) -> tuple[Any, topology.Topology]:
    """The DeepSpeed engine of a configuration and this rank's place in the expert groups.

    Args:
        config: the configuration of this package (YAML).
        ds_config: the DeepSpeed JSON as it was read.
        sizes: derived batch sizes.
        world: number of ranks.

    Raises:
        ConfigError: an ep_size that does not fit, or a precision this device lacks.
        EnvironmentProblem: the engine did not recognise the mixture layers.

    Collectives: creates process groups and broadcasts parameters; every rank must call it.
    """
    _check_precision(ds_config)
    ep_size = topology.choose_ep_size(config.parallel.ep_size, world, expert_counts(config))
    place = topology.create(ep_size)
    model = build(config, deepspeed_moe.experts_factory(place))
    groups = deepspeed_moe.parameter_groups(model.parameters())
    resolved = dict(
        ds_config,
        train_batch_size=sizes.train,
        train_micro_batch_size_per_gpu=sizes.micro,
        gradient_accumulation_steps=sizes.accumulation,
    )
    engine, _, _, _ = deepspeed.initialize(model=model, model_parameters=groups, config=resolved)
    deepspeed_moe.check_engine(engine, model)
    return engine, place


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
