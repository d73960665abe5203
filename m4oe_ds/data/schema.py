"""What a sample, a shard and a manifest contain. Standard library only: shared by ``data_tools`` and the trainer.

One sample is one breast of one exam (EMBED, RSNA, VinDr) or one eye (GAMMA). In a shard it is one group of adjacent
tar members that share a key::

    embed-0123456789abcdef-l.ffdm_cc.b2     uint16 [H, W] pixels of one modality; absent modalities have no member
    embed-0123456789abcdef-l.meta.json      labels, modalities, geometry: the fields of META_FIELDS and no others

``hash16`` is a keyed hash; nothing in a shard or manifest names a person, a date, a file of the source archive or a
DICOM UID. ``META_FIELDS`` and ``MANIFEST_FIELDS`` are allow-lists: writers refuse any other field.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

SCHEMA_VERSION = 2
MISSING = -1  # label value of an unknown answer; masked out per task
RISK_PREFIX = "risk"  # name of the tasks risk1, risk2, ...: cancer within 1, 2, ... years
SPLITS = ("train", "val", "test")

KEY_PATTERN = re.compile(r"^[a-z0-9]+-[0-9a-f]{16}-[a-z]$")  # <dataset>-<hash16>-<side>; no dots, lower case
META_FIELDS = frozenset(
    {
        "schema_version",
        "dataset",
        "split",
        "key",
        "group",  # hash16 of the patient: clustered bootstrap and split checks
        "exam",  # hash16 of the exam: exam-level aggregation, contralateral link
        "side",  # l or r
        "labels",  # {task: int}, MISSING where unknown
        "modalities",  # names present in this sample, in schema order
        "geometry",  # {modality: fields of GEOMETRY_FIELDS}
        "screening",  # bool or null
        "vendor",  # coarse family: hologic, ge, fujifilm, siemens, other
    }
)
GEOMETRY_FIELDS = frozenset({"original_shape", "crop", "flipped", "padded_shape", "stored_shape"})
MANIFEST_FIELDS = frozenset(
    {
        "schema_version",
        "dataset",
        "split",
        "synthetic",  # true for phantoms: reports must say so
        "modalities",
        "tasks",  # [{name, kind, num_classes, class_names}]
        "num_samples",
        "num_groups",  # patients
        "shards",  # [{name, bytes, sha256, num_samples, offsets, labels, present, groups, exams}]
        "label_histograms",  # {task: {"-1": n, "0": n, ...}}
        "modality_counts",
        "pixel_statistics",  # {modality: {mean, std}} of pixels / 65535 over this split
        "preprocessing",
    }
)


@dataclass(frozen=True)
class TaskSpec:
    """One question asked about a sample.

    Attributes:
        name: e.g. ``density``.
        kind: ``classification`` or ``segmentation``.
        num_classes: classes of a classification; 1 for a segmentation (one mask logit per pixel).
        class_names: one name per class, in the order of the codes.
    """

    name: str
    kind: str
    num_classes: int
    class_names: tuple[str, ...] = ()


@dataclass(frozen=True)
class DatasetSpec:
    """Modalities (with their channels) and tasks of a data set, in the fixed order of the documentation."""

    name: str
    modalities: tuple[str, ...]
    tasks: tuple[TaskSpec, ...]
    channels: tuple[int, ...]

    def task(self, name: str) -> TaskSpec:
        """Returns the task of that name; KeyError otherwise."""
        return {task.name: task for task in self.tasks}[name]


_BIRADS = TaskSpec("birads", "classification", 3, ("negative", "benign", "work-up"))
_DENSITY = TaskSpec("density", "classification", 4, ("A", "B", "C", "D"))
_RISK = tuple(TaskSpec(f"{RISK_PREFIX}{k}", "classification", 2, ("no cancer", f"within {k} y")) for k in range(1, 6))

DATASETS: dict[str, DatasetSpec] = {
    "embed": DatasetSpec(
        "embed", ("ffdm_cc", "ffdm_mlo", "syn_cc", "syn_mlo"), (_BIRADS, *_RISK, _DENSITY), (1, 1, 1, 1)
    ),
    "rsna": DatasetSpec("rsna", ("ffdm_cc", "ffdm_mlo"), (_DENSITY, _BIRADS), (1, 1)),
    "vindr": DatasetSpec("vindr", ("ffdm_cc", "ffdm_mlo"), (_DENSITY, _BIRADS), (1, 1)),
    "gamma": DatasetSpec(
        "gamma",
        ("fundus", "oct"),
        (
            TaskSpec("glaucoma", "classification", 3, ("none", "early", "intermediate or advanced")),
            TaskSpec("cup", "segmentation", 1, ("cup",)),
        ),
        (3, 256),
    ),
}


def risk_tasks(names: Iterable[str]) -> tuple[str, ...]:
    """Those of the names that are of tasks ``risk1``, ``risk2``, ..., the nearest horizon first."""
    horizon = re.compile(rf"{RISK_PREFIX}([0-9]+)")
    found = {name: int(match.group(1)) for name in names if (match := horizon.fullmatch(name))}
    return tuple(sorted(found, key=found.__getitem__))


def shard_name(dataset: str, split: str, index: int) -> str:
    """File name of shard ``index``: ``<dataset>-<split>-%06d.tar``."""
    return f"{dataset}-{split}-{index:06d}.tar"
