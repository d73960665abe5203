"""The files that a table of one's own names: where each lies below the root, and which are not there."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from data_tools.archives.values import counted
from m4oe_ds.data.cards.reading import COLUMN
from m4oe_ds.data.cards.source import columns_in
from m4oe_ds.data.roots import Root

Outcome = Literal["found", "absent", "outside", "folder"]
SUFFIXES_SHOWN, FILES_LOOKED_AT = 5, 2000


@dataclass
class Named:
    """What became of the files of one modality, or of the masks of one task.

    Attributes:
        found: files that are there.
        empty: samples whose columns name none.
        absent: rows whose file is not there.
        outside: rows whose file would lie outside the root.
        folders: rows that name a folder where none can be listed.
    """

    found: int = 0
    empty: int = 0
    absent: list[int] = field(default_factory=list)
    outside: list[int] = field(default_factory=list)
    folders: list[int] = field(default_factory=list)


class Files:
    """Finds files below a root.

    Args:
        root: folder of the data; no file outside of it is read, whatever links and names say.
        missing: words that mean that a field is empty, in lower case.
    """

    def __init__(self, root: Root, missing: frozenset[str]) -> None:
        self.root, self.missing = root, missing
        self._real = os.path.realpath(root) if isinstance(root, Path) else ""
        self._folders: dict[str, str] = {}  # with their links followed: many files share one
        self.named: dict[str, Named] = {}

    def look(self, patterns: Iterable[str], rows: Iterable[tuple[int, Mapping[str, str]]]) -> None:
        """Looks for many files before they are asked for one by one; here that would save nothing.

        Args:
            patterns: as :meth:`find` takes them.
            rows: number and fields of every row.
        """

    def named_by(self, pattern: str, row: Mapping[str, str]) -> str | None:
        """The name of a file as the row has it, with forward slashes; None where the row names none."""
        if any(row[column].casefold() in self.missing for column in columns_in(pattern)):
            return None
        text = COLUMN.sub(lambda match: row[match[1]], pattern) if "{" in pattern else row[pattern]
        return text.replace("\\", "/")  # as tables made under Windows write it

    def find(self, what: str, pattern: str, row: Mapping[str, str], number: int, folders: bool = False) -> str | None:
        """The path of a file relative to the root; None where the row names none or it is not there (counted).

        Args:
            what: modality or task.
            pattern: with ``{column}``, or a column that holds the path.
            row: fields by column.
            number: number of the row.
            folders: whether a folder will do.
        """
        counts = self.named.setdefault(what, Named())
        text = self.named_by(pattern, row)
        if text is None:
            counts.empty += 1
            return None
        outcome, name = self._place(text, folders)
        if outcome == "found":
            counts.found += 1
            return name
        {"absent": counts.absent, "outside": counts.outside, "folder": counts.folders}[outcome].append(number)
        return None

    def _place(self, text: str, folders: bool) -> tuple[Outcome, str]:
        """What became of a name, and its path relative to the root."""
        path = os.path.join(self._real, text)
        real = None if ".." in PurePosixPath(text).parts or "\0" in text else self._inside(path)
        if real is None:
            return "outside", ""
        if not (os.path.isfile(real) or (folders and os.path.isdir(real))):
            return "absent", ""
        return "found", os.path.relpath(real, self._real)

    def _inside(self, path: str) -> str | None:
        """The path with the links of its folder followed; None if it, or what it links to, lies outside the root."""
        folder = os.path.dirname(path)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        real = os.path.join(self._folders[folder], os.path.basename(path))
        ends = os.path.realpath(real) if os.path.islink(real) else real
        return real if self._below(real) and self._below(ends) else None

    def _below(self, real: str) -> bool:
        return real == self._real or real.startswith(self._real.rstrip(os.sep) + os.sep)

    def problems(self, patterns: Mapping[str, str], places: Mapping[str, str], accepted: float) -> list[str]:
        """One line for each modality or task whose files cannot be used as they are.

        Args:
            patterns: pattern of each, for the messages.
            places: where the card says so.
            accepted: share of named files that may be absent.
        """
        lines = []
        for what, counts in self.named.items():
            where = places.get(what, what)
            if counts.outside:
                lines.append(
                    f"{where}: {counted(len(counts.outside), 'path')} of {what} outside the folder of the data, first "
                    f"in row {counts.outside[0]}; put the files, not links to them, below {self.root}"
                )
            if counts.folders:
                lines.append(
                    f"{where}: {counted(len(counts.folders), 'path')} of {what} without the suffix of a file, first in "
                    f"row {counts.folders[0]}: folders on a server cannot be listed; name one file for each volume "
                    f"(NIfTI), or copy the data here"
                )
            total = counts.found + len(counts.absent)
            if not counts.absent or (counts.found and len(counts.absent) <= accepted * total):
                continue
            first = f"first in row {counts.absent[0]}"
            if not counts.found:
                lines.append(
                    f"{where}: none of the {counted(total, 'file')} of {what} is there ({patterns[what]}, {first}); "
                    f"{self._instead(patterns[what])}"
                )
            else:
                share = _up(len(counts.absent), total)
                lines.append(
                    f"{where}: {len(counts.absent)} of {counted(total, 'file')} of {what} are not there, {first}; add "
                    f"them, empty their fields, or take them for absent with --max-missing {share}"
                )
        return lines

    def _instead(self, pattern: str) -> str:
        """What lies where none of the files was found: kinds of files, never their names."""
        fixed = pattern.split("{")[0].rpartition("/")[0] if "{" in pattern else ""
        folder = os.path.join(self._real, fixed)
        if not os.path.isdir(folder):
            return f"there is no folder {fixed} below --root {self.root}"
        kinds: Counter[str] = Counter()
        with os.scandir(folder) as entries:
            for entry, _ in zip(entries, range(FILES_LOOKED_AT), strict=False):
                kinds["folders" if entry.is_dir() else _suffix(entry.name)] += 1
        listed = ", ".join(f"{kind} {number}" for kind, number in kinds.most_common(SUFFIXES_SHOWN))
        return f"{fixed or 'the root'} holds {listed or 'nothing'}: check --root and the pattern"


def _suffix(name: str) -> str:
    suffixes = PurePosixPath(name.lower()).suffixes[-2:]
    known = [one for one in suffixes if one[1:].isalnum() and len(one) <= 8]
    return "".join(known[-2:] if known[-1:] == [".gz"] else known[-1:]) or "files without a suffix"


def _up(part: int, whole: int) -> float:
    """The share as a number of two digits that is not below it."""
    return -(-100 * part // whole) / 100
