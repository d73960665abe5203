"""Static table of models: answering "which models are there" imports neither torch nor any of them."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from m4oe_ds.config import Config
from m4oe_ds.data.cards import find_card
from m4oe_ds.errors import ConfigError
from m4oe_ds.models.fit import RULES, SENSE, Problem

if TYPE_CHECKING:
    from m4oe_ds.layers.experts import ExpertsFactory
    from m4oe_ds.models.interface import ModelSpec, MultiModalModel


@dataclass(frozen=True)
class Entry:
    """A registered model.

    Attributes:
        builder: ``module:function`` taking (spec, model config, experts_factory).
        paper: what it implements.
        fidelity: ``ours``, ``re-implemented`` or ``reconstructed``.
        model_loss: ``module:class``, a subclass of ``m4oe_ds.losses.model_loss.ModelLoss``; empty = the configured
            losses alone.
        needs: names of the rules (:data:`m4oe_ds.models.fit.RULES`) without which it cannot be built.
        sense: names of the rules (:data:`m4oe_ds.models.fit.SENSE`) without which it is left out of comparisons.
        contralateral: it reads the other side of the exam (``data.contralateral``).
        own_experts: whether the model has mixture layers even without an attached MToE.
        class_weights: whether its loss of classes takes class weights.
    """

    builder: str
    paper: str
    fidelity: str
    model_loss: str = ""
    needs: tuple[str, ...] = ()
    sense: tuple[str, ...] = ()
    contralateral: bool = False
    own_experts: bool = False
    class_weights: bool = True


IMAGES = ("images", "flat_masks")  # what the encoders and decoders of the compared systems take


MODELS: dict[str, Entry] = {
    "m4oe": Entry(
        "m4oe_ds.models.m4oe:build",
        "Dynamic Modeling of Patients, Modalities and Tasks via Multi-modal Multi-task Mixture of Experts (ICLR 2025)",
        "ours",
        own_experts=True,
    ),
    "mirai": Entry(
        "m4oe_ds.models.baselines.mirai:build",
        "Toward robust mammography-based models for breast cancer risk (Science Translational Medicine 2021)",
        "re-implemented",
        "m4oe_ds.losses.hazard:HazardLoss",
        (*IMAGES, "views"),
    ),
    "eyemost": Entry(
        "m4oe_ds.models.baselines.eyemost:build",
        "Reliable Multimodality Eye Disease Screening via Mixture of Student's t Distributions (MICCAI 2023); "
        "EyeMoSt+: Confidence-aware multi-modality learning for eye disease screening (Medical Image Analysis 2024)",
        "re-implemented",
        "m4oe_ds.losses.evidential:EvidentialLoss",
        (*IMAGES, "classes_or_masks"),
        ("unlike",),
        class_weights=False,
    ),
    "asymmirai": Entry(
        "m4oe_ds.models.baselines.asymmirai:build",
        "AsymMirai: interpretable mammography-based deep learning model for 1-5-year breast cancer risk prediction "
        "(Radiology 2024)",
        "re-implemented",
        needs=(*IMAGES, "no_masks", "pairs"),
        contralateral=True,
    ),
    "eyestar": Entry(
        "m4oe_ds.models.baselines.eyestar:build",
        "GAMMA challenge: glaucoma grading from multi-modality images (Medical Image Analysis 2023), a finalist",
        "reconstructed",
        "m4oe_ds.losses.ordinal:OrdinalLoss",
        (*IMAGES, "classes_or_masks", "graded"),
        ("masked_grades",),
        class_weights=False,
    ),
    "aide": Entry(
        "m4oe_ds.models.baselines.aide:build",
        "AIDE: a vision-driven multi-view, multi-modal, multi-tasking dataset for assistive driving perception "
        "(ICCV 2023)",
        "reconstructed",
        needs=IMAGES,
    ),
    "soft_moe": Entry(
        "m4oe_ds.models.baselines.soft_moe:build",
        "From sparse to soft mixtures of experts (ICLR 2024), on the tokens of all modalities",
        "re-implemented",
        needs=("images_if_native", "flat_masks"),
        own_experts=True,
    ),
    "mmodn": Entry(
        "m4oe_ds.models.baselines.mmodn:build",
        "MultiModN: Multimodal, Multi-Task, Interpretable Modular Networks (NeurIPS 2023)",
        "re-implemented",
        "m4oe_ds.losses.sequential:SequentialLoss",
        IMAGES,
    ),
    "fuller": Entry(
        "m4oe_ds.models.baselines.fuller:build",
        "FULLER: Unified Multi-modality Multi-task 3D Object Detection via Multi-level Gradient Calibration "
        "(ICCV 2023)",
        "reconstructed",
        needs=IMAGES,
    ),
    "evif": Entry(
        "m4oe_ds.models.baselines.evif:build",
        "Event-based Visible and Infrared Fusion via Multi-task Collaboration (CVPR 2024)",
        "reconstructed",
        needs=IMAGES,
    ),
}


def available() -> tuple[str, ...]:
    """Registered names, sorted."""
    return tuple(sorted(MODELS))


def expert_counts(config: Config) -> tuple[int, ...]:
    """Experts of every mixture layer kind that this configuration builds; empty for a model without experts.

    Raises:
        ConfigError: unknown model name (with the nearest known one).
    """
    model = config.model
    if model.name != "m4oe":
        has_experts = model.attach_mtoe != "none" or _entry(model.name).own_experts
        return (model.mtoe.num_experts,) if has_experts else ()
    counts = [model.fusion.num_experts]
    if model.use_msoe:
        counts.append(model.msoe.num_experts)
    if model.use_mtoe:
        counts.append(model.mtoe.num_experts)
    return tuple(counts)


def _entry(name: str) -> Entry:
    entry = MODELS.get(name)
    if entry is None:
        close = difflib.get_close_matches(name, available(), n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(f"unknown model.name {name!r}", fix=f"{hint}known: {', '.join(available())}")
    return entry


def unfit(name: str, problem: Problem, settings: Mapping[str, Any] | None = None, compared: bool = False) -> str:
    """Why a system cannot be built for a problem, in words that follow its name; empty if it can.

    Args:
        name: registered name.
        problem: modalities and tasks, e.g. ``Question.of(card)`` or a specification.
        settings: ``model.options``, and ``regime``.
        compared: also why it would make no sense in a comparison.

    Raises:
        ConfigError: unknown model name (with the nearest known one).
    """
    entry = _entry(name)
    rules = [*(RULES[need] for need in entry.needs), *(SENSE[sense] for sense in entry.sense if compared)]
    return next((reason for rule in rules if (reason := rule(problem, settings or {}))), "")


def settings_of(config: Config) -> dict[str, Any]:
    """What :func:`unfit` asks of a configuration's model."""
    return {**config.model.options, "regime": config.model.regime}


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
            for, or an option that it does not have.
    """
    import torch

    from m4oe_ds.layers.experts import LocalExperts, initialise_experts

    entry = _entry(config.model.name)
    if config.model.missing_modality == "bank" and config.model.name != "m4oe":
        raise ConfigError(f"{config.model.name} has no bank", "model.missing_modality", "set it to mask, or use m4oe")
    spec = spec_for(config)
    if reason := unfit(config.model.name, spec, settings_of(config)):
        fix = "`m4oe models --card CARD` lists the systems that fit, and `data.modalities` and `data.tasks` choose"
        raise ConfigError(f"{config.model.name} does not fit {config.data.dataset}: {reason}", "model.name", fix)
    module, _, function = entry.builder.partition(":")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        model: MultiModalModel = getattr(importlib.import_module(module), function)(
            spec, config.model, experts_factory or LocalExperts
        )
    initialise_experts(model, config.run.seed)
    return model
