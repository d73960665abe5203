"""Files of a checkpoint's tensors: safetensors with one entry per interval of a flattened global parameter.

    <kind>|<parameter>|<start>    1-D; kind = master, exp_avg, exp_avg_sq, ...
    buffer|<name>|0               a buffer, in its own shape
    generator|<name>|<rank>       state of a random generator of one rank

Nothing is unpickled. Any program that reads safetensors can put a parameter together by sorting its intervals.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from m4oe_ds.errors import CheckpointError
from m4oe_ds.parallel.engine_state import Piece
from m4oe_ds.runs.folder import CheckpointFolder
from m4oe_ds.runs.weight_files import others

BUFFER, GENERATOR = "buffer", "generator"


def snapshot(pieces: Iterable[Piece], buffers: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Copies in host memory, named as above; what is written later no longer depends on training."""
    copies = {
        f"{piece.kind}|{piece.name}|{piece.start}": torch.empty_like(
            piece.values, device="cpu", memory_format=torch.contiguous_format
        ).copy_(piece.values.detach())
        for piece in pieces
    }
    for name, buffer in buffers:
        copies[f"{BUFFER}|{name}|0"] = buffer.detach().to("cpu", copy=True).contiguous()
    return copies


def write(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes a snapshot."""
    save_file(tensors, str(path), metadata={"format": "m4oe-state"})


class StateReader:
    """Intervals of all state files of one checkpoint, read on demand.

    Args:
        folder: folder of the checkpoint.

    Raises:
        CheckpointError: no state files, or unreadable ones.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Any] = {}
        intervals: dict[tuple[str, str], list[tuple[int, int, str, str]]] = defaultdict(list)
        self.buffers: dict[str, tuple[str, str]] = {}
        self._generators: dict[tuple[int, str], tuple[str, str]] = {}
        for path in CheckpointFolder(folder).states():
            try:
                stored = safe_open(str(path), framework="pt")
                for entry in stored.keys():  # noqa: SIM118  (not a mapping)
                    kind, name, start = entry.split("|")
                    if kind == BUFFER:
                        self.buffers[name] = (path.name, entry)
                        continue
                    if kind == GENERATOR:
                        self._generators[int(start), name] = (path.name, entry)
                        continue
                    size = stored.get_slice(entry).get_shape()[0]
                    intervals[kind, name].append((int(start), int(start) + size, path.name, entry))
            except (SafetensorError, OSError, ValueError) as error:
                raise CheckpointError(f"is damaged: {error}", str(path), others(folder)) from error
            self._files[path.name] = stored
        if not self._files:
            raise CheckpointError("has no state files", str(folder), others(folder))
        self._intervals = {key: sorted(values) for key, values in intervals.items()}
        self._starts = {key: [start for start, *_ in values] for key, values in self._intervals.items()}

    @property
    def names(self) -> set[str]:
        """Parameters with master weights."""
        return {name for kind, name in self._intervals if kind == "master"}

    def numel(self, name: str) -> int:
        """Elements of a parameter, from its last interval."""
        return self._intervals["master", name][-1][1]

    def read(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        """Interval [start, stop) of a flattened parameter.

        Raises:
            CheckpointError: some of it is not in any file.
        """
        known = self._intervals.get((kind, name), [])
        parts: list[Tensor] = []
        at = start
        index = max(bisect.bisect_right(self._starts.get((kind, name), []), start) - 1, 0)
        while at < stop and index < len(known):
            first, last, file, entry = known[index]
            if first > at:
                break
            if last > at:
                end = min(last, stop)
                parts.append(self._files[file].get_slice(entry)[at - first : end - first])
                at = end
            index += 1
        if at < stop:
            what = f"{kind} of {name} lacks elements {at} to {stop}"
            raise CheckpointError(what, str(self.folder), others(self.folder))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def buffer(self, name: str) -> Tensor:
        """A buffer by module path."""
        file, entry = self.buffers[name]
        value: Tensor = self._files[file].get_tensor(entry)
        return value

    def generators(self, rank: int) -> dict[str, Tensor]:
        """States of the random generators of one rank, by name."""
        return {
            name: self._files[file].get_tensor(entry)
            for (owner, name), (file, entry) in self._generators.items()
            if owner == rank
        }

    def differences(self, names: Iterable[str], buffers: Iterable[str]) -> list[str]:
        """Names that the checkpoint lacks or has in excess, each as one line."""
        wanted = set(names)
        problems = [f"missing {name}" for name in sorted(wanted - self.names)]
        problems += [f"unexpected {name}" for name in sorted(self.names - wanted)]
        problems += [f"missing buffer {name}" for name in sorted(set(buffers) - self.buffers.keys())]
        return problems
