"""What a sample, a shard and a manifest contain. Standard library only: shared by ``data_tools`` and the trainer.

What a data set is, its modalities and tasks, is said by its card (:mod:`m4oe_ds.data.cards`), never here. In a shard a
sample is one group of adjacent tar members that share a key::

    embed-0123456789abcdef-l.ffdm_cc.b2     uint16 [H, W] pixels of one modality; absent modalities have no member
    embed-0123456789abcdef-l.meta.json      labels, modalities, geometry: the fields of META_FIELDS and no others

``hash16`` is a keyed hash; nothing in a shard or manifest names a person, a date, a file of the source archive or a
DICOM UID. ``META_FIELDS`` and ``MANIFEST_FIELDS`` are allow-lists: writers refuse any other field.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

SCHEMA_VERSION = 2
SHORT_KEY = 6  # letters of a hash that tell samples apart on a page
MISSING = -1  # code of an unknown class; masked out per task
SPLITS = ("train", "val", "test")

# <data set>-<hash16>, and -<side> where a sample has one; no dots, lower case
KEY_PATTERN = re.compile(r"^[a-z0-9]+(-[a-z0-9]+)*-[0-9a-f]{16}(-[a-z])?$")
OPTIONAL_META_FIELDS = frozenset(
    {
        "side",  # one letter, such as l or r
        "geometry",  # {modality: fields of GEOMETRY_FIELDS}
        "screening",  # bool or null
        "vendor",  # coarse family: hologic, ge, fujifilm, siemens, other
        "subgroups",  # {attribute: group}, coarse, as the card lists them
    }
)
META_FIELDS = OPTIONAL_META_FIELDS | {
    "schema_version",
    "dataset",
    "split",
    "key",
    "group",  # hash16 of the patient: clustered bootstrap and split checks
    "exam",  # hash16 of the exam: exam-level aggregation, contralateral link
    "labels",  # {task: code, number, [time, event] or null}, see TaskSpec
    "modalities",  # names present in this sample, in the card's order
}
PICTURE_GEOMETRY_FIELDS = frozenset(
    {
        "original_shape",
        "crop",  # top, left, height, width of the part that is kept; may reach beyond the picture
        "flipped",
        "padded_shape",
        "stored_shape",
    }
)
GEOMETRY_FIELDS = PICTURE_GEOMETRY_FIELDS | frozenset(
    {
        "spacing",  # of a volume as read, in mm along D, H, W; null where the file does not say
        "voxel",  # side of its cubic voxels as stored
        "content_shape",  # of the resampled volume
        "offset",  # where it begins in the stored one
    }
)
MANIFEST_FIELDS = frozenset(
    {
        "schema_version",
        "dataset",
        "split",
        "synthetic",  # true for phantoms: reports must say so
        "modalities",
        "tasks",  # [{name, kind, num_classes, class_names}], kind as STORED_AS says
        "card",  # the whole card, so that a folder of shards explains itself
        "num_samples",
        "num_groups",  # patients
        "shards",  # [{name, bytes, sha256, num_samples, offsets, labels, present, groups, exams}]
        "label_histograms",  # {task: {"-1": n, "0": n, ...}}
        "modality_counts",
        "pixel_statistics",  # {modality, or table modality.column: {mean, std}}, pixels on the 0..1 scale
        "preprocessing",
    }
)

MODALITY_KINDS = ("image", "volume", "table")
CODED = ("classes", "binary", "ordinal")  # kinds of task whose answer is one of several classes
TASK_KINDS = (*CODED, "number", "survival", "mask")
# the losses of each kind of task; the first is what ``auto`` means
FITTING: dict[str, tuple[str, ...]] = {
    "classes": ("cross_entropy", "focal"),
    "binary": ("cross_entropy", "focal"),
    "ordinal": ("cross_entropy", "focal", "ranked_probability"),
    "number": ("huber", "mse"),
    "survival": ("hazard",),
    "mask": ("bce_dice",),
}
# the word of a manifest for each kind; the first two are older than the cards
STORED_AS = {
    **dict.fromkeys(CODED, "classification"),
    "mask": "segmentation",
    "number": "number",
    "survival": "survival",
}


@dataclass(frozen=True)
class Column:
    """One column of a table modality.

    Attributes:
        name: its name in the shards.
        kind: ``number`` or ``category``.
        values: the categories, in the order of their codes; empty for a number.
        column: what it is called in the table it comes from.
    """

    name: str
    kind: str
    values: tuple[str, ...] = ()
    column: str = ""


@dataclass(frozen=True)
class ModalitySpec:
    """One named input.

    Attributes:
        name: e.g. ``ffdm_cc``.
        kind: one of MODALITY_KINDS.
        channels: of an image 1 to 4; of a volume 1.
        label: what it is called in sentences; empty = its name.
        slices: of a volume whose slices a 2-D embedder takes as channels: how many there are; 0 = a volume in 3-D.
        columns: of a table.
        type: kind of acquisition, where several modalities share a view (``ffdm``, ``syn``).
        view: direction of acquisition, where several modalities share a type (``cc``, ``mlo``).
    """

    name: str
    kind: str = "image"
    channels: int = 1
    label: str = ""
    slices: int = 0
    columns: tuple[Column, ...] = ()
    type: str = ""
    view: str = ""

    @property
    def planes(self) -> int:
        """Channels of the tensor that an embedder gets."""
        return self.slices or self.channels

    @property
    def flat(self) -> bool:
        """Whether the tensor is ``[C, H, W]``: an image, or a volume whose slices are channels."""
        return self.kind == "image" or (self.kind == "volume" and self.slices > 0)

    def shape(self, image_size: tuple[int, int], volume_size: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Shape of one sample's tensor: ``[C, H, W]``, ``[C, D, H, W]``, or ``[columns, 2]`` (value, known).

        Args:
            image_size: height and width of images in pixels.
            volume_size: depth, height and width of volumes in voxels.
        """
        if self.kind == "table":
            return (len(self.columns), 2)
        return (self.planes, *(image_size if self.flat else volume_size))


