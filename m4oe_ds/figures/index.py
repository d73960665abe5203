"""The list of what was made: every table and figure with what it is, its files and the commands behind it."""

from __future__ import annotations

import html
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m4oe_ds.compare.published import presets
from m4oe_ds.figures.plan import PRODUCTS, Plan, files_of
from m4oe_ds.figures.work import Outcome, command_line
from m4oe_ds.runs.folder import RunFolder
from m4oe_ds.stored import read_json

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
  :root {{ color-scheme: light dark; }}
  body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; }}
  h1 {{ font-size: 1.6rem; }} h2 {{ font-size: 1.2rem; margin-top: 2.5rem; }}
  img {{ max-width: 100%; height: auto; background: #fff; display: block; margin: .5rem 0; }}
  pre {{ overflow-x: auto; padding: .5rem; border: 1px solid #8884; font-size: .8rem; }}
  .note {{ border-left: 4px solid #b3261e; padding: .25rem 1rem; }}
</style></head><body>
<h1>{title}</h1>
{body}
</body></html>
"""


def write(plan: Plan, outcome: Outcome) -> list[str]:
    """Writes ``index.html`` and returns a line for each table and figure: what it is and which files.

    Args:
        plan: the steps.
        outcome: what became of them.
    """
    folder, found = plan.wanted.output, files_of(plan)
    reasons = _reasons(plan, outcome)
    body, lines = [_facts(plan)], []
    for name in plan.wanted.only:
        heading, what = PRODUCTS[name]
        files = found[name]
        body.append(f'<h2 id="{name}">{heading}</h2>\n<p>{html.escape(what[0].upper() + what[1:])}.</p>')
        missing = reasons.get(name, [] if files else ["nothing was drawn"])
        body += [f'<p class="note">{html.escape(text)}</p>' for text in missing]
        for path in files:
            body += _shown(path, folder)
        links = [f'<a href="{_link(path, folder)}">{html.escape(path.name)}</a>' for path in files]
        body.append(f"<p>Files: {', '.join(links) or 'none'}.</p>")
        shown = ", ".join(_link(path, folder) for path in files if path.suffix in (".png", ".md"))
        lines.append(f"{heading}: {shown or 'nothing'}" + "".join(f" ({text})" for text in missing))
    commands = "\n".join(html.escape(command_line(step)) for step in plan.steps)
    body.append(f"<h2>Commands</h2>\n<p>In this order, each can be run again by itself.</p>\n<pre>{commands}</pre>")
    title = f"Tables and figures, preset {plan.wanted.preset}"
    target = folder / "index.html"
    temporary = folder / ".index.html"
    temporary.write_text(_PAGE.format(title=title, body="\n".join(body)), encoding="utf-8")
    temporary.replace(target)
    return lines


def _facts(plan: Plan) -> str:
    seeds = ", ".join(map(str, presets()[plan.wanted.preset].seeds))
    synthetic = any(_synthetic(plan.run(folder, "ours")) for folder in ("compare", "pair"))
    warning = '<p class="note">Synthetic data: no figure here is of patients.</p>\n' if synthetic else ""
    return f"{warning}<p>Figures 3 to 6 show one seed on {plan.dataset}; the tables are over the seeds {seeds}.</p>"


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


def _shown(path: Path, folder: Path) -> list[str]:
    """A figure as a picture, a table as its text."""
    if path.suffix == ".png":
        return [f'<img alt="{html.escape(path.stem)}" src="{_link(path, folder)}">']
    if path.suffix == ".md":
        return [f"<pre>{html.escape(path.read_text(encoding='utf-8'))}</pre>"]
    return []


def _link(path: Path, folder: Path) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()
