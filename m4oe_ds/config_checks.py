"""What the values of a configuration may be, alone and together: all that is known before there is a machine."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

from m4oe_ds import config_names, config_tasks, free_options
from m4oe_ds.config import (
    CONFIG_VERSION,
    DECAY_KINDS,
    PARTS,
    SMALLEST_IMAGE,
    TRACKERS,
    CalibratedOptions,
    Config,
)
from m4oe_ds.config_fields import MOST, Bounds
from m4oe_ds.config_names import Places
from m4oe_ds.data.cards import find_card
from m4oe_ds.errors import ConfigError
from m4oe_ds.models import outside
from m4oe_ds.models.backbone_names import FIXED
from m4oe_ds.models.backbone_names import unfit as unfit_option
from m4oe_ds.models.fit import Question
from m4oe_ds.models.options import OPTIONS, NoOptions, clash
from m4oe_ds.models.systems import find_system, settings_of, unfit
from m4oe_ds.yaml_tree import nearest


def contradictions(config: Config, where: str, found: Places) -> Iterator[str]:
    """Meaning of the values, apart from the machine they will run on; one line per contradiction.

    Args:
        config: the tree, every value of the right type.
        where: what to name for an option that was not given.
        found: where options were given.
    """
    if config.config_version != CONFIG_VERSION:
        place = found.place("config_version", otherwise=where)
        yield f"{place}: config_version {config.config_version}; this package reads {CONFIG_VERSION}"
    if not re.fullmatch(r"[^/\\\s][^/\\]*", config.run.name) or config.run.name in (".", ".."):
        place = found.place("run.name", otherwise=where)
        yield f"{place}: run.name={config.run.name!r} must be the name of a folder, without slashes"
    yield from config_names.unknown(config, where, found)
    for name, value, bounds in _bounded(config, ""):
        if not bounds.hold(value):
            shown = list(value) if isinstance(value, tuple) else value
            allowed = f"at most {MOST}" if bounds.beyond(value) else bounds
            yield f"{found.place(name, otherwise=where)}: {name}={shown} must be {allowed}"
    yield from _volumes(config, where, found)
    sizes = {"data.image_size": config.data.image_size, "data.phantom.image_size": config.data.phantom.image_size}
    for name, size in sizes.items():
        if len(size) != 2:
            yield f"{found.place(name, otherwise=where)}: {name} must be [height, width], got {list(size)}"
    yield from _model(config, where, found)
    yield from _free(config, where, found)
    yield from _fixed(config, where, found)
    yield from _idle(config, where, found)
    yield from _patches(config, where, found)
    yield from _heads(config, where, found)
    yield from _parts(config, where, found)
    yield from _factors(config, where, found)
    yield from config_tasks.unsuited(config, where, found)
    run = config.run
    if run.patience and not run.eval_every_epochs:
        place, fix = found.place("run.patience", otherwise=where), "set run.eval_every_epochs from 1"
        yield f"{place}: run.patience counts validations, and there are none; {fix}"
    if run.min_improvement and not run.patience:
        place, fix = found.place("run.min_improvement", otherwise=where), "set run.patience from 1"
        yield f"{place}: run.min_improvement does nothing without run.patience; {fix}"


def _parts(config: Config, where: str, found: Places) -> Iterator[str]:
    """Parts of the model and kinds of parameters that are named, and what freezing them leaves."""
    frozen = config.model.freeze
    for option, names, known in (
        ("model.freeze", frozen, PARTS),
        ("optim.parts", tuple(config.optim.parts), PARTS),
        ("optim.no_decay", config.optim.no_decay, DECAY_KINDS),
    ):
        for name in names:
            if name not in known:
                place = found.place(f"{option}.{name}", option, otherwise=where)
                yield f"{place}: unknown name {name!r} in {option}{nearest(name, known)}"
        yield from config_names.repeated(option, names, found.place(option, otherwise=where))
    trackers = found.place("run.trackers", otherwise=where)
    yield from config_names.repeated("run.trackers", config.run.trackers, trackers)
    for name in config.run.trackers:
        if name not in TRACKERS and not outside.is_written(name):
            yield f"{trackers}: unknown tracker {name!r}{nearest(name, TRACKERS)}; or write {outside.FORM}"
    for name in config.optim.parts:
        by = "model.freeze" if name in frozen else "model.embedder.freeze"
        if name in frozen or (name == "backbone" and config.model.embedder.freeze):
            place = found.place(f"optim.parts.{name}", otherwise=where)
            yield f"{place}: optim.parts.{name} does nothing: {by} freezes it; remove one of them"
    if set(frozen) >= set(PARTS):
        yield f"{found.place('model.freeze', otherwise=where)}: model.freeze leaves nothing to train"
    if "experts" in frozen and config.model.name == "m4oe":
        place, fix = found.place("model.freeze", otherwise=where), "the last shared layer of m4oe is one of experts"
        if config.run.conflict_every_steps:
            yield f"{place}: frozen experts have no gradients: set run.conflict_every_steps=0; {fix}"
        if config.loss.gradient_policy != "sum":
            yield f"{place}: frozen experts have no gradients: set loss.gradient_policy=sum; {fix}"


def _factors(config: Config, where: str, found: Places) -> Iterator[str]:
    """A learning rate that never falls, because its least factor is above the one that it starts from."""
    schedule = config.schedule
    if schedule.min_factor > schedule.peak_factor:
        place = found.place("schedule.min_factor", "schedule.peak_factor", otherwise=where)
        limit = f"schedule.peak_factor={schedule.peak_factor:g}"
        yield f"{place}: schedule.min_factor={schedule.min_factor:g} is above {limit}; make it smaller"


def _model(config: Config, where: str, found: Places) -> Iterator[str]:
    """The named system: whether there is one, whether it answers these questions, and what only M4oE has."""
    model = config.model
    if model.init_map and not model.init_from:
        place = found.place("model.init_map", otherwise=where)
        yield f"{place}: model.init_map does nothing without model.init_from"
    try:
        find_system(model.name)
    except ConfigError as error:
        if outside.is_outside(model.name):  # of the others it was said already
            yield f"{found.place('model.name', otherwise=where)}: {error}"
        return
    if model.missing_modality == "bank" and model.name != "m4oe":
        place = found.place("model.missing_modality", otherwise=where)
        fix = "set model.missing_modality to mask, or model.name to m4oe"
        yield f"{place}: model.missing_modality: {model.name} has no bank; {fix}"
    try:
        card = find_card(config.data.dataset)
    except ConfigError:
        return  # said already
    question = Question.of(card, config.data.modalities, config.data.tasks)
    if question.inputs and question.tasks and (reason := unfit(model.name, question, settings_of(config))):
        place = found.place("model.name", otherwise=where)
        fix = "`m4oe models --card CARD` lists the systems that fit, data.modalities and data.tasks choose"
        yield f"{place}: model.name: {model.name} does not fit {card.name}: {reason}; {fix}"
    metric = config.run.checkpoint.metric
    if metric != "loss" and question.tasks and not any(task.coded for task in question.tasks):
        place = found.place("run.checkpoint.metric", otherwise=where)
        yield f"{place}: run.checkpoint.metric: no task of this run has classes, and so no {metric}; use loss"


def _free(config: Config, where: str, found: Places) -> Iterator[str]:
    """Options whose names depend on the named system or policy."""
    calibrated = config.loss.gradient_policy == "calibrated"
    kinds: dict[str, tuple[type, dict[str, Any], str]] = {
        "loss.gradient_options": (
            CalibratedOptions if calibrated else NoOptions,
            config.loss.gradient_options,
            f"of loss.gradient_policy {config.loss.gradient_policy}",
        )
    }
    if config.model.name in OPTIONS:
        kinds["model.options"] = OPTIONS[config.model.name], config.model.options, f"of {config.model.name}"
    for path, (kind, values, owner) in kinds.items():
        wrong = list(free_options.problems(kind, values))
        for name, what in wrong:
            place = found.place(f"{path}.{name}", path, otherwise=where)
            yield f"{place}: {path}.{name} ({owner}) {what}"
        if path == "model.options" and not wrong:
            told = clash(config.model.name, free_options.read(kind, values), config.model.dim)
            if told:
                yield f"{found.place(f'{path}.heads', path, 'model.dim', otherwise=where)}: {told}"


def _fixed(config: Config, where: str, found: Places) -> Iterator[str]:
    """Options of timm that are not the user's to give, or that no network can have."""
    path = "model.embedder.options"
    for name, value in config.model.embedder.options.items():
        what = "is set by the embedder itself; leave it out" if name in FIXED else unfit_option(name, value)
        if what:
            yield f"{found.place(f'{path}.{name}', path, otherwise=where)}: {path}.{name} {what}"


