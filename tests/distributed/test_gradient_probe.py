"""Measuring gradient conflict disturbs nothing; calibrated gradients train the same on any number of ranks."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from tests.distributed import problem
from tests.distributed.ranks import run_ranks

pytestmark = pytest.mark.distributed

STEPS = 4
TOLERANCE = 1e-4  # relative: cosines and weights divide by small norms


def flat(rows: list[list[float]]) -> list[float]:
    return list(itertools.chain.from_iterable(rows))


def measured(rank: int, world: int) -> dict[str, Any]:
    """Our model with and without the measurement, at every ZeRO stage."""
    found: dict[str, Any] = {}
    for stage in (1, 2, 3):
        for conflict in (False, True):
            cfg = problem.config(f"parallel.ep_size={world}")
            ds = problem.deepspeed_config(stage, 8, 1, 0.5)
            figures = problem.trajectory(cfg, ds, STEPS, rank, world, conflict=conflict)
            found[f"{stage}/{conflict}"] = [[f["loss"], f["grad_norm"], f["mi"]] for f in figures]
        found[f"cosines/{stage}"] = [f["gradient_conflict"]["cosines"] for f in figures]
        found[f"dimension/{stage}"] = figures[0]["gradient_conflict"]["dimension"]
    return found


def calibrated(rank: int, world: int) -> dict[str, Any]:
    """FULLER with both rules."""
    from m4oe_ds.training.gradient_policy import policy

    found: dict[str, Any] = {}
    for rule in ("norm", "imtl_g"):
        cfg = problem.config("model.name=fuller")
        ds = problem.deepspeed_config(2, 8, 1, 0.0)
        figures = problem.trajectory(cfg, ds, STEPS, rank, world, policy=policy("calibrated", rule=rule))
        found[rule] = [[f["loss"], f["grad_norm"]] for f in figures]
        found[f"weights/{rule}"] = [list(f["task_weights"].values()) for f in figures]
    cfg = problem.config("model.name=fuller")
    plain = problem.trajectory(cfg, problem.deepspeed_config(2, 8, 1, 0.0), STEPS, rank, world)
    found["plain"] = [[f["loss"], f["grad_norm"]] for f in plain]
    return found


def test_measuring_conflict_changes_no_loss_and_does_not_depend_on_the_ranks(tmp_path: Path) -> None:
    one = run_ranks(measured, 1, folder=tmp_path / "one")[0]
    two = run_ranks(measured, 2, folder=tmp_path / "two")
    for result in (one, *two):
        for stage in (1, 2, 3):
            assert result[f"{stage}/True"] == result[f"{stage}/False"]  # bit for bit
            assert result[f"dimension/{stage}"] == one["dimension/1"] > 500  # all experts, whoever holds them
            for found, expected in zip(result[f"cosines/{stage}"], one["cosines/1"], strict=True):
                assert flat(found) == pytest.approx(flat(expected), rel=TOLERANCE, abs=1e-5)
    pairs = [value for row in one["cosines/1"][0] for value in row]
    assert min(pairs) < 0.9  # the tasks do differ


def test_calibrated_training_does_not_depend_on_the_ranks(tmp_path: Path) -> None:
    one = run_ranks(calibrated, 1, folder=tmp_path / "one")[0]
    two = run_ranks(calibrated, 2, folder=tmp_path / "two")
    for result in two:
        for key, expected in one.items():
            assert flat(result[key]) == pytest.approx(flat(expected), rel=TOLERANCE), key
    assert one["norm"][-1] != pytest.approx(one["plain"][-1], rel=1e-3)
    assert sum(one["weights/norm"][0]) == pytest.approx(len(one["weights/norm"][0]), rel=1e-5)
