"""Metrics of a split as text for a terminal of 120 columns."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

WIDTH = 120


def format_table(metrics: Mapping[str, Any]) -> str:
    """Aligned text: one line per task with classes (n, the majority baseline, and metrics with their 95 % intervals),
    then one paragraph per other task, with its unit and what a trivial answer would reach.
    """
    header = ("task", "n", "majority", "accuracy", "balanced", "AUROC", "AUPRC (chance)")
    rows, others = [header], []
    for name, entry in metrics["tasks"].items():
        values = entry["metrics"]
        if entry["kind"] != "classification":
            others.append((name, str(entry["n"]), _PARTS[entry["kind"]](entry) if entry["n"] else ["no labels"]))
        elif not entry["n"]:
            rows.append((name, "0", "", "no labels", "", "", ""))
        else:
            chance = f" ({entry['auprc_chance']:.3f})"
            rows.append(
                (
                    name,
                    str(entry["n"]),
                    f"{entry['prior']:.3f}",
                    with_interval(values["accuracy"]),
                    _plain(values["balanced_accuracy"]),
                    with_interval(values["auroc"]),
                    _plain(values["auprc"]) + chance,
                )
            )
    lines = []
    if len(rows) > 1 or not others:
        widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines + _paragraphs(others))


def _paragraphs(others: Sequence[tuple[str, str, list[str]]]) -> list[str]:
    """Name and n in columns, then the parts, broken between them where the line is full."""
    if not others:
        return []
    width = [max(len(row[i]) for row in others) for i in (0, 1)]
    lines = []
    for name, count, parts in others:
        start = f"{name.ljust(width[0])}  {count.rjust(width[1])}  "
        glued = [part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts]
        text = textwrap.fill(
            "  ".join(glued),
            WIDTH,
            initial_indent=start,
            subsequent_indent=" " * len(start),
            break_long_words=False,
            break_on_hyphens=False,
        )
        lines.append(text.replace("\N{NO-BREAK SPACE}", " "))
    return lines


def _number(entry: Mapping[str, Any]) -> list[str]:
    values, baseline = entry["metrics"], entry["baseline"]
    unit = f" {entry['unit']}" if entry["unit"] else ""
    return [
        f"MAE {with_interval(values['mae'])}{unit} ({baseline['of']}: {baseline['mae']:.3f})",
        f"RMSE {_plain(values['rmse'])}",
        f"R2 {with_interval(values['r2'])}",
        f"Spearman {_plain(values['spearman'])}",
    ]


def _survival(entry: Mapping[str, Any]) -> list[str]:
    values, baseline = entry["metrics"], entry["baseline"]
    parts = [
        f"{entry['events']} events",
        f"Uno's C {with_interval(values['uno_c'])} (chance: 0.5)",
        f"Harrell's C {_plain(values['harrell_c'])}",
    ]
    if "integrated_brier" in values:
        trivial = f"{baseline['of']}: {_text(baseline['integrated_brier'])}"
        parts.append(f"Brier {with_interval(values['integrated_brier'])} ({trivial})")
    for one in entry["horizons"]:
        key = f"{one['horizon']:g}"
        trivial = _text(baseline[f"brier_{key}"])
        parts.append(
            f"within {key} {entry['unit']}: AUC {_plain(values[f'auc_{key}'])}, "
            f"Brier {_plain(values[f'brier_{key}'])} ({trivial})"
        )
    return parts


def _masks(entry: Mapping[str, Any]) -> list[str]:
    values, baseline = entry["metrics"], entry.get("baseline", {})
    names = {name: name.removeprefix("dice").replace("_", " ", 1) for name in values}
    return [
        f"Dice{names[name]} {with_interval(value)}" + (f" ({_text(baseline.get(name))})" if baseline else "")
        for name, value in values.items()
    ] + ([f"(in brackets: {baseline['of']})"] if baseline else [])


_PARTS: Mapping[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "number": _number,
    "survival": _survival,
    "segmentation": _masks,
}


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _plain(entry: Mapping[str, float | None]) -> str:
    return _text(entry["value"])


def with_interval(entry: Mapping[str, float | None]) -> str:
    """``value [low, high]``, without the interval where there is none; ``-`` for an undefined value."""
    if entry["value"] is None:
        return "-"
    if entry["low"] is None:
        return f"{entry['value']:.3f}"
    return f"{entry['value']:.3f} [{entry['low']:.3f}, {entry['high']:.3f}]"