def _idle(config: Config, where: str, found: Places) -> Iterator[str]:
    """Options that were given and would do nothing, because another one decides."""
    model, ours = config.model, config.model.name == "m4oe"
    idle = {
        "model.regime": ours and model.regime != "vit" and "it is for compared systems",
        "model.attach_mtoe": ours and model.attach_mtoe != "none" and "it is for compared systems",
        "model.use_mtoe": not ours and not model.use_mtoe and "it is an ablation of m4oe",
        "model.use_msoe": not ours and not model.use_msoe and "it is an ablation of m4oe",
        "data.sampling.tasks": bool(config.data.sampling.tasks)
        and config.data.sampling.kind == "uniform"
        and "it is for data.sampling.kind: balanced",
    }
    for name, reason in idle.items():
        if reason:
            yield f"{found.place(name, otherwise=where)}: {name} does nothing here: {reason}; leave it out"


def patch_size(config: Config) -> int:
    """Side of the square patches of the image backbone, pixels; 0 where it has none, or its name does not say."""
    given = config.model.embedder.options.get("patch_size", 0)
    if isinstance(given, int) and given > 0:
        return given
    named = re.search(r"(?:^|_)patch(\d+)(?:_|$)", config.model.embedder.backbone)
    return int(named[1]) if named else 0


