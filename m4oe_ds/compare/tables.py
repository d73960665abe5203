"""Table 1 and Table 2 in the paper's layout, with the paper's numbers as a reference column that says so."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from m4oe_ds.compare.ablations import SWEEP_COLUMNS, SweepRow, option_and_value
from m4oe_ds.compare.cells import ABLATIONS, METHODS, QUESTIONS
from m4oe_ds.compare.results import Figure

# Table 1 of Wu et al. (ICLR 2025), percent: (setting, method) -> data set -> values in the order of QUESTIONS
PAPER: dict[tuple[str, str], dict[str, tuple[float, ...]]] = {
    ("single", "mirai"): {"embed": (84.0, 82.3, 72.5), "rsna": (76.3, 62.3), "vindr": (86.3, 66.1)},
    ("single", "asymmirai"): {"embed": (79.0, 80.2, 69.4), "rsna": (74.1, 60.1), "vindr": (78.9, 62.4)},
    ("single", "eyemost"): {"gamma": (86.0, 87.8)},
    ("single", "eyestar"): {"gamma": (85.4, 85.9)},
    ("single", "ours_no_msoe"): {
        "embed": (83.2, 82.1, 71.9), "rsna": (76.8, 62.2), "vindr": (85.4, 65.8), "gamma": (86.2, 86.2),
    },
    ("single", "ours"): {
        "embed": (85.5, 83.6, 74.2), "rsna": (77.5, 64.0), "vindr": (87.7, 67.5), "gamma": (87.6, 88.9),
    },
    ("multi", "mirai"): {"embed": (83.1, 83.2, 72.3), "rsna": (76.1, 62.5), "vindr": (85.4, 65.9)},
    ("multi", "mirai_mtoe"): {"embed": (84.6, 83.3, 73.4), "rsna": (76.8, 63.1), "vindr": (85.9, 66.4)},
    ("multi", "asymmirai"): {"embed": (80.0, 82.5, 69.6), "rsna": (73.9, 60.7), "vindr": (79.1, 62.2)},
    ("multi", "asymmirai_mtoe"): {"embed": (81.9, 83.1, 70.8), "rsna": (74.2, 61.2), "vindr": (81.2, 64.2)},
    ("multi", "eyemost"): {"gamma": (86.5, 86.6)},
    ("multi", "eyemost_mtoe"): {"gamma": (87.2, 88.5)},
    ("multi", "eyestar"): {"gamma": (85.9, 84.1)},
    ("multi", "eyestar_mtoe"): {"gamma": (87.5, 86.9)},
    ("multi", "evif"): {
        "embed": (84.7, 83.4, 73.6), "rsna": (77.0, 65.9), "vindr": (88.8, 70.7), "gamma": (88.7, 87.0),
    },
    ("multi", "fuller"): {
        "embed": (84.3, 83.5, 72.5), "rsna": (76.9, 65.4), "vindr": (87.1, 68.7), "gamma": (87.8, 86.2),
    },
    ("multi", "aide"): {
        "embed": (84.1, 82.9, 73.6), "rsna": (76.8, 66.1), "vindr": (88.2, 69.8), "gamma": (88.5, 87.5),
    },
    ("multi", "mmodn"): {
        "embed": (84.8, 83.7, 73.9), "rsna": (77.1, 66.4), "vindr": (89.0, 70.4), "gamma": (89.2, 87.2),
    },
    ("multi", "ours_no_mtoe"): {
        "embed": (84.0, 82.8, 73.1), "rsna": (76.7, 64.3), "vindr": (86.9, 67.3), "gamma": (88.1, 87.4),
    },
    ("multi", "ours"): {
        "embed": (85.9, 84.1, 75.1), "rsna": (77.8, 66.7), "vindr": (89.6, 71.8), "gamma": (90.4, 89.7),
    },
    # Table 2
    ("multi", "ours_no_msoe"): {"embed": (85.1, 83.5, 73.8)},
    ("multi", "ours_no_mi"): {"embed": (85.2, 83.7, 73.5)},
}  # fmt: skip


def _find(figures: Sequence[Figure], metric: str, dataset: str, single: bool, method: str, task: str) -> Figure | None:
    setting = task if single else "multi"
    wanted = ("dice" if task == "cup" else metric, dataset, setting, method, task, "")
    for figure in figures:
        if (figure.metric, figure.dataset, figure.setting, figure.method, figure.task, figure.sweep) == wanted:
            return figure
    return None


def cell_text(figure: Figure | None) -> str:
    """``mean ± spread`` in percent, with the difference to M4oE and its p; ``-`` without result."""
    if figure is None or figure.mean is None:
        return "-"
    text = f"{100 * figure.mean:.1f}"
    if figure.spread is not None:
        text += f" ± {100 * figure.spread:.1f}"
    if figure.difference is not None and figure.p is not None:
        p = "p < 0.01" if figure.p < 0.01 else f"p {figure.p:.2f}"
        text += f" ({100 * figure.difference:+.1f}, {p})"
    return text


def paper_text(single: bool, method: str, dataset: str, column: int) -> str:
    """The paper's number, or ``-``."""
    values = PAPER.get(("single" if single else "multi", method), {}).get(dataset)
    return "-" if values is None else f"{values[column]:.1f}"


def table1(figures: Sequence[Figure], metric: str = "accuracy") -> list[list[str]]:
    """Header and rows: setting, method, then per data set and task our figure and the paper's (accuracy only)."""
    datasets = [name for name in QUESTIONS if any(figure.dataset == name for figure in figures)]
    header, majority = ["setting", "method"], ["", "majority class"]
    for dataset in datasets:
        for task in QUESTIONS[dataset]:
            header.append(f"{dataset} {task}" + (" (Dice)" if task == "cup" else ""))
            shares = {f.majority for f in figures if (f.dataset, f.task) == (dataset, task) and f.majority is not None}
            majority.append("-" if task == "cup" or not shares else f"{100 * max(shares):.1f}")
            if metric == "accuracy":
                header.append("paper, real data")
                majority.append("-")
    rows = [header, majority] if metric == "accuracy" else [header]
    for single in (True, False):
        for method in METHODS:
            row = ["single-task" if single else "multi-task", METHODS[method].label]
            found = False
            for dataset in datasets:
                for column, task in enumerate(QUESTIONS[dataset]):
                    figure = _find(figures, metric, dataset, single, method, task)
                    found |= figure is not None
                    row.append(cell_text(figure))
                    if metric == "accuracy":
                        row.append(paper_text(single, method, dataset, column))
            if found:
                rows.append(row)
    return rows


def table2(figures: Sequence[Figure], dataset: str = "embed") -> list[list[str]]:
    """The ablation: which parts are there, then our figures and the paper's."""
    rows = [["MToE", "MSoE", "MI"]]
    for task in QUESTIONS[dataset]:
        rows[0] += [task, "paper, real data"]
    for method, parts in ABLATIONS.items():
        row = ["yes" if part else "-" for part in parts]
        for column, task in enumerate(QUESTIONS[dataset]):
            row += [
                cell_text(_find(figures, "accuracy", dataset, False, method, task)),
                paper_text(False, method, dataset, column),
            ]
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
