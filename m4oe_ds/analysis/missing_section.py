"""How good the answers are when modalities are missing: as the split is, and with some taken from every sample."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import matplotlib as mpl
import numpy as np
import torch

from m4oe_ds.analysis.attribution import deprived
from m4oe_ds.analysis.session import Session, Skip, tracked
from m4oe_ds.data.batch import Batch
from m4oe_ds.data.missing import presence, taken
from m4oe_ds.evaluation.inference import predict_split
from m4oe_ds.evaluation.intervals import Bootstrap
from m4oe_ds.evaluation.missing_modalities import Row, cohort_size, observed, removed
from m4oe_ds.models.interface import ModelSpec
from m4oe_ds.report.figures import COLOURS, DASHES, STYLE, panels
from m4oe_ds.report.words import Words
from m4oe_ds.runs.finished import Run
from m4oe_ds.runs.objective import objective

DRAWS = 4  # most combinations per number of modalities taken
STEPS = 6  # most numbers of modalities taken
SEED = 0
TITLES = {
    "balanced_accuracy": "balanced accuracy",
    "auroc": "AUROC",
    "dice": "Dice",
    "mae": "mean absolute error",
    "c_index": "C-index",
}


@dataclass
class Variants:
    """A split's batches, each in all its variants: whole, and with modalities taken away.

    Attributes:
        plan: (number taken, draw) of each variant, the whole one first.
        spec: what the model answers.
        present: what the samples have, ``[B, m]`` of each batch seen so far.
        count: samples seen so far.
    """

    plan: list[tuple[int, int]]
    spec: ModelSpec
    present: list[np.ndarray] = field(default_factory=list)
    count: int = 0

    def batches(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Every batch in every variant; keys say the variant, then the number of the sample."""
        for batch in batches:
            place = self.count + batch.valid.cumsum(0) - 1
            there = batch.present.numpy()
            for variant, (number, draw) in enumerate(self.plan):
                keys = tuple(f"{variant:04d}-{int(row):010d}" for row in place)
                gone = [taken(row, number, draw, SEED, key) for row, key in zip(there, batch.keys, strict=True)]
                changed = self._without_questions(deprived(batch, torch.from_numpy(np.stack(gone))))
                yield replace(changed, keys=keys)
            self.present.append(there[batch.valid.numpy()])
            self.count += int(batch.valid.sum())

    def _without_questions(self, batch: Batch) -> Batch:
        """A mask is not asked for where the modality that it lies over is not there."""
        known = batch.label_mask.clone()
        for k, task in enumerate(self.spec.tasks):
            if task.dense:
                known[:, k] &= batch.present[:, self.spec.modalities.index(self.spec.owner(task.name))]
        return replace(batch, label_mask=known)

    def split(self, arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        """The rows of each variant, in the order in which the samples came."""
        return [
            {name: values[start : start + self.count] for name, values in arrays.items()}
            for start in range(0, self.count * len(self.plan), self.count)
        ]


def missing(session: Session) -> dict[str, Any]:
    """The section ``missing``: rows by the modalities present and by those taken away, and both figures."""
    run, options = session.run, session.options
    names = run.spec.modalities
    if len(names) < 2:
        raise Skip("a model of one modality can lack none")
    manifest = run.manifests[options.split]
    number = manifest.sample_present(names).sum(1)
    least = cohort_size(number[number > 0])
    variants = Variants(_plan(least), run.spec)
    every = variants.split(_predicted(run, variants, options.split, options.limit))
    present = np.concatenate(variants.present)
    bootstrap = Bootstrap(options.resamples)
    passes: dict[int, list[dict[str, np.ndarray]]] = {}
    for (count, _), arrays in zip(variants.plan, every, strict=True):
        passes.setdefault(count, []).append(arrays)
    cohort = np.flatnonzero(present.sum(1) >= least)
    result: dict[str, Any] = {
        "modalities": len(names),
        "presence": presence(manifest, names, run.config.data.complete_only).as_dict(),
        "samples": len(present),
        "observed": observed(run.spec.tasks, every[0], present, bootstrap),
        "cohort": {"at_least": least, "samples": len(cohort)},
        "removed": removed(run.spec.tasks, passes, cohort, bootstrap) if len(cohort) else [],
    }
    if not len(cohort):
        result["reason"] = "no sample has two modalities: none can be taken away"
    judged = {row["task"] for row in result["observed"]}
    result["not_judged"] = [task.name for task in run.spec.tasks if task.name not in judged]
    for kind, axis in (("removed", "removed"), ("observed", "present")):
        if any(row["value"] is not None for row in result[kind]):
            session.draw(_figure(result[kind], axis, session.words), result[kind], f"missing_{kind}")
    return result


def _plan(least: int) -> list[tuple[int, int]]:
    """(number taken, draw) of each variant, for samples with at least so many modalities."""
    numbers = np.unique(np.linspace(0, least - 1, min(STEPS, least)).round().astype(int)).tolist()
    return [(number, draw) for number in numbers for draw in range(min(DRAWS, math.comb(least, number)))]


def _predicted(run: Run, variants: Variants, split: str, limit: int) -> Mapping[str, np.ndarray]:
    """Answers to every variant, variant by variant."""
    predictions = predict_split(
        run.model,
        variants.batches(tracked(run, split, limit, "modalities taken away")),
        run.spec,
        objective(run.config, run.spec, run.statistics, run.device),
        run.device,
        torch.float32,
        correction=run.correction,
    )
    return predictions.arrays()


def _figure(rows: list[Row], along: str, words: Words) -> Any:
    """A panel per task: its figures over the number of modalities, dotted what knowing nothing would give."""
    tasks = list(dict.fromkeys(row["task"] for row in rows if row["value"] is not None))
    with mpl.rc_context(STYLE):
        figure, axes = panels(len(tasks), (2.8, 2.7))
        drawn: dict[str, Any] = {}
        places = sorted({row[along] for row in rows})
        for axis, task in zip(axes, tasks, strict=True):
            mine = [row for row in rows if row["task"] == task and row["value"] is not None]
            for number, metric in enumerate(dict.fromkeys(row["metric"] for row in mine)):
                drawn[metric] = _line(axis, [row for row in mine if row["metric"] == metric], along, number)
            axis.set(title=words.task(task), xlabel=f"modalities {'taken away' if along == 'removed' else 'present'}")
            axis.set(xticks=places, xlim=(places[0] - 0.3, places[-1] + 0.3))
        labels = [TITLES.get(metric, metric) for metric in drawn]
        figure.legend(list(drawn.values()), labels, fontsize=8, ncols=3, loc="outside lower center")
        return figure


def _line(axis: Any, rows: list[Row], along: str, number: int) -> Any:
    """One figure with its interval and its trivial value; returns what stands for it in a legend."""
    x = [row[along] for row in rows]
    colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
    (line,) = axis.plot(x, [row["value"] for row in rows], f"o{dash}", color=colour, ms=3)
    spans = [(row[along], row["low"], row["high"]) for row in rows if row["low"] is not None]
    if spans:
        place, low, high = zip(*spans, strict=True)
        axis.vlines(place, low, high, color=colour, lw=1)
    trivial = [math.nan if row["trivial"] is None else row["trivial"] for row in rows]
    axis.plot(x, trivial, ":", color=colour, lw=1)
    return line
