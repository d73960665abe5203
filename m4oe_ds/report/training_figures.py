"""Curves of training: loss of training and validation in one chart, and the step whose weights were kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np

from m4oe_ds.report.figures import COLOURS, STYLE, panels
from m4oe_ds.report.words import NAMES, Words

Records = Sequence[Mapping[str, Any]]
MOST_POINTS = 600  # of a drawn curve; the CSV has all
RAW: Any = {"lw": 0.8, "alpha": 0.35}


def smoothing(count: int) -> int:
    """Logged steps that a smoothed curve averages over: an odd number, about a thirtieth of all, at least 3."""
    return max(3, 2 * (count // 60) + 1)


def smooth(values: np.ndarray, window: int) -> np.ndarray:
    """Mean over ``window`` values around each one; unknown ones are left out, and so is what lies beyond the ends.

    Args:
        values: ``[N]``, NaN = unknown.
        window: odd.
    """
    known = np.isfinite(values)
    ones = np.ones(window)
    half = window // 2
    total = np.convolve(np.pad(np.where(known, values, 0.0), half), ones, "valid")
    count = np.convolve(np.pad(known.astype(float), half), ones, "valid")
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def task_sum(record: Mapping[str, Any]) -> float:
    """Sum of a record's task losses; NaN if one of them is not known: a sum of fewer tasks would look like progress."""
    values = record.get("losses", {}).values()
    return float(sum(values)) if values and all(value is not None for value in values) else float("nan")


def losses(train: Records, validation: Records, chosen: int | None = None, words: Words = NAMES) -> Any:
    """Loss of training and validation over optimizer steps: of all tasks together, then of each task.

    Args:
        train: training records of ``log.jsonl``, at least one.
        validation: its validation records.
        chosen: step whose weights were kept; None = not known.
        words: labels of the tasks.
    """
    tasks = list(train[0]["losses"])
    with mpl.rc_context(STYLE):
        figure, axes = panels(1 + len(tasks), (3.0, 2.5))
        _curve(axes[0], train, [task_sum(record) for record in train])
        _points(axes[0], validation, [record["loss"] for record in validation])
        axes[0].set(title="All tasks together", ylabel="loss (nats)")
        for axis, task in zip(axes[1:], tasks, strict=True):
            _curve(axis, train, [record["losses"].get(task) for record in train])
            _points(axis, validation, [record["losses"].get(task) for record in validation])
            axis.set(title=words.task(task), ylabel="loss (nats)")
        for axis in axes:
            axis.set(xlabel="optimizer step")
            axis.set_ylim(bottom=min(0.0, axis.get_ylim()[0]))
            mark(axis, chosen)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9)
        return figure


def signals(train: Records, chosen: int | None = None, base_rate: float | None = None) -> Any:
    """Mutual information, learning rate with its peak, and gradient norm over optimizer steps.

    Args:
        train: training records of ``log.jsonl``.
        chosen: step whose weights were kept; None = not known.
        base_rate: base learning rate of the optimizer; None = not known.
    """
    panel = (
        ("mi", "Mutual information I(M;E|T)", "nats"),
        ("lr", "Learning rate", ""),
        ("grad_norm", "Gradient norm", ""),
    )
    with mpl.rc_context(STYLE):
        figure, axes = panels(len(panel), (3.0, 2.5))
        for axis, (key, title, unit) in zip(axes, panel, strict=True):
            _curve(axis, train, [record.get(key) for record in train], COLOURS[2], smoothed=key != "lr")
            axis.set(title=title, xlabel="optimizer step", ylabel=unit)
            mark(axis, chosen)
        _peak(axes[1], train, base_rate)
        return figure


def peak(train: Records) -> tuple[int, float] | None:
    """Step and value of the largest learning rate logged; None if none was."""
    rates = [(record["lr"], -record["step"]) for record in train if record.get("lr") is not None]
    return (-max(rates)[1], float(max(rates)[0])) if rates else None


def _peak(axis: Any, train: Records, base_rate: float | None) -> None:
    found = peak(train)
    if found is None:
        return
    step, rate = found
    text = f"highest {rate:.3g}" + (f"\nbase {base_rate:g} × {rate / base_rate:.3g}" if base_rate else "")
    axis.plot([step], [rate], "o", color=COLOURS[1], ms=4)
    axis.text(0.9, 0.97, text, transform=axis.transAxes, fontsize=8, va="top", ha="right")
    axis.set_ylim(bottom=0, top=1.35 * rate if rate > 0 else None)  # room for the text above the line


def _curve(axis: Any, train: Records, values: Sequence[Any], colour: str = COLOURS[0], smoothed: bool = True) -> None:
    """Every logged value faintly, and their mean over the neighbouring ones."""
    steps = np.array([record["step"] for record in train], dtype=float)
    known = np.array([np.nan if value is None else value for value in values], dtype=float)
    stride = max(1, -(-len(steps) // MOST_POINTS))
    if not smoothed:
        axis.plot(steps[::stride], known[::stride], color=colour, lw=1.4)
        return
    axis.plot(steps[::stride], known[::stride], color=colour, label="training, as logged", **RAW)
    window = smoothing(len(steps))
    line = smooth(known, window)
    axis.plot(steps[::stride], line[::stride], color=colour, lw=1.6, label=f"training, mean of {window} logged steps")


def _points(axis: Any, validation: Records, values: Sequence[Any]) -> None:
    if validation:
        steps = [record["step"] for record in validation]
        shown = [np.nan if value is None else value for value in values]
        axis.plot(steps, shown, "o-", color=COLOURS[1], ms=3.5, lw=1.2, label="validation")


def mark(axis: Any, chosen: int | None) -> None:
    """A line at the step whose weights were kept."""
    if chosen is not None:
        axis.axvline(chosen, color="#1b1f24", ls="--", lw=1, label=f"weights kept: step {chosen:,}")
