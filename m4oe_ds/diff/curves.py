"""Losses of two runs over their steps, as a figure and as a short table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from m4oe_ds.diff.answers import Answers
from m4oe_ds.diff.sides import Side

ROWS = 8  # of the table


def notes(first: Side, second: Side) -> list[str]:
    """Why the two losses are not of one kind; empty if they are."""
    found = []
    if list(first.tasks) != list(second.tasks):
        found.append("the runs train other tasks: their losses are sums over different tasks")
    if first.config["loss"] != second.config["loss"]:
        found.append("the runs weigh their losses otherwise (configuration: loss)")
    if first.config["model"]["name"] != second.config["model"]["name"]:
        found.append("the systems may have losses of their own")
    if found:
        found.append("read the curves for their form, not for their height")
    return found


def table(first: Side, second: Side) -> list[list[str]]:
    """Heading and rows: step, training loss and validation loss of both at most :data:`ROWS` steps; empty fields where
    a run has no value.
    """
    sides = (first, second)
    steps = sorted({int(record["step"]) for side in sides for record in side.validation})
    if not steps:
        steps = sorted({int(record["step"]) for side in sides for record in side.train})
    if not steps:
        return []
    chosen = [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, min(ROWS, len(steps))).round().astype(int))]
    rows = [["step", "training A", "training B", "validation A", "validation B"]]
    for step in chosen:
        values = [_at(side.train, step) for side in sides] + [_at(side.validation, step) for side in sides]
        rows.append([str(step), *values])
    best = [_best(side.validation) for side in sides]
    if any(best):
        rows.append(["best", "", "", *best])
    return rows


def _best(records: Sequence[Mapping[str, Any]]) -> str:
    known = [(float(record["loss"]), int(record["step"])) for record in records if record["loss"] is not None]
    return f"{min(known)[0]:.4f} (step {min(known)[1]})" if known else ""


def _at(records: Sequence[Mapping[str, Any]], step: int) -> str:
    found = next((record["loss"] for record in records if record["step"] == step), None)
    return "" if found is None else f"{found:.4f}"


def numbers(first: Side, second: Side) -> list[dict[str, Any]]:
    """Every logged loss: run, kind, step, loss."""
    return [
        {"run": name, "kind": kind, "step": record["step"], "loss": record["loss"]}
        for name, side in (("A", first), ("B", second))
        for kind, records in (("training", side.train), ("validation", side.validation))
        for record in records
    ]


def losses(first: Side, second: Side) -> Any:
    """Training (left) and validation losses (right) of both over the optimizer steps."""
    import matplotlib as mpl

    from m4oe_ds.report.figures import COLOURS, DASHES, STYLE, panels

    with mpl.rc_context(STYLE):
        figure, axes = panels(2, (5.0, 3.6))
        for axis, title in zip(axes, ("Training objective", "Validation loss"), strict=True):
            for number, (name, side) in enumerate((("A", first), ("B", second))):
                records = side.train if title.startswith("T") else side.validation
                values = [np.nan if record["loss"] is None else record["loss"] for record in records]
                axis.plot(
                    [record["step"] for record in records],
                    values,
                    color=COLOURS[number],
                    ls=DASHES[number],
                    lw=1.2,
                    marker="o" if title.startswith("V") else None,
                    ms=3,
                    label=f"{name}: {side.path.name}",
                )
            axis.set(title=title, xlabel="optimizer step", ylabel="loss (nats)")
            if axis.lines:
                axis.legend(fontsize=8)
        return figure


def rocs(found: Answers, names: Sequence[str]) -> Any:
    """ROC curves of both runs for every task of two classes that was compared; None where there is none.

    Args:
        found: the compared answers.
        names: of the two runs.
    """
    import matplotlib as mpl

    from m4oe_ds.report.curves import roc_points
    from m4oe_ds.report.figures import COLOURS, DASHES, STYLE, panels

    tasks = [name for name in dict.fromkeys(task for task, _ in found.rows) if _binary(found, name)]
    if not tasks:
        return None
    with mpl.rc_context(STYLE):
        figure, axes = panels(len(tasks))
        for axis, task in zip(axes, tasks, strict=True):
            axis.plot([0, 1], [0, 1], color="0.7", lw=0.8)
            for number, (name, arrays) in enumerate(zip(names, (found.first, found.second), strict=True)):
                known = arrays[f"label_{task}"] >= 0
                x, y = roc_points(arrays[f"label_{task}"][known] == 1, arrays[f"prob_{task}"][known, 1])
                axis.plot(x, y, color=COLOURS[number], ls=DASHES[number], lw=1.2, label=name)
            axis.set(title=task, xlabel="1 - specificity", ylabel="sensitivity", aspect="equal")
        axes[0].legend(fontsize=8, loc="lower right")
        return figure


def _binary(found: Answers, task: str) -> bool:
    probability = found.first.get(f"prob_{task}")
    if probability is None or probability.ndim != 2 or probability.shape[1] != 2:
        return False
    labels = found.first[f"label_{task}"]
    return {0, 1} <= set(labels.tolist())
