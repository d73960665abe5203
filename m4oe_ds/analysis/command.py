# ruff: noqa: T201
"""``m4oe analyze``: what routing, gradients and representations of a finished run say about modalities and tasks."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from m4oe_ds.analysis.session import Session
    from m4oe_ds.runs.finished import Run

SECTIONS = (
    "utilisation", "contribution", "experts", "competition", "synergy", "conflict", "sweep", "interpretability", "gallery", "own", "clinical",
)  # fmt: skip
NEEDS_TRAINING_SPLIT = {"competition", "synergy"}
NEEDS_PASS = {*SECTIONS} - {"conflict", "sweep", "gallery", "own", "clinical"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the sub-command."""
    add = parser.add_argument
    add("run", metavar="RUN", help="run folder, e.g. runs/demo")
    add("--split", default="test", help="split to analyse (default: test)")
    add("--only", default="", metavar="A,B,..", help=f"only these of: {', '.join(SECTIONS)}")
    add("--limit", type=int, default=0, metavar="N", help="at most N samples of a split (default: all)")
    add("--truth", default="", metavar="PATH", help="truth.json of a phantom archive (default: beside the shards)")
    add("--mapping", default="", metavar="PATH", help="mapping.csv of the conversion (default: beside the shards)")
    add("--data", default="", metavar="DIR", help="other shards than those it was trained on")
    add("--unimodal", action="append", default=[], metavar="MODALITY=RUN",
        help="model trained on that modality alone, for the modality competition; repeatable")  # fmt: skip
    add("--baseline", default="", metavar="RUN", help="another run, analysed before, to draw beside this one")
    add("--sweep", default="", metavar="CSV", help="sweep.csv of `m4oe compare --sweep`, for the ablation figure")
    add("--metric", default="accuracy", help="metric of the ablation figure (default: accuracy)")
    add("--tasks", default="", metavar="A,B,..", help="tasks of the synergy matrices (default: density, risk1)")
    add("--representation", default="task", choices=("task", "encoder"),
        help="features of the synergy matrices: the task's tokens of a modality, or its encoder's (default: task)")  # fmt: skip
    add("--permutations", type=int, default=10, metavar="N", help="of the null of every synergy (default: 10)")
    add("--resamples", type=int, default=500, metavar="N", help="bootstrap resamples of patients (default: 500)")


def work(options: argparse.Namespace) -> int:
    """Analyses a run and writes ``analysis.json``, ``analysis/<split>.npz`` and ``figures/``.

    Raises:
        ConfigError: unknown section or task. DataError: no such run, split or file. CheckpointError: no weights.
    """
    import time
    from pathlib import Path

    from m4oe_ds.analysis.inputs import analysed
    from m4oe_ds.analysis.sections import WORK, agreement_lines, facts_of
    from m4oe_ds.analysis.session import Session, Skip
    from m4oe_ds.errors import ConfigError
    from m4oe_ds.runs.finished import open_run
    from m4oe_ds.runs.folder import plain, write_json

    started = time.monotonic()
    sections = _sections(options.only)
    folder = Path(options.run)
    run = open_run(folder, options.split, options.data)
    baseline = analysed(Path(options.baseline)) if options.baseline else {}
    same = ("modalities", "tasks")
    if baseline and [baseline.get(name) for name in same] != [list(run.spec.modalities), list(run.spec.task_names)]:
        raise ConfigError("has other modalities or tasks", f"--baseline {options.baseline}", "name a comparable run")
    state = Session(options, run, run.config.model.name, baseline)
    tasks = _tasks(state)
    _passes(state, sections, tasks)
    skipped = {}
    for section in sections:
        begin = time.monotonic()
        try:
            state.result[section] = WORK[section](state)
        except Skip as reason:
            skipped[section] = str(reason)
            print(f"{section:17} skipped: {reason}")
        else:
            print(f"{section:17} done in {time.monotonic() - begin:.1f} s", flush=True)
    if "interpretability" in state.result:
        print("\n".join(agreement_lines(state.result["interpretability"])))
    path = folder / "analysis.json"
    content = {
        **_earlier(path, options, sections),
        **facts_of(state),
        **{name: plain(value) for name, value in state.result.items()},
        "skipped": skipped,
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(path, content)
    note = " (synthetic data)" if content["synthetic"] else ""
    drawn = len([p for p in state.figures if p.suffix == ".png"])
    print(f"analysis of {options.split}{note}: {path}, {drawn} figures in {folder / 'figures'}")
    return 0


def _sections(only: str) -> list[str]:
    from m4oe_ds.errors import ConfigError

    names = [name.strip() for name in only.split(",") if name.strip()] or list(SECTIONS)
    unknown = [name for name in names if name not in SECTIONS]
    if unknown:
        raise ConfigError(f"no analysis {', '.join(unknown)}", "--only", f"choose among {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if name in names]


def _tasks(state: Session) -> tuple[str, ...]:
    """Tasks of the synergy matrices."""
    from m4oe_ds.analysis.session import PAPER_TASKS
    from m4oe_ds.errors import ConfigError

    known = [task.name for task in state.run.spec.tasks if task.kind == "classification"]
    asked = tuple(name.strip() for name in state.options.tasks.split(",") if name.strip())
    if unknown := [name for name in asked if name not in known]:
        raise ConfigError(f"no classification task {', '.join(unknown)}", "--tasks", f"choose among {', '.join(known)}")
    return asked or tuple(name for name in PAPER_TASKS if name in known) or tuple(known[:2])


def _passes(state: Session, sections: Iterable[str], tasks: tuple[str, ...]) -> None:
    """The pass over the split, and the lighter one over the training split if a section needs it."""
    from m4oe_ds.analysis.collect import collect, collect_features
    from m4oe_ds.analysis.sections import save_rows
    from m4oe_ds.analysis.session import FEATURE_ROWS

    run, options = state.run, state.options
    wanted = set(sections)
    if wanted & NEEDS_PASS:
        batches = _progress(run, options.split, options.limit)
        state.collected = collect(run.model, batches, tasks, run.device, FEATURE_ROWS)
        save_rows(state)
    if wanted & NEEDS_TRAINING_SPLIT:
        limit = options.limit or FEATURE_ROWS
        state.train = collect_features(run.model, _progress(run, "train", limit), tasks, run.device)


def _progress(run: Run, split: str, limit: int) -> Iterable[Any]:
    from tqdm import tqdm

    return tqdm(run.batches(split, limit), total=run.num_batches(split, limit), desc=f"{split} split", unit="batch")


def _earlier(path: Path, options: argparse.Namespace, sections: Iterable[str]) -> dict[str, Any]:
    """Sections of an earlier analysis of the same samples that this one does not repeat."""
    import json

    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if content.get("split") != options.split or content.get("limit") != options.limit:
        return {}
    return {name: value for name, value in content.items() if name not in sections}
