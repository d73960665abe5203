"""The section ``missing`` of ``analysis.json`` as tables of the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from m4oe_ds.report.clinical_tables import number
from m4oe_ds.report.words import NAMES, Words

Table = dict[str, Any]


def from_analysis(missing: Mapping[str, Any], words: Words = NAMES) -> list[Table]:
    """Tables with ``title``, ``note``, ``header`` and ``rows`` of texts; none without the section."""
    if not missing:
        return []
    cohort = missing["cohort"]
    taken = (
        f"The {cohort['samples']} samples that have at least {cohort['at_least']} modalities, with 0, 1, ... of them "
        "taken away. Baseline: the most frequent class, or chance."
    )
    if missing["not_judged"]:
        taken += f" No figure for {', '.join(map(words.task, missing['not_judged']))}."
    there = f"All {missing['samples']} samples by how many modalities they have; of small groups counts only."
    return [
        _table("Modalities taken away", missing.get("reason", taken), missing["removed"], "removed", "taken", words),
        _table("Modalities present", there, missing["observed"], "present", "present", words),
    ]


def _table(title: str, note: str, rows: list[Mapping[str, Any]], along: str, word: str, words: Words) -> Table:
    """A line per task and figure, a column per number of modalities."""
    counts = sorted({row[along] for row in rows})
    cells: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["task"], row["metric"]), {})[row[along]] = row
    lines = []
    for (task, metric), by_count in cells.items():
        trivial = [row["trivial"] for row in by_count.values() if row["trivial"] is not None]
        baseline = f"{trivial[0]:.3f}" if trivial else "–"
        lines.append([words.task(task), metric, baseline, *(_cell(by_count.get(count)) for count in counts)])
    header = ["task", "figure", "baseline", *(f"{count} {word}" for count in counts)]
    return {"title": title, "note": note, "header": header, "rows": lines}


def _cell(row: Mapping[str, Any] | None) -> str:
    """Value, interval and how many samples it rests on."""
    if row is None:
        return ""
    return f"{number({**row, 'reason': ''})} (n {row['n']})"
