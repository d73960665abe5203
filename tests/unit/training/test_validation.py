"""Which weights are the best, for every metric, for ties and for figures that are undefined."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m4oe_ds.config import Config
from m4oe_ds.evaluation.inference import Predictions
from m4oe_ds.models import spec_for
from m4oe_ds.training.validation import Best, Metric, Validation, logged_figures, selection_score
from tests.distributed import problem

CFG: Config = problem.config("data.tasks=[density, risk1]")
SPEC = spec_for(CFG)
GOOD, BAD = np.array([0.1, 0.2, 0.8, 0.9]), np.array([0.9, 0.2, 0.8, 0.1])  # of risk1; labels 0, 0, 1, 1


def predictions(loss: float | None, risk: np.ndarray = GOOD, labels: tuple[int, ...] = (0, 0, 1, 1)) -> Predictions:
    """Four samples of four patients: density unlabelled, risk1 as given."""
    names = np.array([f"k{i}" for i in range(4)])
    return Predictions(
        keys=names,
        groups=names,
        labels={"density": np.full(4, -1), "risk1": np.array(labels)},
        probabilities={"density": np.full((4, 4), 0.25), "risk1": np.stack([1 - risk, risk], axis=1)},
        dice={},
        contribution=None,
        token_share=np.zeros(0),
        losses={"density": None, "risk1": loss},
    )


def run(metric: Metric, rounds: list[Predictions], tmp_path: Path) -> tuple[list[bool], Validation]:
    """Whether each of the rounds was the best so far."""
    made = iter(rounds)
    validation = Validation(lambda split, *, observe: next(made), SPEC.tasks, metric, 1)
    return [validation.run(tmp_path).best for _ in rounds], validation


def test_the_smallest_loss_is_the_best(tmp_path: Path) -> None:
    rounds = [predictions(0.7, BAD), predictions(0.5, BAD), predictions(0.6, GOOD)]
    best, validation = run("loss", rounds, tmp_path)
    assert best == [True, True, False]
    assert validation.best.defined == 0.5


@pytest.mark.parametrize("metric", ["auroc", "balanced_accuracy"])
def test_the_largest_metric_is_the_best_whatever_the_loss(metric: Metric, tmp_path: Path) -> None:
    rounds = [predictions(0.5, BAD), predictions(0.9, GOOD), predictions(0.1, BAD)]
    best, validation = run(metric, rounds, tmp_path)
    assert best == [True, True, False]
    assert validation.best.defined == -1.0  # perfect; risk1 is the only task with labels


def test_of_equal_scores_the_earliest_stays(tmp_path: Path) -> None:
    assert run("loss", [predictions(0.5), predictions(0.5)], tmp_path)[0] == [True, False]
    assert run("auroc", [predictions(0.5), predictions(0.4)], tmp_path)[0] == [True, False]


def test_while_nothing_is_defined_the_newest_is_the_best(tmp_path: Path) -> None:
    one_class = (0, 0, 0, 0)  # AUROC needs both
    rounds = [predictions(0.5, labels=one_class), predictions(0.9, labels=one_class), predictions(0.9, BAD)]
    best, validation = run("auroc", [*rounds, predictions(0.1, labels=one_class)], tmp_path)
    assert best == [True, True, True, False]
    assert validation.best.defined == pytest.approx(-0.25)  # one of four pairs is in order


def test_the_newest_is_best_until_a_loss_is_defined_and_an_undefined_one_blocks_nothing(tmp_path: Path) -> None:
    rounds = [predictions(math.nan), predictions(0.5), predictions(math.nan), predictions(0.4)]
    assert run("loss", rounds, tmp_path)[0] == [True, True, False, True]


def test_a_split_without_any_label_selects_nothing(tmp_path: Path) -> None:
    rounds = [predictions(0.5), predictions(None), predictions(0.4)]
    assert run("loss", rounds, tmp_path)[0] == [True, False, True]


def test_the_best_is_remembered_over_a_checkpoint() -> None:
    before = Best()
    assert before.defined is None
    before.improves(0.5)
    after = Best(before.defined)
    assert not after.improves(0.6)
    assert after.improves(0.4)
    assert Best(Best().defined).improves(9.0)


def test_the_metric_is_averaged_over_the_tasks_where_it_is_defined() -> None:
    figures = {"auroc": {"density": 0.6, "risk1": 0.8}}
    assert selection_score("auroc", 0.1, figures) == pytest.approx(-0.7)
    assert selection_score("balanced_accuracy", 0.1, figures) == math.inf
    assert selection_score("loss", 0.1, figures) == 0.1
    report = {
        "tasks": {
            "density": {"metrics": {"auroc": {"value": None}}},
            "risk1": {"metrics": {"auroc": {"value": 0.8}, "kappa": {"value": 0.1}}},
            "cup": {},
        }
    }
    assert logged_figures(report) == {"auroc": {"risk1": 0.8}}


@pytest.mark.parametrize(
    ("every", "available", "due"),
    [(2, True, [False, True, False]), (0, True, [False] * 3), (1, False, [False] * 3)],
)
def test_when_validation_is_due(every: int, available: bool, due: list[bool]) -> None:
    validation = Validation(_never, SPEC.tasks, "loss", every, available=available)
    assert [validation.due(epoch, last=False) for epoch in range(3)] == due
    assert validation.due(2, last=True) == validation.selects == (bool(every) and available)


def _never(split: str, *, observe: Callable[..., None] | None) -> Predictions:
    raise AssertionError("nothing was to be predicted")


class Watching:
    """An observer that writes down what it is given."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def add(self, batch: Any, output: Any) -> None:
        self.seen.append(f"add {batch}")

    def reduce(self, sum_over_ranks: Callable[[Any], Any]) -> None:
        self.seen.append(f"reduce {sum_over_ranks(20)}")

    def draw(self, found: Predictions, report: Any, folder: Path) -> dict[str, Any]:
        self.seen.append(f"draw {sorted(report['tasks'])}")
        return {"roc": folder}


@pytest.mark.parametrize("draws", [True, False])
def test_the_observer_sees_batches_then_ranks_then_draws_where_it_should(draws: bool, tmp_path: Path) -> None:
    watching = Watching()

    def predict(split: str, *, observe: Callable[..., None] | None) -> Predictions:
        assert split == "val"
        assert observe is not None
        observe("batch", "output")
        return predictions(0.5)

    validation = Validation(
        predict, SPEC.tasks, "loss", 1, observer=lambda: watching, sum_over_ranks=lambda x: x + 1, draws=draws
    )
    verdict = validation.run(tmp_path)
    assert watching.seen == ["add batch", "reduce 21", *(["draw ['density', 'risk1']"] if draws else [])]
    assert verdict.drawn == ({"roc": tmp_path} if draws else {})
    assert verdict.record(7, 3)["event"] == "validation"
    assert verdict.record(7, 3)["auroc"] == {"risk1": 1.0}
    assert verdict.line() == "validation loss 0.5000, AUROC risk1 1.000"
