"""One micro-batch's part of a step: what goes backward, and what the log says of it."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from m4oe_ds.data.batch import Batch
from m4oe_ds.losses.objective import Objective
from m4oe_ds.models import build, spec_for
from m4oe_ds.models.interface import ModelOutput
from m4oe_ds.training.step import _micro_loss, _Sums
from tests.distributed import problem

ALPHA = 0.5
ACCUMULATION = 3


@pytest.fixture
def case() -> tuple[Objective, Batch, ModelOutput, torch.Tensor]:
    """Objective, batch, output with an auxiliary loss, and different factors of the tasks' sums."""
    torch.manual_seed(0)
    cfg = problem.config(f"loss.alpha={ALPHA}")
    spec = spec_for(cfg)
    batch = problem.samples(spec, 8, seed=1)
    output = build(cfg)(batch)
    output = dataclasses.replace(output, aux={"balance": torch.tensor(0.25, requires_grad=True)})
    return problem.objective_of_run(cfg, spec), batch, output, torch.arange(1.0, len(spec.tasks) + 1)


def sums(tasks: int) -> _Sums:
    return _Sums(torch.zeros(tasks), torch.zeros(()), torch.zeros(()))


def test_loss_is_scaled_sums_minus_information_plus_auxiliary(case: tuple) -> None:
    goal, batch, output, scale = case
    parts = goal.task_parts(output, batch).values()
    expected = sum(factor * part.sum for factor, part in zip(scale, parts, strict=True))
    expected = expected - ALPHA * goal.mutual_information(output, batch) + 0.25
    loss = _micro_loss(goal, output, batch, scale, sums(len(scale)), ACCUMULATION)
    torch.testing.assert_close(loss, expected)


def test_log_holds_means_over_the_micro_batches_and_sums_of_the_labels(case: tuple) -> None:
    goal, batch, output, scale = case
    found = sums(len(scale))
    for _ in range(ACCUMULATION):
        _micro_loss(goal, output, batch, scale, found, ACCUMULATION)
    torch.testing.assert_close(found.information, goal.mutual_information(output, batch).detach())
    assert found.has_information
    assert float(found.aux) == pytest.approx(0.25)
    per_task = torch.stack([part.sum for part in goal.task_parts(output, batch).values()]).detach()
    torch.testing.assert_close(found.losses, ACCUMULATION * per_task)


def test_without_weight_the_information_is_logged_and_not_subtracted(case: tuple) -> None:
    goal, batch, output, scale = case
    goal = dataclasses.replace(goal, information=dataclasses.replace(goal.information, alpha=0.0))
    found = sums(len(scale))
    loss = _micro_loss(goal, output, batch, scale, found, 1)
    parts = goal.task_parts(output, batch).values()
    torch.testing.assert_close(loss, sum(f * p.sum for f, p in zip(scale, parts, strict=True)) + 0.25)
    assert float(found.information) > 0
