"""What predictions are written as: a table and a JSON file without identifiers, masks, and the private mapping."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.deidentify import hash16
from data_tools.outputs import write_private
from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.errors import CheckpointError, DataError
from m4oe_ds.evaluation.inference import Predictions
from m4oe_ds.models.interface import ModelSpec
from m4oe_ds.predict.exams import BEYOND_LIMIT, Found
from m4oe_ds.predict.samples import KnownSample
from m4oe_ds.runs.folder import write_json

# Below the precision of float32 that matters; eight digits could look like a date to a search for identifiers
DECIMALS = 7
MAPPING_COLUMNS = ("key", "exam_key", "patient", "exam", "side", "modality", "file", "outcome")


def class_names(task: TaskSpec) -> tuple[str, ...]:
    """Names of a task's classes, their numbers where it has none."""
    return task.class_names or tuple(str(code) for code in range(task.num_classes))


def entries(
    predictions: Predictions, rows: Mapping[str, KnownSample], spec: ModelSpec, masks: Mapping[tuple[str, str], str]
) -> list[dict[str, Any]]:
    """One entry per sample, in the order of the keys.

    Args:
        rows: what is known of every sample besides its prediction, by key.
        masks: file by (key, task).

    Returns:
        ``key, group, exam, side, modalities, missing`` (names) and ``tasks``: per classification ``probabilities`` by
        class and ``predicted``, per number ``value`` and ``unit``, per survival ``risk`` by horizon and the ``unit`` of
        the horizons, per segmentation ``mask``; with routing ``contribution`` by modality, which sums to 1.

    Raises:
        CheckpointError: probabilities that are not numbers.
    """
    answers = (*predictions.probabilities.values(), *predictions.values.values(), *predictions.risks.values())
    bad = sum(int((~np.isfinite(values[:, None] if values.ndim == 1 else values)).any(1).sum()) for values in answers)
    if bad:
        raise CheckpointError(
            f"gives {bad} predictions that are not numbers",
            "weights/model.safetensors",
            "export another checkpoint with `m4oe export`",
        )
    out = []
    for n, key in enumerate(map(str, predictions.keys)):
        row = rows[key]
        tasks: dict[str, dict[str, Any]] = {}
        for k, task in enumerate(spec.tasks):
            tasks[task.name] = _answer(predictions, n, task, masks)
            if predictions.contribution is not None:
                shares = map(_rounded, predictions.contribution[n, k])
                tasks[task.name]["contribution"] = dict(zip(spec.modalities, shares, strict=True))
        missing = [name for name in spec.modalities if name not in row.modalities]
        out.append(
            {
                "key": key,
                "group": row.group,
                "exam": row.exam,
                "side": row.side,
                "modalities": list(row.modalities),
                "missing": missing,
                "tasks": tasks,
            }
        )
    return out


def _answer(predictions: Predictions, n: int, task: TaskSpec, masks: Mapping[tuple[str, str], str]) -> dict[str, Any]:
    """What sample ``n`` answers to a task."""
    if task.coded:
        values, names = predictions.probabilities[task.name][n], class_names(task)
        rounded = dict(zip(names, map(_rounded, values), strict=True))
        return {"probabilities": rounded, "predicted": names[int(values.argmax())]}
    if task.kind == "number":
        return {"value": _rounded(predictions.values[task.name][n]), "unit": task.unit}
    if task.kind == "survival":
        horizons = (f"{horizon:g}" for horizon in task.horizons)
        risks = map(_rounded, predictions.risks[task.name][n])
        return {"risk": dict(zip(horizons, risks, strict=True)), "unit": task.unit}
    return {"mask": masks[str(predictions.keys[n]), task.name]}


def _rounded(value: Any) -> float:
    return round(float(value), DECIMALS)


