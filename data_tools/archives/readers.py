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
from m4oe_ds.errors import ConfigError

READERS = ("cbis", "embed", "gamma", "rsna", "vindr")


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


def find_reader(name: str) -> Reader:
    """The reader of that name.

    Raises:
        ConfigError: there is none.
    """
    if name not in READERS:
        raise ConfigError(f"unknown reader {name!r}", "source.reader", f"known: {', '.join(READERS)}")
    return cast(Reader, importlib.import_module(f"data_tools.archives.{name}"))
