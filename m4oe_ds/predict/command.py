# ruff: noqa: T201
"""``m4oe predict``: predictions of a finished run for new DICOM files, without tables or labels."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from data_tools.outputs import next_to
from m4oe_ds.predict.wording import counted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the sub-command."""
    add = parser.add_argument
    add("run", metavar="RUN", help="run folder, e.g. runs/demo")
    add("--dicom", required=True, metavar="DIR", help="folder of DICOM files, searched with all its sub-folders")
    add("--out", required=True, metavar="DIR", help="folder to make; must be absent or empty")
    add("--batch-size", type=int, default=0, metavar="N", help="samples per forward (default: as in evaluation)")
    add("--limit", type=int, default=0, metavar="N", help="predict at most N samples (default: all)")
    add(
        "--workers",
        type=int,
        default=None,
        metavar="N",
        help="processes that read images (default: one per processor, at most 8; 0 = this one)",
    )
    add(
        "--data",
        default="",
        metavar="DIR",
        help="shard folder of the run, if it has moved; only its train/manifest.json is read",
    )
    add("--salt-file", default="", metavar="FILE", help="file with the secret of the pseudonyms (default: OUT.secret)")
    add("--accept-lossy", action="store_true", help="use images compressed with loss, as the converter does")


def main(options: argparse.Namespace) -> int:
    """Predicts and writes ``predictions.csv`` and ``predictions.json`` in ``--out``, ``OUT.mapping.csv`` next to it.

    Raises:
        ConfigError: an option, or a run that does not read DICOM.
        DataError: no usable image, or a folder that is not there or not empty.
        CheckpointError: weights missing or of another model.
        EnvironmentProblem: it was started with several ranks.
    """
    from m4oe_ds.predict.job import PredictionJob, check

    job = PredictionJob(
        run=Path(options.run),
        dicom=Path(options.dicom),
        out=Path(options.out),
        batch_size=options.batch_size,
        limit=options.limit,
        workers=options.workers,
        data=options.data,
        salt_file=options.salt_file,
        accept_lossy=options.accept_lossy,
    )
    check(job)  # before torch is imported: refusals are instant

    from m4oe_ds.predict.run import predict

    summary = predict(job)
    print("\n".join(lines(summary)))
    print(last_line(summary, job.target))
    return 0


def lines(summary: dict[str, Any]) -> list[str]:
    """What was read and what was left out."""
    files = summary["files"]
    out = [f"{files['found']} files: {files['used']} used, {files['found'] - files['used']} left out"]
    if files["left_out"]:
        out.append(f"left out: {counted(files['left_out'])}")
    if summary["samples_without_prediction"]:
        out.append(f"samples without a prediction: {len(summary['samples_without_prediction'])}")
    if summary["exams_without_prediction"]:
        out.append(f"exams without a usable image: {len(summary['exams_without_prediction'])} (in predictions.json)")
    return out


def last_line(summary: dict[str, Any], out: Path) -> str:
    """What was made and where."""
    samples = summary["samples"]
    note = " (synthetic data)" if summary["synthetic"] else ""
    if summary["trained_on_synthetic"] and not summary["synthetic"]:
        note = " (by a model trained on synthetic data)"
    partial = sum(bool(sample["missing"]) for sample in samples)
    exams = len({sample["exam"] for sample in samples})
    return (
        f"predicted {len(samples)} samples of {exams} exams{note}, {partial} with missing modalities: "
        f"{out / 'predictions.csv'}, {out / 'predictions.json'}; private: {next_to(out, 'mapping.csv')}"
    )
