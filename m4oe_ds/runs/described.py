"""What a checkpoint is of, option by option, so that a run that may not continue from it is told which one differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from m4oe_ds.config import Config, ModelConfig, to_dict
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.models.interface import ModelSpec
from m4oe_ds.runs.configuration import without_sources

SHARDS = "the training shards"
NO_TENSOR = ("model.activation_checkpointing", "model.init_from", "model.init_map", "model.embedder.weights")


def describe(config: Config, spec: ModelSpec, manifest: Manifest) -> dict[str, Any]:
    """Dotted options and their values, ready for JSON: the model, what it reads and answers, seed and shards.

    Args:
        config: the resolved configuration.
        spec: specification of the model; it has every modality and task, also where the configuration says all.
        manifest: of the training split.
    """
    return {
        **dict(_flat("model", to_dict(without_sources(config).model))),
        "data.modalities": list(spec.modalities),
        "data.tasks": list(spec.task_names),
        "run.seed": config.run.seed,
        SHARDS: manifest.digest[:12],
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs, such as ``model.dim=16, now 32``; options that one of them does not know have their default.

    Args:
        then: of the checkpoint.
        now: of this run.
    """
    defaults = dict(_flat("model", to_dict(ModelConfig())))
    found = []
    for name in dict.fromkeys((*now, *then)):
        before, after = (side.get(name, defaults.get(name)) for side in (then, now))
        if before != after and name not in NO_TENSOR:
            found.append(f"{name}={before}, now {after}")
    return found


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Dotted names of the leaves of nested mappings; an empty mapping has none."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(f"{name}.{key}", item)
    else:
        yield name, value
