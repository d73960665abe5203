"""Configuration to objective: the one place, for training, evaluation, planning and the tests of parity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m4oe_ds.config import Config, TaskLossConfig
from m4oe_ds.data.schema import FITTING, TaskSpec
from m4oe_ds.data.task_statistics import TaskStatistics
from m4oe_ds.errors import ConfigError
from m4oe_ds.losses.model_loss import ModelLoss
from m4oe_ds.losses.objective import InformationTerm, Objective, TaskLoss
from m4oe_ds.models import outside
from m4oe_ds.models.interface import ModelSpec
from m4oe_ds.models.systems import find_system

Statistics = Mapping[str, TaskStatistics]


def objective(config: Config, spec: ModelSpec, statistics: Statistics | None, device: torch.device) -> Objective:
    """Task losses, with what they need of the training labels, and the mutual-information term.

    Args:
        config: the resolved configuration.
        spec: specification of the model.
        statistics: of the training labels, by task; None where only shapes matter: class weights, the scale of numbers
            and the prior of the data set, which change no shape, are then left out.
        device: device of the weights and of the prior.

    Raises:
        ConfigError: a loss that does not fit its task.
    """
    losses = {
        task.name: _task_loss(config.loss.tasks.get(task.name, config.loss.default), task, statistics, device)
        for task in spec.tasks
    }
    mi = config.loss.mutual_information
    prior = task_prior(mi.task_prior, spec.tasks, statistics, device)
    term = InformationTerm(config.loss.alpha, mi.source, mi.aggregate, mi.task_weight, prior, mi.mask_by_label)
    return Objective(spec.tasks, losses, term, len(spec.modalities), model_loss=model_loss(config, spec))


def task_prior(
    kind: str, tasks: tuple[TaskSpec, ...], statistics: Statistics | None, device: torch.device
) -> Tensor | None:
    """P(T) ``[p]`` float64 of the information term, sum 1; None: from the labels of each batch.

    Args:
        kind: ``loss.mutual_information.task_prior``: ``batch``, ``dataset`` (labels of the training split) or
            ``uniform`` (1/p).
        tasks: tasks of the model.
        statistics: see :func:`objective`; without them ``dataset`` is as ``batch``.
        device: device of the result.
    """
    if kind == "uniform":
        return torch.full((len(tasks),), 1.0 / len(tasks), dtype=torch.float64, device=device)
    if kind == "batch" or statistics is None:
        return None
    labels = torch.tensor([float(statistics[task.name].known) for task in tasks], dtype=torch.float64)
    return (labels / labels.sum().clamp_min(1)).to(device)


def class_weights(kind: str, counts: Sequence[int]) -> NDArray[np.float64] | None:
    """``[C]`` weights of the classes in the loss; None for equal ones.

    ``complement``: 1 - share of the class. ``balanced``: N / (C * count of the class), absent classes as if they came
    once. With both the rarer class weighs more.

    Args:
        kind: ``loss.tasks.*.class_weight``.
        counts: ``[C]`` training labels per class.
    """
    if kind == "none":
        return None
    number = np.asarray(counts, dtype=np.float64)
    if kind == "complement":
        return 1.0 - number / max(number.sum(), 1.0)
    return number.sum() / (len(number) * np.maximum(number, 1.0))


def model_loss(config: Config, spec: ModelSpec) -> ModelLoss | None:
    """The losses that come with the model of a configuration, if any.

    Raises:
        ConfigError: those that a model from outside the package names are not there, or are none.
    """
    name = find_system(config.model.name).model_loss
    if not name:
        return None
    kind = outside.load(name)
    if not (isinstance(kind, type) and issubclass(kind, ModelLoss)):
        base = "m4oe_ds.losses.model_loss.ModelLoss"
        raise ConfigError(f"{name} is not a subclass of {base}", "model_loss", "derive it from that class")
    return kind(spec.tasks, config.model.options)


def _task_loss(config: TaskLossConfig, task: TaskSpec, statistics: Statistics | None, device: torch.device) -> TaskLoss:
    fitting = FITTING[task.kind]
    kind = fitting[0] if config.kind == "auto" else config.kind
    if kind not in fitting:
        raise ConfigError(
            f"loss {kind} does not fit the {task.kind} task {task.name}",
            f"loss.tasks.{task.name}.kind",
            f"use auto or {' or '.join(fitting)}",
        )
    weight, centre, spread = None, 0.0, 1.0
    if statistics is not None:
        known = statistics[task.name]
        centre, spread = known.centre, known.spread
        values = class_weights(config.class_weight, known.counts) if task.coded else None
        weight = None if values is None else torch.tensor(values, dtype=torch.float32, device=device)
    return TaskLoss(kind, config.weight, config.gamma, config.label_smoothing, weight, centre, spread, task.horizons)
