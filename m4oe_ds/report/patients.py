"""The samples that the report shows, by patient: views, what each contributed to each answer, and where it was read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from m4oe_ds.data.cards import Card
from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.report import overlays
from m4oe_ds.report.kind_tables import answer
from m4oe_ds.report.pictures import Picture, embedded
from m4oe_ds.report.words import Words

DARK = 0.18  # relative luminance below which white text has the better contrast


def ink(colour: str) -> str:
    """Black or white, whichever reads better on ``#rrggbb`` (WCAG relative luminance)."""
    levels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in levels]
    return "#ffffff" if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] < DARK else "#000000"


def patients(
    examples: Mapping[str, np.ndarray],
    arrays: Mapping[str, np.ndarray],
    gallery: Mapping[str, np.ndarray],
    maps: Mapping[str, Picture],
    card: Card | None,
    planted: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """The patients in the order of their first sample, each with ``samples``: what a page says of them.

    Args:
        examples: ``predictions/examples.npz``.
        arrays: predictions of the split.
        gallery: ``analysis/gallery.npz``.
        maps: dispatch maps by sample key.
        card: card of the data set, for the words; None if it is not known.
        planted: outlines of what was planted, by sample key and modality; of synthetic data only.
    """
    if not examples or not arrays:
        return []
    sides = list(card.sides.values()) if card else []

    def order(side: str) -> int:
        return sides.index(side) if side in sides else len(sides)

    words, known = Words(card), {task.name: task for task in card.tasks} if card else {}
    rows = {key: row for row, key in enumerate(arrays["keys"].tolist())}
    found: dict[str, list[dict[str, Any]]] = {}
    for number, key in enumerate(examples["keys"].tolist()):
        row = rows.get(key)
        group = str(arrays["groups"][row]) if row is not None and "groups" in arrays else key
        found.setdefault(group, []).append(
            {
                "key": key,
                "side": words.side(key),
                "exam": str(examples["exams"][number]) if "exams" in examples else "",
                "views": _views(examples, number, arrays["modalities"].tolist(), words),
                "answers": _answers(examples, arrays, number, row, known, words),
                "map": maps.get(key),
            }
        )
        overlays.lay(found[group][-1], gallery, (planted or {}).get(key, {}), words)
    return [
        {"group": group, "samples": sorted(samples, key=lambda one: (one["exam"], order(one["side"]), one["key"]))}
        for group, samples in found.items()
    ]


def _views(
    examples: Mapping[str, np.ndarray], number: int, modalities: list[str], words: Words
) -> list[dict[str, Any]]:
    """One entry per modality, in the order of the card."""
    from m4oe_ds.report import figures

    kinds = examples["kinds"].tolist() if "kinds" in examples else ["image"] * len(modalities)
    found = []
    for i, name in enumerate(modalities):
        present = bool(examples["present"][number, i])
        pixels = examples["views"][number, i]
        shown = present and kinds[i] != "table"
        found.append(
            {
                "modality": name,
                "name": words.modality(name),
                "image": embedded(figures.view_png(pixels)) if shown else "",
                "width": int(pixels.shape[1]),
                "height": int(pixels.shape[0]),
                "instead": "table" if present else "absent",
                "note": ", middle slice" if kinds[i] == "volume" and present else "",
                "colour": figures.COLOURS[i % len(figures.COLOURS)],
                "overlays": [],
                "planted": [],
            }
        )
    return found


def _answers(
    examples: Mapping[str, np.ndarray],
    arrays: Mapping[str, np.ndarray],
    number: int,
    row: int | None,
    known: Mapping[str, TaskSpec],
    words: Words,
) -> list[dict[str, Any]]:
    """One entry per task."""
    from m4oe_ds.report import figures

    modalities = list(map(words.modality, arrays["modalities"].tolist()))
    share = examples.get("contribution")
    return [
        {
            "task": words.task(task),
            "shares": [] if share is None else _shares(share[number, k], modalities, figures.COLOURS),
            **_said(arrays, task, row, known.get(task)),
        }
        for k, task in enumerate(arrays["tasks"].tolist())
    ]


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
