"""Whether what a configuration says of tasks fits the tasks of its card: losses, balanced sampling, the other side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from m4oe_ds.config import Config, TaskLossConfig
from m4oe_ds.config_names import Places
from m4oe_ds.data.cards import find_card
from m4oe_ds.data.schema import FITTING, TaskSpec
from m4oe_ds.errors import ConfigError
from m4oe_ds.models.systems import find_system

_SMOOTHED = ("auto", "cross_entropy")


def unsuited(config: Config, where: str, found: Places) -> Iterator[str]:
    """A line for everything that training would trip over, or ignore, once it knows its tasks.

    Args:
        config: the tree.
        where: what to name for an option that was not given.
        found: where options were given.
    """
    try:
        card, system = find_card(config.data.dataset), find_system(config.model.name)
    except ConfigError:
        return  # said already
    tasks = [task for task in card.tasks if not config.data.tasks or task.name in config.data.tasks]
    yield from _losses(config, tasks, where, found)
    yield from _sampling(config, tasks, where, found)
    pairs = config.model.options.get("pairs", "bilateral")  # of image types: the other side is not read
    if system.contralateral and not config.data.contralateral and pairs == "bilateral":
        place = found.place("data.contralateral", "model.name", otherwise=where)
        yield f"{place}: {config.model.name} compares both sides: set data.contralateral=true"


def _losses(config: Config, tasks: Sequence[TaskSpec], where: str, found: Places) -> Iterator[str]:
    default = [task for task in tasks if task.name not in config.loss.tasks]
    if unfit := [task for task in default if not _fits(config.loss.default, task)]:
        place = found.place("loss.default.kind", otherwise=where)
        names = ", ".join(f"the {task.kind} task {task.name}" for task in unfit)
        fix = "use auto, and name the loss of single tasks under loss.tasks"
        yield f"{place}: loss.default.kind={config.loss.default.kind} does not fit {names}; {fix}"
    yield from _idle(config.loss.default, "loss.default", where, found)
    for task in tasks:
        given, path = config.loss.tasks.get(task.name), f"loss.tasks.{task.name}"
        if given is None:
            continue
        if not _fits(given, task):
            place = found.place(f"{path}.kind", path, otherwise=where)
            fix = f"use auto or {' or '.join(FITTING[task.kind])}"
            yield f"{place}: {path}.kind={given.kind} does not fit the {task.kind} task {task.name}; {fix}"
            continue
        if given.class_weight != "none" and not task.coded:
            place = found.place(f"{path}.class_weight", path, otherwise=where)
            yield f"{place}: {path}.class_weight does nothing: {task.name} has no classes; leave it out"
        yield from _idle(given, path, where, found)


def _fits(loss: TaskLossConfig, task: TaskSpec) -> bool:
    return loss.kind == "auto" or loss.kind in FITTING[task.kind]


def _idle(loss: TaskLossConfig, path: str, where: str, found: Places) -> Iterator[str]:
    """Options of a loss that another one takes no notice of."""
    if loss.label_smoothing and loss.kind not in _SMOOTHED:
        place = found.place(f"{path}.label_smoothing", path, otherwise=where)
        fix = "use cross_entropy, or leave it out"
        yield f"{place}: {path}.label_smoothing does nothing with the loss {loss.kind}; {fix}"
    if loss.gamma != TaskLossConfig().gamma and loss.kind != "focal":
        place = found.place(f"{path}.gamma", path, otherwise=where)
        yield f"{place}: {path}.gamma does nothing with the loss {loss.kind}; set {path}.kind=focal, or leave it out"


def _sampling(config: Config, tasks: Sequence[TaskSpec], where: str, found: Places) -> Iterator[str]:
    sampling = config.data.sampling
    if sampling.kind == "uniform":
        return
    classes = [task.name for task in tasks if task.coded]
    place, fix = found.place("data.sampling.tasks", "data.sampling.kind", otherwise=where), ", ".join(classes)
    if not sampling.tasks:
        yield f"{place}: data.sampling.tasks is empty: `balanced` needs tasks; choose among {fix or 'none'}"
    known = [task.name for task in find_card(config.data.dataset).tasks]
    for name in sampling.tasks:
        if name in known and name not in classes:  # of unknown names it was said already
            what = f"{name} is no task with classes of this run; choose among {fix or 'none'}"
            yield f"{place}: data.sampling.tasks: {what}"
