"""The manifest of a split: what its shards hold and where every sample of them is."""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from m4oe_ds.data import sources
from m4oe_ds.data.cards import Card, card_from, find_card
from m4oe_ds.data.schema import MANIFEST_FIELDS, MISSING, SCHEMA_VERSION, STORED_AS, TaskSpec
from m4oe_ds.errors import ConfigError, DataError


@dataclass(frozen=True)
class Shard:
    """One tar file.

    Attributes:
        name: name of the file.
        bytes: size of the file in bytes.
        sha256: sha256 of the file.
        num_samples: number of samples in it.
        offsets: where each sample starts, and the end of the last one: ``num_samples + 1`` byte positions.
        labels: ``{task: [label per sample]}``, as TaskSpec describes labels.
        present: per sample a bit mask over the manifest's modalities.
        groups: patient pseudonym per sample.
        exams: exam pseudonym, and side where there is one, per sample, ``<hash16>-l``: which sample is the other side
            of the same exam.
    """

    name: str
    bytes: int
    sha256: str
    num_samples: int
    offsets: list[int]
    labels: dict[str, list[Any]]
    present: list[int]
    groups: list[str]
    exams: list[str]


@dataclass(frozen=True)
class Manifest:
    """What a split holds; see MANIFEST_FIELDS in :mod:`m4oe_ds.data.schema`."""

    dataset: str
    split: str
    synthetic: bool
    card: Card
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
            raise _absent(Path(folder))
        try:
            content = json.loads(sources.read_whole(path))
        except UnicodeDecodeError:
            raise DataError("not valid JSON: not UTF-8", path, "convert the archive again") from None
        except RecursionError:
            raise DataError("not valid JSON: nested too deeply", path, "convert the archive again") from None
        except json.JSONDecodeError as error:
            raise DataError(
                f"not valid JSON: {error.msg}", f"{path}:{error.lineno}", "convert the archive again"
            ) from None
        version = content.get("schema_version") if isinstance(content, dict) else None
        if version != SCHEMA_VERSION:
            raise DataError(
                f"schema version {version}, this package reads {SCHEMA_VERSION}", str(path), "convert the archive again"
            )
        if odd := sorted((set(content) ^ MANIFEST_FIELDS) - {"card"}):
            raise DataError(f"missing or unknown fields: {', '.join(odd)}", str(path), "convert the archive again")
        try:
            content["card"] = _card(content, str(path))
            del content["modalities"], content["tasks"]
            content["shards"] = tuple(Shard(**shard) for shard in content["shards"])
            if any(set(shard.labels) != {task.name for task in content["card"].tasks} for shard in content["shards"]):
                raise KeyError("labels of a task")
            _check_numbers(content)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise DataError(f"damaged: {error}", str(path), "convert the archive again") from None
        return cls(**content)

    def save(self, folder: Path) -> None:
        """Writes ``manifest.json`` atomically."""
        # keys in order, but those of the card in its own: it is the order of modalities and tasks
        content = json.loads(json.dumps(self._content(), sort_keys=True)) | {"card": self.card.content}
        text = json.dumps(dict(sorted(content.items())), indent=1) + "\n"
        temporary = Path(folder) / ".manifest.json"
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, Path(folder) / "manifest.json")

    @property
    def digest(self) -> str:
        """sha256 of the content, whatever the formatting and whatever words the card has for it."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True).encode()).hexdigest()

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in the order of the bits of ``present``."""
        return self.card.modalities

    @property
    def tasks(self) -> tuple[TaskSpec, ...]:
        """Tasks of the card."""
        return self.card.tasks

    def _content(self) -> dict[str, Any]:
        """The fields but the card, which says its modalities and tasks again in words of its own."""
        rest = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "card"}
        return rest | {
            "shards": [asdict(shard) for shard in self.shards],
            "modalities": list(self.modalities),
            "tasks": [
                {
                    "name": task.name,
                    "kind": STORED_AS[task.kind],
                    "num_classes": task.num_classes,
                    "class_names": list(task.class_names),
                }
                for task in self.tasks
            ],
        }

    def sample_known(self, task: str) -> np.ndarray:
        """``[num_samples]`` bool: which samples have an answer to a task; none if the split lacks the task."""
        if task not in {one.name for one in self.tasks}:
            return np.zeros(self.num_samples, dtype=bool)
        known = self.card.task(task).known
        return np.array([known(label) for shard in self.shards for label in shard.labels[task]], dtype=bool)

    def sample_values(self, task: str) -> np.ndarray:
        """Answers in manifest order, NaN missing: ``[num_samples]`` float64 of a number, ``[num_samples, 2]`` (time,
        event) of a survival."""
        spec = self.card.task(task)
        nothing: Any = [np.nan, np.nan] if spec.kind == "survival" else np.nan
        found = [label if spec.known(label) else nothing for shard in self.shards for label in shard.labels[task]]
        return np.array(found, dtype=np.float64).reshape(self.num_samples, *((2,) if spec.kind == "survival" else ()))

    def sample_labels(self, task: str) -> np.ndarray:
        """``[num_samples]`` int64 codes of a task in manifest order, -1 missing; all -1 if the split lacks the task.

        Raises:
            ValueError: the answers to the task are no codes.
        """
        if task not in {one.name for one in self.tasks}:
            return np.full(self.num_samples, MISSING, dtype=np.int64)
        if self.card.task(task).kind in ("number", "survival"):
            raise ValueError(f"{task} has no classes")
        return np.array([code for shard in self.shards for code in shard.labels[task]], dtype=np.int64)

    def sample_present(self, modalities: Sequence[str]) -> np.ndarray:
        """``[num_samples, m]`` bool: which of the named modalities each sample has, in manifest order."""
        masks = np.array([mask for shard in self.shards for mask in shard.present], dtype=np.int64)
        bits = [self.modalities.index(name) if name in self.modalities else 62 for name in modalities]
        return (masks[:, None] >> np.array(bits)) & 1 > 0

    def normalisation(self) -> dict[str, tuple[float, float]]:
        """``{modality: (mean, std)}`` of the pixels on the 0..1 scale, for every modality that was measured."""
        return normalisation(self.pixel_statistics)

    def samples(self) -> list[tuple[int, int]]:
        """(shard, index in shard) of every sample, in manifest order."""
        return [(s, i) for s, shard in enumerate(self.shards) for i in range(shard.num_samples)]


