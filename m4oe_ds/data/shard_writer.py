"""Writes shards, byte for byte reproducible, and refuses what may not stand in them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from m4oe_ds.data.cards import Card
from m4oe_ds.data.manifest import Manifest, Shard, assemble, describe
from m4oe_ds.data.schema import GEOMETRY_FIELDS, KEY_PATTERN, META_FIELDS, OPTIONAL_META_FIELDS, shard_name
from m4oe_ds.errors import DataError


def check_sample(meta: Mapping[str, Any], members: Mapping[str, bytes], card: Card) -> None:
    """Refuses a sample that may not go into a shard.

    Raises:
        DataError: a field outside the allow-lists, a malformed key, a label outside its classes, members that do not
            match ``meta["modalities"]``.
    """
    key = str(meta.get("key", ""))
    if not KEY_PATTERN.fullmatch(key):
        form = "<name of the card>-<16 hex digits>, and -<side> if it has one: lower-case letters, digits, hyphens"
        # not repeated: what should not be a key may be an identifier of the archive
        raise DataError(f"a sample's key must be {form}", "shard writer")
    odd = sorted(set(meta) - META_FIELDS | META_FIELDS - OPTIONAL_META_FIELDS - set(meta))
    if odd:
        raise DataError(f"fields missing or not allowed in a shard: {', '.join(odd)}", f"sample {key}")
    for name, geometry in meta.get("geometry", {}).items():
        unknown = sorted(set(geometry) - GEOMETRY_FIELDS)
        if unknown:
            raise DataError(f"geometry fields not allowed in a shard: {', '.join(unknown)}", f"sample {key}, {name}")
    stored = {name.split(".", 1)[0] for name in members} - {task.name for task in card.tasks}
    if stored != set(meta["modalities"]) or not stored <= set(card.modalities):
        raise DataError(f"members {sorted(stored)} but modalities {sorted(meta['modalities'])}", f"sample {key}")
    for task in card.tasks:
        if problem := task.problem(meta["labels"].get(task.name, task.unknown)):
            raise DataError(problem, f"sample {key}")


class OpenShard:
    """A shard being written: a tar stream with byte positions, renamed into place when complete.

    Args:
        path: path of the tar.
        card: card of the data set.
    """

    def __init__(self, path: Path, card: Card) -> None:
        import webdataset

        self.path, self.partial = path, path.with_name(f".{path.name}")
        self.card = card
        self._stream = self.partial.open("wb")
        self._tar = webdataset.TarWriter(
            self._stream, encoder=False, user="m4oe", group="m4oe", mode=0o444, mtime=0.0, compress=False
        )
        self.count = 0
        self.offsets: list[int] = []
        self.labels: dict[str, list[Any]] = {task.name: [] for task in card.tasks}
        self.present: list[int] = []
        self.groups: list[str] = []
        self.exams: list[str] = []

    def add(self, meta: Mapping[str, Any], members: Mapping[str, bytes]) -> None:
        """Appends a sample that :func:`check_sample` accepts.

        Raises:
            DataError: it does not.
        """
        check_sample(meta, members, self.card)
        self.offsets.append(self._tar.tarstream.offset)  # the stream beneath is buffered
        text = json.dumps(dict(meta), sort_keys=True, separators=(",", ":")).encode()
        self._tar.write({"__key__": meta["key"], "meta.json": text, **members})
        for task in self.card.tasks:
            self.labels[task.name].append(meta["labels"].get(task.name, task.unknown))
        self.present.append(sum(1 << i for i, name in enumerate(self.card.modalities) if name in meta["modalities"]))
        self.groups.append(str(meta["group"]))
        self.exams.append(f"{meta['exam']}-{meta['side']}" if "side" in meta else str(meta["exam"]))
        self.count += 1

    def close(self) -> Shard:
        """Ends the tar, moves it into place and describes it."""
        self.offsets.append(self._tar.tarstream.offset)  # the stream beneath is buffered
        self._tar.close()
        self._stream.close()
        os.replace(self.partial, self.path)
        size, digest = describe(self.path)
        return Shard(
            self.path.name, size, digest, self.count, self.offsets, self.labels, self.present, self.groups, self.exams
        )

    def abort(self) -> None:
        """Closes and removes what was written."""
        self._tar.close()
        self._stream.close()
        self.partial.unlink(missing_ok=True)


class ShardWriter:
    """Writes one split: WebDataset tar shards with fixed metadata (equal samples give equal bytes), then the manifest.

    The public way to write shards from Python; the converter, whose processes each make whole shards, uses
    :class:`OpenShard`.

    Args:
        out_dir: the split goes to ``out_dir/<split>``.
        card: card of the data set.
        split: name of the split.
        samples_per_shard: 64 to 512 for views of this size.
        synthetic: whether the samples are phantoms.
        preprocessing: how pixels were made; recorded as it is.

    Raises:
        DataError: the split folder already holds shards.
    """

    def __init__(
        self,
        out_dir: Path,
        card: Card,
        split: str,
        *,
        samples_per_shard: int,
        synthetic: bool,
        preprocessing: Mapping[str, Any],
    ) -> None:
        self.folder = Path(out_dir) / split
        self.card, self.split, self.synthetic = card, split, synthetic
        self.samples_per_shard, self.preprocessing = samples_per_shard, dict(preprocessing)
        self.folder.mkdir(parents=True, exist_ok=True)
        if any(self.folder.iterdir()):
            raise DataError("already holds files", str(self.folder), "choose another --out or remove it")
        self._keys: set[str] = set()
        self._shards: list[Shard] = []
        self._open: OpenShard | None = None

    def write(self, meta: Mapping[str, Any], members: Mapping[str, bytes]) -> None:
        """Appends a sample.

        Args:
            meta: the fields of META_FIELDS; nothing else is accepted.
            members: ``{"ffdm_cc.b2": bytes, ...}``.

        Raises:
            DataError: what :func:`check_sample` refuses, or a key written before.
        """
        check_sample(meta, members, self.card)
        key = str(meta["key"])
        if key in self._keys:
            raise DataError("this key was written before", f"sample {key}")
        if self._open is None:
            path = self.folder / shard_name(self.card.name, self.split, len(self._shards))
            self._open = OpenShard(path, self.card)
        self._open.add(meta, members)
        self._keys.add(key)
        if self._open.count == self.samples_per_shard:
            self._finish_shard()

    def close(self, pixel_statistics: Mapping[str, Mapping[str, float]] | None = None) -> Manifest:
        """Finishes the last shard and writes the manifest.

        Args:
            pixel_statistics: ``{modality: {"mean", "std"}}`` over this split, of stored pixels / the largest value of
                their type (255 or 65535); of a column of a table modality under ``modality.column``.
        """
        self._finish_shard()
        manifest = assemble(
            self.card,
            self.split,
            self._shards,
            synthetic=self.synthetic,
            preprocessing=self.preprocessing,
            pixel_statistics=pixel_statistics,
        )
        manifest.save(self.folder)
        return manifest

    def _finish_shard(self) -> None:
        if self._open is not None:
            self._shards.append(self._open.close())
            self._open = None
