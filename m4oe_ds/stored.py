"""JSON, logs and arrays that an earlier command wrote, read back: what is damaged, or is another file, is one line."""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m4oe_ds.errors import DataError

if TYPE_CHECKING:
    import numpy as np


def read_json(path: Path, fix: str, keys: Sequence[str] = ()) -> dict[str, Any]:
    """The object of a JSON file.

    Args:
        path: of the file.
        fix: what to do where it cannot be used.
        keys: what it must have.

    Raises:
        DataError: not there, not JSON, no object, or without one of the keys.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse)
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", str(path), fix) from None
    except (ValueError, RecursionError):
        raise DataError(f"is damaged: {_size(path)}, no JSON", str(path), fix) from None
    if not isinstance(content, dict):
        raise DataError("is damaged: it holds no JSON object", str(path), fix)
    if missing := [key for key in keys if key not in content]:
        raise DataError(f"is damaged, or another file: it has no {', '.join(missing)}", str(path), fix)
    return content


def read_arrays(path: Path, fix: str, names: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Every array of an ``.npz`` file.

    Args:
        path: of the file.
        fix: what to do where it cannot be used.
        names: arrays that it must have.

    Raises:
        DataError: not there, not such a file, or without one of the arrays.
    """
    import numpy as np

    try:
        with (
            path.open("rb") as stream,
            np.load(stream, allow_pickle=False) as stored,
        ):  # numpy leaves a damaged one open
            found = {name: stored[name] for name in stored.files}
    except (OSError, EOFError, ValueError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        why = getattr(error, "strerror", None) or f"{_size(path)}, no arrays"
        raise DataError(f"cannot be read ({why})", str(path), fix) from None
    if missing := [name for name in names if name not in found]:
        raise DataError(f"is damaged, or another file: it has no {', '.join(missing)}", str(path), fix)
    return found


def read_log(path: Path, fix: str) -> list[dict[str, Any]]:
    """The records of a log, one JSON object a line, each with a whole number ``step``.

    A killed run can leave its last line unfinished: that one alone is left out.

    Args:
        path: of the file.
        fix: what to do where it cannot be used.

    Raises:
        DataError: not there, or a damaged line, with its number.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", str(path), fix) from None
    found = []
    last = lines.pop()  # empty, where the last line was written to its end
    if last and ((record := _record(last)) is not None or not last.startswith("{")):
        lines.append(last)
    for number, line in enumerate(lines, 1):
        record = _record(line)
        if record is None:
            raise DataError(f"line {number} is damaged: no record of a step", str(path), fix)
        found.append(record)
    return found


def _record(line: str) -> dict[str, Any] | None:
    """A line of a log; None where it is none."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    step = content.get("step") if isinstance(content, dict) else None
    return content if isinstance(step, int) and not isinstance(step, bool) else None


@contextlib.contextmanager
def within(where: str, fix: str) -> Iterator[None]:
    """While the content of a file is used: what does not fit together in it is the file's damage.

    Args:
        where: the file or the files.
        fix: what to do.

    Raises:
        DataError: something in it is missing or of another kind; its cause has the traceback.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        told = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        raise DataError(f"is damaged, or of another version ({told})", where, fix) from error


def _refuse(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _size(path: Path) -> str:
    return f"{path.stat().st_size} bytes"
