"""``report.html``: one self-contained file from a run folder. What is missing in the folder is said, not hidden."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import yaml

from m4oe_ds.data.cards import Card
from m4oe_ds.data.planted import Outlines, outlines
from m4oe_ds.errors import DataError
from m4oe_ds.progress import Progress
from m4oe_ds.report import analysis_figures, clinical_tables, missing_tables, patient_pages, pictures, run_figures
from m4oe_ds.report.card import agreement, base_rate, card
from m4oe_ds.report.clinical_tables import number
from m4oe_ds.report.kind_tables import tables_of
from m4oe_ds.report.patients import patients
from m4oe_ds.report.words import Words
from m4oe_ds.runs.configuration import card_of
from m4oe_ds.runs.folder import RunFolder
from m4oe_ds.runs.result_name import is_own, title_of

_TEMPLATES = Path(__file__).parent / "templates"
METRICS = (
    ("accuracy", "accuracy"),
    ("balanced_accuracy", "balanced acc."),
    ("macro_f1", "macro-F1"),
    ("auroc", "AUROC"),
    ("auprc", "AUPRC (chance)"),
    ("kappa", "kappa"),
    ("class_error", "classes off"),
)


@dataclass
class _Run:
    """What the files of a run folder hold; empty where there is none.

    Attributes:
        files: the folder.
        card: card of the data set, None if it is not known.
        missing: names of files that a finished run has and this one lacks.
        shown: split whose predictions are shown.
        splits: entries of ``metrics.json``, the shown one first.
    """

    files: RunFolder
    card: Card | None
    missing: list[str]
    environment: dict[str, Any]
    metrics: dict[str, Any]
    records: list[dict[str, Any]]
    shown: str
    splits: dict[str, Any]
    arrays: dict[str, np.ndarray]
    examples: dict[str, np.ndarray]
    config: str
    ds_config: str
    clinical: dict[str, Any]
    gallery: dict[str, np.ndarray]
    analysis: dict[str, Any]


def render(folder: Path) -> Path:
    """Writes ``report.html``, ``figures/`` and ``patients/``; returns the report's path.

    Raises:
        DataError: no run folder, or one without results; nothing is written then.
    """
    folder = Path(folder)
    check(folder)
    run = _read(folder)
    # figures, maps, figures of the analysis, pages
    maps = len(run.gallery.get("keys", ()))
    total = len(run_figures.MAKERS) + maps + 2
    with Progress("report", total, "parts").start() as progress:
        content = _content(folder, run, progress)
        page = environment().get_template("report.html.j2").render(**content)
        progress.update()
    path = run.files.report
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path


def check(folder: Path) -> None:
    """A folder must be one of a run with results.

    Raises:
        DataError: it is not.
    """
    files = RunFolder(folder)
    if not folder.is_dir():
        raise DataError("no such run folder", str(folder), "name a folder under runs/")
    if not any(path.is_file() for path in (files.metrics, files.config, files.environment, files.log)):
        raise DataError(
            "no run in this folder", str(folder), "name the folder that training wrote, with config.yaml in it"
        )
    again = f"let training finish (--resume auto), or run `m4oe evaluate {folder}`"
    if not files.metrics.is_file():
        raise DataError("the run has no results yet: no metrics.json", str(folder), again)
    try:
        content = json.loads(files.metrics.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"not valid JSON ({error})", str(files.metrics), f"run `m4oe evaluate {folder}`") from None
    if not isinstance(content, dict) or not content:
        raise DataError("holds no results", str(files.metrics), again)


def environment() -> jinja2.Environment:
    """Where the templates are, with everything escaped and nothing left undefined."""
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )


def _read(folder: Path) -> _Run:
    missing: list[str] = []
    files = RunFolder(folder)
    metrics = _json(files.metrics, missing)
    splits = {name: entry for name, entry in metrics.items() if isinstance(entry, dict) and "tasks" in entry}
    own = [name for name in splits if is_own(name)]
    shown = "test" if "test" in splits else next(iter(own or splits), "")
    return _Run(
        files=files,
        card=card_of(files),
        environment=_json(files.environment, missing),
        metrics=metrics,
        records=_records(files.log, missing),
        shown=shown,
        splits={name: splits[name] for name in sorted(splits, key=lambda name: name != shown)},
        arrays=_arrays(files.predictions(shown), missing) if shown else {},
        examples=_arrays(files.examples, missing),
        config=_text(files.config, missing),
        ds_config=_text(files.ds_config, missing),
        # made by `m4oe analyze`, which nobody has to run: their absence is not a gap of the run
        clinical=_json(files.clinical, []),
        gallery=_arrays(files.analysis_arrays("gallery"), []),
        analysis=_json(files.analysis, []),
        missing=missing,
    )


def _content(folder: Path, run: _Run, progress: Progress) -> dict[str, Any]:
    words = Words(run.card)
    checkpoint = run.metrics.get("checkpoint") or {}
    found = run_figures.Found(
        train=[record for record in run.records if record.get("event", "train") == "train"],
        validation=[record for record in run.records if record.get("event") == "validation"],
        split=run.splits.get(run.shown, {}),
        arrays=run.arrays,
        clinical=run.clinical,
        gallery=run.gallery,
        chosen=_step(checkpoint.get("tag")),
        base_rate=base_rate(json.loads(run.ds_config)) if run.ds_config else None,
        words=words,
    )
    figures = run_figures.run_pictures(folder, found, progress.update)
    maps = pictures.dispatch_maps(folder, run.gallery, words)
    progress.update(len(maps))
    name = folder.resolve().name
    pages = patient_pages.write(
        run.files,
        patients(run.examples, run.arrays, run.gallery, maps, run.card, _planted(run)),
        patient_pages.Frame(name, bool(run.environment.get("synthetic")), words),
        environment(),
    )
    progress.update()
    return {
        "clinical": clinical_tables.from_report(run.clinical, words) if run.clinical else [],
        "clinical_split": run.clinical.get("split", ""),
        "analysis": analysis_figures.embedded(folder, words) if run.analysis else [],
        "missing_modalities": missing_tables.from_analysis(run.analysis.get("missing", {}), words),
        "skipped": run.analysis.get("skipped", {}),
        "agreement": agreement(run.analysis),
        "analysed": bool(run.clinical or run.gallery or run.analysis),
        "name": name,
        "dataset": (run.card.title if run.card else "") or run.environment.get("dataset", "?"),
        "environment": run.environment,
        "synthetic": bool(run.environment.get("synthetic")),
        "checkpoint": checkpoint,
        "splits": {
            split: _table(title_of(split, entry), entry, run.card, words) for split, entry in run.splits.items()
        },
        "violations": {split: entry.get("risk_monotonicity_violations") for split, entry in run.splits.items()},
        "shown": run.shown,
        "words": words,
        "figures": figures,
        "window": training_window(found.train),
        "patients": pages,
        "card": card(run.environment, run.metrics, run.records, run.config, run.ds_config, run.analysis, run.card),
        "config": run.config,
        "ds_config": run.ds_config,
        "missing": run.missing,
    }


def _planted(run: _Run) -> Outlines:
    """What was planted in the samples shown: from the run folder, or from the phantom as long as it is there.

    It is kept in the run folder, where it outlives the phantom.
    """
    keys = run.examples.get("keys", np.zeros(0)).tolist()
    if not run.environment.get("synthetic") or not keys or not run.config:
        return {}
    if run.files.planted.is_file():
        kept = json.loads(run.files.planted.read_text(encoding="utf-8"))
        if kept["keys"] == keys:
            return dict(kept["outlines"])
    root = str(((yaml.safe_load(run.config) or {}).get("data") or {}).get("root") or "")
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
    for name, entry in split["tasks"].items():
        if entry.get("kind") != "classification":
            continue
        if not entry["n"]:
            rows.append([words.task(name), "0", "", "no labels", *[""] * (len(METRICS) - 1)])
            continue
        metrics = entry["metrics"]
        cells = [number(metrics[key]) if key in metrics else "" for key, _ in METRICS]
        cells[4] += f" ({entry['auprc_chance']:.2f})" if cells[4] != "–" else ""
        rows.append([words.task(name), entry["n"], f"{entry['prior']:.3f}", *cells])
    return {
        "rows": rows,
        "title": title,
        "n": split["n"],
        "groups": split["n_groups"],
        "header": [label for _, label in METRICS],
        "others": tables_of(split, data_card),
    }


def _json(path: Path, missing: list[str]) -> dict[str, Any]:
    if not path.is_file():
        missing.append(path.name)
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _records(path: Path, missing: list[str]) -> list[dict[str, Any]]:
    if not path.is_file():
        missing.append(path.name)
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]


def _arrays(path: Path, missing: list[str]) -> dict[str, np.ndarray]:
    if not path.is_file():
        missing.append(f"predictions/{path.name}")
        return {}
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _text(path: Path, missing: list[str]) -> str:
    if not path.is_file():
        missing.append(path.name)
        return ""
    return path.read_text(encoding="utf-8")
