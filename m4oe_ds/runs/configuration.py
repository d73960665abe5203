"""What a finished run was configured with. Imports no torch, so that a folder can be refused before anything loads."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from m4oe_ds import config_loader
from m4oe_ds.config import Config
from m4oe_ds.data.cards import Card, find_card, read_card, shipped
from m4oe_ds.errors import DataError
from m4oe_ds.runs.folder import RunFolder

SHOWN = 6  # runs in a message
UNRECORDED_MICRO_BATCH = 16  # of runs whose environment.json does not say what they were trained with


def open_config(folder: Path, data: str = "") -> Config:
    """The configuration of a finished run, with augmentation switched off and without the files it started from.

    Args:
        folder: run folder.
        data: other shard folder, or empty.

    Raises:
        DataError: not a run folder, or its configuration is empty.
    """
    path = RunFolder(folder).config
    if not path.is_file():
        raise _no_run(folder)
    if not path.stat().st_size:  # all its options would be defaults
        raise DataError("is damaged: 0 bytes", str(path), "copy the run again")
    config = with_card(path, RunFolder(folder).card)
    augment = replace(config.data.augment, enabled=False)
    return replace(config, data=replace(config.data, root=data or config.data.root, augment=augment))


def _no_run(folder: Path) -> DataError:
    """What is wrong with a folder that is no run, and which runs lie next to it or below it."""
    name = RunFolder(folder).config.name
    if not folder.exists():
        what = f"no such run folder (no {name})"
    else:
        what = f"not a run folder (no {name})" if folder.is_dir() else "is a file, not a run folder"
    near = sorted(path.parent for place in (folder, folder.parent) for path in place.glob(f"*/{name}"))
    listed = f"; there: {', '.join(map(str, near[:SHOWN]))}{', ..' if len(near) > SHOWN else ''}" if near else ""
    return DataError(what, str(folder), f"name a folder under runs/{listed}")


def with_card(path: Path, card: Path) -> Config:
    """The configuration of a trained model, with its own card and without the files it started from.

    Args:
        path: the configuration.
        card: its card, wherever the one it was trained with is now; absent for models older than cards, whose data sets
            are shipped.
    """
    overrides = [f"data.dataset={json.dumps(str(card.absolute()))}"] if card.is_file() else ()
    return without_sources(config_loader.load(path, overrides))


def without_sources(config: Config) -> Config:
    """The configuration of a model whose every value is about to be overwritten: nothing initial is looked for.

    Where values came from (``model.init_from``, ``model.init_map``, ``model.embedder.weights``) does not say what the
    model is, and a run outlives the files that it started from.
    """
    embedder = replace(config.model.embedder, weights="")
    return replace(config, model=replace(config.model, embedder=embedder, init_from="", init_map={}))


def card_of(files: RunFolder) -> Card | None:
    """The card of a run; of runs older than cards the shipped one; None if it has none.

    Raises:
        ConfigError: the card is damaged.
    """
    if files.card.is_file():
        return read_card(files.card)
    try:
        name = str(json.loads(files.environment.read_text(encoding="utf-8")).get("dataset", ""))
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return find_card(name) if name in shipped() else None


def micro_batch(config: Config, folder: Path) -> int:
    """Samples per forward at evaluation: ``evaluation.micro_batch``, or what the run was trained with.

    Raises:
        DataError: ``environment.json`` is not readable.
    """
    if config.evaluation.micro_batch:
        return config.evaluation.micro_batch
    path = RunFolder(folder).environment
    if not path.is_file():
        return UNRECORDED_MICRO_BATCH
    try:
        recorded: Any = json.loads(path.read_text(encoding="utf-8"))
        return int(recorded.get("batch", {}).get("micro", UNRECORDED_MICRO_BATCH))
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise DataError(
            f"is damaged ({type(error).__name__})", str(path), "set evaluation.micro_batch, or restore it"
        ) from None
