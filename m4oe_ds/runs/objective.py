"""Configuration to objective: the one place, for training, evaluation, planning and the tests of parity."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from m4oe_ds.config import Config, TaskLossConfig
from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.errors import ConfigError
from m4oe_ds.losses.model_loss import ModelLoss
from m4oe_ds.losses.objective import InformationTerm, Objective, TaskLoss
from m4oe_ds.models.interface import ModelSpec
from m4oe_ds.models.registry import MODELS

LabelsOf = Callable[[str], NDArray[np.int64]]  # task name to the codes [N] of the training split, -1 = missing


def objective(config: Config, spec: ModelSpec, labels_of: LabelsOf | None, device: torch.device) -> Objective:
    """Task losses, with class weights from the training labels, and the mutual-information term.

    Args:
        config: the resolved configuration.
        spec: specification of the model.
        labels_of: labels of the training split, :meth:`m4oe_ds.data.manifest.Manifest.sample_labels`; None where only
            shapes matter: class weights and the prior of the data set, which change no shape, are then left out.
        device: device of the weights and of the prior.

    Raises:
        ConfigError: a loss that does not fit its task.
    """
    losses = {
        task.name: _task_loss(config.loss.tasks.get(task.name, config.loss.default), task, labels_of, device)
        for task in spec.tasks
    }
    mi = config.loss.mutual_information
    prior = task_prior(mi.task_prior, spec.tasks, labels_of, device)
    term = InformationTerm(config.loss.alpha, mi.source, mi.aggregate, mi.task_weight, prior, mi.mask_by_label)
    return Objective(spec.tasks, losses, term, len(spec.modalities), model_loss=model_loss(config, spec))


def task_prior(
    kind: str, tasks: tuple[TaskSpec, ...], labels_of: LabelsOf | None, device: torch.device
) -> Tensor | None:
    """P(T) ``[p]`` float64 of the information term, sum 1; None: from the labels of each batch.

    Args:
        kind: ``loss.mutual_information.task_prior``: ``batch``, ``dataset`` (labels of the training split) or
            ``uniform`` (1/p).
        tasks: tasks of the model.
        labels_of: see :func:`objective`; without it ``dataset`` is as ``batch``.
        device: device of the result.
    """
    if kind == "uniform":
        return torch.full((len(tasks),), 1.0 / len(tasks), dtype=torch.float64, device=device)
    if kind == "batch" or labels_of is None:
        return None
    counts = [float((labels_of(task.name) >= 0).sum()) for task in tasks]
    labels = torch.tensor(counts, dtype=torch.float64)
    return (labels / labels.sum().clamp_min(1)).to(device)


def class_weights(kind: str, labels: NDArray[np.int64], num_classes: int) -> NDArray[np.float64] | None:
    """``[C]`` weights of the classes in the loss; None for equal ones.

    ``complement``: 1 - share of the class. ``balanced``: N / (C * count of the class), absent classes as if they came
    once. With both the rarer class weighs more.

    Args:
        kind: ``loss.tasks.*.class_weight``.
        labels: ``[N]`` codes, -1 = missing.
        num_classes: C.
    """
    if kind == "none":
        return None
    counts = np.bincount(labels[labels >= 0], minlength=num_classes).astype(np.float64)
    if kind == "complement":
        return 1.0 - counts / max(counts.sum(), 1.0)
    return counts.sum() / (num_classes * np.maximum(counts, 1.0))


def model_loss(config: Config, spec: ModelSpec) -> ModelLoss | None:
    """The losses that come with the model of a configuration, if any."""
    module, _, name = MODELS[config.model.name].model_loss.partition(":")
    if not module:
        return None
    loss: ModelLoss = getattr(importlib.import_module(module), name)(spec.tasks, config.model.options)
    return loss


def _task_loss(config: TaskLossConfig, task: TaskSpec, labels_of: LabelsOf | None, device: torch.device) -> TaskLoss:
    kind = config.kind
    if kind == "auto":
        kind = "cross_entropy" if task.coded else "bce_dice"
    if (kind == "bce_dice") != (task.dense):
        raise ConfigError(f"loss {kind} does not fit the {task.kind} task {task.name}", f"loss.tasks.{task.name}.kind")
    weight = None
    if labels_of is not None and task.coded:
        values = class_weights(config.class_weight, labels_of(task.name), task.num_classes)
        weight = None if values is None else torch.tensor(values, dtype=torch.float32, device=device)
    return TaskLoss(kind, config.weight, config.gamma, config.label_smoothing, weight)
