"""One prediction from a run folder and a folder of DICOM files to the files of ``--out``."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from data_tools.convert.jobs import Storing
from data_tools.convert.sample import SampleJob
from data_tools.deidentify import SYNTHETIC_SECRET, load_secret
from data_tools.outputs import next_to
from m4oe_ds.data import sources
from m4oe_ds.data.batch import Batch
from m4oe_ds.data.collate import Sample, Sizes, collate
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.reading import Reading
from m4oe_ds.errors import ConfigError, DataError, EnvironmentProblem
from m4oe_ds.evaluation.inference import Predictions, predict_split
from m4oe_ds.models.interface import ModelOutput
from m4oe_ds.parallel import launch
from m4oe_ds.predict import results
from m4oe_ds.predict.exams import Found, collect
from m4oe_ds.predict.job import PredictionJob, check
from m4oe_ds.predict.samples import SampleRules, Tally, limited, mark_beyond, plan_samples, read_samples, storing
from m4oe_ds.predict.wording import REASONS_SHOWN, counted
from m4oe_ds.runs import assemble
from m4oe_ds.runs.finished import Run, open_run
from m4oe_ds.runs.objective import objective

_logger = logging.getLogger(__name__)
NOTICE = "research software, not a medical device"


@dataclass(frozen=True)
class _Prepared:
    """A job with the run it names.

    Attributes:
        job: the job as it was given.
        run: model, configuration and manifests.
        store: how the shards of the run were stored.
        reading: how evaluation reads a sample.
        rules: what a sample needs to be predicted.
        batch_size: samples per forward.
    """

    job: PredictionJob
    run: Run
    store: Storing
    reading: Reading
    rules: SampleRules
    batch_size: int

    @property
    def manifest(self) -> Manifest:
        """Manifest of the training split."""
        return self.run.manifests["train"]


def predict(job: PredictionJob) -> dict[str, Any]:
    """Predicts every sample below ``job.dicom`` and writes the files of ``job.out``.

    Returns:
        The content of ``predictions.json``.

    Raises:
        UserError: see :func:`m4oe_ds.predict.command.main`; nothing is left behind then.
    """
    check(job)
    if launch.resolve(os.environ).world > 1:
        raise EnvironmentProblem("every rank would predict everything", fix="start m4oe predict as one process")
    prepared = _prepare(job)
    run, rules, dataset, out = prepared.run, prepared.rules, prepared.manifest.dataset, job.target
    found = collect(
        job.dicom, _reader(prepared.manifest), rules.complete or run.spec.modalities, lossy=job.accept_lossy
    )
    for line in found.lacking:
        _logger.warning("%s", line)
    if not found.plan.samples:
        raise nothing_usable(found.reasons(), len(found.files), job.dicom)
    synthetic = (job.dicom / "phantom.json").is_file()
    with _folder(out) as folder, _secret(job, synthetic) as secret:
        planned = plan_samples(found, job.dicom.absolute(), prepared.store, secret)
        kept, keys = limited(planned, job.limit, rules.contralateral)
        mark_beyond(found, planned, keys)
        before = found.reasons()
        tally = Tally()
        predictions, masks = _infer(prepared, found, kept, keys, tally, folder)
        exam_key = results.exam_keys(found, dataset, secret)
        samples = results.entries(predictions, tally.rows, run.spec, masks)
        summary = _facts(prepared, synthetic) | {
            "samples": samples,
            "samples_without_prediction": sorted(tally.failed, key=lambda one: str(one["key"])),
            "exams_without_prediction": results.exams_without_prediction(
                found, exam_key, {row.exam for row in tally.rows.values()}
            ),
            "files": {
                "found": len(found.files),
                "used": tally.used,
                "left_out": dict(sorted((before + tally.bad).items())),
            },
        }
        results.write_table(folder / "predictions.csv", samples)
        results.write_report(folder / "predictions.json", summary)
        names = {f"{row.exam}-{row.side}": row.key for row in tally.rows.values()}
        results.write_mapping(next_to(out, "mapping.csv"), found, exam_key, names)
    return summary


def _prepare(job: PredictionJob) -> _Prepared:
    """Opens the run and takes from it how samples are read.

    Raises:
        UserError: the run cannot be opened, or its shards were made with other pixels than this package makes.
    """
    run = open_run(job.run, "train", job.data)
    manifest = run.manifests["train"]
    where = sources.shown(sources.join(run.config.data.root, "train"))
    store = storing(manifest, where)
    complete = manifest.card.modalities if manifest.preprocessing.get("require") == "complete" else ()
    rules = SampleRules(complete, run.spec.modalities, run.config.data.complete_only, run.config.data.contralateral)
    batch_size = job.batch_size or run.micro_batch
    # the stream is never started: it says how evaluation reads a sample, and refuses what evaluation refuses
    reading = assemble.stream(run.config, "train", run.spec, batch_size, 1, run.manifests).reading
    return _Prepared(job, run, store, reading, rules, batch_size)


def _reader(manifest: Manifest) -> str:
    """The reader of the archive that the run was trained on; its rules choose the images here as well."""
    source = manifest.card.source
    return source.reader if source else ""


def _facts(prepared: _Prepared, synthetic: bool) -> dict[str, Any]:
    """What ``predictions.json`` says of the run, before the predictions."""
    run, store, manifest = prepared.run, prepared.store, prepared.manifest
    return {
        "notice": NOTICE,
        "synthetic": synthetic,
        "trained_on_synthetic": bool(manifest.synthetic),
        "model": run.config.model.name,
        "dataset": manifest.dataset,
        "data_digest": manifest.digest,
        "preprocessing": {"rows": store.rows, "cols": store.cols, "image_size": list(run.spec.image_size)},
        "modalities": list(run.spec.modalities),
        "tasks": {task.name: list(results.class_names(task)) for task in run.spec.tasks},
    }


def nothing_usable(reasons: Counter[str], files: int, dicom: Path) -> DataError:
    """The error of a folder without anything to predict."""
    why = counted(dict(reasons), REASONS_SHOWN) or "it is empty"
    return DataError(
        f"no usable image among {files} files ({why})",
        str(dicom),
        "give images for presentation, with laterality and view in their headers, of the modalities of the run",
    )


def _infer(
    prepared: _Prepared, found: Found, jobs: list[SampleJob], keys: set[str], tally: Tally, folder: Path
) -> tuple[Predictions, dict[tuple[str, str], str]]:
    """Predictions and the mask files by (key, task).

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
    masks: dict[tuple[str, str], str] = {}
    dense = [task.name for task in run.spec.tasks if task.dense]

    def forward(batch: Batch) -> ModelOutput:
        output: ModelOutput = run.model(batch)
        for name in dense:
            for key, logits in zip(batch.keys, output.logits[name], strict=True):
                masks[key, name] = f"masks/{key}.{name}.png"
                results.save_mask(folder / masks[key, name], (logits > 0).cpu().numpy())
        return output

    with tqdm(total=len(keys), desc="samples", unit="sample") as progress:
        samples = read_samples(jobs, keys, found, reading, rules, workers, tally)
        batches = _batches(samples, reading, size, rules.contralateral, tally, progress)
        first = next(batches, None)
        if first is None:
            progress.close()
            raise nothing_usable(found.reasons(), len(found.files), prepared.job.dicom)
        try:
            predictions = predict_split(
                forward,
                itertools.chain([first], batches),
                run.spec,
                objective(run.config, run.spec, run.statistics, run.device),
                run.device,
                torch.float32,
                correction=assemble.prior_correction(run.config, run.spec, prepared.manifest),
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
        progress.update(len(tally.rows) + len(tally.failed) - progress.n)
        yield collate(
            part,
            reading.inputs,
            reading.tasks,
            Sizes(reading.image_size, reading.volume_size),
            contralateral=contralateral,
        )
    progress.update(len(tally.rows) + len(tally.failed) - progress.n)


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
