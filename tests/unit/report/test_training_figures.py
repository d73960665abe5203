"""Curves of training: one chart for training and validation, the kept step and the peak of the learning rate marked."""

from __future__ import annotations

import numpy as np
import pytest

from m4oe_ds.data.cards import find_card
from m4oe_ds.report.training_figures import MOST_POINTS, losses, peak, signals, smooth, smoothing, task_sum
from m4oe_ds.report.words import Words

TRAIN = [
    {
        "step": s,
        "loss": 9.0,
        "losses": {"risk1": 1.0 / s, "density": None if s == 2 else 2.0},
        "mi": 0.1,
        "lr": (0.5, 1.0, 0.25)[min(s, 3) - 1] * 1e-3,
        "grad_norm": None,
    }
    for s in range(1, 11)
]
VALIDATION = [{"event": "validation", "step": s, "loss": 2.5, "losses": {"risk1": 0.5}} for s in (5, 10)]


def test_training_and_validation_share_a_chart_and_the_kept_step_is_marked() -> None:
    figure = losses(TRAIN, VALIDATION, chosen=5, words=Words(find_card("embed")))
    assert [axis.get_title() for axis in figure.axes] == [
        "All tasks together",
        "Cancer within 1 year",
        "Breast density",
    ]
    for axis in figure.axes:
        lines = {line.get_label(): line for line in axis.lines}
        assert {"training, as logged", "training, mean of 3 logged steps", "validation"} <= set(lines)
        assert lines["weights kept: step 5"].get_xdata()[0] == 5
    whole = {line.get_label(): line for line in figure.axes[0].lines}
    assert np.isnan(whole["training, as logged"].get_ydata()[1])  # a task without a loss: no sum
    assert whole["training, as logged"].get_ydata()[0] == 3.0
    assert whole["validation"].get_ydata().tolist() == [2.5, 2.5]


def test_without_a_known_step_nothing_is_marked() -> None:
    figure = losses(TRAIN, [])
    assert not [line for axis in figure.axes for line in axis.lines if "kept" in str(line.get_label())]


def test_the_peak_of_the_learning_rate_is_told_with_its_factor() -> None:
    assert peak(TRAIN) == (2, 1e-3)
    assert peak([{"step": 1}]) is None
    axis = signals(TRAIN, 5, base_rate=1e-4).axes[1]
    assert [text.get_text() for text in axis.texts] == ["highest 0.001\nbase 0.0001 × 10"]
    assert [line.get_xdata().tolist() for line in axis.lines if line.get_marker() == "o"] == [[2]]
    assert signals(TRAIN).axes[1].texts[0].get_text() == "highest 0.001"


def test_smoothing_leaves_out_what_is_not_known() -> None:
    values = np.array([1.0, np.nan, 5.0, 3.0])
    assert smooth(values, 3).tolist() == [1.0, 3.0, 4.0, 4.0]
    assert np.isnan(smooth(np.full(3, np.nan), 3)).all()
    assert smooth(np.full(50, 2.0), smoothing(50)) == pytest.approx(np.full(50, 2.0))
    assert smoothing(6000) % 2 == 1


def test_long_runs_are_drawn_with_few_points() -> None:
    long = [{"step": s, "loss": 1.0, "losses": {"a": 1.0}} for s in range(20_000)]
    for line in losses(long, []).axes[0].lines:
        assert len(line.get_xdata()) <= MOST_POINTS


def test_a_sum_needs_all_tasks() -> None:
    assert task_sum({"losses": {"a": 1.0, "b": 2.0}}) == 3.0
    assert np.isnan(task_sum({"losses": {"a": 1.0, "b": None}}))
    assert np.isnan(task_sum({"losses": {}}))
