"""The options of ``data_tools.convert``: read, completed and checked before anything is touched."""

from __future__ import annotations

import argparse
from pathlib import Path

from m4oe_ds.data.schema import DATASETS, SPLITS
from m4oe_ds.errors import DataError


def build_parser(description: str) -> argparse.ArgumentParser:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m data_tools.convert", description=description)
    add = parser.add_argument
    add("--dataset", choices=tuple(DATASETS), required=True)
    add("--root", type=Path, required=True, help="archive: the folder with its tables and images")
    add("--out", type=Path, required=True, help="folder to make; must not exist")
    add("--workers", type=int, default=None, help="processes; default: the processors, at most 8; 0 = in this one")
    add("--rows", type=int, default=None, help="of the stored images; default 1024, GAMMA 512")
    add("--cols", type=int, default=None, help="of the stored images; default 832, GAMMA 512")
    add("--codec", choices=("b2", "png"), default="b2", help="pixel codec; default b2")
    add("--samples-per-shard", type=int, default=64, help="default 64")
    add("--birads-scheme", choices=("triage", "release", "native_rsna"), default="triage", help="default triage")
    add("--birads-sites", choices=("labelled", "all"), default="labelled", help="RSNA: BI-RADS of which sites")
    add("--risk-scope", choices=("exam", "side"), default="exam", help="EMBED; default exam: both breasts")
    add("--exclude-screen-detected", action="store_true", help="EMBED: no exams within six months before a diagnosis")
    add("--require", choices=("any", "complete"), default="any", help="images a sample needs")
    add("--split", default="70/10/20", help="percent of patients in train/val/test")
    add("--fold", type=int, choices=range(5), default=0, help="GAMMA: the fold for testing; default 0")
    add("--salt-file", type=Path, default=None, help="secret of the pseudonyms; made if absent")
    add("--limit", type=int, default=None, help="convert only this many samples")
    add("--part", default="1/1", help="make only every n-th shard: k/n; the last part to finish completes the work")
    add("--dry-run", action="store_true", help="read the tables, print what would be made, write nothing")
    add("--strict", action="store_true", help="stop where the archive is not as its documentation says")
    add("--max-quarantine", type=float, default=0.2, help="share of bad images accepted; default 0.2")
    return parser


def parse_split(text: str) -> tuple[int, ...]:
    """Percentages of train, val and test from e.g. ``70/10/20``.

    Raises:
        DataError: not three whole numbers that sum to 100.
    """
    parts = text.split("/")
    shares = tuple(int(part) for part in parts if part.isdigit())
    if len(parts) != len(SPLITS) or len(shares) != len(SPLITS) or sum(shares) != 100:
        raise DataError(f"{text!r} is not three percentages that sum to 100", "--split", "use e.g. 70/10/20")
    return shares


def parse_part(text: str) -> tuple[int, int]:
    """``(k, n)`` from ``k/n`` with 1 <= k <= n.

    Raises:
        DataError: anything else.
    """
    first, _, second = text.partition("/")
    if not (first.isdigit() and second.isdigit() and 1 <= int(first) <= int(second)):
        raise DataError(f"{text!r} is not k/n with k from 1 to n", "--part", "use e.g. 3/16")
    return int(first), int(second)


def check_options(options: argparse.Namespace) -> None:
    """Fills in defaults that depend on the data set and refuses what cannot be.

    Raises:
        DataError: a value out of its range, an archive that is not there, or an output that is.
    """
    gamma = options.dataset == "gamma"
    options.rows = (512 if gamma else 1024) if options.rows is None else options.rows
    options.cols = (512 if gamma else 832) if options.cols is None else options.cols
    if options.workers is not None and options.workers < 0:
        raise DataError(f"{options.workers} is negative", "--workers", "use 0 or more")
    for name in ("rows", "cols", "samples_per_shard", "limit"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise DataError(f"{value} is below 1", f"--{name.replace('_', '-')}", "use a positive number")
    if not 0.0 <= options.max_quarantine <= 1.0:
        raise DataError(f"{options.max_quarantine} is outside 0..1", "--max-quarantine", "use a share")
    if options.out.exists():
        raise DataError("exists already", str(options.out), "choose another --out or remove it")
    if not options.dry_run and not options.out.resolve().parent.is_dir():
        raise DataError("its parent folder does not exist", str(options.out), "make it or choose another --out")
    if not options.root.is_dir():
        raise DataError("is not a folder", str(options.root), "give the folder of the archive as --root")
