"""One section per shown sample: its views side by side, what each view contributed to each answer, and where it was
read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from m4oe_ds.data.cards import Card
from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.report.kind_tables import answer
from m4oe_ds.report.pictures import Picture, embedded

DARK = 0.18  # relative luminance below which white text has the better contrast


def ink(colour: str) -> str:
    """Black or white, whichever reads better on ``#rrggbb`` (WCAG relative luminance)."""
    levels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in levels]
    return "#ffffff" if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] < DARK else "#000000"


def patients(
    examples: Mapping[str, np.ndarray], arrays: Mapping[str, np.ndarray], maps: Mapping[str, Picture], card: Card | None
) -> list[dict[str, Any]]:
    """Contents of the sections.

    Args:
        examples: ``predictions/examples.npz``.
        arrays: predictions of the split.
        maps: dispatch maps by sample key.
        card: card of the data set, for the names of classes; None if it is not known.
    """
    from m4oe_ds.report import figures

    if not examples or not arrays:
        return []
    tasks, modalities = arrays["tasks"].tolist(), arrays["modalities"].tolist()
    kinds = examples["kinds"].tolist() if "kinds" in examples else ["image"] * len(modalities)
    known = {task.name: task for task in card.tasks} if card else {}
    row_of = {key: row for row, key in enumerate(arrays["keys"].tolist())}
    found = []
    for number, key in enumerate(examples["keys"].tolist()):
        row = row_of.get(key)
        views = [
            {
                "name": name,
                "image": embedded(figures.view_png(examples["views"][number, i]))
                if examples["present"][number, i] and kinds[i] != "table"
                else "",
                "instead": "table" if examples["present"][number, i] else "absent",
                "note": ", middle slice" if kinds[i] == "volume" and examples["present"][number, i] else "",
                "colour": figures.COLOURS[i % len(figures.COLOURS)],
            }
            for i, name in enumerate(modalities)
        ]
        answers = [
            {
                "task": task,
                "shares": _shares(examples["contribution"][number, k], modalities, figures.COLOURS),
                **_said(arrays, task, row, known.get(task)),
            }
            for k, task in enumerate(tasks)
        ]
        found.append({"title": f"Sample {number + 1}", "views": views, "answers": answers, "map": maps.get(key)})
    return found


def _shares(values: np.ndarray, modalities: list[str], colours: tuple[str, ...]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "percent": round(100 * float(value), 1),
            "colour": colours[i % len(colours)],
            "ink": ink(colours[i % len(colours)]),
        }
        for i, (name, value) in enumerate(zip(modalities, values, strict=True))
        if np.isfinite(value)
    ]


def _said(arrays: Mapping[str, np.ndarray], task: str, row: int | None, spec: TaskSpec | None) -> dict[str, Any]:
    """Answer with its probability, label, and whether they agree (None = unknown)."""
    if row is None:
        return {"said": "–", "truth": "–", "right": None}
    other = answer(arrays, task, row, spec)
    if other is not None:
        return other
    names = spec.class_names if spec else ()
    if f"prob_{task}" not in arrays:
        return {"said": "–", "truth": "–", "right": None}

    def name(index: int) -> str:
        return names[index] if index < len(names) else str(index)

    probability = arrays[f"prob_{task}"][row]
    label, best = int(arrays[f"label_{task}"][row]), int(probability.argmax())
    truth = "unknown" if label < 0 else name(label)
    said = f"{name(best)} ({probability.max():.2f})"
    return {"said": said, "truth": truth, "right": None if label < 0 else best == label}