def write_table(path: Path, samples: Sequence[Mapping[str, Any]]) -> None:
    """Writes the entries of :func:`entries` as CSV, one row per sample.

    Columns: ``key group exam side modalities missing_views missing``, then per task ``<task>_predicted``,
    ``<task>_probability_<class>`` (classes), ``<task>_value`` (a number), ``<task>_risk_<horizon>`` (survival),
    ``<task>_contribution_<modality>``, ``<task>_mask``. Names within a field are
    separated by a blank; ``missing_views`` is 1 if a modality of the run is missing.
    """
    lines = []
    for sample in samples:
        line: dict[str, str] = {name: str(sample[name]) for name in ("key", "group", "exam", "side")}
        line["modalities"] = " ".join(sample["modalities"])
        line["missing_views"], line["missing"] = str(int(bool(sample["missing"]))), " ".join(sample["missing"])
        for task, answer in sample["tasks"].items():
            if "predicted" in answer:
                line[f"{task}_predicted"] = answer["predicted"]
            for name, value in answer.get("probabilities", {}).items():
                line[f"{task}_probability_{_word(name)}"] = f"{value:.{DECIMALS}f}"
            if "value" in answer:
                line[f"{task}_value"] = f"{answer['value']:.{DECIMALS}g}"
            for name, value in answer.get("risk", {}).items():
                line[f"{task}_risk_{_word(name)}"] = f"{value:.{DECIMALS}f}"
            for name, value in answer.get("contribution", {}).items():
                line[f"{task}_contribution_{name}"] = f"{value:.{DECIMALS}f}"
            if "mask" in answer:
                line[f"{task}_mask"] = answer["mask"]
        lines.append(line)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def _word(name: str) -> str:
    return re.sub(r"\W+", "_", name)


def exams_without_prediction(
    found: Found, exam_key: Mapping[tuple[str, str], str], predicted: set[str]
) -> list[dict[str, Any]]:
    """Exams of which no sample was predicted: their pseudonym and how many files were left out for which reason.

    Exams that lie partly beyond ``--limit`` are not among them.

    Args:
        exam_key: pseudonym by (patient, exam).
        predicted: pseudonyms of exams with a prediction.
    """
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for file in found.files:
        name = (file.header.patient, file.header.exam)
        if name in exam_key and exam_key[name] not in predicted:
            reasons[exam_key[name]][file.outcome] += 1
    return [
        {"exam": exam, "files": dict(sorted(counts.items()))}
        for exam, counts in sorted(reasons.items())
        if BEYOND_LIMIT not in counts
    ]


def exam_keys(found: Found, dataset: str, secret: bytes) -> dict[tuple[str, str], str]:
    """Pseudonym of every exam that a file names, the converter's, by (patient, exam)."""
    names = {(file.header.patient, file.header.exam) for file in found.files}
    return {name: hash16(secret, "exam", dataset, *name) for name in names if all(name)}


def write_mapping(path: Path, found: Found, exam_key: Mapping[tuple[str, str], str], keys: Mapping[str, str]) -> None:
    """Writes every file with what became of it, readable by its owner alone.

    Args:
        exam_key: pseudonym of every (patient, exam).
        keys: sample key by ``<exam pseudonym>-<side>``, of samples with a prediction.
    """
    rows = []
    for file in found.files:
        header = file.header
        exam = exam_key.get((header.patient, header.exam), "")
        side = header.side.lower()
        rows.append(
            {
                "key": keys.get(f"{exam}-{side}", "") if header.modality else "",
                "exam_key": exam,
                "patient": header.patient,
                "exam": header.exam,
                "side": side,
                "modality": header.modality,
                "file": os.fsencode(file.name).decode("utf-8", "backslashreplace"),
                "outcome": file.outcome,
            }
        )
    write_private(path, MAPPING_COLUMNS, rows)


def save_mask(path: Path, mask: np.ndarray) -> None:
    """Writes a mask, bool [C, H, W], as an 8-bit PNG: 0 and 255; of several classes bit k is set where class k is.

    Raises:
        DataError: a volume, which no PNG holds.
    """
    from PIL import Image

    if mask.ndim != 3:
        raise DataError(f"the mask has {mask.ndim - 1} dimensions", str(path), "leave the task out with data.tasks")
    path.parent.mkdir(parents=True, exist_ok=True)
    bits = (1 << np.arange(len(mask), dtype=np.uint8)) if len(mask) > 1 else np.array([255], dtype=np.uint8)
    image = (mask * bits[:, None, None]).sum(0).astype(np.uint8)
    Image.fromarray(image).save(path, format="PNG")


def write_report(path: Path, content: Mapping[str, Any]) -> None:
    """Writes ``predictions.json``."""
    write_json(path, dict(content))
