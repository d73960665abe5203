"""``report.html``: one self-contained file from a run folder. What is missing in the folder is said, not hidden."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from m4oe_ds.data.cards import Card
from m4oe_ds.data.planted import Outlines, outlines
from m4oe_ds.errors import DataError
from m4oe_ds.progress import Progress
from m4oe_ds.report import analysis_figures, clinical_tables, missing_tables, patient_pages, pictures, run_figures
from m4oe_ds.report.card import agreement, base_rate, card
from m4oe_ds.report.clinical_tables import number
from m4oe_ds.report.kind_tables import tables_of
from m4oe_ds.report.patients import patients
from m4oe_ds.report.reading import Run, check, read
from m4oe_ds.report.words import Words
from m4oe_ds.runs.result_name import title_of
from m4oe_ds.stored import read_json, within

_TEMPLATES = Path(__file__).parent / "templates"
_AGAIN = "make it again (`m4oe evaluate`, `m4oe analyze`), or copy it again; `m4oe --debug` shows the traceback"
METRICS = (
    ("accuracy", "accuracy"),
    ("balanced_accuracy", "balanced acc."),
    ("macro_f1", "macro-F1"),
    ("auroc", "AUROC"),
    ("auprc", "AUPRC (chance)"),
    ("kappa", "kappa"),
    ("class_error", "classes off"),
)


def render(folder: Path) -> Path:
    """Writes ``report.html``, ``figures/`` and ``patients/``; returns the report's path.

    Raises:
        DataError: no run folder, or one without results; nothing is written then.
    """
    folder = Path(folder)
    check(folder)
    run = read(folder)
    # figures, maps, figures of the analysis, pages
    maps = len(run.gallery.get("keys", ()))
    total = len(run_figures.MAKERS) + maps + 2
    with Progress("report", total, "parts").start() as progress:
        content = _content(folder, run, progress)
        with within(str(folder), _AGAIN):
            page = environment().get_template("report.html.j2").render(**content)
        progress.update()
    path = run.files.report
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path


def environment() -> jinja2.Environment:
    """Where the templates are, with everything escaped and nothing left undefined."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )


def _content(folder: Path, run: Run, progress: Progress) -> dict[str, Any]:
    words, files = Words(run.card), run.files
    # what is quick and may be refused first
    with within(f"{files.environment}, {files.config} or {files.ds_config}", _AGAIN):
        text = card(run.environment, run.metrics, run.records, run.tree, run.engine, run.analysis, run.card)
    with within(f"{files.analysis} or {files.clinical}", _AGAIN):
        analysis = _analysis(folder, run, words)
    with within(str(files.metrics), _AGAIN):
        checkpoint = run.metrics.get("checkpoint") or {}
        splits = {split: _table(title_of(split, entry), entry, run.card, words) for split, entry in run.splits.items()}
    with within(f"{files.planted}, {files.config} or {files.examples}", _AGAIN):
        planted = _planted(run)
    with within(f"{files.metrics}, {files.predictions(run.shown)}, {files.log} or {files.ds_config}", _AGAIN):
        found = _found(run, checkpoint.get("tag"), words)
        figures = run_figures.run_pictures(folder, found, progress.update)
    with within(f"{files.analysis_arrays('gallery')} or {files.examples}", _AGAIN):
        maps = pictures.dispatch_maps(folder, run.gallery, words)
        progress.update(len(maps))
        name = folder.resolve().name
        pages = patient_pages.write(
            files,
            patients(run.examples, run.arrays, run.gallery, maps, run.card, planted),
            patient_pages.Frame(name, bool(run.environment.get("synthetic")), words),
            environment(),
        )
        progress.update()
    return analysis | {
        "name": name,
        "dataset": (run.card.title if run.card else "") or run.environment.get("dataset", "?"),
        "environment": run.environment,
        "synthetic": bool(run.environment.get("synthetic")),
        "checkpoint": checkpoint,
        "splits": splits,
        "violations": {split: entry.get("risk_monotonicity_violations") for split, entry in run.splits.items()},
        "shown": run.shown,
        "words": words,
        "figures": figures,
        "window": training_window(found.train),
        "patients": pages,
        "card": text,
        "config": run.config,
        "ds_config": run.ds_config,
        "missing": run.missing,
    }


