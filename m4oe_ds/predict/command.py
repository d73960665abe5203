# ruff: noqa: T201
"""``m4oe predict``: predictions of a finished run for new samples, from a table or from DICOM files, without labels."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from data_tools.outputs import next_to
from m4oe_ds.arguments import MOST_PROCESSES, whole
from m4oe_ds.predict.wording import counted, numbered


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the sub-command."""
    add = parser.add_argument
    add("run", metavar="RUN", help="run folder, e.g. runs/demo")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument(
        "--table",
        metavar="FILE",
        help="table with a row for every sample, as the card of the run describes it; answers may be absent",
    )
    given.add_argument(
        "--dicom",
        metavar="DIR",
        help="folder of DICOM files, with its sub-folders; for runs whose card has the reader of a DICOM archive",
    )
    add(
        "--root",
        metavar="DIR",
        help="folder or address of the files that the table names (default: the folder of the table)",
    )
    add("--out", required=True, metavar="DIR", help="folder to make; must be absent or empty")
    add(
        "--batch-size",
        type=whole(),
        default=0,
        metavar="N",
        help="samples per forward; 0 = as in evaluation (default: 0)",
    )
    add("--limit", type=whole(), default=0, metavar="N", help="predict at most N samples; 0 = all (default: 0)")
    add(
        "--workers",
        type=whole(0, MOST_PROCESSES),
        default=None,
        metavar="N",
        help="processes that read images (default: one per processor, at most 8; 0 = this one)",
    )
    add(
        "--data",
        default="",
        metavar="DIR",
        help="shard folder of a run without data.json, if it has moved; only its train/manifest.json is read",
    )
    add("--salt-file", default="", metavar="FILE", help="file with the secret of the pseudonyms (default: OUT.secret)")
    add("--accept-lossy", action="store_true", help="use images compressed with loss, as the converter does")


def main(options: argparse.Namespace) -> int:
    """Predicts and writes ``predictions.csv`` and ``predictions.json`` in ``--out``, ``OUT.mapping.csv`` next to it.

    Raises:
        ConfigError: an option, or a run that reads something else than is given.
        DataError: nothing usable, a table that does not fit the card, or a folder that is not there or not empty.
        CheckpointError: weights missing or of another model.
        EnvironmentProblem: it was started with several ranks.
    """
    from m4oe_ds.data.roots import root_of
    from m4oe_ds.predict.job import PredictionJob, check

    job = PredictionJob(
        run=Path(options.run),
        out=Path(options.out),
        dicom=None if options.dicom is None else Path(options.dicom),
        table=None if options.table is None else Path(options.table),
        root=None if options.root is None else root_of(options.root),
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
    out = []
    if "rows" in summary:
        rows = summary["rows"]
        out.append(f"{rows['found']} rows: {rows['predicted']} predicted, {rows['found'] - rows['predicted']} left out")
        out += [f"left out: {reason}: rows {numbered(numbers)}" for reason, numbers in rows["left_out"].items()]
    files = summary["files"]
    out.append(f"{files['found']} files: {files['used']} used, {files['found'] - files['used']} left out")
    if files["left_out"] and "rows" not in files:
        out.append(f"left out: {counted(files['left_out'])}")
    out += [f"files left out: {reason}: rows {numbered(rows)}" for reason, rows in files.get("rows", {}).items()]
    out += summary["notes"]
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
    groups = len({sample["group"] for sample in samples})
    private = [path for path in (next_to(out, "mapping.csv"), next_to(out, "secret")) if path.exists()]
    return (
        f"predicted {len(samples)} samples of {groups} {summary['words']['groups']}{note}, "
        f"{partial} with missing modalities: {out / 'predictions.csv'}, {out / 'predictions.json'}; "
        f"private: {', '.join(map(str, private))}"
    )
