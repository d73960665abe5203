"""Tables of archives, read as text: identifiers lose digits as numbers, and a missing value is an empty field."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m4oe_ds.errors import DataError

ROUNDED = r"[eE]\+|\.\d*$"  # what a number that was read as a floating-point one looks like as text


def read_table(
    path: Path,
    required: Sequence[str],
    optional: Sequence[str] = (),
    identifiers: Sequence[str] = (),
    *,
    damaged: str = ROUNDED,
    original: str = "use the table as it was published",
) -> list[dict[str, str]]:
    """Rows of a CSV file, every value as stripped text; absent optional columns are empty.

    Args:
        path: path of the table.
        required: columns that must be there.
        optional: columns that are read if they are there.
        identifiers: columns that must not have been rounded.
        damaged: pattern found in an identifier that was.
        original: what to do where a column is missing.

    Raises:
        DataError: missing file or column, unreadable, or identifiers such as ``123.0`` or ``1e+16``.
    """
    import pandas as pd

    if not path.is_file():
        raise DataError("the table is not here", str(path), "check --root")
    try:
        header = list(pd.read_csv(path, nrows=0, dtype=str).columns)
        absent = [column for column in required if column not in header]
        if absent:
            raise DataError(f"columns missing: {', '.join(absent)}", str(path), original)
        used = [column for column in (*required, *optional) if column in header]
        frame = pd.read_csv(path, dtype=str, keep_default_na=False, usecols=used)
    except (ValueError, OSError) as error:
        raise DataError(f"is not a readable table ({type(error).__name__})", str(path), "download it again") from None
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


def number(text: str) -> float | None:
    """The number in a field; None if it is empty or not a number."""
    try:
        return float(text)
    except ValueError:
        return None
