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
    add("--dicom", required=True, metavar="DIR", help="folder of DICOM files, searched through all its folders")
    add("--out", required=True, metavar="DIR", help="folder to make; must not exist, or be empty")
    add("--batch-size", type=int, default=0, metavar="N", help="samples per forward (default: as in evaluation)")
    add("--limit", type=int, default=0, metavar="N", help="at most N samples (default: all)")
    add("--workers", type=int, default=None, metavar="N",
        help="processes that read images (default: the processors, at most 8; 0 = in this one)")  # fmt: skip
    add("--data", default="", metavar="DIR",
        help="shard folder of the run, if it has moved; only its train/manifest.json is read")  # fmt: skip
    add(
        "--salt-file", default="", metavar="FILE", help="secret of the pseudonyms (default: OUT.secret, made if absent)"
    )
    add("--accept-lossy", action="store_true", help="use images compressed with loss, as the converter does")


def work(options: argparse.Namespace) -> int:
    """Predicts and writes ``predictions.csv`` and ``predictions.json`` in ``--out``, ``OUT.mapping.csv`` beside it.

    Raises:
        ConfigError: an option, or a run that does not read DICOM. DataError: no usable image, or a folder that is not
            there or not empty. CheckpointError: weights missing or of another model. EnvironmentProblem: several ranks.
    """
    from m4oe_ds.predict.run import predict

    dicom, out = Path(options.dicom), Path(options.out)
    if out.name in ("", ".."):
        out = out.resolve()  # its neighbours are named after it
    check(options, dicom, out)
    summary = predict(options, dicom, out)
    print("\n".join(lines(summary)))
    print(last_line(summary, out))
    return 0


def check(options: argparse.Namespace, dicom: Path, out: Path) -> None:
    """Refuses what can be refused before anything is loaded.

    Raises:
        ConfigError, DataError: as :func:`work` says.
    """
    from m4oe_ds import config_loader
    from m4oe_ds.data import sources
    from m4oe_ds.data.schema import DATASETS
    from m4oe_ds.errors import ConfigError, DataError

    for name, value in (("batch-size", options.batch_size), ("limit", options.limit), ("workers", options.workers)):
        if value is not None and value < 0:
            raise ConfigError(f"{value} is negative", f"--{name}", "use 0 or more")
    path = Path(options.run) / "config.yaml"
    if not path.is_file():
        raise DataError("not a run folder (no config.yaml)", options.run, "name a folder under runs/")
    config = config_loader.load(path)
    dataset, root = config.data.dataset, options.data or config.data.root
    if any(not name.startswith(("ffdm_", "syn_")) for name in DATASETS[dataset].modalities):
        raise ConfigError(
            f"reads {' and '.join(DATASETS[dataset].modalities)}, which are no DICOM files", options.run,
            "m4oe predict is for runs on embed, rsna and vindr; use `m4oe evaluate` on converted shards",
        )  # fmt: skip
    if not sources.is_remote(root) and not (Path(root) / "train" / "manifest.json").is_file():
        raise DataError(
            "the run's train/manifest.json is not here, which says how its pixels were treated", root or "data.root",
            "copy it and name its parent's parent folder as --data",
        )  # fmt: skip
    if not dicom.is_dir():
        raise DataError("is not a folder", options.dicom, "give the folder of the DICOM files as --dicom")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError("exists already and is not empty", options.out, "choose another --out or remove it")


def lines(summary: dict[str, Any]) -> list[str]:
    """What was read and what was left out."""
    files = summary["files"]
    out = [f"{files['found']} files: {files['used']} used, {files['found'] - files['used']} left out"]
    if files["left_out"]:
        out.append(f"left out: {counted(files['left_out'])}")
    if summary["samples_without_prediction"]:
        out.append(f"samples without a prediction: {len(summary['samples_without_prediction'])}")
    if summary["exams_without_prediction"]:
        out.append(f"exams without a usable view: {len(summary['exams_without_prediction'])} (in predictions.json)")
    return out


def last_line(summary: dict[str, Any], out: Path) -> str:
    """What was made and where."""
    samples = summary["samples"]
    note = " (synthetic data)" if summary["synthetic"] else ""
    if summary["trained_on_synthetic"] and not summary["synthetic"]:
        note = " (by a model trained on synthetic data)"
    partial = sum(bool(sample["missing"]) for sample in samples)
    return (
        f"predicted {len(samples)} samples of {len({sample['exam'] for sample in samples})} exams{note}, {partial} with "
        f"missing views: {out / 'predictions.csv'}, {out / 'predictions.json'}; private: {next_to(out, 'mapping.csv')}"
    )
