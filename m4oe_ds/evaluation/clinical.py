"""What a reader of a screening study looks for besides accuracy: one report per split from its predictions."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from m4oe_ds.data.cards import Card
from m4oe_ds.data.schema import MISSING, TaskSpec, follow_ups
from m4oe_ds.errors import DataError
from m4oe_ds.evaluation.calibration import calibration_report, confidence_calibration
from m4oe_ds.evaluation.delong import auroc_interval
from m4oe_ds.evaluation.intervals import Bootstrap
from m4oe_ds.evaluation.operating_points import at_target, at_threshold, threshold_for
from m4oe_ds.evaluation.subgroups import subgroup_table
from m4oe_ds.evaluation.survival import follow_up_report
from m4oe_ds.progress import track
from m4oe_ds.stored import read_arrays

Arrays = Mapping[str, np.ndarray]
RATE = 0.9  # at which sensitivity and specificity are read off the other's curve


def write_report(
    target: Path,
    predictions: Path,
    validation: Path,
    split: str,
    root: str,
    tasks: Sequence[TaskSpec],
    resamples: int = 1000,
    train: Arrays | None = None,
    card: Card | None = None,
) -> Path:
    """Writes the report of a split from its predictions; thresholds come from the validation split if it is there.

    Args:
        target: file to write, in the run folder.
        predictions: predictions for the split.
        validation: predictions of the validation split, which need not exist.
        split: name of the split to report.
        root: shards, for the vendors and subgroups of the samples; what is not a local folder gives none.
        train: ``label_<task>`` of the training split, for the censoring distribution; None = that of the split itself.
        card: what the data set says of sides and strata; None = it has none.

    Raises:
        DataError: the split has no predictions.
    """
    found = _load(predictions)
    if found is None:
        folder = target.parent
        raise DataError(f"no predictions of {split}", str(folder), f"run `m4oe evaluate {folder} --split {split}`")
    tuned = _load(validation) if split != "val" else None
    noted = _noted(Path(root) / split) if root and "://" not in root else {}
    attributes = attributes_of(found, card, noted)
    report = clinical_report(found, tasks, tuned, train, attributes, resamples)
    report |= {"split": split, "thresholds_from": "val" if tuned is not None else None}
    temporary = target.with_name(f".{target.name}")
    temporary.write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    temporary.replace(target)
    return target


def _load(path: Path) -> dict[str, np.ndarray] | None:
    if not path.is_file():
        return None
    return read_arrays(path, "make it with `m4oe evaluate`", ("keys",))


def attributes_of(
    predictions: Arrays, card: Card | None, noted: Mapping[str, Mapping[str, str]]
) -> dict[str, np.ndarray]:
    """Values ``[N]`` by which results are told apart: the side of each sample, the answers to the card's strata, and
    what the samples themselves note.

    Args:
        predictions: arrays of ``predictions/<split>.npz``.
        card: card of the data set, None if there is none.
        noted: attributes of each sample, by key.
    """
    keys = predictions["keys"].tolist()
    found: dict[str, np.ndarray] = {}
    if card is not None:
        if card.sides:
            found["side"] = np.array([key.rsplit("-", 1)[-1] for key in keys], dtype=object)
        for name in card.strata:
            if f"label_{name}" in predictions:
                names = (*card.task(name).class_names, "")  # the last one is that of the code -1
                found[name] = np.array([names[code] for code in predictions[f"label_{name}"]], dtype=object)
    for attribute in dict.fromkeys(name for values in noted.values() for name in values):
        values = [noted.get(key, {}).get(attribute, "") for key in keys]
        found.setdefault(attribute, np.array(values, dtype=object))
    return found


def _noted(folder: Path) -> dict[str, dict[str, str]]:
    """Vendor family and subgroups of every sample of a local shard folder, from the samples' ``meta.json``."""
    found = {}
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.name.endswith(".meta.json") else None
                if stream is not None:
                    meta = json.load(stream)
                    vendor = {"vendor": meta["vendor"] or ""} if "vendor" in meta else {}
                    found[meta["key"]] = vendor | {k: str(v) for k, v in (meta.get("subgroups") or {}).items()}
    return found


