"""Learning-rate factors against PyTorch's own schedulers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, StepLR

from m4oe_ds.config import ScheduleConfig
from m4oe_ds.training import schedule

CLOSE = {"rel": 1e-9, "abs": 1e-12}  # torch multiplies step by step


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


def rates(scheduler: Any, steps: int) -> list[float]:
    """The rate in force at each of ``steps`` scheduler steps."""
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    return found


def factors(config: ScheduleConfig, steps: int, per_epoch: int, total: int | None = None) -> list[float]:
    return [schedule.factor(config, step, per_epoch, steps if total is None else total) for step in range(steps)]


@pytest.mark.parametrize(("per_epoch", "step_epochs", "gamma"), [(7, 5, 0.1), (1, 1, 0.5), (3, 2, 0.9)])
def test_step_is_steplr_counted_in_epochs(per_epoch: int, step_epochs: int, gamma: float) -> None:
    epochs = 12
    by_epoch = rates(StepLR(optimizer(), step_epochs, gamma), epochs)
    expected = [rate for rate in by_epoch for _ in range(per_epoch)]
    config = ScheduleConfig(kind="step", step_epochs=step_epochs, gamma=gamma)
    assert factors(config, epochs * per_epoch, per_epoch) == pytest.approx(expected, **CLOSE)


@pytest.mark.parametrize("total", [1, 10, 97])
def test_cosine_is_cosine_annealing_over_the_run(total: int) -> None:
    expected = rates(CosineAnnealingLR(optimizer(), T_max=total), total)
    assert factors(ScheduleConfig(kind="cosine"), total, per_epoch=5) == pytest.approx(expected, **CLOSE)


def test_cosine_starts_after_the_warm_up_and_ends_at_zero() -> None:
    config = ScheduleConfig(kind="cosine", warmup_steps=20)
    expected = rates(CosineAnnealingLR(optimizer(), T_max=80), 80)
    assert factors(config, 100, per_epoch=5)[20:] == pytest.approx(expected, **CLOSE)
    assert schedule.factor(config, 100, 5, 100) == pytest.approx(0.0, abs=1e-12)
    assert schedule.factor(config, 250, 5, 100) == pytest.approx(0.0, abs=1e-12)  # does not rise again


@pytest.mark.parametrize("kind", ["step", "cosine", "constant"])
def test_warm_up_is_linear_for_every_kind(kind: Any) -> None:
    config = ScheduleConfig(kind=kind, warmup_steps=8)
    expected = rates(LambdaLR(optimizer(), lambda step: (step + 1) / 8), 8)
    assert factors(config, 8, per_epoch=100, total=50) == pytest.approx(expected, **CLOSE)
    assert schedule.factor(config, 8, 100, 50) == pytest.approx(1.0)


def test_warm_up_does_not_shift_the_decay_of_step() -> None:
    plain, warm = ScheduleConfig(step_epochs=2), ScheduleConfig(step_epochs=2, warmup_steps=3)
    assert factors(warm, 40, per_epoch=5)[3:] == factors(plain, 40, per_epoch=5)[3:]


@pytest.mark.parametrize("kind", ["step", "cosine"])
def test_the_factor_never_falls_below_its_minimum(kind: Any) -> None:
    free = factors(ScheduleConfig(kind=kind, step_epochs=1, warmup_steps=4), 60, per_epoch=10)
    bounded = factors(ScheduleConfig(kind=kind, step_epochs=1, warmup_steps=4, min_factor=0.3), 60, per_epoch=10)
    assert min(free) < 0.3
    assert bounded == [max(value, 0.3) for value in free]


def test_constant_is_one() -> None:
    assert factors(ScheduleConfig(kind="constant"), 50, per_epoch=7) == [1.0] * 50


def test_a_warm_up_as_long_as_the_run_is_possible() -> None:
    assert factors(ScheduleConfig(kind="cosine", warmup_steps=5), 5, per_epoch=5) == [0.2, 0.4, 0.6, 0.8, 1.0]


def test_apply_scales_each_group_from_its_own_base() -> None:
    groups = [{"lr": 7.0}, {"lr": 9.0}]
    engine = SimpleNamespace(optimizer=SimpleNamespace(param_groups=groups))
    for value in (0.5, 0.1):  # from the base each time, not from the last rate
        schedule.apply(engine, [2.0, 0.4], value)
        assert [group["lr"] for group in groups] == pytest.approx([2.0 * value, 0.4 * value])
