"""What predictions are written as: a table and a JSON file without identifiers, masks, and the private mapping."""

from __future__ import annotations

import csv
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_tools.deidentify import hash16
from data_tools.outputs import write_private
from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.errors import CheckpointError
from m4oe_ds.evaluation.inference import Predictions
from m4oe_ds.models.interface import ModelSpec
from m4oe_ds.predict.given import BEYOND_LIMIT, Found
from m4oe_ds.predict.samples import KnownSample
from m4oe_ds.runs.folder import write_json

# Below the precision of float32 that matters; eight digits could look like a date to a search for identifiers
DECIMALS = 7
MAPPING_COLUMNS = ("key", "exam_key", "patient", "exam", "side", "modality", "file", "outcome")
ROW_COLUMNS = ("key", "exam_key", "group", "exam", "sample", "side", "row", "outcome")
Masks = Mapping[tuple[str, str], Mapping[str, str]]  # file by class, by (key, task); one file of all classes as ""


def class_names(task: TaskSpec) -> tuple[str, ...]:
    """Names of what is answered of a task: of its classes, their numbers where it has none; its horizons."""
    if task.kind == "survival":
        return tuple(f"{horizon:g}" for horizon in task.horizons)
    if task.kind == "number":
        return ()
    return task.class_names or tuple(str(code) for code in range(task.num_classes))


def entries(
    predictions: Predictions, rows: Mapping[str, KnownSample], spec: ModelSpec, masks: Masks
) -> list[dict[str, Any]]:
    """One entry per sample, in the order of the keys.

    Args:
        predictions: what the model answers.
        rows: what is known of every sample besides its prediction, by key.
        spec: specification of the model.
        masks: files of the masks.

    Returns:
        ``key, group, exam, modalities, missing`` (names), ``side`` and ``row`` where there are such, and ``tasks``: of
        classes ``probabilities`` by class and ``predicted``, of a number ``value`` and ``unit``, of a survival
        ``risk`` by horizon and ``unit``, of a mask ``mask``, or ``masks`` by class; with routing ``contribution`` by
        modality, which sums to 1.

    Raises:
        CheckpointError: predictions that are not numbers.
    """
    kinds = (predictions.probabilities, predictions.values, predictions.risks)
    answers = [array.reshape(len(array), -1) for kind in kinds for array in kind.values()]
    bad = sum(int((~np.isfinite(array)).any(1).sum()) for array in answers)
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
            tasks[task.name] = _answer(task, predictions, n, masks.get((key, task.name), {}))
            if predictions.contribution is not None:
                shares = map(_rounded, predictions.contribution[n, k])
                tasks[task.name]["contribution"] = dict(zip(spec.modalities, shares, strict=True))
        out.append(
            {
                "key": key,
                **({"row": row.row} if row.row else {}),
                "group": row.group,
                "exam": row.exam,
                **({"side": row.side} if row.side else {}),
                "modalities": list(row.modalities),
                "missing": [name for name in spec.modalities if name not in row.modalities],
                "tasks": tasks,
            }
        )
    return out


def _answer(task: TaskSpec, predictions: Predictions, n: int, masks: Mapping[str, str]) -> dict[str, Any]:
    """The answer to a task of the n-th sample."""
    names = class_names(task)
    if task.coded:
        values = predictions.probabilities[task.name][n]
        probabilities = dict(zip(names, map(_rounded, values), strict=True))
        return {"probabilities": probabilities, "predicted": names[int(values.argmax())]}
    if task.kind == "number":
        return {"value": float(f"{float(predictions.values[task.name][n]):.{DECIMALS}g}"), "unit": task.unit}
    if task.kind == "survival":
        risks = map(_rounded, predictions.risks[task.name][n])
        return {"risk": dict(zip(names, risks, strict=True)), "unit": task.unit}
    return {"mask": masks[""]} if "" in masks else {"masks": dict(masks)}


def _rounded(value: Any) -> float:
    return round(float(value), DECIMALS)


