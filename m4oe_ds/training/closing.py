"""The end of a run: its best weights evaluated and written, the table of its last split, and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m4oe_ds.data.task_statistics import TaskStatistics
from m4oe_ds.evaluation.metrics import evaluate_split
from m4oe_ds.evaluation.metrics_text import format_table
from m4oe_ds.parallel import reduce
from m4oe_ds.progress import duration
from m4oe_ds.runs import weights
from m4oe_ds.runs.folder import LATEST, RunFolder, write_json
from m4oe_ds.runs.result_name import DIGEST
from m4oe_ds.training.loop import Loop, Outcome


def evaluate(
    loop: Loop, outcome: Outcome, folder: Path, statistics: Mapping[str, TaskStatistics]
) -> tuple[dict[str, Any], str]:
    """Evaluates the best checkpoint on the requested splits; writes weights, metrics, predictions and report.

    Args:
        loop: after training.
        outcome: how training ended.
        folder: run folder.
        statistics: what the training labels say, by task.

    Returns:
        the metrics by split, and the path of the report; nothing on ranks other than 0.

    Collectives: those of the predictions and barriers; every rank must call it.
    """
    store, config, files = loop.store, loop.config, RunFolder(folder)
    best = outcome.best_tag
    if best is not None and best != store.agreed_pointer(LATEST):
        store.load(loop.engine, best, weights_only=True)
    if reduce.rank() == 0 and best is not None:
        weights.consolidate(store.folder / best, files.weights)
    reduce.barrier()
    metrics: dict[str, Any] = {}
    for number, split in enumerate(config.evaluation.splits):
        examples = config.evaluation.num_examples if number == len(config.evaluation.splits) - 1 else 0
        predictions = loop.predict(split, examples)
        if reduce.rank() == 0:
            predictions.save(files.predictions(split), loop.spec)
            if examples:
                predictions.save_examples(files.examples)
            metrics[split] = evaluate_split(
                predictions.arrays(), loop.spec.tasks, resamples=config.evaluation.resamples, train=statistics
            )
            metrics[split]["loss"], metrics[split][DIGEST] = predictions.loss, loop.manifests[split].digest
    report = ""
    if reduce.rank() == 0:
        chosen = {"tag": best, "selected_by": f"validation {config.run.checkpoint.metric}"}
        early = {"stopped_early": outcome.early} if outcome.early else {}
        write_json(files.metrics, {**metrics, "checkpoint": {**chosen, **early}})
        from m4oe_ds.report.html import render

        report = str(render(folder))
    reduce.barrier()
    return metrics, report


def closing_lines(
    metrics: Mapping[str, Any], outcome: Outcome, folder: Path, report: str, synthetic: bool
) -> list[str]:
    """What is said at the end of a run: figures of the last split, what to type next, the path of the report last.

    Args:
        metrics: by split, as :func:`evaluate` returns them.
        outcome: how training ended.
        folder: run folder.
        report: path of the report.
        synthetic: whether the data are phantoms.
    """
    run, splits = shlex.quote(str(folder)), list(metrics)
    lines = [outcome.early] if outcome.early else []
    if splits:
        last, note = splits[-1], " (synthetic data)" if synthetic else ""
        lines += [f"{last} split{note}", *format_table(metrics[last]).splitlines(), ""]
    evaluate_one = f"m4oe evaluate {run} --split {splits[-1] if splits else 'test'}"
    lines += [
        f"next: m4oe analyze {run} && m4oe report {run}",
        f"      {evaluate_one}; m4oe export {run}; m4oe predict {run} --help",
    ]
    done = f"trained {outcome.position.step} steps in {duration(outcome.seconds)}"
    return [*lines, f"{done}; best: {outcome.best_tag}; report: {report}"]
