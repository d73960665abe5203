"""One page per patient: every view of every sample shown, with overlays that the reader fades in and out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jinja2

from m4oe_ds.report.words import Words, capital
from m4oe_ds.runs.folder import RunFolder

SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,79}")


@dataclass(frozen=True)
class Frame:
    """What all pages of a run say.

    Attributes:
        run: name of the run.
        synthetic: whether the samples are phantoms.
        words: labels.
    """

    run: str
    synthetic: bool
    words: Words


def write(
    files: RunFolder, found: Sequence[dict[str, Any]], frame: Frame, environment: jinja2.Environment
) -> list[dict[str, Any]]:
    """Writes the pages into ``patients/``, without those of an earlier report.

    Args:
        files: the run folder.
        found: patients as :func:`patients.patients` gives them.
        frame: what all pages say.
        environment: of the templates.

    Returns:
        The patients with ``title``, ``page`` (address from the report), and ``missing`` (sides that are not shown).
    """
    shown = [_described(patient, number, frame.words) for number, patient in enumerate(found, 1)]
    if files.patients.is_dir():
        for old in files.patients.glob("*.html"):
            old.unlink()
    if not shown:
        return []
    files.patients.mkdir(parents=True, exist_ok=True)
    template = environment.get_template("patient.html.j2")
    for at, patient in enumerate(shown):
        page = template.render(
            patient=patient,
            frame=frame,
            words=frame.words,
            before=shown[at - 1] if at else None,
            after=shown[at + 1] if at + 1 < len(shown) else None,
            tasks=next((sample["tasks"] for sample in patient["samples"] if sample["tasks"]), []),
            marked=any(view["planted"] for sample in patient["samples"] for view in sample["views"]),
        )
        (files.patients / patient["file"]).write_text(page, encoding="utf-8")
    return shown


def _described(patient: dict[str, Any], number: int, words: Words) -> dict[str, Any]:
    """A patient with its title and the name of its page; its samples with titles and their counts of answers."""
    group = str(patient["group"])
    name = group if SAFE.fullmatch(group) else hashlib.sha256(group.encode()).hexdigest()[:16]
    samples = patient["samples"]
    exams = list(dict.fromkeys(sample["exam"] for sample in samples))
    for sample in samples:
        exam = f"Exam {exams.index(sample['exam']) + 1}, " if len(exams) > 1 else ""
        place = sample["side"] and f"{sample['side']} {words.unit}"
        sample["title"] = capital(exam + (place or f"{words.unit} {samples.index(sample) + 1}"))
        judged = [answer["right"] for answer in sample["answers"] if answer["right"] is not None]
        sample["score"] = f"{sum(judged)} of {len(judged)} answers right" if judged else ""
    here = {sample["side"] for sample in samples}
    return {
        **patient,
        "title": f"{capital(words.group)} {number}",
        "file": f"{name}.html",
        "page": f"patients/{name}.html",
        "missing": [side for side in words.sides() if side not in here],
        "several_exams": len(exams) > 1,
    }
