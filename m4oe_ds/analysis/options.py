"""The options of ``m4oe analyze``, as a value that Python code can make too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

SECTIONS = (
    "utilisation",
    "contribution",
    "experts",
    "competition",
    "synergy",
    "conflict",
    "sweep",
    "interpretability",
    "missing",
    "gallery",
    "own",
    "clinical",
)
NEEDS_TRAINING_SPLIT = frozenset({"competition", "synergy"})


@dataclass(frozen=True)
class AnalysisOptions:
    """Options of one analysis.

    Attributes:
        run: run folder.
        split: name of the split to analyse.
        only: sections to make, of SECTIONS; empty = all.
        limit: most samples of a split; 0 = all.
        truth: ``truth.json`` of a phantom archive; None = the one next to the shards, if any.
        mapping: ``mapping.csv`` of the conversion; None = the one next to the shards.
        data: folder of shards; empty = the one the run was trained on.
        unimodal: ``MODALITY=RUN`` texts: models trained on that modality alone, for the modality competition.
        baseline: another run, analysed before, to draw next to this one.
        sweep: ``sweep.csv`` of ``m4oe compare --sweep``, for the ablation figure.
        metric: metric of the ablation figure.
        tasks: tasks of the synergy matrices; empty = those of the paper that the run has, else its first two.
        representation: features of the synergy matrices: the task's tokens of a modality, or its encoder's.
        permutations: number of permutations behind the null of every synergy.
        resamples: bootstrap resamples of patients.
    """

    run: Path
    split: str = "test"
    only: tuple[str, ...] = ()
    limit: int = 0
    truth: Path | None = None
    mapping: Path | None = None
    data: str = ""
    unimodal: tuple[str, ...] = ()
    baseline: Path | None = None
    sweep: Path | None = None
    metric: str = "accuracy"
    tasks: tuple[str, ...] = ()
    representation: Literal["task", "encoder"] = "task"
    permutations: int = 10
    resamples: int = 500
