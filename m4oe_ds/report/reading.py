"""What the report is made of, read from a run folder: what is absent is named, what is damaged is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from m4oe_ds.data.cards import Card
from m4oe_ds.errors import DataError
from m4oe_ds.runs.configuration import card_of
from m4oe_ds.runs.folder import RunFolder
from m4oe_ds.runs.result_name import is_own
from m4oe_ds.stored import read_arrays, read_json, read_log

_SECTIONS = ("data", "model", "loss", "schedule")  # of the configuration, that the report reads
_COPY = "copy the run again, or move this file away: the report then says that it is missing"


@dataclass
class Run:
    """What the files of a run folder hold; empty where there is none.

    Attributes:
        files: the folder.
        card: card of the data set, None if it is not known.
        missing: names of files that a finished run has and this one lacks.
        shown: split whose predictions are shown.
        splits: entries of ``metrics.json``, the shown one first.
        tree: the configuration as nested mappings.
        config: its text.
        engine: the DeepSpeed configuration.
        ds_config: its text.
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
    tree: dict[str, Any]
    config: str
    engine: dict[str, Any]
    ds_config: str
    clinical: dict[str, Any]
    gallery: dict[str, np.ndarray]
    analysis: dict[str, Any]


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
    if not read_json(files.metrics, again):
        raise DataError("holds no results", str(files.metrics), again)


def read(folder: Path) -> Run:
    """The files of a run folder.

    Raises:
        DataError: one of them is damaged.
    """
    files, missing = RunFolder(folder), list[str]()
    evaluate, analyze = f"run `m4oe evaluate {folder}` again", f"run `m4oe analyze {folder}` again"
    metrics = read_json(files.metrics, evaluate)
    splits = {name: entry for name, entry in metrics.items() if isinstance(entry, dict) and "tasks" in entry}
    for name, entry in splits.items():
        _check_split(name, entry, files.metrics, evaluate)
    own = [name for name in splits if is_own(name)]
    shown = "test" if "test" in splits else next(iter(own or splits), "")
    predictions = files.predictions(shown) if shown else None
    records = read_log(files.log, _COPY) if _there(files.log, missing) else []
    if files.log.is_file() and not records:
        missing.append("steps in log.jsonl")
    # made by `m4oe analyze`, which nobody has to run: their absence is not a gap of the run
    gallery = files.analysis_arrays("gallery")
    return Run(
        files=files,
        card=card_of(files),
        environment=read_json(files.environment, _COPY) if _there(files.environment, missing) else {},
        metrics=metrics,
        records=records,
        shown=shown,
        splits={name: splits[name] for name in sorted(splits, key=lambda name: name != shown)},
        arrays=_arrays(predictions, missing, evaluate, ("keys", "modalities")) if predictions else {},
        examples=_arrays(files.examples, missing, evaluate, ("keys", "present", "views")),
        tree=_tree(files.config),
        config=_text(files.config, missing),
        engine=read_json(files.ds_config, _COPY) if files.ds_config.is_file() else {},
        ds_config=_text(files.ds_config, missing),
        clinical=read_json(files.clinical, analyze, ("tasks",)) if files.clinical.is_file() else {},
        gallery=_arrays(gallery, [], analyze, ("keys", "modalities", "tasks")),
        analysis=read_json(files.analysis, analyze) if files.analysis.is_file() else {},
        missing=missing,
    )


def _check_split(name: str, entry: Mapping[str, Any], path: Path, fix: str) -> None:
    """A split of the metrics must say how many samples and groups it has, and of every task its kind and samples."""
    whole = isinstance(entry.get("n"), int) and isinstance(entry.get("n_groups"), int)
    if not whole or not isinstance(entry["tasks"], dict):
        raise DataError(f"is damaged, or another file: the split {name!r} has no n, n_groups or tasks", str(path), fix)
    for task, found in entry["tasks"].items():
        if not isinstance(found, dict) or not isinstance(found.get("n"), int) or "kind" not in found:
            raise DataError(f"is damaged, or another file: {task!r} of {name!r} has no kind or n", str(path), fix)


def _there(path: Path, missing: list[str], name: str = "") -> bool:
    """Whether a file is there; its name is noted where not."""
    if path.is_file():
        return True
    missing.append(name or path.name)
    return False


def _arrays(path: Path, missing: list[str], fix: str, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    return read_arrays(path, fix, names) if _there(path, missing, f"predictions/{path.name}") else {}


def _text(path: Path, missing: list[str]) -> str:
    if not _there(path, missing):
        return ""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise DataError("is damaged: no text in UTF-8", str(path), _COPY) from None


def _tree(path: Path) -> dict[str, Any]:
    """The configuration as nested mappings; empty if there is none."""
    try:
        content = yaml.safe_load(_text(path, []))
    except (yaml.YAMLError, ValueError, RecursionError):
        raise DataError("is damaged: no YAML", str(path), _COPY) from None
    if content is None and path.is_file():
        raise DataError("is damaged: it has no options", str(path), _COPY)
    content = {} if content is None else content
    if not isinstance(content, dict) or not all(isinstance(content.get(name, {}), dict) for name in _SECTIONS):
        raise DataError("is damaged: no sections with options", str(path), _COPY)
    return content
