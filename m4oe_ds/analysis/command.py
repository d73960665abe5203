# ruff: noqa: T201
"""``m4oe analyze``: what routing, gradients and representations of a finished run say about modalities and tasks."""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

from m4oe_ds.analysis.options import SECTIONS, AnalysisOptions
from m4oe_ds.arguments import MOST_DRAWS, whole
from m4oe_ds.option_lists import comma_list


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the sub-command."""
    add = parser.add_argument
    add("run", metavar="RUN", help="run folder, e.g. runs/demo")
    add("--split", default="test", help="split to analyse (default: test)")
    add("--only", default="", metavar="A,B,..", help=f"run only these sections: {', '.join(SECTIONS)}")
    add(
        "--limit",
        type=whole(),
        default=0,
        metavar="N",
        help="analyse at most N samples of a split; 0 = all (default: 0)",
    )
    add("--truth", default="", metavar="PATH", help="truth.json of a phantom archive (default: next to the shards)")
    add("--mapping", default="", metavar="PATH", help="mapping.csv of the conversion (default: next to the shards)")
    add("--data", default="", metavar="DIR", help="folder of shards (default: the one the run was trained on)")
    add(
        "--unimodal",
        action="append",
        default=[],
        metavar="MODALITY=RUN",
        help="model trained on that modality alone, for the modality competition; repeatable",
    )
    add("--baseline", default="", metavar="RUN", help="another run, already analysed, to draw next to this one")
    add("--sweep", default="", metavar="CSV", help="sweep.csv of `m4oe compare --sweep`, for the ablation figure")
    add("--metric", default="", help="metric of the ablation figure (default: accuracy)")
    add("--tasks", default="", metavar="A,B,..", help="tasks of the synergy matrices (default: the card's first two)")
    add(
        "--representation",
        default="task",
        choices=("task", "encoder"),
        help="features of the synergy matrices: a modality's tokens in the task's representation, or those of its "
        "encoder (default: task)",
    )
    add(
        "--permutations",
        type=whole(1, MOST_DRAWS),
        default=10,
        metavar="N",
        help="permutations for the null of a synergy (default: 10)",
    )
    add(
        "--resamples",
        type=whole(1, MOST_DRAWS),
        default=500,
        metavar="N",
        help="bootstrap resamples of patients (default: 500)",
    )


def main(options: argparse.Namespace) -> int:
    """Analyses a run and writes ``analysis.json``, ``analysis/<split>.npz`` and ``figures/``.

    Returns:
        0, or 1 if a section that was asked for by name could not be made.

    Raises:
        UserError: see :func:`m4oe_ds.analysis.analyze.analyze`.
    """
    from m4oe_ds.analysis.refusals import not_made, refuse

    asked = _options(options)
    refuse(asked)

    from m4oe_ds.analysis.analyze import analyze

    made = analyze(asked, say=functools.partial(print, flush=True))
    lacking = not_made(asked, made["skipped"])
    for line in lacking:
        print(line, file=sys.stderr)
    return 1 if lacking else 0


def _options(options: argparse.Namespace) -> AnalysisOptions:
    from m4oe_ds.analysis.refusals import path_or_none
    from m4oe_ds.errors import ConfigError

    if options.metric and not options.sweep:
        raise ConfigError("does nothing without --sweep", "--metric", "give the table with --sweep, or leave it out")
    return AnalysisOptions(
        run=Path(options.run),
        split=options.split,
        only=tuple(comma_list(options.only, "--only", str, required=bool(options.only), once=True)),
        limit=options.limit,
        truth=path_or_none(options.truth),
        mapping=path_or_none(options.mapping),
        data=options.data,
        unimodal=tuple(options.unimodal),
        baseline=path_or_none(options.baseline),
        sweep=path_or_none(options.sweep),
        metric=options.metric or "accuracy",
        tasks=tuple(comma_list(options.tasks, "--tasks", str, required=bool(options.tasks), once=True)),
        representation=options.representation,
        permutations=options.permutations,
        resamples=options.resamples,
    )