@dataclass(frozen=True)
class TaskSpec:
    """One question asked about a sample.

    Labels in shards: a class code (MISSING where unknown), for a number the value or null, for survival ``[time,
    event]`` or null, for a mask 1 where there is one.

    Attributes:
        name: e.g. ``density``.
        kind: one of TASK_KINDS.
        num_classes: numbers that the head gives: classes; classes of a mask (one logit per pixel each); horizons of a
            survival; 1 for a number.
        class_names: one name per class, in the order of the codes.
        label: what it is called in sentences; empty = its name.
        of: the modality that a mask lies over.
        unit: of a number, or of the time of a survival.
        horizons: of a survival, ascending times at which the risk is stated.
        horizon: of a binary task that asks whether something happens within a time: that time, else 0.
        event: what happens within it; the tasks of one event are one follow-up.
    """

    name: str
    kind: str
    num_classes: int
    class_names: tuple[str, ...] = ()
    label: str = ""
    of: str = ""
    unit: str = ""
    horizons: tuple[float, ...] = ()
    horizon: float = 0.0
    event: str = ""

    @property
    def coded(self) -> bool:
        """Whether the answer is one of several classes."""
        return self.kind in CODED

    @property
    def dense(self) -> bool:
        """Whether the answer is a mask."""
        return self.kind == "mask"

    def known(self, label: Any) -> bool:
        """Whether a label of a shard says something."""
        return label is not None and (label != MISSING or not (self.coded or self.dense))

    def problem(self, label: Any) -> str:
        """What is wrong with a label of a shard; empty if nothing is."""
        if self.coded or self.dense:
            top = self.num_classes if self.coded else 2
            if isinstance(label, int) and not isinstance(label, bool) and MISSING <= label < top:
                return ""
            return f"label {label!r} of {self.name} is outside its {self.num_classes} classes"
        if label is None or (self.kind == "number" and _finite(label)):
            return ""
        if self.kind == "survival" and isinstance(label, list | tuple) and len(label) == 2:
            time, event = label
            if _finite(time) and time >= 0 and event in (0, 1):
                return ""
        wanted = "a number or null" if self.kind == "number" else "[time, event] or null"
        return f"label {label!r} of {self.name} is not {wanted}"

    @property
    def unknown(self) -> int | None:
        """The label of a sample whose answer is not known."""
        return MISSING if self.coded or self.dense else None


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value and abs(value) < 1e300


def follow_ups(tasks: Iterable[TaskSpec]) -> dict[str, tuple[TaskSpec, ...]]:
    """The binary tasks that ask whether one event happens within a time, by event, the nearest horizon first."""
    found: dict[str, list[TaskSpec]] = {}
    for task in tasks:
        if task.horizon:
            found.setdefault(task.event, []).append(task)
    return {event: tuple(sorted(several, key=lambda task: task.horizon)) for event, several in found.items()}


def short_key(key: str) -> str:
    """The first letters of the hash in a key, which tell samples apart on a page, with the side where it has one."""
    parts = key.split("-")
    place = next((k for k in range(len(parts) - 1, -1, -1) if len(parts[k]) >= SHORT_KEY), 0)
    return "-".join([parts[place][:SHORT_KEY], *parts[place + 1 :]])


def shard_name(dataset: str, split: str, index: int) -> str:
    """File name of shard ``index``: ``<dataset>-<split>-%06d.tar``."""
    return f"{dataset}-{split}-{index:06d}.tar"
