"""Validation during training: predict, draw, score, and remember the best."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from torch import Tensor

from m4oe_ds.data.batch import Batch
from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.evaluation.inference import Predictions
from m4oe_ds.evaluation.metrics import evaluate_split
from m4oe_ds.models.interface import ModelOutput
from m4oe_ds.training.patience import Patience

Metric = Literal["loss", "auroc", "balanced_accuracy"]
LOGGED = ("auroc", "balanced_accuracy", "mae", "uno_c", "dice")

TOLD = {"auroc": "AUROC", "mae": "MAE", "uno_c": "Uno's C", "dice": "Dice"}  # on the terminal


class Observer(Protocol):
    """What looks on while the validation split is predicted; the loop knows no more of figures than this."""

    def add(self, batch: Batch, output: ModelOutput) -> None:
        """Is given every batch of this rank and its output."""

    def reduce(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Joins the ranks; every rank calls it."""

    def draw(self, predictions: Predictions, report: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        """Matplotlib figures by name, of the predictions, of what ``evaluate_split`` says of them, and of the run
        folder.
        """


class Predict(Protocol):
    """Predictions of a split with the current weights."""

    def __call__(self, split: str, *, observe: Callable[[Batch, ModelOutput], None] | None) -> Predictions: ...


@dataclass(frozen=True)
class Verdict:
    """What one validation found.

    Attributes:
        loss: loss of the validation split.
        losses: losses by task, None without labels.
        figures: ``{metric: {task: value}}`` of :data:`LOGGED`, undefined values left out.
        best: these are the best weights so far.
        drawn: Matplotlib figures by name.
        waited: validations without improvement up to this one; None where nothing depends on them.
    """

    loss: float
    losses: Mapping[str, float | None]
    figures: Mapping[str, Mapping[str, float]]
    best: bool
    drawn: Mapping[str, Any]
    waited: int | None = None

    def record(self, step: int, epoch: int) -> dict[str, Any]:
        """The line of ``log.jsonl``."""
        place = {"event": "validation", "step": step, "epoch": epoch}
        waited = {} if self.waited is None else {"without_improvement": self.waited}
        return {**place, "loss": self.loss, "losses": self.losses, **self.figures, **waited}

    def line(self) -> str:
        """What is said on the terminal."""
        line = f"validation loss {self.loss:.4f}"
        for metric, label in TOLD.items():
            shown = ", ".join(f"{name} {value:.3f}" for name, value in self.figures.get(metric, {}).items())
            line += f", {label} {shown}" if shown else ""
        return line


class Best:
    """The best score so far; smaller is better.

    A score that is undefined (not finite) never replaces one that is defined. As long as none is defined, the newest
    weights are the best. Of equal scores the earliest stays.
    """

    def __init__(self, score: float | None = None) -> None:
        self.score = math.inf if score is None or not math.isfinite(score) else score

    @property
    def defined(self) -> float | None:
        """The score, None while none is defined; what a checkpoint keeps."""
        return None if math.isinf(self.score) else self.score

    def improves(self, score: float) -> bool:
        """True if weights with this score are the best so far; remembers it then."""
        if math.isinf(self.score):
            self.score = score if math.isfinite(score) else math.inf
            return True
        if score < self.score:  # False for NaN; no score is better than one of minus infinity, which no metric gives
            self.score = score
            return True
        return False


def logged_figures(report: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Defined values of :data:`LOGGED` by metric and task, from the report of ``evaluate_split``."""
    figures: dict[str, dict[str, float]] = {}
    for name in LOGGED:
        values = {
            task: entry["metrics"][name]["value"]
            for task, entry in report["tasks"].items()
            if name in entry.get("metrics", {}) and entry["metrics"][name]["value"] is not None
        }
        if values:
            figures[name] = values
    return figures


def selection_score(metric: Metric, loss: float, figures: Mapping[str, Mapping[str, float]]) -> float:
    """What decides the best checkpoint: smaller is better, infinite if undefined.

    Args:
        metric: ``loss``; or one of :data:`LOGGED`, averaged over the tasks where it is defined.
        loss: loss of the validation split.
        figures: result of :func:`logged_figures`.
    """
    if metric == "loss":
        return loss if math.isfinite(loss) else math.inf
    values = figures.get(metric, {})
    return -sum(values.values()) / len(values) if values else math.inf


class Validation:
    """Predicts the validation split at its times, scores it, and remembers the best.

    Args:
        predict: see :class:`Predict`.
        tasks: tasks of the model.
        metric: what selects, ``run.checkpoint.metric``.
        every_epochs: ``run.eval_every_epochs``; 0 = never.
        available: there is a validation split.
        observer: makes one for each validation; None = nobody looks on.
        sum_over_ranks: handed to the observer.
        draws: figures are drawn on this rank.
        patience: counts validations without improvement; None = nobody waits for one.
    """

    def __init__(
        self,
        predict: Predict,
        tasks: Sequence[TaskSpec],
        metric: Metric,
        every_epochs: int,
        *,
        available: bool = True,
        observer: Callable[[], Observer] | None = None,
        sum_over_ranks: Callable[[Tensor], Tensor] = lambda tensor: tensor,
        draws: bool = False,
        patience: Patience | None = None,
    ) -> None:
        self.predict, self.tasks, self.metric = predict, tuple(tasks), metric
        self.every_epochs, self.available = every_epochs, available
        self.observer, self.sum_over_ranks, self.draws = observer, sum_over_ranks, draws
        self.best = Best()
        self.patience = patience or Patience(0, metric)

    @property
    def selects(self) -> bool:
        """There is something to select by; without it the newest weights are the best."""
        return self.available and bool(self.every_epochs)

    def due(self, epoch: int, last: bool) -> bool:
        """True after an epoch (from 0) that is to be validated; the last one always is."""
        return self.selects and ((epoch + 1) % self.every_epochs == 0 or last)

    def run(self, folder: Path) -> Verdict:
        """One validation with the current weights.

        Args:
            folder: run folder, which figures may read.

        Collectives: those of the prediction and of the observer; every rank must call it.
        """
        watching = None if self.observer is None else self.observer()
        predictions = self.predict("val", observe=None if watching is None else watching.add)
        if watching is not None:
            watching.reduce(self.sum_over_ranks)
        report = evaluate_split(predictions.arrays(), self.tasks, resamples=0)
        figures = logged_figures(report)
        labelled = any(value is not None for value in predictions.losses.values())
        loss = predictions.loss if labelled else math.nan  # the sum over no task is 0, and no loss is smaller
        score = selection_score(self.metric, loss, figures)
        better = self.best.improves(score)
        self.patience.add(score)
        drawn = watching.draw(predictions, report, folder) if watching is not None and self.draws else {}
        waited = self.patience.waited if self.patience.limit else None
        return Verdict(predictions.loss, predictions.losses, figures, better, drawn, waited)
