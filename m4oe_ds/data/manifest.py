"""Shards and their manifest: written once, byte for byte reproducible, verified before use."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m4oe_ds.data import sources
from m4oe_ds.data.cache import Cache
from m4oe_ds.data.schema import (
    GEOMETRY_FIELDS,
    KEY_PATTERN,
    MANIFEST_FIELDS,
    META_FIELDS,
    MISSING,
    SCHEMA_VERSION,
    TaskSpec,
    shard_name,
)
from m4oe_ds.errors import DataError


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Attributes:
        name, bytes, sha256: of the file. num_samples: in it.
        offsets: where each sample starts, and the end of the last one: ``num_samples + 1`` byte positions.
        labels: ``{task: [code per sample]}``. present: per sample a bit mask over the manifest's modalities.
        groups: patient pseudonym per sample. exams: exam pseudonym and side per sample, ``<hash16>-l``: which sample
            is the other breast of the same exam.
    """

    name: str
    bytes: int
    sha256: str
    num_samples: int
    offsets: list[int]
    labels: dict[str, list[int]]
    present: list[int]
    groups: list[str]
    exams: list[str]


@dataclass(frozen=True)
class Manifest:
    """What a split holds; see MANIFEST_FIELDS in :mod:`m4oe_ds.data.schema`."""

    dataset: str
    split: str
    synthetic: bool
    modalities: tuple[str, ...]
    tasks: tuple[TaskSpec, ...]
    num_samples: int
    num_groups: int
    shards: tuple[Shard, ...]
    label_histograms: dict[str, dict[str, int]]
    modality_counts: dict[str, int]
    pixel_statistics: dict[str, dict[str, float]]
    preprocessing: dict[str, Any]
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def load(cls, folder: Path | str) -> Manifest:
        """Manifest of a split folder, or of an address such as ``s3://bucket/embed/train``.

        Raises:
            DataError: folder or manifest missing, damaged, or of another schema version.
        """
        path = sources.join(folder, "manifest.json")
        if not sources.is_remote(path) and not Path(path).is_file():
            raise DataError(
                "no manifest.json here", str(folder), "convert an archive with `python -m data_tools.convert`"
            )
        try:
            content = json.loads(sources.read_whole(path))
        except UnicodeDecodeError:
            raise DataError("not valid JSON: not UTF-8", path, "convert the archive again") from None
        except json.JSONDecodeError as error:
            raise DataError(
                f"not valid JSON: {error.msg}", f"{path}:{error.lineno}", "convert the archive again"
            ) from None
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version != SCHEMA_VERSION:
            raise DataError(
                f"schema version {version}, this package reads {SCHEMA_VERSION}", str(path), "convert the archive again"
            )
        if set(content) != MANIFEST_FIELDS:
            odd = sorted(set(content) ^ MANIFEST_FIELDS)
            raise DataError(f"missing or unknown fields: {', '.join(odd)}", str(path), "convert the archive again")
        try:
            content["modalities"] = tuple(content["modalities"])
            content["tasks"] = tuple(
                TaskSpec(**{**t, "class_names": tuple(t["class_names"])}) for t in content["tasks"]
            )
            content["shards"] = tuple(Shard(**shard) for shard in content["shards"])
        except (TypeError, KeyError) as error:
            raise DataError(f"damaged: {error}", str(path), "convert the archive again") from None
        return cls(**content)

    def save(self, folder: Path) -> None:
        """Writes ``manifest.json`` atomically."""
        text = json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"
        temporary = Path(folder) / ".manifest.json"
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, Path(folder) / "manifest.json")

    @property
    def digest(self) -> str:
        """sha256 of the content, whatever the formatting."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def sample_labels(self, task: str) -> np.ndarray:
        """``[num_samples]`` int64 codes of a task in manifest order, -1 missing (all -1 if the split lacks the task)."""
        return np.array(
            [code for shard in self.shards for code in shard.labels.get(task, [MISSING] * shard.num_samples)],
            dtype=np.int64,
        )

    def sample_present(self, modalities: Sequence[str]) -> np.ndarray:
        """``[num_samples, m]`` bool: which of the named modalities each sample has, in manifest order."""
        masks = np.array([mask for shard in self.shards for mask in shard.present], dtype=np.int64)
        bits = [self.modalities.index(name) if name in self.modalities else 62 for name in modalities]
        return (masks[:, None] >> np.array(bits)) & 1 > 0

    def samples(self) -> list[tuple[int, int]]:
        """(shard, index in shard) of every sample, in manifest order."""
        return [(s, i) for s, shard in enumerate(self.shards) for i in range(shard.num_samples)]


def assemble(
    dataset: str,
    split: str,
    shards: Sequence[Shard],
    *,
    modalities: Sequence[str],
    tasks: Sequence[TaskSpec],
    synthetic: bool,
    preprocessing: Mapping[str, Any],
    pixel_statistics: Mapping[str, Mapping[str, float]] | None = None,
) -> Manifest:
    """The manifest of a split from its finished shards."""
    labels = {
        task.name: Counter(code for shard in shards for code in shard.labels.get(task.name, [])) for task in tasks
    }
    present = [mask for shard in shards for mask in shard.present]
    return Manifest(
        dataset=dataset,
        split=split,
        synthetic=synthetic,
        modalities=tuple(modalities),
        tasks=tuple(tasks),
        num_samples=sum(shard.num_samples for shard in shards),
        num_groups=len({group for shard in shards for group in shard.groups}),
        shards=tuple(shards),
        label_histograms={name: {str(c): n for c, n in sorted(counts.items())} for name, counts in labels.items()},
        modality_counts={name: sum(mask >> bit & 1 for mask in present) for bit, name in enumerate(modalities)},
        pixel_statistics={name: dict(values) for name, values in (pixel_statistics or {}).items()},
        preprocessing=dict(preprocessing),
    )


def check_sample(
    meta: Mapping[str, Any], members: Mapping[str, bytes], modalities: Sequence[str], tasks: Sequence[TaskSpec]
) -> None:
    """Refuses a sample that may not go into a shard.

    Raises:
        DataError: a field outside the allow-lists, a malformed key, a label outside its classes, members that do not
            match ``meta["modalities"]``.
    """
    key = str(meta.get("key", ""))
    if not KEY_PATTERN.fullmatch(key):
        raise DataError("a sample key must be <dataset>-<16 hex digits>-<side>", "shard writer")
    odd = sorted(set(meta) ^ META_FIELDS)
    if odd:
        raise DataError(f"fields missing or not allowed in a shard: {', '.join(odd)}", f"sample {key}")
    for name, geometry in meta["geometry"].items():
        unknown = sorted(set(geometry) - GEOMETRY_FIELDS)
        if unknown:
            raise DataError(f"geometry fields not allowed in a shard: {', '.join(unknown)}", f"sample {key}, {name}")
    stored = {name.split(".", 1)[0] for name in members} - {task.name for task in tasks}
    if stored != set(meta["modalities"]) or not stored <= set(modalities):
        raise DataError(f"members {sorted(stored)} but modalities {sorted(meta['modalities'])}", f"sample {key}")
    for task in tasks:
        code = meta["labels"].get(task.name, MISSING)
        top = task.num_classes if task.kind == "classification" else 2
        if not (isinstance(code, int) and not isinstance(code, bool) and MISSING <= code < top):
            raise DataError(f"label {code!r} of {task.name} is outside its {task.num_classes} classes", f"sample {key}")


class OpenShard:
    """A shard being written: a tar stream with byte positions, renamed into place when complete.

    Args:
        path: of the tar. modalities, tasks: of the data set.
    """

    def __init__(self, path: Path, modalities: Sequence[str], tasks: Sequence[TaskSpec]) -> None:
        import webdataset

        self.path, self.partial = path, path.with_name(f".{path.name}")
        self.modalities, self.tasks = tuple(modalities), tuple(tasks)
        self._stream = self.partial.open("wb")
        self._tar = webdataset.TarWriter(
            self._stream, encoder=False, user="m4oe", group="m4oe", mode=0o444, mtime=0.0, compress=False
        )
        self.count = 0
        self.offsets: list[int] = []
        self.labels: dict[str, list[int]] = {task.name: [] for task in tasks}
        self.present: list[int] = []
        self.groups: list[str] = []
        self.exams: list[str] = []

    def add(self, meta: Mapping[str, Any], members: Mapping[str, bytes]) -> None:
        """Appends a sample that :func:`check_sample` accepts.

        Raises:
            DataError: it does not.
        """
        check_sample(meta, members, self.modalities, self.tasks)
        self.offsets.append(self._tar.tarstream.offset)  # the stream beneath is buffered
        text = json.dumps(dict(meta), sort_keys=True, separators=(",", ":")).encode()
        self._tar.write({"__key__": meta["key"], "meta.json": text, **members})
        for task in self.tasks:
            self.labels[task.name].append(int(meta["labels"].get(task.name, MISSING)))
        self.present.append(sum(1 << i for i, name in enumerate(self.modalities) if name in meta["modalities"]))
        self.groups.append(str(meta["group"]))
        self.exams.append(f"{meta['exam']}-{meta['side']}")
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

    Args:
        out_dir: the split goes to ``out_dir/<split>``. dataset, split: names. modalities, tasks: of the data set.
        samples_per_shard: 64 to 512 for views of this size. synthetic: phantoms. preprocessing: recorded as it is.

    Raises:
        DataError: the split folder already holds shards.
    """

    def __init__(
        self,
        out_dir: Path,
        dataset: str,
        split: str,
        *,
        modalities: Sequence[str],
        tasks: Sequence[TaskSpec],
        samples_per_shard: int,
        synthetic: bool,
        preprocessing: Mapping[str, Any],
    ) -> None:
        self.folder = Path(out_dir) / split
        self.dataset, self.split, self.synthetic = dataset, split, synthetic
        self.modalities, self.tasks = tuple(modalities), tuple(tasks)
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
            meta: the fields of META_FIELDS; nothing else is accepted. members: ``{"ffdm_cc.b2": bytes, ...}``.

        Raises:
            DataError: what :func:`check_sample` refuses, or a key written before.
        """
        check_sample(meta, members, self.modalities, self.tasks)
        key = str(meta["key"])
        if key in self._keys:
            raise DataError("this key was written before", f"sample {key}")
        if self._open is None:
            path = self.folder / shard_name(self.dataset, self.split, len(self._shards))
            self._open = OpenShard(path, self.modalities, self.tasks)
        self._open.add(meta, members)
        self._keys.add(key)
        if self._open.count == self.samples_per_shard:
            self._finish_shard()

    def close(self, pixel_statistics: Mapping[str, Mapping[str, float]] | None = None) -> Manifest:
        """Finishes the last shard and writes the manifest.

        Args:
            pixel_statistics: ``{modality: {"mean", "std"}}`` of stored pixels / 65535 over this split.
        """
        self._finish_shard()
        manifest = assemble(
            self.dataset, self.split, self._shards, modalities=self.modalities, tasks=self.tasks,
            synthetic=self.synthetic, preprocessing=self.preprocessing, pixel_statistics=pixel_statistics,
        )  # fmt: skip
        manifest.save(self.folder)
        return manifest

    def _finish_shard(self) -> None:
        if self._open is not None:
            self._shards.append(self._open.close())
            self._open = None


def describe(path: Path) -> tuple[int, str]:
    """Size in bytes and sha256 of a file."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return stream.tell(), digest


