"""JSON and arrays that an earlier command wrote, read back: what is damaged, or is another file, is one line."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
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
        with np.load(path, allow_pickle=False) as stored:
            found = {name: stored[name] for name in stored.files}
    except (OSError, EOFError, ValueError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        why = getattr(error, "strerror", None) or f"{_size(path)}, no arrays"
        raise DataError(f"cannot be read ({why})", str(path), fix) from None
    if missing := [name for name in names if name not in found]:
        raise DataError(f"is damaged, or another file: it has no {', '.join(missing)}", str(path), fix)
    return found


def _refuse(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON")


def _size(path: Path) -> str:
    return f"{path.stat().st_size} bytes"
