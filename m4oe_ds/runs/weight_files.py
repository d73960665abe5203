"""Files of consolidated weights and checkpoints, told whole from damaged by their headers alone. Imports no torch.

A safetensors file is the length of its header (8 bytes, the lowest first), the header (JSON: name to type, shape and
place), and the tensors; what was cut off, or is another kind of file, shows in the header against the size.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from m4oe_ds.errors import CheckpointError, DataError
from m4oe_ds.runs.folder import CheckpointFolder, RunFolder, checkpoint_tags
from m4oe_ds.stored import read_json

INDEX_SUFFIX = ".index.json"
_LENGTH = 8  # bytes before the header


def find_weights(path: Path) -> dict[str, Path]:
    """The file of every tensor of consolidated weights.

    Args:
        path: path of the single file; the index of several is looked for next to it.

    Raises:
        CheckpointError: none there, or one that is damaged.
    """
    index = path.with_name(path.name + INDEX_SUFFIX)
    if index.is_file():
        files = _of_index(index)
        found = {name for file in set(files.values()) for name in tensors_of(file, path)}
        if lacking := sorted(files.keys() - found):
            raise CheckpointError(f"its files lack {len(lacking)} tensors ({lacking[0]}, ..)", str(index), remedy(path))
        return files
    if not path.is_file():
        what = "is a folder, not a file of weights" if path.is_dir() else "no consolidated weights"
        raise CheckpointError(what, str(path), remedy(path))
    return dict.fromkeys(tensors_of(path, path), path)


def tensors_of(file: Path, path: Path) -> list[str]:
    """Names of the tensors of one file, whose header fits its size.

    Args:
        file: the file.
        path: what the advice of a damaged one names, as in :func:`find_weights`.

    Raises:
        CheckpointError: it is not there, cut off, or no safetensors file.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(_LENGTH), "little")
            header = json.loads(stream.read(length)) if 2 <= length <= size - _LENGTH else None
    except FileNotFoundError:
        raise CheckpointError("is not there", str(file), remedy(path)) from None
    except OSError as error:
        raise CheckpointError(f"cannot be read ({error.strerror})", str(file), remedy(path)) from None
    except (ValueError, RecursionError):
        header = None
    ends = _ends(header)
    if ends is None or _LENGTH + length + max(ends, default=0) != size:
        whole = f" of {_LENGTH + length + max(ends)}" if ends else ""
        raise CheckpointError(f"is damaged: {size:,} bytes{whole}, no whole safetensors file", str(file), remedy(path))
    assert isinstance(header, dict)
    return [name for name in header if name != "__metadata__"]


def remedy(path: Path) -> str:
    """What to do about weights that are not there or cannot be read: what the run folder still has."""
    run = RunFolder(path.parent.parent)
    if run.weights != path or not run.config.is_file():
        return "export them again with `m4oe export`, or copy them again"
    tags = checkpoint_tags(run.checkpoints)
    if not tags:
        return "the run has no checkpoints either: train it to its end, or copy its weights/ here"
    return f"make them with `m4oe export {run.path} --checkpoint {tags[-1]}` (checkpoints there: {', '.join(tags)})"


def others(folder: Path) -> str:
    """What to do about a checkpoint that cannot be used: which others the run has."""
    tags = [tag for tag in checkpoint_tags(folder.parent) if tag != folder.name]
    return f"take another checkpoint of the run: {', '.join(tags)}" if tags else "the run has no other checkpoint"


def read_manifest(folder: Path, keys: Sequence[str] = ()) -> dict[str, Any]:
    """What a checkpoint says of itself.

    Args:
        folder: of the checkpoint.
        keys: what it must have.

    Raises:
        CheckpointError: not complete, or damaged.
    """
    path = CheckpointFolder(folder).manifest
    if not path.is_file():
        raise CheckpointError("no complete checkpoint", str(folder), "name a step-* folder with a manifest.json")
    try:
        return read_json(path, others(folder), keys)
    except DataError as error:
        raise CheckpointError(error.what, error.where, error.fix) from None


def _of_index(index: Path) -> dict[str, Path]:
    path = index.with_name(index.name.removesuffix(INDEX_SUFFIX))
    try:
        names: Any = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = {str(name): index.with_name(str(file)) for name, file in names.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CheckpointError("is damaged: no index of weights", str(index), remedy(path)) from None
    if not files:
        raise CheckpointError("is damaged: it names no tensor", str(index), remedy(path))
    return files


def _ends(header: Any) -> list[int] | None:
    """Where every tensor ends; None where a header is none."""
    if not isinstance(header, dict):
        return None
    try:
        return [int(entry["data_offsets"][1]) for name, entry in header.items() if name != "__metadata__"]
    except (TypeError, KeyError, ValueError, IndexError):
        return None
