"""Table 1 and Table 2 in the paper's layout, with the paper's numbers, where it has any, in a column that says so."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from m4oe_ds.compare.ablations import SWEEP_COLUMNS, SweepRow, option_and_value
from m4oe_ds.compare.cells import ABLATIONS, find_method, in_order
from m4oe_ds.compare.published import published
from m4oe_ds.compare.results import Figure

ENDINGS = {"dice": " (Dice)", "mae": " (MAE)", "uno_c": " (Uno's C)"}  # in the heads of columns


def columns_of(figures: Sequence[Figure]) -> dict[str, tuple[str, ...]]:
    """Tasks of each data set that has figures: those published in their order, else as they come."""
    known = published().columns
    found: dict[str, list[str]] = {name: [] for name in known}
    for figure in figures:
        tasks = found.setdefault(figure.dataset, [])
        if figure.task not in tasks:
            tasks.append(figure.task)
    return {name: known.get(name, tuple(tasks)) for name, tasks in found.items() if tasks}


def _find(figures: Sequence[Figure], metric: str, dataset: str, single: bool, method: str, task: str) -> Figure | None:
    """The figure of a cell in this metric, or in that of the task's kind if it is another one."""
    wanted = (dataset, task if single else "multi", method, task, "")
    for figure in figures:
        if (figure.dataset, figure.setting, figure.method, figure.task, figure.sweep) == wanted and (
            figure.metric == metric or figure.metric in ENDINGS
        ):
            return figure
    return None


def cell_text(figure: Figure | None) -> str:
    """``mean ± spread`` in percent (an error in the unit of its number), with the difference to M4oE and its p; ``-``
    without result.
    """
    if figure is None or figure.mean is None:
        return "-"
    scale, digits = (1, 3) if figure.metric == "mae" else (100, 1)
    text = f"{scale * figure.mean:.{digits}f}"
    if figure.spread is not None:
        text += f" ± {scale * figure.spread:.{digits}f}"
    if figure.difference is not None and figure.p is not None:
        p = "p < 0.01" if figure.p < 0.01 else f"p {figure.p:.2f}"
        text += f" ({scale * figure.difference:+.{digits}f}, {p})"
    return text


def paper_text(single: bool, method: str, dataset: str, task: str) -> str:
    """The paper's number, or ``-``."""
    known = published()
    values = known.figures.get(("single" if single else "multi", method), {}).get(dataset)
    return "-" if values is None else f"{values[known.columns[dataset].index(task)]:.1f}"


def table1(figures: Sequence[Figure], metric: str = "accuracy") -> list[list[str]]:
    """Header and rows: setting, method, then per data set and task our figure, and the paper's where it has any
    (accuracy only).
    """
    columns = [(dataset, task) for dataset, tasks in columns_of(figures).items() for task in tasks]
    printed = {dataset for dataset, _ in columns if metric == "accuracy" and dataset in published().columns}
    header, baseline = ["setting", "method"], ["", trivial_name(figures)]
    for dataset, task in columns:
        here = [f for f in figures if (f.dataset, f.task) == (dataset, task)]
        head = f"{dataset} {task}" + next((_ending(f) for f in here if f.metric in ENDINGS), "")
        trivial = _trivial_text([f for f in here if f.majority is not None])
        header += [head, "paper, real data"] if dataset in printed else [head]
        baseline += [trivial, "-"] if dataset in printed else [trivial]
    rows = [header, baseline] if metric == "accuracy" else [header]
    for single in (True, False):
        for method in in_order(figure.method for figure in figures):
            found = [_find(figures, metric, dataset, single, method, task) for dataset, task in columns]
            if not any(found):
                continue
            row = ["single-task" if single else "multi-task", find_method(method).label]
            for (dataset, task), figure in zip(columns, found, strict=True):
                row.append(cell_text(figure))
                if dataset in printed:
                    row.append(paper_text(single, method, dataset, task))
            rows.append(row)
    return rows


def trivial_name(figures: Sequence[Figure]) -> str:
    """What the row of answers that look at nothing is called."""
    metrics = {figure.metric for figure in figures}
    return "majority class" if metrics <= {"accuracy", "auroc", "dice"} else "majority class, median, or chance"


def _ending(figure: Figure) -> str:
    return f" (MAE, {figure.unit})" if figure.metric == "mae" and figure.unit else ENDINGS[figure.metric]


def _trivial_text(figures: Sequence[Figure]) -> str:
    if not figures:
        return "-"
    one = max(figures, key=lambda figure: figure.majority or 0.0)
    return cell_text(replace(one, mean=one.majority, spread=None, difference=None))


def table2(figures: Sequence[Figure], dataset: str) -> list[list[str]]:
    """The ablation: which parts are there, then our figures, and the paper's where it has any."""
    tasks, printed = columns_of(figures)[dataset], dataset == published().ablation
    rows = [["MToE", "MSoE", "MI"]]
    for task in tasks:
        rows[0] += [task, "paper, real data"] if printed else [task]
    for method, parts in ABLATIONS.items():
        row = ["yes" if part else "-" for part in parts]
        for task in tasks:
            row.append(cell_text(_find(figures, "accuracy", dataset, False, method, task)))
            if printed:
                row.append(paper_text(False, method, dataset, task))
        rows.append(row)
    return rows


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def write(name: str, rows: Sequence[Sequence[str]], folder: Path, caption: str = "", data: str = "") -> str:
    """Writes ``<name>.md`` and ``<name>.csv``; returns the Markdown.

    Args:
        caption: above the Markdown table.
        data: what the figures were measured on, a last column of the CSV; empty = none.
    """
    text = f"{caption}\n\n{markdown(rows)}" if caption else markdown(rows)
    (folder / f"{name}.md").write_text(text + "\n", encoding="utf-8")
    marked = [[*row, "data" if number == 0 else data] for number, row in enumerate(rows)] if data else rows
    with (folder / f"{name}.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(marked)
    return text


def sweep_rows(figures: Sequence[Figure]) -> list[list[str]]:
    """Fig. 7 as a table: the header and the rows of :class:`m4oe_ds.compare.ablations.SweepRow`."""
    rows = [
        SweepRow(*option_and_value(f.sweep), f.dataset, f.method, f.task, f.metric, f.mean, f.spread, len(f.seeds))
        for f in figures
        if f.sweep and f.mean is not None
    ]
    rows.sort(key=lambda row: (row.option, row.dataset, row.method, row.task, row.metric, row.value))
    return [list(SWEEP_COLUMNS), *(row.cells() for row in rows)]
