"""The manifest of a split: what its shards hold and where every sample of them is."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from m4oe_ds.data import sources
from m4oe_ds.data.schema import MANIFEST_FIELDS, MISSING, SCHEMA_VERSION, TaskSpec
from m4oe_ds.errors import DataError


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Attributes:
        name: name of the file.
        bytes: size of the file in bytes.
        sha256: sha256 of the file.
        num_samples: number of samples in it.
        offsets: where each sample starts, and the end of the last one: ``num_samples + 1`` byte positions.
        labels: ``{task: [code per sample]}``.
        present: per sample a bit mask over the manifest's modalities.
        groups: patient pseudonym per sample.
        exams: exam pseudonym and side per sample, ``<hash16>-l``: which sample is the other breast of the same exam.
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
        """``[num_samples]`` int64 codes of a task in manifest order, -1 missing; all -1 if the split lacks the task."""
        return np.array(
            [code for shard in self.shards for code in shard.labels.get(task, [MISSING] * shard.num_samples)],
            dtype=np.int64,
        )

    def sample_present(self, modalities: Sequence[str]) -> np.ndarray:
        """``[num_samples, m]`` bool: which of the named modalities each sample has, in manifest order."""
        masks = np.array([mask for shard in self.shards for mask in shard.present], dtype=np.int64)
        bits = [self.modalities.index(name) if name in self.modalities else 62 for name in modalities]
        return (masks[:, None] >> np.array(bits)) & 1 > 0

    def normalisation(self) -> dict[str, tuple[float, float]]:
        """``{modality: (mean, std)}`` of the pixels on the 0..1 scale, for every modality that was measured."""
        return {
            name: (float(values["mean"]), max(float(values["std"]), 1e-6))
            for name, values in self.pixel_statistics.items()
        }

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


def describe(path: Path) -> tuple[int, str]:
    """Size in bytes and sha256 of a file."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return stream.tell(), digest
