"""What an archive's tables say should be converted, in one form that the module of every archive fills in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

from m4oe_ds.data.cards import MaskFile
from m4oe_ds.data.roots import Root, located

Row = Mapping[str, str]
Images = dict[str, tuple[str, ...]]
# Reason under which a row is counted as excluded, the statement about the archive it breaks, and whether it applies to
# a row, given the images before it
Exclusion = tuple[str, str | None, Callable[[Row, Set[str]], bool]]


@dataclass(frozen=True)
class Outline:
    """The mask of one lesion.

    Attributes:
        of: modality that it lies over.
        code: class of its task.
        files: files of which one is the mask, relative to the archive's root.
        own: drawn on the very scan that is used, not on another one of the same film.
    """

    of: str
    code: int
    files: tuple[str, ...]
    own: bool = True


@dataclass(frozen=True)
class Sample:
    """One breast of one exam, one eye, or one row of one's own table.

    Attributes:
        patient: the archive's id of the patient (of the group); leaves the archive only as a keyed hash.
        exam: the archive's id of the exam; leaves the archive only as a keyed hash.
        side: ``L``, ``R`` (GAMMA: ``E``); empty where samples have none.
        labels: answer per task but masks, as TaskSpec describes labels; scheme and rules as in the options.
        images: per modality the candidate files, relative to the archive's root, preferred first. One is used: the
            first, or under ``choose="area"`` the one that shows the largest breast (a tie goes to the first).
        screening: whether the exam was a screening exam; None where the archive does not say.
        manufacturer: name as in the tables, empty where only the images say it.
        split: ``train`` or ``test`` where the archive has an official split (validation is carved out of train).
        stratum: patients are split within strata of this name (same share of each in every split).
        masks: per segmentation task its file, relative to the root.
        choose: ``first`` or ``area``, see ``images``.
        name: what names the sample within its group; empty where exam and side do.
        tables: ``{table modality: {column: number, code or None}}``.
        subgroups: ``{attribute: group}``, all that a shard may say of it.
        attributes: fields of the archive's tables that a card may make subgroups of, by column; never in a shard.
        layers: per mask task of a card its files (one for all classes, or one per class and None where that class is
            nowhere in the picture), their patterns being paths relative to the root.
        outlines: per mask task all lesions of its film, where masks are one file per lesion.
    """

    patient: str
    exam: str
    side: str
    labels: dict[str, Any]
    images: dict[str, tuple[str, ...]]
    screening: bool | None = None
    manufacturer: str = ""
    split: str = ""
    stratum: str = ""
    masks: dict[str, str] = field(default_factory=dict)
    choose: str = "first"
    name: str = ""
    tables: dict[str, dict[str, float | int | None]] = field(default_factory=dict)
    subgroups: dict[str, str] = field(default_factory=dict)
    attributes: dict[str, str] = field(default_factory=dict)
    layers: dict[str, tuple[MaskFile | None, ...]] = field(default_factory=dict)
    outlines: dict[str, tuple[Outline, ...]] = field(default_factory=dict)


@dataclass
class ArchivePlan:
    """What the tables say should be converted, and what was left out and why.

    Attributes:
        samples: all samples, in order of patient, exam, side.
        steps: counts at each step, in order.
        excluded: reasons per unit (``images``, ``exams``, ``samples``).
        notes: what is odd but used.
        violations: statements about the real archive that do not hold here, by name (see ``expectations``).
        doubts: what a table of one's own allows but can hardly be meant, one line each.
    """

    samples: list[Sample] = field(default_factory=list)
    steps: dict[str, int] = field(default_factory=dict)
    excluded: dict[str, Counter[str]] = field(
        default_factory=lambda: {"images": Counter(), "exams": Counter(), "samples": Counter()}
    )
    notes: Counter[str] = field(default_factory=Counter)
    violations: Counter[str] = field(default_factory=Counter)
    doubts: list[str] = field(default_factory=list)

    def count_planned(self) -> None:
        """Adds the last steps: samples and images planned."""
        self.steps["samples_planned"] = len(self.samples)
        self.steps["images_planned"] = sum(len(sample.images) for sample in self.samples)


@dataclass(frozen=True)
class ArchiveOptions:
    """How labels are made and samples chosen: see the command line of ``data_tools.convert``.

    Attributes:
        birads_scheme: ``triage``, ``release`` or ``native_rsna``.
        risk_scope: ``exam`` or ``side`` (EMBED).
        require: ``any`` or ``complete``: the modalities a sample needs.
        fold: GAMMA's test fold, 0 to 4; the next fold is for validation.
        birads_sites: RSNA: ``labelled`` leaves BI-RADS out for sites that have neither class 1 nor 2; ``all`` keeps it.
        exclude_screen_detected: EMBED: drops exams within six months before the diagnosis.
    """

    birads_scheme: str = "triage"
    risk_scope: str = "exam"
    require: str = "any"
    fold: int = 0
    birads_sites: str = "labelled"
    exclude_screen_detected: bool = False


def usable_rows(rows: Sequence[Row], exclusions: Sequence[Exclusion], plan: ArchivePlan) -> list[Row]:
    """Rows of images to which no exclusion applies; the others are counted under the first that does."""
    out: list[Row] = []
    seen: set[str] = set()
    for row in rows:
        for reason, violation, applies in exclusions:
            if applies(row, seen):
                plan.excluded["images"][reason] += 1
                if violation is not None:
                    plan.violations[violation] += 1
                break
        else:
            seen.add(row["image_id"])
            out.append(row)
    return out


def breasts(
    files: Mapping[tuple[str, str], Mapping[str, Sequence[str]]],
    make: Callable[[str, str, Images], Sample],
    modalities: Sequence[str],
    options: ArchiveOptions,
    plan: ArchivePlan,
) -> None:
    """Adds a sample for every breast, or counts it and its images as incomplete.

    Args:
        files: candidate files per modality of every breast, by (patient, side).
        make: the sample of a patient, a side and the images in the order of the modalities; called only for breasts
            that are kept.
        modalities: names of the modalities of the data set.
        options: say whether a breast needs them all.
        plan: the plan to add to.
    """
    for (patient, side), candidates in files.items():
        images = {name: tuple(candidates[name]) for name in modalities if candidates.get(name)}
        if options.require == "complete" and len(images) < len(modalities):
            plan.excluded["samples"]["incomplete"] += 1
            plan.excluded["images"]["of_excluded_samples"] += sum(map(len, images.values()))
            continue
        plan.samples.append(make(patient, side, images))
    plan.count_planned()


def with_paths(outlines: Mapping[str, Sequence[Outline]], root: Root) -> dict[str, tuple[Outline, ...]]:
    """The outlines with the paths of their files below the root made whole."""
    return {
        task: tuple(replace(one, files=tuple(located(root, path) for path in one.files)) for one in several)
        for task, several in outlines.items()
    }