def normalisation(statistics: Mapping[str, Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """``{name: (mean, std)}`` by which values are standardised; of values that are all equal the std is 1e-6.

    Args:
        statistics: ``pixel_statistics`` of a manifest.
    """
    return {name: (float(values["mean"]), max(float(values["std"]), 1e-6)) for name, values in statistics.items()}


def _check_numbers(content: Mapping[str, Any]) -> None:
    """Numbers that say the same twice; whoever edits one of them by hand would be told nothing.

    Raises:
        ValueError: they differ.
    """
    held = sum(shard.num_samples for shard in content["shards"])
    if content["num_samples"] != held:
        raise ValueError(f"num_samples is {content['num_samples']}, and its shards hold {held}")
    for shard in content["shards"]:
        if any(len(labels) != shard.num_samples for labels in shard.labels.values()):
            raise ValueError(f"{shard.name} has {shard.num_samples} samples, and another number of labels")


def _absent(folder: Path) -> DataError:
    """What is there in place of a split that is not."""
    splits = sorted(path.parent.name for path in folder.parent.glob("*/manifest.json"))
    if splits:
        return DataError(f"no split {folder.name!r} here", str(folder.parent), f"there are: {', '.join(splits)}")
    here = sorted(path.parent.name for path in folder.glob("*/manifest.json"))
    fix = f"name a folder above: its splits are {', '.join(here)}" if here else "make shards with `m4oe convert`"
    return DataError("no manifest.json here", str(folder), fix)


def _card(content: Mapping[str, Any], path: str) -> Card:
    """The card that a manifest carries, or the shipped one of its data set: shards older than cards have none.

    Raises:
        DataError: no card, a damaged one, or one of other modalities and tasks.
    """
    try:
        name = str(content["dataset"])
        card = card_from(content["card"], f"{path} (card)") if "card" in content else find_card(name)
    except ConfigError as error:
        raise DataError(f"its card cannot be used: {error}", path, "convert the archive again") from None
    stored = [(task["name"], task["kind"], task["num_classes"]) for task in content["tasks"]]
    if (
        card.name != name
        or list(card.modalities) != list(content["modalities"])
        or stored != [(task.name, STORED_AS[task.kind], task.num_classes) for task in card.tasks]
    ):
        raise DataError("its card has other modalities or tasks than it lists", path, "convert the archive again")
    return card


def _histogram(task: TaskSpec, labels: Sequence[Any]) -> dict[str, int]:
    """How often each code occurs; of answers without codes how many are known (and are events), and missing as -1."""
    if task.coded or task.dense:
        return {str(code): number for code, number in sorted(Counter(labels).items())}
    words = Counter(
        "-1" if label is None else "known" if task.kind == "number" else ("censored", "event")[int(label[1])]
        for label in labels
    )
    return dict(sorted(words.items()))


def assemble(
    card: Card,
    split: str,
    shards: Sequence[Shard],
    *,
    synthetic: bool,
    preprocessing: Mapping[str, Any],
    pixel_statistics: Mapping[str, Mapping[str, float]] | None = None,
) -> Manifest:
    """The manifest of a split from its finished shards."""
    present = [mask for shard in shards for mask in shard.present]
    return Manifest(
        dataset=card.name,
        split=split,
        synthetic=synthetic,
        card=card,
        num_samples=sum(shard.num_samples for shard in shards),
        num_groups=len({group for shard in shards for group in shard.groups}),
        shards=tuple(shards),
        label_histograms={
            task.name: _histogram(task, [label for shard in shards for label in shard.labels[task.name]])
            for task in card.tasks
        },
        modality_counts={name: sum(mask >> bit & 1 for mask in present) for bit, name in enumerate(card.modalities)},
        pixel_statistics={name: dict(values) for name, values in (pixel_statistics or {}).items()},
        preprocessing=dict(preprocessing),
    )


def describe(path: Path) -> tuple[int, str]:
    """Size in bytes and sha256 of a file."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return stream.tell(), digest
