"""``m4oe card check`` and ``m4oe card new``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from m4oe_ds.arguments import MOST_PROCESSES, add_command, number, whole


def add_commands(parser: argparse.ArgumentParser) -> None:
    """Adds the two commands and their options."""
    commands = parser.add_subparsers(dest="card_command", required=True, metavar="COMMAND")
    check = add_command(
        commands,
        "check",
        "explain a card against its table and files, before a conversion",
        "m4oe card check my.yaml --root /data/my --full --workers 8",
        more="Ends with status 4 if a conversion would refuse it.",
    )
    check.add_argument("card", type=Path, metavar="CARD", help="the card, e.g. my.yaml")
    check.add_argument(
        "--root", metavar="DIR", help="folder or address of table and files (default: the folder of the card)"
    )
    check.add_argument("--full", action="store_true", help="read every file, not those of 16 samples")
    check.add_argument(
        "--workers",
        type=whole(0, MOST_PROCESSES),
        default=1,
        metavar="N",
        help="processes that read; 0 = this one (default: 1)",
    )
    check.add_argument(
        "--max-missing",
        type=number(at_least=0, at_most=1),
        default=0.0,
        metavar="SHARE",
        help="share of the named files that may not be there, 0 to 1 (default: 0)",
    )
    check.add_argument(
        "--contact-sheet", type=Path, metavar="PNG", help="picture of some samples (default: CARD.check.png)"
    )
    check.add_argument("--json", action="store_true", help="print the findings as JSON")
    check.set_defaults(work=run_check)
    new = add_command(
        commands,
        "new",
        "propose a card from a table of files and answers",
        "m4oe card new --table cases.csv --root /data/my --out my.yaml",
    )
    new.add_argument("--table", type=Path, required=True, metavar="TABLE", help=".csv, .tsv, .txt, .xlsx or .parquet")
    new.add_argument("--root", type=Path, metavar="DIR", help="folder of the files (default: that of the table)")
    new.add_argument("--out", type=Path, metavar="CARD", help="file to write (default: print it)")
    new.add_argument("--name", default="", metavar="NAME", help="name of the data set (default: that of the folder)")
    new.set_defaults(work=run_new)


def run_check(options: argparse.Namespace) -> int:
    """Prints what a card says about its data; 4 if it would not convert."""
    from data_tools.cards.check import CheckOptions, check_card
    from data_tools.cards.pictures import write_sheet
    from data_tools.cards.text import lines_of
    from m4oe_ds.data.cards import read_card
    from m4oe_ds.data.roots import root_of
    from m4oe_ds.errors import DataError

    wanted = CheckOptions(
        card_path=options.card,
        root=None if options.root is None else root_of(options.root),
        full=options.full,
        workers=options.workers,
        max_missing=options.max_missing,
    )
    checked = check_card(read_card(options.card), wanted)
    sheet = options.contact_sheet or options.card.with_suffix(".check.png")
    shown = write_sheet(checked.card, checked.results, sheet)
    if options.json:
        print(json.dumps(checked.content, indent=1))
    else:
        *lines, last = lines_of(checked.content)
        picture = [f"picture: {shown} samples as they would be stored, {sheet}"] if shown else []
        print("\n".join([*lines, *picture, last]))
    return DataError.exit_code if checked.problems else 0


def run_new(options: argparse.Namespace) -> None:
    """Prints or writes a card for a table."""
    from data_tools.cards.propose import propose
    from m4oe_ds.errors import DataError

    if options.out is not None and options.out.exists():
        raise DataError("exists already", str(options.out), "choose another --out or remove it")
    root = options.table.parent if options.root is None else options.root
    text = propose(options.table, root, options.name)
    if options.out is None:
        print(text, end="")
        return
    options.out.write_text(text, encoding="utf-8")
    place = "" if options.out.resolve().parent == root.resolve() else f" --root {root}"
    print(f"wrote {options.out}; read its comments, then: m4oe card check {options.out}{place}")
