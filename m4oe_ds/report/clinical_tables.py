"""Tables of ``clinical.json`` as the report shows them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from m4oe_ds.report.words import NAMES, Words, capital

Table = dict[str, Any]


def number(entry: Mapping[str, Any] | None, digits: int = 3) -> str:
    """``0.812 [0.74, 0.88]``; a dash where there is no value, with the reason where there is one."""
    if not entry or entry.get("value") is None:
        reason = (entry or {}).get("reason", "")
        return f"– ({reason})" if reason else "–"
    text = f"{entry['value']:.{digits}f}"
    if entry.get("low") is None or entry.get("high") is None:
        return text
    return f"{text} [{entry['low']:.2f}, {entry['high']:.2f}]"


def from_report(clinical: Mapping[str, Any], words: Words = NAMES) -> list[Table]:
    """Tables with ``title``, ``note``, ``header`` and ``rows`` of texts, those without content left out.

    Args:
        clinical: content of ``clinical.json``.
        words: labels of tasks, groups and sides.
    """
    found = [
        _points(clinical, words),
        *_subgroups(clinical, words),
        _calibration(clinical, words),
        _follow_up(clinical),
    ]
    return [table for table in found if table["rows"] or table["note"]]


def _points(clinical: Mapping[str, Any], words: Words) -> Table:
    rows = []
    for task, entry in clinical["tasks"].items():
        for point in entry.get("operating_points", ()):
            fixed = f"{point['target']} {clinical['rate']:.0%}"
            if point["threshold"] is None:
                rows.append([words.task(task), fixed, point["chosen_on"], "–", point["reason"], "", "", ""])
                continue
            rates = [number(point[name]) for name in ("sensitivity", "specificity", "ppv", "npv")]
            rows.append([words.task(task), fixed, point["chosen_on"], f"{point['threshold']:.3f}", *rates])
    note = (
        "A threshold chosen on the evaluated data is optimistic; one from the validation split is what a user would "
        "have."
    )
    return {
        "title": "Operating points",
        "note": note if rows else "",
        "rows": rows,
        "header": ["task", "fixed", "threshold from", "threshold", "sensitivity", "specificity", "PPV", "NPV"],
    }


def _calibration(clinical: Mapping[str, Any], words: Words) -> Table:
    rows = []
    for task, entry in clinical["tasks"].items():
        found = entry.get("calibration")
        if found is None:
            continue
        auroc = entry.get("delong")
        rows.append(
            [
                words.task(task),
                number(found["ece"]),
                number({"value": found.get("ece_apparent")}),
                number(found.get("slope")),
                number(found.get("intercept")),
                number(found.get("expected_observed")),
                number(auroc) if auroc else "–",
            ]
        )
    note = (
        "ECE of P(y = 1), or of the predicted class where there are more than two; 15 bins of equal counts. The "
        "apparent ECE of a sample is too high, because chance only adds to it; the corrected one, with its interval, "
        "is the miscalibration whose samples show what this one shows."
    )
    return {
        "title": "Calibration",
        "note": note if rows else "",
        "rows": rows,
        "header": [
            "task",
            "ECE, corrected",
            "ECE, apparent",
            "slope",
            "intercept",
            "expected / observed",
            "AUROC (DeLong)",
        ],
    }


def _follow_up(clinical: Mapping[str, Any]) -> Table:
    found = clinical.get("risk")
    table: Table = {
        "title": "Risk over time",
        "note": "",
        "rows": [],
        "header": ["horizon", "cases", "AUC (weighted for censoring)", "AUC (plain)", "Brier (censored)"],
    }
    if not found:
        return table
    if "note" in found:
        return table | {"note": f"Not available: {found['note']}."}
    table["note"] = (
        f"Uno's C-index {number(found['uno_c'])}, Harrell's {number(found['harrell_c'])}; censoring estimated from "
        f"the {found['censoring_from'].removeprefix('this ')}; {found['events']} events among {found['n']} samples."
    )
    for entry in found["horizons"]:
        auc = entry["auc"]
        cases = f"{auc.get('events', '–')} of {auc.get('events', 0) + auc.get('controls', 0)}"
        rows = [
            f"{entry['horizon']} year{'s' if entry['horizon'] > 1 else ''}",
            cases,
            number(auc),
            number(entry["auc_unweighted"]),
            number(entry["brier"]),
        ]
        table["rows"].append(rows)
    return table


def _subgroups(clinical: Mapping[str, Any], words: Words) -> list[Table]:
    """A table per attribute: a line per task, a column per group, in a cell the figure and what it rests on."""
    cells: dict[str, dict[str, dict[str, Mapping[str, Any]]]] = {}
    for task, entry in clinical["tasks"].items():
        for row in entry.get("subgroups", {}).get("rows", ()):
            if row["attribute"] != "all":
                cells.setdefault(row["attribute"], {}).setdefault(task, {})[row["group"]] = row
    found = []
    for attribute, by_task in cells.items():
        groups = list(dict.fromkeys(group for rows in by_task.values() for group in rows))
        header = ["task", *(capital(words.subgroup(attribute, group)[1]) for group in groups)]
        lines = [
            [words.task(task), *(_cell(rows.get(group), words) for group in groups)] for task, rows in by_task.items()
        ]
        found.append(
            {
                "title": f"Subgroups: {words.subgroup(attribute, '')[0]}",
                "note": _group_note(by_task.values(), words),
                "header": header,
                "rows": lines,
            }
        )
    return found


def _group_note(lines: Iterable[Mapping[str, Mapping[str, Any]]], words: Words) -> str:
    """What stands in the cells, and why some have no figure."""
    reasons = dict.fromkeys(
        row["reason"].removesuffix(": counts only") for rows in lines for row in rows.values() if not row["estimate"]
    )
    note = f"AUROC of each group, and below it its labelled samples and their {words.groups}."
    return f"{note} No figure: {', or '.join(reasons)}." if reasons else note


def _cell(row: Mapping[str, Any] | None, words: Words) -> str:
    """AUROC with its interval, and on a line of its own what it rests on."""
    if row is None:
        return ""
    shown = number(row["estimate"]) if row["estimate"] else "–"
    return f"{shown}\n{row['n']} of {row['n_groups']} {words.groups}"
