"""Files that lie next to an output folder, never in it: what stays private while the folder may be handed on."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path


def next_to(out: Path, suffix: str) -> Path:
    """A file next to the output folder: its name with a suffix."""
    return out.with_name(f"{out.name}.{suffix}")


def write_private(path: Path, columns: Sequence[str], rows: Sequence[dict[str, str]]) -> None:
    """Writes a mapping of keys to what they stand for as CSV, readable by its owner only from the first byte on."""
    temporary = path.with_name(f".{path.name}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)