def _found(run: Run, tag: Any, words: Words) -> run_figures.Found:
    """What the figures are made of."""
    return run_figures.Found(
        train=[record for record in run.records if record.get("event", "train") == "train"],
        validation=[record for record in run.records if record.get("event") == "validation"],
        split=run.splits.get(run.shown, {}),
        arrays=run.arrays,
        clinical=run.clinical,
        gallery=run.gallery,
        chosen=_step(tag),
        base_rate=base_rate(run.engine),
        words=words,
    )


def _analysis(folder: Path, run: Run, words: Words) -> dict[str, Any]:
    """The part of the page that ``m4oe analyze`` made."""
    return {
        "clinical": clinical_tables.from_report(run.clinical, words) if run.clinical else [],
        "clinical_split": run.clinical.get("split", ""),
        "analysis": analysis_figures.embedded(folder, words) if run.analysis else [],
        "missing_modalities": missing_tables.from_analysis(run.analysis.get("missing", {}), words),
        "skipped": run.analysis.get("skipped", {}),
        "agreement": agreement(run.analysis),
        "analysed": bool(run.clinical or run.gallery or run.analysis),
    }


def _planted(run: Run) -> Outlines:
    """What was planted in the samples shown: from the run folder, or from the phantom as long as it is there.

    It is kept in the run folder, where it outlives the phantom.
    """
    keys = run.examples.get("keys", np.zeros(0)).tolist()
    if not run.environment.get("synthetic") or not keys or not run.config:
        return {}
    if run.files.planted.is_file():
        kept = read_json(run.files.planted, "move this file away: it is made again", ("keys", "outlines"))
        if kept["keys"] == keys:
            return dict(kept["outlines"])
    root = str(run.tree.get("data", {}).get("root") or "")
    try:
        found = outlines(root, run.shown, keys) if root and "://" not in root else {}
    except DataError as error:
        run.missing.append(f"outlines of what was planted ({error})")
        return {}
    if found:
        run.files.planted.write_text(json.dumps({"keys": keys, "outlines": found}, indent=1) + "\n", encoding="utf-8")
    return found


def training_window(train: Sequence[Mapping[str, Any]]) -> int:
    """Logged steps that the smoothed curves average over."""
    from m4oe_ds.report.training_figures import smoothing

    return smoothing(len(train))


def _step(tag: Any) -> int | None:
    """Step of a checkpoint's tag, ``step-00000336``; None of anything else."""
    number = str(tag or "").rpartition("-")[2]
    return int(number) if number.isdecimal() else None


def _table(title: str, split: dict[str, Any], data_card: Card | None, words: Words) -> dict[str, Any]:
    """Rows ``task, n, majority, metrics...`` of the tasks with classes of a split, and tables of the other kinds."""
    rows = []
    coded = {name: entry for name, entry in split["tasks"].items() if entry.get("kind") == "classification"}
    # a column that no task has, such as kappa where no classes are in order, is left out
    columns = [pair for pair in METRICS if any(pair[0] in entry.get("metrics", {}) for entry in coded.values())]
    for name, entry in coded.items():
        if not entry["n"]:
            rows.append([words.task(name), "0", "", "no labels", *[""] * max(0, len(columns) - 1)])
            continue
        metrics = entry["metrics"]
        cells = {key: number(metrics[key]) if key in metrics else "" for key, _ in columns}
        cells["auprc"] += f" ({entry['auprc_chance']:.2f})" if cells["auprc"] != "–" else ""
        rows.append([words.task(name), entry["n"], f"{entry['prior']:.3f}", *cells.values()])
    return {
        "rows": rows,
        "title": title,
        "n": split["n"],
        "groups": split["n_groups"],
        "header": [label for _, label in columns] or [METRICS[0][1]],
        "others": tables_of(split, data_card),
    }
