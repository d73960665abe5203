# ruff: noqa: T201
"""``m4oe export``: which checkpoint, where to, and whether both can be, before torch is imported."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from m4oe_ds.command_line import check_output
from m4oe_ds.errors import CheckpointError, ConfigError, DataError, EnvironmentProblem
from m4oe_ds.runs.apart import check_apart
from m4oe_ds.runs.folder import BEST, LATEST, CheckpointFolder, RunFolder, checkpoint_tags
from m4oe_ds.yaml_tree import nearest

_POINTERS = {"best": BEST, "latest": LATEST}
_SUFFIX = ".safetensors"
_OTHERS = (".pt", ".pth", ".bin", ".ckpt", ".onnx", ".npz", ".json", ".yaml")  # of files that are something else


@dataclass(frozen=True)
class Export:
    """What is exported, and where to.

    Attributes:
        checkpoint: folder of the checkpoint.
        out: file of the weights.
    """

    checkpoint: Path
    out: Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the sub-command."""
    from m4oe_ds.arguments import number

    parser.add_argument("run", metavar="RUN", help="run folder, or one of its step-* checkpoints")
    parser.add_argument(
        "--checkpoint", default="", metavar="best|latest|TAG", help="checkpoint to export (default: best)"
    )
    parser.add_argument(
        "--out",
        default="",
        metavar="FILE|DIR",
        help="file, or folder that opens as a run elsewhere (default: RUN/weights/model.safetensors)",
    )
    parser.add_argument(
        "--dtype", default="fp32", choices=("fp32", "bf16", "fp16"), help="type of the weights (default: fp32)"
    )
    parser.add_argument(
        "--max-file-gb",
        type=number(at_least=0),
        default=0.0,
        metavar="GB",
        help="largest size of a file in GB of 10^9 bytes; 0 = one file (default: 0)",
    )


def main(options: argparse.Namespace) -> None:
    """Exports and says what was written.

    Raises:
        DataError: no such run.
        CheckpointError: no such checkpoint, a damaged one, or an output folder that is another run.
        EnvironmentProblem: an output that cannot be written.
    """
    asked = choose(Path(options.run), options.checkpoint, options.out)

    from m4oe_ds.runs.weights import consolidate, describe, describe_file

    origin = RunFolder(asked.checkpoint.parent.parent)
    folder = describe(origin, asked.out)
    if folder is not None:
        print(f"configuration, card and statistics of the data -> {folder}")
    for path in consolidate(asked.checkpoint, asked.out, options.dtype, options.max_file_gb):
        print(f"{asked.checkpoint.name} -> {path} ({path.stat().st_size / 1e6:.1f} MB)")
    config = describe_file(origin, asked.out) if folder is None else None
    if config is not None:
        print(f"its configuration -> {config} (another run starts from it with model.init_from)")


def choose(run: Path, checkpoint: str, out: str = "") -> Export:
    """The checkpoint and the file that options name. Imports no torch.

    Args:
        run: run folder, or a checkpoint of one.
        checkpoint: ``best``, ``latest`` or the name of one; empty = the best.
        out: file or folder; empty = the weights of the run itself.

    Raises:
        ConfigError: a checkpoint is named twice.
        DataError: no such run.
        CheckpointError: no such checkpoint, or a damaged pointer to it.
        EnvironmentProblem: an output that cannot be written.
    """
    itself = CheckpointFolder(run).manifest.is_file()
    if itself and checkpoint:
        raise ConfigError(
            f"{run} is a checkpoint itself", f"--checkpoint {checkpoint}", "leave it out, or name the run"
        )
    chosen = run if itself else _checkpoint(run, checkpoint or "best")
    wanted = Path(out) if out else RunFolder(chosen.parent.parent).weights
    target = wanted if wanted.suffix == _SUFFIX else RunFolder(wanted).weights
    if wanted.suffix in _OTHERS and not wanted.is_dir():
        raise EnvironmentProblem(f"is not named *{_SUFFIX}", str(wanted), "choose another --out, or name a folder")
    check_output(target.parent, "--out")
    if wanted.suffix != _SUFFIX and out and wanted.absolute() != chosen.parent.parent.absolute():
        check_apart(wanted, "--out")
    if target.is_dir():
        raise CheckpointError("is a folder", str(target), "choose another --out")
    return Export(chosen, target)


def _checkpoint(run: Path, checkpoint: str) -> Path:
    files = RunFolder(run)
    tags = checkpoint_tags(files.checkpoints)
    if not tags:
        if not run.is_dir():
            what = "is a file, not a run folder" if run.exists() else "no such run folder"
            raise DataError(what, str(run), "name a folder under runs/")
        fix = "train it further, or name another run"
        if files.weights.is_file():
            fix = f"its consolidated weights are there already: {files.weights}"
        raise CheckpointError("has no complete checkpoint", str(run), fix)
    pointer = _POINTERS.get(checkpoint)
    tag = checkpoint
    if pointer is not None:
        path = files.checkpoints / pointer
        try:
            tag = path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            fix = f"name one with --checkpoint: {', '.join(tags)}"
            raise CheckpointError(f"no {checkpoint} checkpoint (no {pointer} file)", str(run), fix) from None
    if tag not in tags:
        what = f"no checkpoint {tag!r}" + (f", which {pointer} names" if pointer else "")
        raise CheckpointError(what + nearest(tag, ["best", "latest", *tags], ordered=True), str(run))
    return files.checkpoints / tag
