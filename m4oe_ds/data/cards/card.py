"""What a data set is: its modalities, tasks and words, and where its samples come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from m4oe_ds.data.schema import ModalitySpec, TaskSpec


@dataclass(frozen=True)
class MaskFile:
    """Where the mask of one class, or of all classes of a task, lies.

    Attributes:
        pattern: path below the root, with ``{column}`` for values of the table.
        values: for every class (by place) the stored values that belong to it; empty: one class is any value but 0,
            of several class k is the value k + 1.
        at_least: smallest stored value that belongs to the class; None = no threshold.
    """

    pattern: str
    values: tuple[tuple[int, ...], ...] = ()
    at_least: float | None = None


@dataclass(frozen=True)
class LabelSource:
    """Where the answer to one task stands.

    Attributes:
        column: column of the table (of the time, for a survival).
        event: column that says whether the event came (survival).
        values: ``{value of the column: class name}``; empty = class names or codes themselves.
        masks: files of a mask: one for all classes, or one per class in their order.
    """

    column: str = ""
    event: str = ""
    values: Mapping[str, str] = field(default_factory=dict)
    masks: tuple[MaskFile, ...] = ()


@dataclass(frozen=True)
class Subgroup:
    """An attribute of the samples by which results are told apart.

    Attributes:
        column: column of the table.
        bands: ascending borders of a number; empty = no number.
        values: ``{value of the column: group}``, the only ones that reach a shard; empty = the values themselves.
    """

    column: str
    bands: tuple[float, ...] = ()
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Where samples come from: an archive with a reader of its own, or a table and files.

    Attributes:
        reader: name of the archive's reader, of which only ``subgroups`` and ``missing`` need saying; empty = the
            table.
        table: path of the table below the root.
        sample: column that names a sample, each once.
        group: column whose samples are never split over train, val and test; empty = every sample for itself.
        exam: column that joins the samples of one exam; empty = every sample for itself.
        side: column of the side of a sample; empty = samples have none.
        split: column that says ``train``, ``val`` or ``test``; empty = by shares.
        shares: percent of the groups in train, val and test.
        files: path of every image and volume below the root, with ``{column}`` for values of the table, or a column.
        ranges: stored values that become black and white, by modality; where the files do not say it.
        labels: where the answers stand, by task.
        subgroups: attributes that go into the shards, by name.
        missing: further words that mean that a value is missing.
        size: rows and columns of stored images.
        volume_size: depth, rows and columns of stored volumes.
    """

    reader: str = ""
    table: str = ""
    sample: str = ""
    group: str = ""
    exam: str = ""
    side: str = ""
    split: str = ""
    shares: tuple[int, int, int] = (70, 10, 20)
    files: Mapping[str, str] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    labels: Mapping[str, LabelSource] = field(default_factory=dict)
    subgroups: Mapping[str, Subgroup] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    size: tuple[int, int] = (512, 512)
    volume_size: tuple[int, int, int] = (64, 128, 128)


@dataclass(frozen=True)
class Card:
    """A data set.

    Attributes:
        name: lower-case letters, digits and hyphens; part of every key.
        title: what it is called in headings.
        unit: what one sample is called in sentences.
        group: what the group of samples that belong together is called in sentences.
        inputs: modalities, in the order of batches.
        tasks: questions, in the order of batches.
        sides: names of the sides that samples have, by letter; two sides of one exam are compared by some systems.
        notice: what a reader of results must know of the data's terms.
        headline: tasks that tables of comparisons show first; empty = all.
        strata: tasks of classes whose answers are subgroups for the results of all tasks.
        source: where samples come from; None where only shards exist.
        content: the card as it was written, for manifests and run folders.
    """

    name: str
    inputs: tuple[ModalitySpec, ...]
    tasks: tuple[TaskSpec, ...]
    title: str = ""
    unit: str = "sample"
    group: str = "patient"
    sides: Mapping[str, str] = field(default_factory=dict)
    notice: str = ""
    headline: tuple[str, ...] = ()
    strata: tuple[str, ...] = ()
    source: Source | None = None
    content: Mapping[str, Any] = field(default_factory=dict, compare=False, hash=False)

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities."""
        return tuple(one.name for one in self.inputs)

    def modality(self, name: str) -> ModalitySpec:
        """The modality of that name; KeyError otherwise."""
        return {one.name: one for one in self.inputs}[name]

    def task(self, name: str) -> TaskSpec:
        """The task of that name; KeyError otherwise."""
        return {task.name: task for task in self.tasks}[name]
