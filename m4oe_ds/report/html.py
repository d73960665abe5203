"""``report.html``: one self-contained file from a run folder. What is missing in the folder is said, not hidden."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from m4oe_ds.data.cards import Card
from m4oe_ds.errors import DataError
from m4oe_ds.report import analysis_figures, clinical_tables, missing_tables, pictures
from m4oe_ds.report.card import agreement, card
from m4oe_ds.report.clinical_tables import number
from m4oe_ds.report.kind_tables import tables_of
from m4oe_ds.report.patients import patients
from m4oe_ds.runs.configuration import card_of
from m4oe_ds.runs.folder import RunFolder

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


def render(folder: Path) -> Path:
    """Writes ``report.html`` and ``figures/``; returns the report's path.

    Raises:
        DataError: no such run folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError("no such run folder", str(folder), "name a folder under runs/")
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("report.html.j2").render(**_content(folder))
    path = RunFolder(folder).report
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path


def _content(folder: Path) -> dict[str, Any]:
    missing: list[str] = []
    files = RunFolder(folder)
    data_card = card_of(files)
    groups = f"{data_card.group}s" if data_card else "patients"
    environment = _json(files.environment, missing)
    metrics = _json(files.metrics, missing)
    records = _records(files.log, missing)
    splits = {name: entry for name, entry in metrics.items() if isinstance(entry, dict) and "tasks" in entry}
    shown = "test" if "test" in splits else next(iter(splits), "")
    splits = {
        name: splits[name] for name in sorted(splits, key=lambda name: name != shown)
    }  # what is shown comes first
    arrays = _arrays(files.predictions(shown), missing) if shown else {}
    examples = _arrays(files.examples, missing)
    config, ds_config = _text(files.config, missing), _text(files.ds_config, missing)
    # made by `m4oe analyze`, which nobody has to run: their absence is not a gap of the run
    clinical = _json(files.clinical, [])
    gallery = _arrays(files.analysis_arrays("gallery"), [])
    analysis = _json(files.analysis, [])
    maps = pictures.dispatch_maps(folder, gallery)
    sections_of_samples = patients(examples, arrays, maps, data_card)
    inside = {key for key in examples.get("keys", np.zeros(0)).tolist() if sections_of_samples}
    return {
        "clinical": clinical_tables.from_report(clinical, groups) if clinical else [],
        "clinical_split": clinical.get("split", ""),
        "analysis": analysis_figures.embedded(folder) if analysis else [],
        "missing_modalities": missing_tables.from_analysis(analysis.get("missing", {})),
        "skipped": analysis.get("skipped", {}),
        "agreement": agreement(analysis),
        "analysed": bool(clinical or gallery or analysis),
        "maps": [map_ for key, map_ in maps.items() if key not in inside],
        "name": folder.resolve().name,
        "environment": environment,
        "synthetic": bool(environment.get("synthetic")),
        "checkpoint": metrics.get("checkpoint", {}),
        "splits": {name: _table(entry, data_card) for name, entry in splits.items()},
        "violations": {name: entry.get("risk_monotonicity_violations") for name, entry in splits.items()},
        "shown": shown,
        "groups": groups,
        "figures": pictures.run_pictures(folder, records, splits.get(shown), arrays, clinical, gallery),
        "patients": sections_of_samples,
        "card": card(environment, metrics, records, config, ds_config, analysis, data_card),
        "config": config,
        "ds_config": ds_config,
        "missing": missing,
    }


def _table(split: dict[str, Any], data_card: Card | None) -> dict[str, Any]:
    """Rows ``task, n, majority, metrics...`` of the tasks with classes of a split, and tables of the other kinds."""
    rows = []
    for name, entry in split["tasks"].items():
        if entry.get("kind") != "classification":
            continue
        if not entry["n"]:
            rows.append([name, "0", "", "no labels", *[""] * (len(METRICS) - 1)])
            continue
        metrics = entry["metrics"]
        cells = [number(metrics[key]) if key in metrics else "" for key, _ in METRICS]
        cells[4] += f" ({entry['auprc_chance']:.2f})" if cells[4] != "–" else ""
        rows.append([name, entry["n"], f"{entry['prior']:.3f}", *cells])
    return {
        "rows": rows,
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
