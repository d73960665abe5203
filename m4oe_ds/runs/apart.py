"""Whether an output folder holds something of another kind already. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from m4oe_ds.errors import EnvironmentProblem
from m4oe_ds.runs.folder import CheckpointFolder, RunFolder


def check_apart(folder: Path, option: str, *, run: bool = False) -> None:
    """An output folder must not hold something of another kind, which would be mixed with what is written.

    Args:
        folder: to be made, or to be written into.
        option: that names it.
        run: whether a run is written, so that it may hold one already, but not several in folders of their own.

    Raises:
        EnvironmentProblem: it holds shards, a checkpoint, or runs.
    """
    what = ""
    # manifests of shards and of checkpoints have one name
    manifest, log = CheckpointFolder(folder).manifest, RunFolder(folder).log
    if manifest.is_file() or any(folder.glob(f"*/{manifest.name}")):
        what = "holds shards, or checkpoints"
    elif run and not log.is_file() and any(folder.glob(f"*/{log.name}")):
        what = "holds other runs"
    elif not run and log.is_file():
        what = "is the folder of a run"
    if what:
        raise EnvironmentProblem(what, str(folder), f"choose another {option}, which is not there yet")
