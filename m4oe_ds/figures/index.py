"""The list of what was made: every table and figure with what it is, its files and the commands behind it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m4oe_ds.compare.published import presets
from m4oe_ds.figures.plan import PRODUCTS, Plan, files_of
from m4oe_ds.figures.work import Outcome, command_line
from m4oe_ds.report import page
from m4oe_ds.runs.folder import RunFolder
from m4oe_ds.stored import read_json


def write(plan: Plan, outcome: Outcome) -> list[str]:
    """Writes ``index.html`` and returns a line for each table and figure: what it is and which files.

    Args:
        plan: the steps.
        outcome: what became of them.
    """
    folder, found = plan.wanted.output, files_of(plan)
    reasons = _reasons(plan, outcome)
    parts, lines = [], []
    for name in plan.wanted.only:
        heading, what = PRODUCTS[name]
        files = found[name]
        missing = reasons.get(name, [] if files else ["nothing was drawn"])
        parts.append(
            page.Part(
                heading,
                [f"{what[0].upper()}{what[1:]}.", *([] if files else ["Files: none."])],
                missing,
                images={path.stem: _link(path, folder) for path in files if path.suffix == ".png"},
                blocks=[path.read_text(encoding="utf-8") for path in files if path.suffix == ".md"],
                links={path.name: _link(path, folder) for path in files},
                name=name,
            )
        )
        shown = ", ".join(_link(path, folder) for path in files if path.suffix in (".png", ".md"))
        lines.append(f"{heading}: {shown or 'nothing'}" + "".join(f" ({text})" for text in missing))
    commands = "\n".join(command_line(step) for step in plan.steps)
    parts.append(page.Part("Commands", ["In this order, each can be run again by itself."], blocks=[commands]))
    seeds = ", ".join(map(str, presets()[plan.wanted.preset].seeds))
    facts = f"Figures 3 to 6 show one seed on {plan.dataset}; the tables are over the seeds {seeds}."
    synthetic = any(_synthetic(plan.run(name, "ours")) for name in ("compare", "pair"))
    title = f"Tables and figures, preset {plan.wanted.preset}"
    page.write(folder / "index.html", title, synthetic, [facts], parts)
    return lines


def _synthetic(run: Path) -> bool:
    return bool(_analysis(run).get("synthetic"))


def _analysis(run: Path) -> dict[str, Any]:
    """``analysis.json`` of a run; empty if it has none."""
    path = RunFolder(run).analysis
    return read_json(path, f"make it again with `m4oe analyze {run}`") if path.is_file() else {}


def _reasons(plan: Plan, outcome: Outcome) -> Mapping[str, list[str]]:
    """Why a part of a figure is not there, by product."""
    sections = {
        "fig3": (("compare", "competition"), ("compare", "utilisation")),
        "fig4": (("pair", "synergy"),),
        "fig5": (("compare", "contribution"),),
        "fig6": (("pair", "conflict"), ("compare", "experts")),
        "fig7": (("compare", "sweep"),),
    }
    steps = {"compare": ("mixtures", "analyze-ours", "analyze-sweep"), "pair": ("pair", "analyze-pair")}
    found: dict[str, list[str]] = {}
    for name in plan.wanted.only:
        parts = sections.get(name, ())
        lines = [f"{section}: {reason}" for run, section in parts if (reason := _skipped(plan, run, section))]
        for step in {one for run, _ in parts for one in steps[run]} | ({"tables"} if not parts else set()):
            if step in outcome.problems:
                lines.append(f"{step}: {outcome.problems[step]}")
        if lines:
            found[name] = sorted(lines)
    return found


def _skipped(plan: Plan, folder: str, section: str) -> str:
    skipped = _analysis(plan.run(folder, "ours")).get("skipped")
    return str(skipped.get(section, "")) if isinstance(skipped, dict) else ""


def _link(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
