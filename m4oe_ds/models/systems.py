"""Static table of systems: which there are and whether one fits is answered without torch and without any of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

from m4oe_ds.config import Config
from m4oe_ds.errors import ConfigError
from m4oe_ds.models import outside
from m4oe_ds.models.fit import RULES, SENSE, Problem
from m4oe_ds.yaml_tree import nearest


@dataclass(frozen=True)
class Entry:
    """A registered model.

    Attributes:
        builder: ``module:function`` or ``module:Class``, called with (spec, model config, experts_factory).
        paper: what it implements.
        fidelity: ``ours``, ``re-implemented``, ``reconstructed``, or ``outside`` the package.
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


def find_system(name: str) -> Entry:
    """The entry of a system; of one from outside the package, ``package.module:Class``, what its module declares.

    Raises:
        ConfigError: unknown name (with the nearest known one), or nothing of the kind outside.
    """
    if outside.is_outside(name):
        return _outside(name)
    entry = MODELS.get(name)
    if entry is None:
        known = nearest(name, available())
        raise ConfigError(f"unknown model.name {name!r}{known}", fix=f"one of your own is written {outside.FORM}")
    return entry


def _outside(name: str) -> Entry:
    given = outside.declared(name)
    known = {one.name: one.default for one in fields(Entry) if one.default is not MISSING}
    where = f"{outside.DECLARATION} of {name.partition(':')[0]}"
    for key, value in given.items():
        if key not in known:
            raise ConfigError(f"unknown key {key!r}{nearest(str(key), list(known))}", where)
        if type(value) is not type(known[key]) and not (isinstance(known[key], tuple) and isinstance(value, list)):
            raise ConfigError(f"{key} must be of type {type(known[key]).__name__}, got {value!r}", where)
    for key, rules in (("needs", RULES), ("sense", SENSE)):
        for rule in given.get(key, ()):
            if rule not in rules:
                raise ConfigError(f"no rule {rule!r} for {key}{nearest(str(rule), list(rules))}", where)
    lists = {key: tuple(value) for key, value in given.items() if isinstance(value, list)}
    return Entry(name, "", "outside", **{**given, **lists})


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
    entry = find_system(name)
    rules = [*(RULES[need] for need in entry.needs), *(SENSE[sense] for sense in entry.sense if compared)]
    return next((reason for rule in rules if (reason := rule(problem, settings or {}))), "")


def settings_of(config: Config) -> dict[str, Any]:
    """What :func:`unfit` asks of a configuration's model."""
    return {**config.model.options, "regime": config.model.regime}
