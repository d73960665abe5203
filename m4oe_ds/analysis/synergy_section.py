"""Fig. 4 of a run: synergy of every pair of modalities about the model's own answers, on the features it made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from m4oe_ds.analysis import figures
from m4oe_ds.analysis.collect import Features
from m4oe_ds.analysis.pid.decompose import principal_components
from m4oe_ds.analysis.pid.settings import BatchSettings
from m4oe_ds.analysis.pid.synergy import SynergyReport, SynergySettings, synergy_matrices
from m4oe_ds.analysis.session import Session, Skip
from m4oe_ds.progress import Progress
from m4oe_ds.runs.folder import plain

COMPONENTS = 16
MOST_INFORMATION = 1.1  # times H(Y); more is an over-confident network
MIN_MINORITY = 30  # rows outside the majority class that a synergy estimate needs
SYNERGY_VALUES = ("synergy", "share_of_entropy", "null_mean", "null_q95", "redundancy", "total", "target_entropy")


def _of_task(
    session: Session, parts: Sequence[Features], task: str, settings: SynergySettings, done: Callable[[], None]
) -> SynergyReport:
    """Synergies about the answers to one task, on the features that its representation holds."""
    names, own = session.run.spec.modalities, session.options.representation == "task"
    present = np.concatenate([part.present for part in parts])
    groups = np.concatenate([part.groups for part in parts])
    features = {}
    for i, name in enumerate(names):
        rows = np.concatenate([(part.task[task] if own else part.encoder)[name] for part in parts])
        some = present[:, i].any()
        features[name] = principal_components(rows, present[:, i], COMPONENTS) if some else np.zeros((len(rows), 1))
    predicted = np.concatenate([part.predicted[task] for part in parts])
    there = {name: present[:, i] for i, name in enumerate(names)}
    one = synergy_matrices(
        features, {task: predicted}, groups, model=session.name, present=there, settings=settings, done=done
    )
    return reliable(one, predicted, there)


def synergy(session: Session) -> dict[str, Any]:
    """Matrices with S, S / H(Y) and the null, the pairs left out with the reason, and the figure."""
    assert session.train is not None
    names, test, train = session.run.spec.modalities, session.split.features, session.train
    if len(names) < 2:
        raise Skip("a pair needs two modalities")
    if not test.task:
        raise Skip("no task of classes")
    own = session.options.representation == "task"
    parts = [train] if session.options.split == "train" else [train, test]
    settings = SynergySettings(
        batch=BatchSettings(
            permutations=session.options.permutations, discriminator_steps=300, alignment_steps=60, batch_size=128
        )
    )
    report: SynergyReport | None = None
    number = len(names) * (len(names) - 1) // 2 * len(test.task)
    with Progress("synergy", number, "pairs of modalities").start() as progress:
        for task in test.task:
            one = _of_task(session, parts, task, settings, progress.update)
            report = one if report is None else report.merged(one)
    assert report is not None
    if not report.pairs:
        raise Skip(f"no pair can be estimated: {', '.join(report.skip_counts)}")
    estimated = [task for task in test.task if any(pair.task == task for pair in report.pairs)]
    matrices = {task: plain({value: report.matrix(task, value) for value in SYNERGY_VALUES}) for task in estimated}
    notes = {task: {"note": _why(report, task)} for task in test.task if task not in matrices}
    own_entry = {"matrices": matrices, "not_estimated": notes}
    panels = {
        model: entry["matrices"] | entry.get("not_estimated", {})
        for model, entry in session.panels("synergy", own_entry).items()
    }
    words = session.words
    shown = {model: {words.task(task): entry for task, entry in panel.items()} for model, panel in panels.items()}
    session.draw(figures.synergy(shown, words.modalities(names)), report.to_rows(), "fig4_synergy")
    return {
        "target": "the model's predictions",
        "representation": test.representation if own else "encoder",
        "splits": len(parts),
        "components": COMPONENTS,
        "matrices": matrices,
        "not_estimated": notes,
        "pairs": report.to_rows(),
        "pattern_entropy": {task: report.pattern_entropy(task) for task in estimated},
        "pattern_cosine": report.pattern_cosine(*estimated) if len(estimated) == 2 else None,
        "permutations": session.options.permutations,
        "skipped": [list(entry) for entry in report.skipped],
    }


def _why(report: SynergyReport, task: str) -> str:
    """The reasons why no pair of a task was estimated."""
    return "; ".join(dict.fromkeys(reason for name, _, _, reason in report.skipped if name == task))


def reliable(report: SynergyReport, predicted: np.ndarray, present: dict[str, np.ndarray]) -> SynergyReport:
    """The report without pairs whose estimate cannot be trusted; they move to ``skipped`` with the reason.

    With a dozen rows outside the majority class a single split decides: an estimate over another split differs by more
    than its interval, and may exceed H(Y) by far (by a little it does wherever the held-out labels are more even).
    """
    kept, dropped = [], []
    for pair in report.pairs:
        labels = predicted[present[pair.modality1] & present[pair.modality2]]
        minority = len(labels) - int(np.bincount(labels).max())
        reason = ""
        if minority < MIN_MINORITY:
            reason = f"fewer than {MIN_MINORITY} rows outside the majority class"
        elif pair.total > MOST_INFORMATION * pair.target_entropy:
            reason = "an estimated information well above H(Y)"
        if reason:
            dropped.append((pair.task, pair.modality1, pair.modality2, reason))
        else:
            kept.append(pair)
    return SynergyReport(report.modalities, tuple(kept), report.skipped + tuple(dropped))
