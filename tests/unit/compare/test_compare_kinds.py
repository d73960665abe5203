"""The comparison of systems on tasks without classes: absolute error, concordance, Dice of several classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from m4oe_ds.compare import results
from m4oe_ds.compare.cells import Cell, enumerate_cells
from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.evaluation.intervals import Bootstrap
from m4oe_ds.evaluation.metrics import evaluate_split
from m4oe_ds.evaluation.survival import FollowUp, uno_c

COUNT = 50
# named as the tasks that the cells score
TASKS = (
    TaskSpec("density", "number", 1, unit="mm"),
    TaskSpec("birads", "survival", 2, unit="years", horizons=(1.0, 4.0)),
)


def write(folder: Path, cell: Cell, noise: float) -> dict[str, np.ndarray]:
    """A finished run whose answers are off by so much."""
    random, truth = np.random.default_rng([cell.seed, int(10 * noise)]), np.random.default_rng(7)
    value = truth.normal(size=COUNT)
    time, end = truth.exponential(3 * np.exp(-3 * value)), truth.exponential(5, COUNT)
    score = value + noise * random.normal(size=COUNT)
    number = value.copy()
    number[::6] = np.nan
    risk = 1 / (1 + np.exp(-score))
    arrays = {
        "keys": np.array([f"vindr-{i:016x}-l" for i in range(COUNT)]),
        "groups": np.array([f"g{i // 2}" for i in range(COUNT)]),
        "label_density": number.astype(np.float32),
        "value_density": score.astype(np.float32),
        "label_birads": np.stack([np.minimum(time, end), time <= end], 1).astype(np.float32),
        "risk_birads": np.stack([risk / 2, risk], 1).astype(np.float32),
    }
    run = folder / "cells" / cell.name
    (run / "predictions").mkdir(parents=True)
    np.savez(run / "predictions" / "test.npz", **arrays)  # type: ignore[arg-type]
    metrics = evaluate_split(arrays, TASKS, resamples=0)
    (run / "metrics.json").write_text(json.dumps({"test": metrics}))
    return arrays


def test_numbers_and_survival_are_compared_by_patients(tmp_path: Path) -> None:
    cells = enumerate_cells(["vindr"], ["mirai", "ours"], [0, 1], ["multi"])
    noise = {"mirai": 2.0, "ours": 0.2}
    arrays = {cell.name: write(tmp_path, cell, noise[cell.method]) for cell in cells}
    figures, missing = results.collect(cells, tmp_path, resamples=200)
    assert not missing
    found = {(f.method, f.metric): f for f in figures}
    assert set(found) == {(method, metric) for method in noise for metric in ("mae", "uno_c")}
    error, concordance = found["mirai", "mae"], found["mirai", "uno_c"]
    mine = arrays["vindr-multi-mirai-seed1"]
    assert error.values[1] == pytest.approx(float(np.nanmean(np.abs(mine["value_density"] - mine["label_density"]))))
    assert error.difference == pytest.approx(error.mean - found["ours", "mae"].mean, rel=1e-6)
    assert error.low > 0  # larger errors
    assert error.majority == pytest.approx(
        float(np.nanmean(np.abs(mine["label_density"] - np.nanmedian(mine["label_density"])))), rel=1e-6
    )
    data = FollowUp(mine["label_birads"][:, 0], mine["label_birads"][:, 1])
    expected = uno_c(data, mine["risk_birads"][:, 1], 4.0, bootstrap=Bootstrap(0)).value
    assert concordance.values[1] == pytest.approx(expected)
    assert concordance.difference == pytest.approx(concordance.mean - found["ours", "uno_c"].mean)
    assert concordance.high < 0  # the noisy system ranks worse
    assert concordance.majority == 0.5
