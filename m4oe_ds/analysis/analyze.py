"""One analysis of a finished run, from its options to ``analysis.json``, ``analysis/<split>.npz`` and ``figures/``."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from m4oe_ds.analysis.collect import collect, collect_features
from m4oe_ds.analysis.inputs import analysed
from m4oe_ds.analysis.options import NEEDS_TRAINING_SPLIT, SECTIONS, AnalysisOptions
from m4oe_ds.analysis.refusals import chosen, refuse
from m4oe_ds.analysis.sections import WORK, agreement_lines, facts_of, save_rows
from m4oe_ds.analysis.session import FEATURE_ROWS, Session, Skip, headline, tracked
from m4oe_ds.errors import ConfigError
from m4oe_ds.option_lists import check_known
from m4oe_ds.runs.finished import Run, open_run
from m4oe_ds.runs.folder import RunFolder, plain, write_json
from m4oe_ds.runs.result_name import is_own, result_name
from m4oe_ds.stored import read_json

_logger = logging.getLogger(__name__)
NEEDS_PASS = {*SECTIONS} - {"conflict", "sweep", "missing", "gallery", "own", "clinical"}


def analyze(options: AnalysisOptions, say: Callable[[str], None] = _logger.info) -> dict[str, Any]:
    """Analyses a run and writes ``analysis.json``, ``analysis/<split>.npz`` and ``figures/``.

    Args:
        options: what to analyse.
        say: takes a line of text for every section, and what was written.

    Returns:
        The content of ``analysis.json``.

    Raises:
        ConfigError: unknown section or task.
        DataError: no such run, split or file.
        CheckpointError: no weights.
    """
    started = time.monotonic()
    refuse(options)
    sections = chosen(options)
    needs_train = not NEEDS_TRAINING_SPLIT.isdisjoint(sections)
    run = open_run(options.run, options.split, options.data, train=needs_train)
    called = _called(options, run)
    session = Session(options, run, run.config.model.name, _baseline(options, run))
    _passes(session, sections, _tasks(session))
    skipped = {}
    for section in sections:
        begin = time.monotonic()
        try:
            session.result[section] = WORK[section](session)
        except Skip as reason:
            skipped[section] = str(reason)
            say(f"{section:17} skipped: {reason}")
        else:
            say(f"{section:17} done in {time.monotonic() - begin:.1f} s")
    if "interpretability" in session.result:
        say("\n".join(agreement_lines(session.result["interpretability"])))
    lacking = session.result.get("clinical", {}).get("subgroups_not_in_shards")
    if lacking:
        say(f"  no results by {', '.join(lacking)}: the shards were made before the card had them; convert again")
    files = RunFolder(options.run)
    content = {
        **_earlier(files.analysis, called, options.limit, sections),
        **facts_of(session),
        "split": called,
        **{name: plain(value) for name, value in session.result.items()},
        "skipped": skipped,
        "seconds": round(time.monotonic() - started, 1),
    }
    write_json(files.analysis, content)
    note = " (synthetic data)" if content["synthetic"] else ""
    drawn = len([figure for figure in session.figures if figure.suffix == ".png"])
    say(f"analysis of {called}{note}: {files.analysis}, {drawn} figures in {files.figures}")
    return content


def _baseline(options: AnalysisOptions, run: Run) -> dict[str, Any]:
    """The analysis to compare with; empty without one.

    Raises:
        DataError: it was not analysed.
        ConfigError: it has other modalities or tasks.
    """
    if options.baseline is None:
        return {}
    baseline = analysed(options.baseline)
    same = ("modalities", "tasks")
    if baseline and [baseline.get(name) for name in same] != [list(run.spec.modalities), list(run.spec.task_names)]:
        raise ConfigError("has other modalities or tasks", f"--baseline {options.baseline}", "name a comparable run")
    return baseline


def _tasks(session: Session) -> tuple[str, ...]:
    """Tasks of the synergy matrices."""
    known = [task.name for task in session.run.spec.tasks if task.coded]
    check_known(session.options.tasks, "--tasks", known, noun="classification task")
    return session.options.tasks or headline(session)


def _passes(session: Session, sections: Iterable[str], tasks: tuple[str, ...]) -> None:
    """The pass over the split, and the lighter one over the training split if a section needs it."""
    run, options = session.run, session.options
    wanted = set(sections)
    if wanted & NEEDS_PASS:
        batches = tracked(run, options.split, options.limit, "routing and features")
        session.collected = collect(run.model, batches, tasks, run.device, FEATURE_ROWS)
        save_rows(session)
    if wanted & NEEDS_TRAINING_SPLIT:
        limit = options.limit or FEATURE_ROWS
        session.train = collect_features(run.model, tracked(run, "train", limit, "features"), tasks, run.device)


def _called(options: AnalysisOptions, run: Run) -> str:
    """What results of the split are stored under, see :func:`m4oe_ds.runs.result_name.result_name`.

    Raises:
        ConfigError: they are of other shards than the run's own, whose results they would take the place of.
    """
    files = RunFolder(options.run)
    stored = read_json(files.metrics, "run `m4oe evaluate` again") if files.metrics.is_file() else {}
    name = result_name(options.run, options.split, options.data, run.manifests[options.split], stored)
    analysed_before = read_json(files.analysis, "remove it").get("split") if files.analysis.is_file() else None
    if not is_own(name) and (options.split in stored or analysed_before == options.split):
        fix = f"analyse a copy: m4oe export {options.run} --out COPY, then m4oe analyze COPY --data {options.data}"
        raise ConfigError(
            "are other shards than the run's own, which its report is about", f"--data {options.data}", fix
        )
    return name


def _earlier(path: Path, called: str, limit: int, sections: Iterable[str]) -> dict[str, Any]:
    """Sections of an earlier analysis of the same samples that this one does not repeat."""
    if not path.is_file():
        return {}
    content = read_json(path, "remove it")
    if content.get("split") != called or content.get("limit") != limit:
        return {}
    return {name: value for name, value in content.items() if name not in sections}
