"""A configuration to a model: its specification, its number of experts, the model itself."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from m4oe_ds.config import Config
from m4oe_ds.data.cards import find_card
from m4oe_ds.errors import ConfigError
from m4oe_ds.models import outside
from m4oe_ds.models.systems import find_system, settings_of, unfit

if TYPE_CHECKING:
    from m4oe_ds.layers.experts import ExpertsFactory
    from m4oe_ds.models.interface import ModelSpec, MultiModalModel


def expert_counts(config: Config) -> tuple[int, ...]:
    """Experts of every mixture layer kind that this configuration builds; empty for a model without experts.

    Raises:
        ConfigError: unknown model name (with the nearest known one).
    """
    model = config.model
    if model.name != "m4oe":
        has_experts = model.attach_mtoe != "none" or find_system(model.name).own_experts
        return (model.mtoe.num_experts,) if has_experts else ()
    counts = [model.fusion.num_experts]
    if model.use_msoe:
        counts.append(model.msoe.num_experts)
    if model.use_mtoe:
        counts.append(model.mtoe.num_experts)
    return tuple(counts)


def spec_for(config: Config) -> ModelSpec:
    """Modalities, tasks and image size of a configuration, in the order of the data set's card."""
    from m4oe_ds.models.interface import ModelSpec

    card = find_card(config.data.dataset)
    modalities = config.data.modalities or card.modalities
    tasks = config.data.tasks or tuple(task.name for task in card.tasks)
    height, width = config.data.image_size
    return ModelSpec(
        inputs=tuple(one for one in card.inputs if one.name in modalities),
        tasks=tuple(task for task in card.tasks if task.name in tasks),
        image_size=(height, width),
        volume_size=config.data.volume_size,
        sides=len(card.sides) == 2,
    )


def build(config: Config, experts_factory: ExpertsFactory | None = None) -> MultiModalModel:
    """The model of a configuration, initialised from ``config.run.seed`` alone.

    Args:
        config: the resolved tree.
        experts_factory: makes the expert executor of each mixture layer; default keeps all experts in this process.
            Initial expert values depend on the seed, the layer and the global expert id, not on the factory.

    Raises:
        ConfigError: unknown model name (with the nearest known one), modalities or tasks that this model is not made
            for, an option that it does not have, or one from outside the package that does not keep to the interface.
    """
    import torch

    from m4oe_ds.layers.experts import LocalExperts, initialise_experts
    from m4oe_ds.models.parts import freeze, frozen_modules

    entry = find_system(config.model.name)
    if config.model.missing_modality == "bank" and config.model.name != "m4oe":
        raise ConfigError(f"{config.model.name} has no bank", "model.missing_modality", "set it to mask, or use m4oe")
    spec = spec_for(config)
    if reason := unfit(config.model.name, spec, settings_of(config)):
        fix = "`m4oe models --card CARD` lists the systems that fit, and `data.modalities` and `data.tasks` choose"
        raise ConfigError(f"{config.model.name} does not fit {config.data.dataset}: {reason}", "model.name", fix)
    arguments = (spec, config.model, experts_factory or LocalExperts)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        if outside.is_outside(config.model.name):
            from m4oe_ds.models import outside_build

            model = outside_build.build(entry.builder, *arguments)
        else:
            module, _, function = entry.builder.partition(":")
            model = getattr(importlib.import_module(module), function)(*arguments)
    initialise_experts(model, config.run.seed)
    if config.model.freeze:
        freeze(model, config.model.freeze)
    if config.model.freeze or config.model.embedder.freeze:
        model.held = frozen_modules(model)
        model.train(model.training)
    return model
