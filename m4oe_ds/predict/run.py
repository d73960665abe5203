"""One prediction from a run folder and new samples to the files of ``--out``."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data_tools.convert.jobs import Storing
from data_tools.convert.report import plural
from data_tools.convert.sample import SampleJob
from data_tools.deidentify import SYNTHETIC_SECRET, load_secret
from data_tools.outputs import next_to
from m4oe_ds.coordinates import resolve
from m4oe_ds.data.batch import Batch
from m4oe_ds.data.cards import Card, find_card
from m4oe_ds.data.collate import Sample, Sizes, collate
from m4oe_ds.data.reading import Reading
from m4oe_ds.data.roots import is_synthetic
from m4oe_ds.errors import ConfigError, DataError, EnvironmentProblem
from m4oe_ds.evaluation.inference import Predictions, predict_split
from m4oe_ds.models.interface import ModelOutput
from m4oe_ds.predict import exams, results, rows
from m4oe_ds.predict.given import Found
from m4oe_ds.predict.job import PredictionJob, check
from m4oe_ds.predict.samples import SampleRules, Tally, limited, mark_beyond, plan_samples, read_samples, storing
from m4oe_ds.predict.wording import REASONS_SHOWN, counted
from m4oe_ds.progress import Progress
from m4oe_ds.runs import assemble
from m4oe_ds.runs.finished import Run, open_run
from m4oe_ds.runs.folder import RunFolder
from m4oe_ds.runs.objective import objective

_logger = logging.getLogger(__name__)
NOTICE = "research software, not a medical device"


@dataclass(frozen=True)
class _Prepared:
    """A job with the run it names.

    Attributes:
        job: the job as it was given.
        run: model, configuration and what it was trained on.
        card: the card of the run.
        store: how the shards of the run were stored, and the card by which new samples are read.
        reading: how evaluation reads a sample.
        rules: what a sample needs to be predicted.
        batch_size: samples per forward.
    """

    job: PredictionJob
    run: Run
    card: Card
    store: Storing
    reading: Reading
    rules: SampleRules
    batch_size: int


def predict(job: PredictionJob) -> dict[str, Any]:
    """Predicts every sample that is given and writes the files of ``job.out``.

    Returns:
        The content of ``predictions.json``.

    Raises:
        UserError: see :func:`m4oe_ds.predict.command.main`; nothing is left behind then.
    """
    check(job)
    if resolve(os.environ).world > 1:
        raise EnvironmentProblem("every rank would predict everything", fix="start m4oe predict as one process")
    prepared = _prepare(job)
    run, rules, out = prepared.run, prepared.rules, job.target
    found = _collect(prepared)
    for line in found.notes:
        _logger.warning("%s", line)
    if not found.plan.samples:
        raise nothing_usable(found, job.given)
    synthetic = is_synthetic(job.files)
    with _folder(out) as folder, _secret(job, synthetic) as secret:
        planned = plan_samples(found, job.files.absolute(), prepared.store, secret)
        kept, keys = limited(planned, job.limit, rules.contralateral)
        mark_beyond(found, planned, keys)
        before = found.reasons()
        tally = Tally()
        predictions, masks = _infer(prepared, found, kept, keys, tally, folder)
        exam_key = results.exam_keys(found, prepared.card.name, secret)
        samples = results.entries(predictions, tally.rows, run.spec, masks)
        summary = _facts(prepared, synthetic) | {
            "samples": samples,
            "samples_without_prediction": sorted(tally.failed, key=lambda one: str(one["key"])),
            "exams_without_prediction": results.exams_without_prediction(
                found, exam_key, {row.exam for row in tally.rows.values()}
            ),
            **_counts(found, tally, before + tally.bad),
            "notes": found.notes,
        }
        results.write_table(folder / "predictions.csv", samples)
        results.write_report(folder / "predictions.json", summary)
        results.write_mapping(next_to(out, "mapping.csv"), found, exam_key, tally.keys)
    return summary


def _counts(found: Found, tally: Tally, left_out: Mapping[str, int]) -> dict[str, Any]:
    """What became of rows and files, for ``predictions.json``."""
    files = {"found": len(found.files), "used": tally.used, "left_out": dict(sorted(left_out.items()))}
    if not found.rows:
        return {"files": files}
    numbers = {"found": len(found.rows), "predicted": len(tally.rows), "left_out": found.rows_by_outcome()}
    return {"rows": numbers, "files": files | {"rows": found.file_rows_by_outcome()}}


def _prepare(job: PredictionJob) -> _Prepared:
    """Opens the run and takes from it how samples are read.

    Raises:
        UserError: the run cannot be opened, or its shards were made with other pixels than this package makes.
    """
    run = open_run(job.run, data=job.data)
    files, stored, card = RunFolder(job.run), run.data.preprocessing, find_card(run.config.data.dataset)
    complete = card.modalities if stored.get("require") == "complete" else ()
    rules = SampleRules(complete, run.spec.modalities, run.config.data.complete_only, run.config.data.contralateral)
    asked = card
    if job.table is not None:
        asked = rows.without_answers(card, complete or run.spec.modalities, job.table, stored)
    store = storing(stored, asked, str(files.data if files.data.is_file() else run.config.data.root))
    reading = assemble.reading(run.config, run.spec, run.data.normalisation())
    return _Prepared(job, run, card, store, reading, rules, job.batch_size or run.micro_batch)


def _collect(prepared: _Prepared) -> Found:
    """Everything that was given."""
    job, source = prepared.job, prepared.card.source
    assert source is not None  # the job was checked
    if job.table is not None:
        found = rows.collect(prepared.store.card, RunFolder(job.run).card, job.files, source)
        found.notes += rows.unlike_training(found, prepared.store.card, prepared.run.data.pixel_statistics)
        return found
    wanted = prepared.rules.complete or prepared.run.spec.modalities
    return exams.collect(job.given, source.reader, wanted, lossy=job.accept_lossy)


def _facts(prepared: _Prepared, synthetic: bool) -> dict[str, Any]:
    """What ``predictions.json`` says of the run, before the predictions."""
    run, store, card, data = prepared.run, prepared.store, prepared.card, prepared.run.data
    return {
        "notice": NOTICE,
        "synthetic": synthetic,
        "trained_on_synthetic": bool(data.synthetic),
        "model": run.config.model.name,
        "dataset": data.dataset,
        "data_digest": data.digest,
        "words": {
            "sample": card.unit,
            "samples": plural(card.unit),
            "group": card.group,
            "groups": plural(card.group),
            "modalities": {one.name: one.label or one.name for one in run.spec.inputs},
            "tasks": {task.name: task.label or task.name for task in run.spec.tasks},
        },
        "preprocessing": {"rows": store.rows, "cols": store.cols, "image_size": list(run.spec.image_size)},
        "modalities": list(run.spec.modalities),
        "tasks": {task.name: list(results.class_names(task)) for task in run.spec.tasks},
    }


def nothing_usable(found: Found, where: Path) -> DataError:
    """The error of a folder or table without anything to predict."""
    if found.rows:
        reasons = dict(Counter(row.outcome for row in found.rows))
        given, number = "rows", len(found.rows)
    else:
        reasons, given, number = dict(found.reasons()), "files", len(found.files)
    why = counted(reasons, REASONS_SHOWN) or "it is empty"
    return DataError(f"no usable {found.what} among {number} {given} ({why})", str(where), found.fix)


def _infer(
    prepared: _Prepared, found: Found, jobs: list[SampleJob], keys: set[str], tally: Tally, folder: Path
) -> tuple[Predictions, dict[tuple[str, str], dict[str, str]]]:
    """Predictions and the files of masks by (key, task) and class.

    Args:
        prepared: the job and its run.
        found: files, whose outcomes are noted.
        jobs: samples to convert.
        keys: keys of the samples to predict.
        tally: takes what became of samples and images.
        folder: folder that the masks are written to.

    Raises:
        DataError: no image could be used.
        ConfigError: the batch does not fit the device's memory.
    """
    run, reading, rules, size = prepared.run, prepared.reading, prepared.rules, prepared.batch_size
    workers = min(8, os.cpu_count() or 1) if prepared.job.workers is None else prepared.job.workers
    masks: dict[tuple[str, str], dict[str, str]] = {}
    dense = [task for task in run.spec.tasks if task.dense]

    def forward(batch: Batch) -> ModelOutput:
        output: ModelOutput = run.model(batch)
        for task in dense:
            for key, logits in zip(batch.keys, output.logits[task.name], strict=True):
                masks[key, task.name] = results.save_masks(folder, key, task, (logits > 0).cpu().numpy())
        return output

    with Progress("predicting", len(keys), "samples").start() as progress:
        samples = read_samples(jobs, keys, found, reading, rules, workers, tally)
        batches = _batches(samples, reading, size, rules.contralateral, tally, progress)
        first = next(batches, None)
        if first is None:
            progress.close()
            raise nothing_usable(found, prepared.job.given)
        try:
            predictions = predict_split(
                forward,
                itertools.chain([first], batches),
                run.spec,
                objective(run.config, run.spec, run.statistics, run.device),
                run.device,
                torch.float32,
                correction=run.correction,
            )
        except torch.OutOfMemoryError:
            raise ConfigError(
                f"{size} samples do not fit the memory of {run.device}", "--batch-size", "use fewer"
            ) from None
    return predictions, masks


def _batches(
    samples: Iterable[Sample], reading: Reading, size: int, contralateral: bool, tally: Tally, progress: Any
) -> Iterator[Batch]:
    """Batches of at most ``size`` samples; the bar moves with the samples read, whether they can be used or not."""
    source = iter(samples)
    while part := list(itertools.islice(source, size)):
        progress.update(len(tally.rows) + len(tally.failed) - progress.done)
        yield collate(
            part,
            reading.inputs,
            reading.tasks,
            Sizes(reading.image_size, reading.volume_size),
            contralateral=contralateral,
        )
    progress.update(len(tally.rows) + len(tally.failed) - progress.done)


@contextmanager
def _folder(out: Path) -> Iterator[Path]:
    """A folder next to ``out`` that takes its place when all is written, and is removed otherwise."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise DataError(f"cannot be made ({error.strerror})", str(out), "choose another --out") from None
    try:
        yield made
        umask = os.umask(0)
        os.umask(umask)
        made.chmod(0o777 & ~umask)  # made for its owner alone; the files hold nothing private
        os.replace(made, out)
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def _secret(job: PredictionJob, synthetic: bool) -> Iterator[bytes]:
    """The secret of the pseudonyms, as of a conversion; one made for a prediction that fails is removed again."""
    if synthetic and not job.salt_file:
        yield SYNTHETIC_SECRET
        return
    path = Path(job.salt_file) if job.salt_file else next_to(job.target, "secret")
    new = not path.exists()
    secret = load_secret(path)
    try:
        yield secret
    except BaseException:
        if new:
            path.unlink(missing_ok=True)
        raise
