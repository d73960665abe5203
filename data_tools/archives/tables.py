"""Tables of archives, read as text: identifiers lose digits as numbers, and a missing value is an empty field."""

from __future__ import annotations

import csv
import zipfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m4oe_ds.errors import DataError

ROUNDED = r"[eE]\+|\.\d*$"  # what a number that was read as a floating-point one looks like as text

MOST_LETTERS = 2**31 - 1  # of a field; the default of csv is less than some reports have
_MARKS = {",": "a comma", ";": "a semicolon", "\t": "a tab"}


def read_table(
    path: Path,
    required: Sequence[str],
    optional: Sequence[str] = (),
    identifiers: Sequence[str] = (),
    *,
    damaged: str = ROUNDED,
    original: str = "use the table as it was published",
    again: str = "download it again",
    blank_rows: bool = False,
) -> list[dict[str, str]]:
    """Rows of a table, every value as stripped text; absent optional columns are empty.

    Args:
        path: path of the table: ``.csv`` (also with semicolons), ``.tsv``, ``.txt``, ``.xlsx`` or ``.parquet``.
        required: columns that must be there.
        optional: columns that are read if they are there.
        identifiers: columns that must not have been rounded.
        damaged: pattern found in an identifier that was.
        original: what to do where a column is missing.
        again: what to do where the table cannot be read.
        blank_rows: whether blank lines of a text are rows as well, so that rows can be counted as a spreadsheet does.

    Raises:
        DataError: missing file or column, unreadable, rows of more or fewer fields than the heading, or identifiers
            such as ``123.0`` or ``1e+16``.
    """
    if not path.is_file():
        raise DataError("the table is not here", str(path), "check --root")
    try:
        header = header_of(path)
        absent = [column for column in required if column not in header]
        if absent:
            raise DataError(f"columns missing: {', '.join(absent)}", str(path), original)
        used = [column for column in dict.fromkeys((*required, *optional)) if column in header]
        _check_widths(path, header)
        frame = _load(path, used, blank_rows)
    except (ValueError, OSError, KeyError, ImportError, zipfile.BadZipFile) as error:
        raise DataError(f"is not a readable table ({type(error).__name__})", str(path), again) from None
    for column in optional:
        if column not in frame.columns:
            frame[column] = ""
    for column in frame.columns:
        frame[column] = frame[column].fillna("").astype(str).str.strip()
    for column in identifiers:
        rounded = int(frame[column].str.contains(damaged, regex=True).sum())
        if rounded:
            raise DataError(
                f"{rounded} values of {column} are not whole numbers: the table was saved with rounded identifiers",
                str(path),
                "use the original table, read as text",
            )
    rows: list[Any] = frame.to_dict("records")  # pandas lets a column be called anything; these are called by text
    return rows


def header_of(path: Path) -> list[str]:
    """Names of the columns of a table, stripped, in their order.

    Raises:
        ValueError: it is no table.
        OSError: it cannot be read.
    """
    import pandas as pd

    suffix = path.suffix.lower()
    if suffix == ".parquet":
        from pyarrow import parquet

        return [str(name).strip() for name in parquet.read_schema(path).names if not str(name).startswith("__index")]
    if suffix == ".xlsx":
        first = pd.read_excel(path, header=None, nrows=1, dtype=str, keep_default_na=False)
    else:
        first = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False, sep=separator(path))
    return [str(name).strip() for name in first.iloc[0]] if len(first) else []


def separator(path: Path) -> str:
    """What stands between the columns of a text: the one of comma, semicolon and tab that its first line has most of.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8.
    """
    with path.open(encoding="utf-8-sig") as stream:
        counts = Counter(stream.readline())
    return max(",;\t", key=lambda mark: counts[mark])  # of equals the first


def _check_widths(path: Path, header: Sequence[str]) -> None:
    """Refuses rows of a text in which fields would land in the wrong column, or be lost.

    Raises:
        DataError: a row has more fields than the heading (empty ones at its end aside) or fewer, or a field holds rows.
    """
    if path.suffix.lower() in (".xlsx", ".parquet"):
        return
    mark = separator(path)
    width = max((place for place, name in enumerate(header, 1) if name), default=0)  # separators may follow the names
    wrong: list[tuple[int, int]] = []
    with path.open(encoding="utf-8-sig", newline="") as stream:
        csv.field_size_limit(MOST_LETTERS)
        for number, fields in enumerate(csv.reader(stream, delimiter=mark), 1):
            if len(fields) == 1 and not fields[0].strip():
                continue  # a blank line
            if any(_holds_rows(field, mark, width) for field in fields):
                raise DataError(
                    f"a quotation mark that is not closed takes whole rows into one field, before row {number + 1}",
                    str(path),
                    "close it, or write two of them where one is meant",
                )
            if fields and (len(fields) < width or any(field.strip() for field in fields[width:])):
                wrong.append((number, len(fields)))
    if not wrong:
        return
    number, fields_there = wrong[0]
    raise DataError(
        f"its heading has {width} fields, but not {len(wrong)} of its rows (first row {number}, with {fields_there})",
        str(path),
        f"give every row all fields, and put those that contain {_MARKS[mark]} in quotation marks",
    )


def _holds_rows(field: str, mark: str, width: int) -> bool:
    """Whether a field of several lines has one with as many separators as a row: notes may have lines, not rows."""
    return width > 1 and "\n" in field and any(line.count(mark) >= width - 1 for line in field.splitlines())


def _load(path: Path, used: Sequence[str], blank_rows: bool) -> Any:
    """The columns of a table as text; a missing value is empty or not a number."""
    import pandas as pd

    suffix = path.suffix.lower()
    if suffix == ".parquet":
        frame = pd.read_parquet(path, dtype_backend="pyarrow")  # whole numbers with gaps stay whole
        frame.columns = frame.columns.astype(str).str.strip()
        return frame[list(used)].astype("object").apply(lambda column: column.map(_text))
    if suffix == ".xlsx":
        frame = pd.read_excel(path, dtype=str, keep_default_na=False)
    else:
        frame = pd.read_csv(
            path,
            dtype=str,
            keep_default_na=False,
            sep=separator(path),
            usecols=lambda name: str(name).strip() in used,
            skip_blank_lines=not blank_rows,
            index_col=False,  # a separator at the end of every row must not make the first column an index
        )
    frame.columns = frame.columns.astype(str).str.strip()
    return frame[[column for column in frame.columns if column in used]]


def _text(value: Any) -> str:
    """A value of a table with types as text, missing ones empty."""
    import pandas as pd

    return "" if value is None or value is pd.NA or value != value else str(value)


def number(text: str) -> float | None:
    """The number in a field; None if it is empty or not a number."""
    try:
        return float(text)
    except ValueError:
        return None
