"""The readers of archives: one module each, found by the name that a card gives as ``source.reader``.

A reader module has ``plan_archive(root, options) -> ArchivePlan``, ``SIZE`` (rows and columns of stored images that
suit the archive), ``CONVERTER`` (what makes a sample of it), ``CHOOSE`` (of several takes of a view the
``first`` or the one with the largest ``area``), ``ONLY_WOMEN`` (the exams of men are left out), ``ATTRIBUTES`` (the
columns that a card may make subgroups of) and
``published(preprocessing)`` (what is known of its labels).
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from data_tools.archives.plan import ArchiveOptions, ArchivePlan
from data_tools.archives.published import Published
from m4oe_ds.errors import ConfigError, DataError

READERS = ("cbis", "embed", "gamma", "rsna", "vindr")
# tables that tell an archive from the others, below its root
_TABLES = {
    "cbis": "mass_case_description_*_set.csv",
    "embed": "tables/EMBED_OpenData_clinical*.csv",
    "gamma": "glaucoma_grading_training_GT.*",
    "rsna": "train.csv",
    "vindr": "breast-level_annotations.csv",
}


class Reader(Protocol):
    """What a reader module offers; see the module's first lines."""

    SIZE: tuple[int, int]
    CONVERTER: str
    CHOOSE: str
    ONLY_WOMEN: bool
    ATTRIBUTES: tuple[str, ...]

    def plan_archive(self, root: Path, options: ArchiveOptions) -> ArchivePlan:
        """What the tables of an archive say should be converted."""

    def published(self, preprocessing: Mapping[str, Any]) -> list[Published]:
        """What is known of the labels of the whole archive under the options of a conversion."""


def check_archive(name: str, root: Path) -> None:
    """Refuses a folder that is another archive, or that the archive lies above or below.

    Args:
        name: of the reader.
        root: the folder; where it holds the tables of no archive, the reader itself says what it lacks.

    Raises:
        DataError: it holds the tables of other archives.
    """
    if not root.is_dir() or _has(name, root):
        return
    others = [other for other in READERS if _has(other, root)]
    if others:
        what = f"holds the tables of {' and '.join(others)}, not those of {name}"
        raise DataError(what, str(root), f"use --dataset {others[0]}, or choose another --root")
    near = [root.resolve().parent, *sorted(one for one in root.iterdir() if one.is_dir())]
    right = next((path for path in near if any(path.glob(_TABLES[name]))), None)
    if right is not None:
        raise DataError(f"the tables of {name} are not here but in {right}", str(root), "give that as --root")


def _has(name: str, root: Path) -> bool:
    below = ("", "*/", "*/*/") if name in ("cbis", "gamma") else ("",)  # these readers look through the folders
    return any(path for folders in below for path in root.glob(folders + _TABLES[name]))


def find_reader(name: str) -> Reader:
    """The reader of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in READERS:
        raise ConfigError(f"unknown reader {name!r}", "source.reader", f"known: {', '.join(READERS)}")
    return cast(Reader, importlib.import_module(f"data_tools.archives.{name}"))
