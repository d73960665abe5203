"""``report.html``: one self-contained file from a run folder. What is missing in the folder is said, not hidden."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np

from m4oe_ds.errors import DataError
from m4oe_ds.report import sections

_TEMPLATES = Path(__file__).parent / "templates"
METRICS = (("accuracy", "accuracy"), ("balanced_accuracy", "balanced acc."), ("macro_f1", "macro-F1"),
           ("auroc", "AUROC"), ("auprc", "AUPRC"), ("kappa", "kappa"))  # fmt: skip


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
    path = folder / "report.html"
    temporary = folder / ".report.html"
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    return path


def _content(folder: Path) -> dict[str, Any]:
    missing: list[str] = []
    environment = _json(folder / "environment.json", missing)
    metrics = _json(folder / "metrics.json", missing)
    records = _records(folder / "log.jsonl", missing)
    splits = {name: entry for name, entry in metrics.items() if isinstance(entry, dict) and "tasks" in entry}
    shown = "test" if "test" in splits else next(iter(splits), "")
    arrays = _arrays(folder / "predictions" / f"{shown}.npz", missing) if shown else {}
    # made by `m4oe analyze`, which nobody has to run: their absence is no gap of the run
    clinical = _json(folder / "clinical.json", [])
    gallery = _arrays(folder / "analysis" / "gallery.npz", [])
    analysis = _json(folder / "analysis.json", [])
    return {
        "clinical": sections.clinical_tables(clinical) if clinical else [],
        "clinical_split": clinical.get("split", ""),
        "analysis": _analysis(folder) if analysis else [],
        "analysed": bool(clinical or gallery or analysis),
        "maps": _maps(folder, gallery),
        "name": folder.resolve().name,
        "environment": environment,
        "synthetic": bool(environment.get("synthetic")),
        "checkpoint": metrics.get("checkpoint", {}),
        "splits": {name: _table(entry) for name, entry in splits.items()},
        "violations": {name: entry.get("risk_monotonicity_violations") for name, entry in splits.items()},
        "shown": shown,
        "figures": _figures(folder, records, splits.get(shown), arrays, clinical, gallery),
        "patients": _patients(folder, arrays, missing),
        "config": _text(folder / "config.yaml", missing),
        "ds_config": _text(folder / "ds_config.json", missing),
        "missing": missing,
    }


def _table(split: dict[str, Any]) -> dict[str, Any]:
    rows = []
    for name, entry in split["tasks"].items():
        if not entry["n"]:
            rows.append({"task": name, "n": 0, "majority": "", "cells": ["no labels"] + [""] * (len(METRICS) - 1)})
            continue
        metrics = entry["metrics"]
        if entry.get("kind") == "segmentation":
            cells = [f"Dice {_interval(metrics['dice'])}"] + [""] * (len(METRICS) - 1)
            rows.append({"task": name, "n": entry["n"], "majority": "", "cells": cells})
            continue
        cells = [_interval(metrics[key]) if key in metrics else "" for key, _ in METRICS]
        cells[4] += f" (chance {entry['auprc_chance']:.2f})" if cells[4] != "–" else ""
        rows.append({"task": name, "n": entry["n"], "majority": f"{entry['prior']:.3f}", "cells": cells})
    return {"rows": rows, "n": split["n"], "groups": split["n_groups"], "header": [label for _, label in METRICS]}


def _interval(entry: dict[str, float | None]) -> str:
    if entry["value"] is None:
        return "–"
    if entry["low"] is None:
        return f"{entry['value']:.3f}"
    return f"{entry['value']:.3f} [{entry['low']:.2f}, {entry['high']:.2f}]"


def _figures(
    folder: Path,
    records: list[dict[str, Any]],
    split: dict[str, Any] | None,
    arrays: dict[str, np.ndarray],
    clinical: dict[str, Any],
    gallery: dict[str, np.ndarray],
) -> dict[str, str]:
    """Embedded figures by name; those whose data are missing are left out."""
    from m4oe_ds.report import figures, gallery_figures

    train = [record for record in records if record.get("event", "train") == "train"]
    validation = [record for record in records if record.get("event") == "validation"]
    made: dict[str, Any] = {}
    if train:
        made["losses"] = figures.losses(train, validation)
        made["signals"] = figures.signals(train)
    if split and any(entry.get("confusion") for entry in split["tasks"].values()):
        made["confusions"] = figures.confusions(split)
    if split and arrays:
        made["roc"] = figures.roc(arrays, split)
    if "contribution" in arrays:
        made["contribution"] = figures.contribution(arrays)
    if clinical:
        made["calibration"] = figures.calibration(clinical)
    if gallery:
        made["experts"] = gallery_figures.expert_patches(gallery)
    target = folder / "figures"
    return {name: _embed(figures.save(figure, target, name)) for name, figure in made.items() if figure is not None}


def _maps(folder: Path, gallery: dict[str, np.ndarray]) -> list[str]:
    """Embedded dispatch maps of the samples of the gallery."""
    if not gallery:
        return []
    from m4oe_ds.report import figures, gallery_figures

    return [
        _embed(figures.save(gallery_figures.dispatch_maps(gallery, row), folder / "figures", f"dispatch_map_{row + 1}"))
        for row in range(len(gallery["keys"]))
    ]


def _analysis(folder: Path) -> list[dict[str, str]]:
    """Figures that ``m4oe analyze`` left in the run folder, embedded, in the order of the paper."""
    found = []
    for pattern, title, caption in sections.ANALYSES:
        for path in sorted((folder / "figures").glob(f"{pattern}.png")):
            found.append({"title": title, "caption": caption, "image": _embed(path.read_bytes())})
    return found


def _patients(folder: Path, arrays: dict[str, np.ndarray], missing: list[str]) -> list[dict[str, Any]]:
    """A few samples: their views, each view's share per task, label and prediction."""
    from m4oe_ds.report import figures

    examples = _arrays(folder / "predictions" / "examples.npz", missing)
    if not examples or not arrays:
        return []
    tasks, modalities = arrays["tasks"].tolist(), arrays["modalities"].tolist()
    row_of = {key: row for row, key in enumerate(arrays["keys"].tolist())}
    patients = []
    for number, key in enumerate(examples["keys"].tolist()):
        row = row_of.get(key)
        views = [
            {
                "name": name,
                "image": _embed(figures.view_png(examples["views"][number, i]))
                if examples["present"][number, i]
                else "",
                "colour": figures.COLOURS[i],
            }
            for i, name in enumerate(modalities)
        ]
        answers = []
        for k, task in enumerate(tasks):
            shares = [
                {"name": name, "percent": round(100 * float(examples["contribution"][number, k, i]), 1),
                 "colour": figures.COLOURS[i]}
                for i, name in enumerate(modalities)
            ]  # fmt: skip
            said = truth = "–"
            if row is not None and f"prob_{task}" in arrays:
                probability = arrays[f"prob_{task}"][row]
                said = f"{int(probability.argmax())} ({probability.max():.2f})"
                label = int(arrays[f"label_{task}"][row])
                truth = "unknown" if label < 0 else str(label)
            answers.append({"task": task, "said": said, "truth": truth, "shares": shares})
        patients.append({"title": f"Sample {number + 1}", "views": views, "answers": answers})
    return patients


def _embed(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


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
