"""What a finished run must have to be opened: looked for before torch is imported, so that refusals are instant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from m4oe_ds.config import Config
from m4oe_ds.data import sources
from m4oe_ds.data.cards import Card, find_card
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.roots import root_of
from m4oe_ds.data.shard_reader import verify_shards
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
        DataError: no such folder, split, a damaged manifest, one of another data set, or shards that are absent or cut.
    """
    root = config.data.root
    if sources.is_remote(root, option):
        root_of(root, option)
        return
    if not root or not Path(root).is_dir():
        what = f"{root!r} is a file, not a folder of shards" if Path(root).is_file() else f"no shard folder {root!r}"
        raise DataError(what, option, NO_SHARDS + (" with --data" if option != "--data" else ""))
    for split in splits:
        folder = Path(root) / split
        manifest = Manifest.load(folder)
        check_card(manifest.card, find_card(config.data.dataset), str(folder))
        if problems := verify_shards(folder, manifest, mode="size"):
            more = f" (and {len(problems) - 1} more shards)" if len(problems) > 1 else ""
            raise DataError(problems[0] + more)


def check_card(stored: Card, wanted: Card, where: str) -> None:
    """Shards and configuration must mean the same by every modality and task.

    Args:
        stored: card that the shards were made with.
        wanted: card of the configuration.
        where: the shards, for the message.

    Raises:
        DataError: they do not.
    """
    if stored.name != wanted.name:
        what = f"holds {stored.name}, but data.dataset is {wanted.name}"
        raise DataError(what, where, f"set data.dataset={stored.name}, or name other shards with data.root")
    if (stored.inputs, stored.tasks) != (wanted.inputs, wanted.tasks):
        differing = [one.name for one in wanted.inputs if one not in stored.inputs]
        differing += [task.name for task in wanted.tasks if task not in stored.tasks]
        named = ", ".join(differing) or "what it leaves out"
        raise DataError(
            f"was converted with another card of {stored.name} (differs in: {named})",
            where,
            "convert it again, or take the card that the manifests carry",
        )
