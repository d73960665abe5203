"""How far the explanations of the compared systems can be trusted: each cell analysed, agreement averaged over seeds.

``m4oe analyze`` scores a run's explanations (routing mass, gradient saliency, attention rollout, the effect of leaving
a modality out) against the planted truth of synthetic data and against that effect. This module runs it on every
multi-task cell of a comparison and gathers the coefficients over the seeds.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m4oe_ds.compare.cells import Cell, find_method, in_order
from m4oe_ds.compare.processes import Children
from m4oe_ds.compare.run import CellPlan, cell_environment, free_shares, state
from m4oe_ds.progress import track
from m4oe_ds.runs.folder import RunFolder
from m4oe_ds.stored import read_json

LEVELS = ("sample", "within", "population")
_SECTIONS = "utilisation,contribution,interpretability"


@dataclass(frozen=True)
class Agreement:
    """Spearman coefficients of one explanation with one reference.

    Attributes:
        dataset: data set of the cells.
        method: method of the cells.
        reference: ``truth`` or ``ablation``.
        explanation: ``routing``, ``saliency``, ``rollout``, ``ablation``, ``uniform``.
        level: ``sample``, ``within`` or ``population``.
        task: a task, ``all`` for their mean, empty at the population level.
        seeds: seeds that have a coefficient.
        values: one coefficient per seed.
    """

    dataset: str
    method: str
    reference: str
    explanation: str
    level: str
    task: str
    seeds: tuple[int, ...]
    values: tuple[float, ...]

    @property
    def text(self) -> str:
        """``mean ± standard deviation`` over the seeds (n - 1)."""
        spread = f" ± {statistics.stdev(self.values):.2f}" if len(self.values) > 1 else ""
        return f"{statistics.mean(self.values):+.2f}{spread}"


def analyse(
    cells: Sequence[Cell], plan: CellPlan, workers: int, say: Callable[[str], None], devices: Sequence[str] = ()
) -> dict[str, str]:
    """Runs ``m4oe analyze`` on every finished multi-task cell that has no such analysis yet.

    Args:
        cells: the cells.
        plan: how they were run.
        workers: analyses at a time, each on a GPU of its own.
        say: takes what happens as lines.
        devices: GPUs to share out; none on a machine without.

    Returns:
        The last line of what failed, by cell.

    Raises:
        ConfigError: too few GPUs.
    """
    free = free_shares(devices, workers, 1)
    todo = [cell for cell in explained(cells, plan) if not _analysis(plan, cell)]
    failures: dict[str, str] = {}
    with Children() as children, ThreadPoolExecutor(workers) as pool:

        def one(cell: Cell) -> str:
            folder = plan.of(cell)
            output = folder / "analyze.txt"
            command = [sys.executable, "-m", "m4oe_ds", "analyze", str(folder), "--only", _SECTIONS]
            with free() as share:
                code = children.call(command, cell_environment(1, share), plan.timeout_s, output)
            if code == 0:
                return ""
            return (output.read_text(errors="replace").strip().splitlines() or [f"ended with status {code}"])[-1]

        pending = {pool.submit(one, cell): cell for cell in todo}
        for number, finished in enumerate(track(as_completed(pending), "analyses", "cells", len(todo)), 1):
            cell, problem = pending[finished], finished.result()
            say(f"[{number}/{len(todo)}] analysis of {cell.name}: {problem or 'done'}")
            if problem:
                failures[cell.name] = problem
    return failures


def explained(cells: Iterable[Cell], plan: CellPlan) -> list[Cell]:
    """The finished cells whose explanations are scored: multi-task, no sweep."""
    return [cell for cell in cells if cell.setting == "multi" and not cell.sweep and state(cell, plan) == "done"]


def _analysis(plan: CellPlan, cell: Cell) -> dict[str, Any]:
    path = RunFolder(plan.of(cell)).analysis
    content = read_json(path, f"run `m4oe analyze {plan.of(cell)}` again") if path.is_file() else {}
    return content if "interpretability" in content else {}


def collect(cells: Sequence[Cell], plan: CellPlan) -> list[Agreement]:
    """The coefficients of all analysed cells; those that are undefined (one side constant) are left out."""
    found: dict[tuple[str, str, str, str, str, str], list[tuple[int, float]]] = {}
    for cell in explained(cells, plan):
        scores = _analysis(plan, cell).get("interpretability", {}).get("scores", {})
        for reference, by_name in scores.items():
            for name, entry in by_name.items():
                for level, task, value in _coefficients(entry):
                    key = (cell.dataset, cell.method, reference, name, level, task)
                    found.setdefault(key, []).append((cell.seed, value))
    return [
        Agreement(*key, seeds=tuple(seed for seed, _ in rows), values=tuple(value for _, value in rows))
        for key, rows in ((key, sorted(rows)) for key, rows in found.items())
    ]


def _coefficients(entry: Mapping[str, Any]) -> Iterable[tuple[str, str, float]]:
    for level in LEVELS:
        tables = {"": entry[level]} if level == "population" else entry[level]
        for task, numbers in tables.items():
            if numbers["spearman"] is not None:
                yield level, task, numbers["spearman"]


def table(found: Sequence[Agreement]) -> list[list[str]]:
    """Header and rows: system, explanation, then per reference and level the coefficient, mean over tasks."""
    references = [name for name in ("truth", "ablation") if any(entry.reference == name for entry in found)]
    rows = [["data set", "system", "explanation", *(f"{name}: {level}" for name in references for level in LEVELS)]]
    text = {(e.dataset, e.method, e.explanation, e.reference, e.level): e.text for e in found if e.task in ("all", "")}
    for dataset in dict.fromkeys(entry.dataset for entry in found):
        for method in in_order(entry.method for entry in found):
            for name in ("routing", "saliency", "rollout", "ablation", "uniform"):
                values = [text.get((dataset, method, name, ref, level), "-") for ref in references for level in LEVELS]
                if any(value != "-" for value in values):
                    rows.append([dataset, find_method(method).label, name, *values])
    return rows


def task_table(found: Sequence[Agreement], method: str = "ours", level: str = "within") -> list[list[str]]:
    """Header and rows: task, then per explanation the agreement with the truth at one level for one system."""
    mine = [e for e in found if e.method == method and e.reference == "truth" and e.level == level and e.task != "all"]
    names = list(dict.fromkeys(entry.explanation for entry in mine))
    text = {(e.dataset, e.task, e.explanation): e.text for e in mine}
    rows = [["data set", "task", *names]]
    rows += [
        [dataset, task, *(text.get((dataset, task, name), "-") for name in names)]
        for dataset, task in dict.fromkeys((entry.dataset, entry.task) for entry in mine)
    ]
    return rows


def share_table(cells: Sequence[Cell], plan: CellPlan, method: str = "ours") -> list[list[str]]:
    """Header and rows: task and modality, planted share, then the share each explanation gives, mean over the seeds."""
    sums: dict[tuple[str, str, str], dict[str, list[float]]] = {}
    names: dict[str, None] = {}
    for cell in explained(cells, plan):
        content = _analysis(plan, cell)
        truth = content.get("interpretability", {}).get("scores", {}).get("truth", {})
        if cell.method != method:
            continue
        for name, entry in truth.items():
            names[name] = None
            for k, task in enumerate(content["tasks"]):
                for i, modality in enumerate(content["modalities"]):
                    row = sums.setdefault((cell.dataset, task, modality), {})
                    row.setdefault(name, []).append(entry["means"]["explanation"][k][i])
                    row.setdefault("planted", []).append(entry["means"]["reference"][k][i])
    rows = [["data set", "task", "modality", "planted", *names]]
    for key, values in sums.items():
        known = {name: [v for v in found if v is not None] for name, found in values.items()}
        if known["planted"]:
            rows.append([*key, *(_mean_text(known.get(name, [])) for name in ("planted", *names))])
    return rows


def _mean_text(values: Sequence[float]) -> str:
    if not values:
        return "-"
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 and max(values) > min(values) else ""
    return f"{statistics.mean(values):.3f}{spread}"


def information(cells: Sequence[Cell], plan: CellPlan) -> list[list[str]]:
    """Header and rows: I(M;E|T) of the population's dispatch mass in nats (uniform P(T)), mean over the seeds."""
    found: dict[tuple[str, str, str], list[tuple[float, float]]] = {}
    for cell in explained(cells, plan):
        used = _analysis(plan, cell).get("utilisation")
        if used:
            value = statistics.mean(used["information_k"])
            key = (cell.dataset, cell.method, used["layer"])
            found.setdefault(key, []).append((value, used["utilisation_largest"]))
    rows = [["data set", "system", "layer", "I(M;E|T) nats", "largest modality share"]]
    for (dataset, method, layer), values in found.items():
        mutual = [value for value, _ in values]
        spread = f" ± {statistics.stdev(mutual):.4f}" if len(mutual) > 1 else ""
        largest = _mean_text([share for _, share in values])
        rows.append([dataset, find_method(method).label, layer, f"{statistics.mean(mutual):.4f}{spread}", largest])
    return rows


def write(found: Sequence[Agreement], path: Path) -> Path:
    """Writes all coefficients as JSON."""
    rows = [asdict(entry) for entry in found]
    path.write_text(json.dumps({"agreement": rows}, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return path
