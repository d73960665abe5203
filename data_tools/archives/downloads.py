"""Finds the series of a download whose folders are named by the tool that fetched it, not by the tables.

The tables of TCIA collections name paths that no download has. What every download keeps is the UID of the series: as
the name of a folder, as the last five digits of one below the folder of the patient, or in the headers.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from data_tools.pixels.dicom import BadImage, quiet, read_header

TAIL = 5  # last digits of a UID that NBIA Data Retriever writes at the end of a folder's name


@dataclass
class Download:
    """The files below a folder, by what their folders say about their series.

    Attributes:
        root: the folder.
        tables: paths of the wanted tables by their file name, sorted.
        links: links that were not followed.
        read: files whose headers were read, because no folder told their series.
    """

    root: Path
    tables: dict[str, list[Path]] = field(default_factory=dict)
    links: int = 0
    read: int = 0
    _by_folder: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    _by_tail: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    _by_header: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def find(self, patient: str, series: str) -> tuple[str, ...]:
        """Files of a series, relative to the root, in order of their names; empty if there are none.

        Args:
            patient: PatientID of its headers.
            series: its SeriesInstanceUID.
        """
        by_folder, by_tail = self._by_folder.get(series, []), self._by_tail.get((patient, series[-TAIL:]), [])
        return tuple(by_folder or by_tail or self._by_header.get(series, []))

    def read_headers(self, known: Collection[str]) -> None:
        """Reads the series of all files that are not known, for downloads whose folders say nothing.

        Args:
            known: files of series that were found.
        """
        for path in sorted({path for several in self._by_folder.values() for path in several} - set(known)):
            try:
                with quiet():
                    series = str(read_header(self.root / path, ["SeriesInstanceUID"]).get("SeriesInstanceUID") or "")
            except BadImage:
                continue  # no image of any series: what the tables miss is counted there
            self.read += 1
            if series:
                self._by_header[series].append(path)


def walk(root: Path, tables: Collection[str]) -> Download:
    """Looks through a folder once, without following links.

    Args:
        root: the folder.
        tables: file names of the tables to look for.
    """
    found = Download(Path(root))
    folders = [""]
    while folders:
        here = folders.pop()
        with os.scandir(found.root / here) as entries:
            for entry in sorted(entries, key=lambda one: one.name):
                path = f"{here}/{entry.name}" if here else entry.name
                if entry.is_symlink():
                    found.links += 1
                elif entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                elif entry.name in tables:
                    found.tables.setdefault(entry.name, []).append(found.root / path)
                elif entry.name.lower().endswith(".dcm"):
                    _note(found, here.split("/"), path)
    for several in found.tables.values():
        several.sort()
    return found


def _note(found: Download, folders: list[str], path: str) -> None:
    found._by_folder[folders[-1]].append(path)
    tail = folders[-1].rsplit("-", 1)[-1]
    if tail != folders[-1] and tail.isdigit():
        for patient in folders[:-1]:
            found._by_tail[patient, tail.zfill(TAIL)[-TAIL:]].append(path)
