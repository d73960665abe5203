"""What a finished run must have to be opened: looked for before torch is imported, so that refusals are instant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from m4oe_ds.config import Config
from m4oe_ds.data import sources
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.roots import root_of
from m4oe_ds.errors import DataError
from m4oe_ds.runs.configuration import open_config
from m4oe_ds.runs.folder import RunFolder
from m4oe_ds.runs.weight_files import find_weights

NO_SHARDS = "make shards with `m4oe convert`, or name their folder"


def check_run(folder: Path, splits: Sequence[str] = (), data: str = "", *, weights: bool = True) -> Config:
    """The configuration of a run that can be opened as :func:`m4oe_ds.runs.finished.open_run` will.

    Args:
        folder: run folder.
        splits: those to be read.
        data: other shard folder, or empty.
        weights: whether its weights are needed.

    Raises:
        DataError: no such run, shards or split.
        CheckpointError: no weights, or damaged ones.
        ConfigError: its configuration or its card is damaged.
    """
    config = open_config(folder, data)
    if weights:
        find_weights(RunFolder(folder).weights)
    if splits:
        check_splits(config, splits, "--data" if data else "data.root")
    return config


def check_splits(config: Config, splits: Sequence[str], option: str) -> None:
    """Shards must be where a configuration says.

    Args:
        config: the configuration.
        splits: those to be read.
        option: that named the folder.

    Raises:
        DataError: no such folder, split, or a damaged manifest.
    """
    root = config.data.root
    if sources.is_remote(root, option):
        root_of(root, option)
        return
    if not root or not Path(root).is_dir():
        what = f"{root!r} is a file, not a folder of shards" if Path(root).is_file() else f"no shard folder {root!r}"
        raise DataError(what, option, NO_SHARDS + (" with --data" if option != "--data" else ""))
    for split in splits:
        Manifest.load(Path(root) / split)