def verify_shards(
    folder: Path | str, manifest: Manifest, *, mode: str = "full", rank: int = 0, world: int = 1
) -> list[str]:
    """Problems with this rank's share of the shards (every ``world``-th), one line each; empty = all is well.

    Args:
        mode: ``full`` compares sha256, ``size`` the size alone. Remote shards are compared by size here: their sha256 is
            compared when they are fetched into the cache.
    """
    problems = []
    for shard in manifest.shards[rank::world]:
        path = sources.join(folder, shard.name)
        remote = sources.is_remote(path)
        try:
            size = sources.size_of(path) if remote else Path(path).stat().st_size
        except FileNotFoundError:
            problems.append(f"shard {path} is missing; copy it again or convert the archive again")
            continue
        except DataError as error:
            problems.append(f"shard {error}")
            continue
        where = sources.shown(path)
        if size != shard.bytes:
            problems.append(f"shard {where}: {size} bytes instead of {shard.bytes} as in manifest.json; copy it again")
        elif mode == "full" and not remote:
            digest = describe(Path(path))[1]
            if digest != shard.sha256:
                problems.append(
                    f"shard {where}: sha256 differs from manifest.json (expected {shard.sha256[:8]}..., found "
                    f"{digest[:8]}...); copy it again"
                )
    return problems


