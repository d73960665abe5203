"""The two runs that are compared, as their folders tell of them. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m4oe_ds.config import to_dict
from m4oe_ds.data.cards import Card, find_card
from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.errors import ConfigError, DataError
from m4oe_ds.runs.configuration import open_config
from m4oe_ds.runs.folder import RunFolder
from m4oe_ds.runs.result_name import DIGEST
from m4oe_ds.stored import read_arrays, read_json, read_log

_COPY = "copy the run again"


@dataclass(frozen=True)
class Side:
    """One run.

    Attributes:
        path: its folder.
        config: its configuration, as nested mappings.
        card: card of its data set.
        ds_config: its DeepSpeed JSON; empty where the folder has none.
        environment: versions, hardware, sizes; empty likewise.
        train: logged steps, each with ``step`` and ``loss``.
        validation: logged validations, likewise.
    """

    path: Path
    config: Mapping[str, Any]
    card: Card
    ds_config: Mapping[str, Any]
    environment: Mapping[str, Any]
    train: tuple[Mapping[str, Any], ...]
    validation: tuple[Mapping[str, Any], ...]

    @property
    def tasks(self) -> dict[str, TaskSpec]:
        """Its tasks by name, in the order of the card."""
        wanted = self.config["data"]["tasks"]
        return {task.name: task for task in self.card.tasks if not wanted or task.name in wanted}

    def data_digest(self, split: str) -> str:
        """Digest of the shards that its predictions of a split are of; empty where no version kept it."""
        path = RunFolder(self.path).metrics
        entry = read_json(path, _COPY).get(split) if path.is_file() else None
        return str(entry.get(DIGEST, "")) if isinstance(entry, Mapping) else ""

    def answers(self, split: str) -> dict[str, np.ndarray]:
        """Arrays of its predictions of a split.

        Raises:
            DataError: it has none, or they are damaged.
        """
        path = RunFolder(self.path).predictions(split)
        if not path.is_file():
            here = sorted(one.stem for one in path.parent.glob("*.npz") if one.stem != "examples")
            there = f"; there are: {', '.join(here)}" if here else ""
            fix = f"make them with `m4oe evaluate {self.path} {_how(split)}`{there}"
            raise DataError(f"no predictions of the split {split!r}", str(self.path), fix)
        fix = f"make them again with `m4oe evaluate {self.path} {_how(split)}`"
        return read_arrays(path, fix, ("keys", "groups"))


def _how(name: str) -> str:
    """Options of ``m4oe evaluate`` that make results of that name."""
    split, _, other = name.partition("@")
    return f"--split {split}" + (f" --data DIR/{other}" if other else "")


def open_side(path: Path) -> Side:
    """A run from its folder.

    Raises:
        DataError: not a run folder, or a damaged file in it.
        ConfigError: its configuration is not one of this package.
    """
    files = RunFolder(path)
    config = open_config(path)
    train, validation = _records(files.log)
    card, content = find_card(config.data.dataset), to_dict(config)
    content["data"]["dataset"] = card.name  # not where its copy lies
    return Side(
        path,
        content,
        card,
        read_json(files.ds_config, _COPY) if files.ds_config.is_file() else {},
        read_json(files.environment, _COPY) if files.environment.is_file() else {},
        train,
        validation,
    )


def open_both(first: Path, second: Path) -> tuple[Side, Side]:
    """Both runs.

    Raises:
        ConfigError: they are the same folder.
        DataError: see :func:`open_side`.
    """
    sides = open_side(first), open_side(second)
    if first.resolve() == second.resolve():
        raise ConfigError("is given twice", str(first), "name two different runs")
    return sides


def _records(path: Path) -> tuple[tuple[Mapping[str, Any], ...], tuple[Mapping[str, Any], ...]]:
    """Steps and validations of a log; of a step that a resumed run took again the last line counts."""
    if not path.is_file():
        return (), ()
    steps: dict[int, Mapping[str, Any]] = {}
    validations: dict[int, Mapping[str, Any]] = {}
    for number, record in enumerate(read_log(path, _COPY), 1):
        if "loss" not in record:
            raise DataError(f"line {number} is damaged: it has no loss", str(path), _COPY)
        step = record["step"]
        (validations if record.get("event") == "validation" else steps)[step] = record
    return tuple(steps[step] for step in sorted(steps)), tuple(validations[step] for step in sorted(validations))