def _patches(config: Config, where: str, found: Places) -> Iterator[str]:
    """Image sizes that the patches do not cover: what is left over would never be seen."""
    size, patch = config.data.image_size, patch_size(config)
    if "patch_size" in config.model.embedder.options and patch != config.model.embedder.options["patch_size"]:
        return  # said already
    if len(size) == 2 and min(size) >= SMALLEST_IMAGE and patch and any(side % patch for side in size):
        place = found.place("data.image_size", "model.embedder.options", "model.embedder.backbone", otherwise=where)
        fits = [max(patch, round(side / patch) * patch) for side in size]
        yield f"{place}: patches of {patch} pixels do not divide data.image_size={list(size)}; write e.g. {fits}"


def _heads(config: Config, where: str, found: Places) -> Iterator[str]:
    model = config.model
    if model.mlp_ratio > 0 and round(model.mlp_ratio * model.dim) < 1:
        place = found.place("model.mlp_ratio", "model.dim", otherwise=where)
        yield f"{place}: model.mlp_ratio={model.mlp_ratio:g} of model.dim={model.dim} leaves no width; make it larger"
    for name, heads in (("msoe", model.msoe), ("mtoe", model.mtoe), ("fusion", model.fusion)):
        if heads.num_heads >= 1 and model.dim % heads.num_heads:
            option = f"model.{name}.num_heads"
            place = found.place(option, "model.dim", otherwise=where)
            near = [number for number in range(1, 65) if model.dim % number == 0]
            yield (
                f"{place}: {option}={heads.num_heads} does not divide model.dim={model.dim}; "
                f"choose one of {', '.join(map(str, near))}"
            )


def _volumes(config: Config, where: str, found: Places) -> Iterator[str]:
    """Sizes of volumes and of their patches, which must divide them, and masks that have lost their volume."""
    size, patch = config.data.volume_size, config.model.embedder.volume_patch
    for name, value in {"data.volume_size": size, "model.embedder.volume_patch": patch}.items():
        if len(value) != 3:
            yield f"{found.place(name, otherwise=where)}: {name} must be [depth, height, width], got {list(value)}"
    try:
        card = find_card(config.data.dataset)
    except ConfigError:
        return  # said already
    chosen = [one for one in card.inputs if one.name in (config.data.modalities or card.modalities)]
    solid = {one.name for one in card.inputs if one.kind == "volume" and not one.flat}
    uneven = len(size) == len(patch) == 3 and any(not b or a % b for a, b in zip(size, patch, strict=True))
    if uneven and any(one.name in solid for one in chosen):
        place = found.place("model.embedder.volume_patch", "data.volume_size", otherwise=where)
        yield f"{place}: model.embedder.volume_patch={list(patch)} does not divide data.volume_size={list(size)}"
    for task in card.tasks:
        taken = task.dense and (not config.data.tasks or task.name in config.data.tasks)
        lost = taken and chosen and task.of not in {one.name for one in chosen}
        # a mask over an image is decoded from the first modality instead: possible only between images
        if lost and (task.of in solid or not chosen[0].flat):
            place = found.place("data.modalities", otherwise=where)
            yield f"{place}: data.modalities leaves out {task.of}, over which the mask {task.name} lies"


def _bounded(section: Any, path: str) -> Iterator[tuple[str, Any, Bounds]]:
    """Dotted name, value and bounds of every option below a section."""
    for item in dataclasses.fields(section):
        name, value = f"{path}{item.name}", getattr(section, item.name)
        if dataclasses.is_dataclass(value):
            yield from _bounded(value, f"{name}.")
        elif isinstance(value, dict):
            for key, entry in value.items():
                if dataclasses.is_dataclass(entry):
                    yield from _bounded(entry, f"{name}.{key}.")
        else:
            yield name, value, item.metadata["bounds"]