def read_sample(
    path: Path | str, start: int, stop: int, *, shard: Shard | None = None, cache: Cache | None = None
) -> dict[str, bytes]:
    """Members of the sample in bytes ``start`` to ``stop`` of a shard, by name; ``__key__`` is its key.

    Args:
        shard, cache: of a remote shard, to read it from the cache; without them its parts are asked for one by one.
    """
    if cache is not None and shard is not None and sources.is_remote(path):
        return parse_sample(cache.read(str(path), shard.bytes, shard.sha256, start, stop))
    return parse_sample(sources.open_range(str(path), start, stop))


def parse_sample(data: bytes) -> dict[str, bytes]:
    """Members of one sample from a slice of a tar, through WebDataset's own reader.

    Raises:
        DataError: not exactly one sample.
    """
    import tarfile

    from webdataset.tariterators import group_by_keys, tar_file_expander

    try:
        samples = list(group_by_keys(tar_file_expander([{"url": "shard", "stream": io.BytesIO(data)}])))
    except (tarfile.TarError, ValueError, OSError, EOFError) as error:
        raise DataError(f"a sample's bytes are not a tar archive ({type(error).__name__})") from None
    if len(samples) != 1:
        raise DataError(f"a sample's bytes hold {len(samples)} samples instead of one")
    return {name: value for name, value in samples[0].items() if not name.startswith("__") or name == "__key__"}
