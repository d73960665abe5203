"""The options of ``data_tools.convert``: read, completed and checked before anything is touched."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from data_tools.archives.readers import check_archive, find_reader
from m4oe_ds import arguments
from m4oe_ds.arguments import Parser, number, whole
from m4oe_ds.data.cards import Card, Source, find_card, read_card, shipped
from m4oe_ds.data.roots import Address, Root, root_of
from m4oe_ds.errors import DataError

MOST_PROCESSES = 8  # taken where no number is given
MOST_PIXELS = 16384  # along one side of a stored image
# what an option with a name may be; the command line and the check read the same table
CHOICES: dict[str, tuple[str | int, ...]] = {
    "codec": ("b2", "png"),
    "birads_scheme": ("triage", "release", "native_rsna"),
    "birads_sites": ("labelled", "all"),
    "risk_scope": ("exam", "side"),
    "require": ("any", "complete"),
    "fold": tuple(range(5)),
}
ARCHIVES_ONLY = ("birads_scheme", "birads_sites", "risk_scope", "exclude_screen_detected", "fold", "strict")


class Shares(NamedTuple):
    """Percent of the patients in each split.

    Attributes:
        train: percent for training.
        val: percent for validation.
        test: percent for testing.
    """

    train: int
    val: int
    test: int

    @classmethod
    def parse(cls, text: str) -> Shares:
        """The shares in e.g. ``70/10/20``.

        Raises:
            DataError: not three whole numbers that sum to 100.
        """
        parts = text.split("/")
        shares = tuple(int(part) for part in parts if part.isdigit())
        if len(parts) != 3 or len(shares) != 3 or sum(shares) != 100:
            raise DataError(f"{text!r} is not three percentages that sum to 100", "--split", "use e.g. 70/10/20")
        return cls(*shares)

    def __str__(self) -> str:
        return f"{self.train}/{self.val}/{self.test}"


class Part(NamedTuple):
    """One of several equal parts of the work.

    Attributes:
        number: which part, from 1.
        parts: how many there are.
    """

    number: int
    parts: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """The part in ``k/n`` with 1 <= k <= n.

        Raises:
            DataError: a text of another form.
        """
        first, _, second = text.partition("/")
        if not (first.isdigit() and second.isdigit() and 1 <= int(first) <= int(second)):
            raise DataError(f"{text!r} is not k/n with k from 1 to n", "--part", "use e.g. 3/16")
        return cls(int(first), int(second))

    def has(self, place: int) -> bool:
        """Whether the item at a place, counted from 0, belongs to this part."""
        return place % self.parts == self.number - 1

    def __str__(self) -> str:
        return f"{self.number}/{self.parts}"


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """What to convert, and how.

    Attributes:
        dataset: name of a shipped card; empty where ``card_path`` is given.
        card_path: card of your own data, in place of ``dataset``.
        root: folder of the archive, with its tables and images, or for a card of your own an address
            (:func:`m4oe_ds.data.roots.root_of`); None takes the folder of the card.
        out: folder to make; must not exist yet. Until it is whole, what is done is in DIR.partial beside it.
        workers: worker processes; None = one per processor, at most ``MOST_PROCESSES``; 0 = convert in this process.
        rows: height of the stored images; None takes what suits the data set.
        cols: width of the stored images; None takes what suits the data set.
        codec: codec of the pixels: ``b2`` or ``png``.
        samples_per_shard: most samples in one shard.
        birads_scheme: ``triage``, ``release`` or ``native_rsna``.
        birads_sites: RSNA: sites whose BI-RADS is used, ``labelled`` or ``all``.
        risk_scope: EMBED: ``exam`` (both breasts) or ``side``.
        exclude_screen_detected: EMBED: leave out exams within six months before a diagnosis.
        require: images a sample needs: ``any`` or ``complete``.
        split: percent of patients in train, val and test; None takes what the card says, or 70/10/20.
        fold: GAMMA: the fold for testing, 0 to 4.
        salt_file: secret of the pseudonyms, made if absent; None takes ``<out>.secret``.
        limit: convert only this many samples; None converts all.
        part: make only every n-th shard; the last part to finish completes the work.
        dry_run: read the tables, print what would be made, write nothing.
        strict: stop where the archive is not as its documentation says.
        max_quarantine: share of bad images accepted.
        max_missing: share of the files named by the table of a card, of each modality, that may not be there.
    """

    dataset: str = ""
    card_path: Path | None = None
    root: Root | None = None
    out: Path
    workers: int | None = None
    rows: int | None = None
    cols: int | None = None
    codec: str = "b2"
    samples_per_shard: int = 64
    birads_scheme: str = "triage"
    birads_sites: str = "labelled"
    risk_scope: str = "exam"
    exclude_screen_detected: bool = False
    require: str = "any"
    split: Shares | None = None
    fold: int = 0
    salt_file: Path | None = None
    limit: int | None = None
    part: Part = Part(1, 1)
    dry_run: bool = False
    strict: bool = False
    max_quarantine: float = 0.2
    max_missing: float = 0.0

    @classmethod
    def from_arguments(cls, arguments: Sequence[str], description: str = "") -> ConvertOptions:
        """The options of a command line; prints help and ends the process as :mod:`argparse` does.

        Args:
            arguments: without the name of the program.
            description: what the help says first.

        Raises:
            DataError: a split or part that cannot be read.
        """
        parser = Parser(prog="python -m data_tools.convert", description=description)
        add_arguments(parser)
        return cls.of(parser.parse_args(list(arguments)))

    @classmethod
    def of(cls, parsed: argparse.Namespace) -> ConvertOptions:
        """The options that a parser with those of :func:`add_arguments` has read.

        Raises:
            DataError: a split, part or address that cannot be read.
        """
        given = {one.name: getattr(parsed, one.name) for one in fields(cls)}
        split = None if given["split"] is None else Shares.parse(given["split"])
        root = None if given["root"] is None else root_of(given["root"])
        more = {"dataset": given["dataset"] or "", "root": root, "split": split, "part": Part.parse(given["part"])}
        return cls(**{**given, **more})

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the stored images, completed with those that suit the data set."""
        source = self.card.source
        if source is None:
            raise DataError("its card has no source to convert from", self.card_name, "add a section `source`")
        rows, cols = find_reader(source.reader).SIZE if source.reader else source.size
        return rows if self.rows is None else self.rows, cols if self.cols is None else self.cols

    @property
    def card_name(self) -> str:
        """What the card is found by: its name or path."""
        return self.dataset if self.card_path is None else str(self.card_path)

    @property
    def card(self) -> Card:
        """The card of the data set."""
        return find_card(self.dataset) if self.card_path is None else read_card(self.card_path)

    @property
    def folder(self) -> Root:
        """Folder or address of the archive, completed with that of the card."""
        return self.root if self.root is not None else (self.card_path or Path(self.dataset)).parent

    @property
    def shares(self) -> Shares:
        """Percent of patients in train, val and test, completed with what the card says."""
        if self.split is not None:
            return self.split
        source = self.card.source
        return Shares(*(Source.shares if source is None else source.shares))

    @property
    def processes(self) -> int:
        """Worker processes, completed with the processors of this machine."""
        return min(MOST_PROCESSES, os.cpu_count() or 1) if self.workers is None else self.workers

    def check(self) -> None:
        """Refuses impossible options.

        Raises:
            DataError: a value out of its range, an archive that is not there, or an output that is.
        """
        if bool(self.dataset) == (self.card_path is not None):
            raise DataError("give one of --dataset and --card", "options", f"known data sets: {', '.join(shipped())}")
        if self.dataset and self.dataset not in shipped():
            raise DataError(f"{self.dataset!r} is not known", "--dataset", f"use one of {shipped()}, or --card")
        self._check_source()
        for name, known in CHOICES.items():
            if getattr(self, name) not in known:
                raise DataError(f"{getattr(self, name)!r} is not known", _flag(name), f"use one of {known}")
        # read again as text: those made in Python may hold anything
        Shares.parse(str(self.shares))
        Part.parse(str(self.part))
        if self.workers is not None and self.workers < 0:
            raise DataError(f"{self.workers} is negative", "--workers", "use 0 or more")
        for name in ("rows", "cols", "samples_per_shard", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DataError(f"{value} is below 1", _flag(name), "use a positive number")
        for name in ("max_quarantine", "max_missing"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise DataError(f"{getattr(self, name)} is outside 0..1", _flag(name), "use a share")
        if self.out.exists():
            raise DataError("exists already", str(self.out), "choose another --out or remove it")
        if not self.dry_run and not self.out.resolve().parent.parent.is_dir():
            raise DataError("its parent folder does not exist", str(self.out), "make it or choose another --out")
        if isinstance(self.folder, Path) and not self.folder.is_dir():
            raise DataError("is not a folder", str(self.folder), "give the folder of the archive as --root")
        source = self.card.source
        if source is not None and source.reader and isinstance(self.folder, Path):
            check_archive(source.reader, self.folder)

    def _check_source(self) -> None:
        """Refuses a card that nothing can be converted with, and options that its source does not know."""
        source = self.card.source
        if source is None:
            raise DataError("its card has no source to convert from", self.card_name, "add a section `source`")
        if self.root is None and self.card_path is None:
            raise DataError("the archive has to be named", "--root", "give the folder of the archive")
        if source.reader:
            find_reader(source.reader)
            if isinstance(self.root, Address):
                raise DataError("archives are read from a file system", "--root", "copy the archive here, or mount it")
            return
        plain = {one.name: one.default for one in fields(self)}
        given = [_flag(name) for name in ARCHIVES_ONLY if getattr(self, name) != plain[name]]
        if given:
            raise DataError("is for archives with a reader of their own", ", ".join(given), "leave it out")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the command line, with the defaults of :class:`ConvertOptions`."""
    plain = ConvertOptions
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--dataset", choices=shipped(), help="an archive whose card comes with the package")
    which.add_argument("--card", type=Path, dest="card_path", metavar="CARD", help="card of your own data (my.yaml)")

    def add(name: str, **more: Any) -> None:
        _add(parser, name, **more)

    add(
        "root",
        metavar="DIR",
        help="folder of the archive, or address of the data of --card, whose default is its own folder",
    )
    add(
        "out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder to make; must not exist yet: what an interrupted conversion has done is in DIR.partial",
    )
    add(
        "workers",
        metavar="N",
        type=whole(0, arguments.MOST_PROCESSES),
        help="processes; default: one per processor, at most 8; 0 = convert in this one",
    )
    add("require", default=plain.require, help="whether a sample needs any or all of its images; default any")
    add(
        "split",
        metavar="TRAIN/VAL/TEST",
        help="percent of patients in each, e.g. 70/10/20; default as the card says, or 70/10/20",
    )
    add("salt_file", type=Path, metavar="FILE", help="file with the secret of the pseudonyms; made if absent")
    add("limit", metavar="N", type=whole(1), help="convert only this many samples")
    add(
        "part",
        metavar="K/N",
        default=str(plain.part),
        help="make only every n-th shard: k/n; the last part to finish completes the work",
    )
    add("dry_run", action="store_true", help="read the tables, print what would be made, write nothing")
    add("strict", action="store_true", help="stop where the archive is not as its documentation says")
    add(
        "max_quarantine",
        metavar="SHARE",
        type=number(at_least=0, at_most=1),
        default=plain.max_quarantine,
        help="share of bad images accepted, 0 to 1; default 0.2",
    )
    add(
        "max_missing",
        metavar="SHARE",
        type=number(at_least=0, at_most=1),
        default=plain.max_missing,
        help="share of the files a card's table names that may not be there, 0 to 1; default 0",
    )
    _add_of_images(parser)
    _add_of_archives(parser)


def _add_of_images(parser: argparse.ArgumentParser) -> None:
    """How images are stored."""
    plain = ConvertOptions

    def add(name: str, **more: Any) -> None:
        _add(parser, name, **more)

    add(
        "rows",
        metavar="N",
        type=whole(1, MOST_PIXELS),
        help="height of the stored images in pixels; default 1024, GAMMA 512, else as the card says",
    )
    add(
        "cols",
        metavar="N",
        type=whole(1, MOST_PIXELS),
        help="width of the stored images in pixels; default 832, GAMMA 512, else as the card says",
    )
    add("codec", default=plain.codec, help="pixel codec; default b2")
    add(
        "samples_per_shard",
        metavar="N",
        type=whole(1),
        default=plain.samples_per_shard,
        help="most samples in a shard; default 64",
    )


def _add_of_archives(parser: argparse.ArgumentParser) -> None:
    """Options that only the readers of archives take."""
    plain = ConvertOptions

    def add(name: str, **more: Any) -> None:
        _add(parser, name, **more)

    add("birads_scheme", default=plain.birads_scheme, help="mapping of BI-RADS to three classes; default triage")
    add("birads_sites", default=plain.birads_sites, help="RSNA: sites whose BI-RADS is used; default labelled")
    add("risk_scope", default=plain.risk_scope, help="EMBED: give risk to both breasts (exam, default) or one (side)")
    add("exclude_screen_detected", action="store_true", help="EMBED: drop exams within six months before a diagnosis")
    add("fold", metavar="N", type=whole(), default=plain.fold, help="GAMMA: the fold for testing, 0 to 4; default 0")


def _add(parser: argparse.ArgumentParser, name: str, **more: Any) -> None:
    """Adds an option by the name of its field."""
    known: dict[str, Any] = {"choices": CHOICES[name]} if name in CHOICES else {}
    parser.add_argument(_flag(name), **known, **more)