def write_table(path: Path, samples: Sequence[Mapping[str, Any]]) -> None:
    """Writes the entries of :func:`entries` as CSV, one row per sample.

    Columns: ``key row group exam side modalities missing_views missing`` (``row`` and ``side`` where there are such),
    then per task ``<task>_predicted`` and ``<task>_probability_<class>``, or ``<task>_value``, or
    ``<task>_risk_<horizon>``, or ``<task>_mask`` and ``<task>_mask_<class>``; and ``<task>_contribution_<modality>``.
    Names within a field are separated by a blank; ``missing_views`` is 1 if a modality of the run is missing.
    """
    lines = []
    for sample in samples:
        line = {name: str(sample[name]) for name in ("key", "row", "group", "exam", "side") if name in sample}
        line["modalities"] = " ".join(sample["modalities"])
        line["missing_views"], line["missing"] = str(int(bool(sample["missing"]))), " ".join(sample["missing"])
        for task, answer in sample["tasks"].items():
            line |= _fields(task, answer)
        lines.append(line)
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def _fields(task: str, answer: Mapping[str, Any]) -> dict[str, str]:
    """The fields of one answer by column."""
    line = {}
    if "predicted" in answer:
        line[f"{task}_predicted"] = answer["predicted"]
    probabilities, masks = answer.get("probabilities", {}), answer.get("masks", {})
    for word, value in zip(words(probabilities), probabilities.values(), strict=True):
        line[f"{task}_probability_{word}"] = f"{value:.{DECIMALS}f}"
    if "value" in answer:
        line[f"{task}_value"] = f"{answer['value']:.{DECIMALS}g}"
    risk = answer.get("risk", {})
    for word, value in zip(words(risk), risk.values(), strict=True):
        line[f"{task}_risk_{word}"] = f"{value:.{DECIMALS}f}"
    for name, value in answer.get("contribution", {}).items():
        line[f"{task}_contribution_{name}"] = f"{value:.{DECIMALS}f}"
    if "mask" in answer:
        line[f"{task}_mask"] = answer["mask"]
    for word, file in zip(words(masks), masks.values(), strict=True):
        line[f"{task}_mask_{word}"] = file
    return line


def words(names: Iterable[str]) -> list[str]:
    """Names as they may stand in columns and files; numbered where two would be the same."""
    found = [re.sub(r"\W+", "_", name) for name in names]
    return [word if found.count(word) == 1 else f"{word}_{number}" for number, word in enumerate(found)]


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
        name = (file.patient, file.exam)
        if name in exam_key and exam_key[name] not in predicted:
            reasons[exam_key[name]][file.outcome] += 1
    return [
        {"exam": exam, "files": dict(sorted(counts.items()))}
        for exam, counts in sorted(reasons.items())
        if BEYOND_LIMIT not in counts
    ]


def exam_keys(found: Found, dataset: str, secret: bytes) -> dict[tuple[str, str], str]:
    """Pseudonym of every exam that a file or row names, the converter's, by (patient, exam)."""
    names = {(one.patient, one.exam) for one in (*found.files, *found.rows)}
    return {name: hash16(secret, "exam", dataset, *name) for name in names if all(name)}


def write_mapping(
    path: Path, found: Found, exam_key: Mapping[tuple[str, str], str], keys: Mapping[tuple[str, str, str], str]
) -> None:
    """Writes every row of a table, or else every file, with what became of it, readable by its owner alone.

    Args:
        path: file to write.
        found: what was given.
        exam_key: pseudonym of every (patient, exam).
        keys: key of every sample with a prediction, by patient, sample and side.
    """
    lines: list[dict[str, str]] = [
        {
            "key": keys.get(row.source, "") if found.row_of.get(row.source) is row else "",
            "exam_key": exam_key.get((row.patient, row.exam), ""),
            "group": row.patient,
            "exam": row.exam,
            "sample": row.sample,
            "side": row.side,
            "row": str(row.row),
            "outcome": row.outcome,
        }
        for row in found.rows
    ]
    if lines:
        write_private(path, ROW_COLUMNS, lines)
        return
    lines = [
        {
            "key": keys.get(file.source, "") if file.modality else "",
            "exam_key": exam_key.get((file.patient, file.exam), ""),
            "patient": file.patient,
            "exam": file.exam,
            "side": file.side,
            "modality": file.modality,
            "file": os.fsencode(file.name).decode("utf-8", "backslashreplace"),
            "outcome": file.outcome,
        }
        for file in found.files
    ]
    write_private(path, MAPPING_COLUMNS, lines)


def save_masks(folder: Path, key: str, task: TaskSpec, masks: np.ndarray) -> dict[str, str]:
    """Writes the masks of a sample: a PNG of 0 and 255 per class, or of a volume one ``.npy`` with a bit per class.

    Args:
        folder: folder of the predictions; the masks go into ``masks`` below it.
        key: key of the sample.
        task: the task.
        masks: bool ``[C, H, W]`` or ``[C, D, H, W]``.

    Returns:
        Path of each file below ``folder`` by class; "" for the one file of a volume, or of a single class.
    """
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    stem = f"masks/{key}.{task.name}"
    if masks.ndim == 4:
        bits = np.zeros(masks.shape[1:], dtype=np.uint8)
        for number, mask in enumerate(masks):
            bits |= mask.astype(np.uint8) << number
        np.save(folder / f"{stem}.npy", bits)
        return {"": f"{stem}.npy"}
    from PIL import Image

    names = class_names(task)
    files = {name: f"{stem}.{word}.png" for name, word in zip(names, words(names), strict=True)}
    if len(masks) == 1:
        files = {"": f"{stem}.png"}
    for file, mask in zip(files.values(), masks, strict=True):
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / file, format="PNG")
    return files


def write_report(path: Path, content: Mapping[str, Any]) -> None:
    """Writes ``predictions.json``."""
    write_json(path, dict(content))