def clinical_report(
    predictions: Arrays,
    tasks: Sequence[TaskSpec],
    validation: Arrays | None = None,
    train: Arrays | None = None,
    attributes: Mapping[str, np.ndarray] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """JSON-ready report of one split.

    Args:
        predictions: arrays of ``predictions/<split>.npz``.
        tasks: what to report; masks are left to ``metrics.json``.
        validation: predictions of the split that thresholds are chosen on; None = only the optimistic choice on the
            evaluated data itself.
        train: labels of the training split, for the censoring distribution of the follow-up tasks.
        attributes: per name a value ``[N]`` for each row, for the subgroup tables.
        resamples: bootstrap resamples of patients.
        seed: seed of the bootstrap.

    Returns:
        ``tasks``: per classification task ``calibration``, ``subgroups``; for two classes also ``delong`` and
        ``operating_points``. ``risk``: concordance, n-year AUC and Brier scores, where tasks follow one event.
    """
    groups = np.asarray(predictions["groups"])
    bootstrap = Bootstrap(resamples, seed)
    options: dict[str, Any] = {"groups": groups, "bootstrap": bootstrap}
    result: dict[str, Any] = {"rate": RATE, "resamples": resamples, "tasks": {}}
    for task in track([task for task in tasks if task.coded], "calibration and subgroups", "tasks"):
        labels, probability = predictions[f"label_{task.name}"], predictions[f"prob_{task.name}"].astype(float)
        if not (labels != MISSING).any():
            result["tasks"][task.name] = {"note": "no labelled samples"}
            continue
        entry: dict[str, Any] = {}
        if task.num_classes == 2:
            score = probability[:, 1]
            entry["delong"] = auroc_interval(labels, score).as_dict()
            entry["calibration"] = asdict(calibration_report(labels, score, **options))
            entry["operating_points"] = _points(task.name, labels, score, validation, options)
        else:
            entry["calibration"] = confidence_calibration(labels, probability, **options)
        if attributes:
            table = subgroup_table(labels, probability, groups, attributes, bootstrap=bootstrap)
            entry["subgroups"] = table.as_dict()
        result["tasks"][task.name] = entry
    result["risk"] = _follow_up(predictions, tasks, train, options)
    return result


def _points(
    name: str, labels: np.ndarray, score: np.ndarray, validation: Arrays | None, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """Sensitivity at fixed specificity and the reverse, thresholds from validation and from the evaluated data."""
    points = []
    for target in ("specificity", "sensitivity"):
        if validation is not None and (validation[f"label_{name}"] != MISSING).any():
            threshold = threshold_for(
                validation[f"label_{name}"], validation[f"prob_{name}"][:, 1].astype(float), target, RATE
            )
            point = at_threshold(labels, score, threshold, **options, chosen_on="validation split")
            points.append({"target": target, **point.as_dict()})
        points.append({"target": target, **at_target(labels, score, target, RATE, **options).as_dict()})
    return points


def _follow_up(
    predictions: Arrays, tasks: Sequence[TaskSpec], train: Arrays | None, options: dict[str, Any]
) -> dict[str, Any] | None:
    """Follow-up figures of the first event with tasks for every whole year; None with fewer than two or without any
    event.

    Horizon labels that contradict each other give a ``note`` instead.
    """
    yearly = [
        [task.name for task in several]
        for several in follow_ups(tasks).values()
        if len(several) > 1 and [task.horizon for task in several] == list(range(1, len(several) + 1))
    ]
    if not yearly:
        return None
    names = yearly[0]
    labels = np.stack([predictions[f"label_{name}"] for name in names], axis=1)
    if not (labels == 1).any():
        return None
    probability = np.stack([predictions[f"prob_{name}"][:, 1].astype(float) for name in names], axis=1)
    known = None
    if train is not None:
        known = np.stack([train[f"label_{name}"] for name in names], axis=1)
    try:
        return follow_up_report(labels, probability, train_labels=known, **options)
    except DataError as error:  # labels in shards made by other programs need not be those of one follow-up
        return {"note": str(error)}
