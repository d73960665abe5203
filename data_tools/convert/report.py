"""A conversion's report: ``conversion.json`` (numbers), ``quarantine.json`` (by hashed key), ``conversion.html``."""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.archives.published import Published, unlike_published
from m4oe_ds.data.cards import Card
from m4oe_ds.data.schema import SPLITS, TaskSpec, follow_ups

if TYPE_CHECKING:
    from data_tools.archives.plan import ArchivePlan
    from data_tools.convert.jobs import ShardJob
    from data_tools.convert.shards import Record
    from m4oe_ds.data.manifest import Manifest

FLIP_AGREEMENT = 0.99  # chest wall by content against laterality; less says that sides or images are mixed up


def table_summary(plan: ArchivePlan) -> dict[str, Any]:
    """Counts of the tables: steps, exclusions by reason, notes, violations."""
    return {
        "steps": plan.steps,
        "excluded": {unit: dict(sorted(counts.items())) for unit, counts in plan.excluded.items()},
        "notes": dict(sorted(plan.notes.items())),
        "violations": dict(sorted(plan.violations.items())),
    }


def plural(noun: str) -> str:
    """Several of what a card calls a sample or a group."""
    if noun.endswith("man"):
        return f"{noun[:-3]}men"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}es" if noun.endswith(("s", "x", "ch", "sh")) else f"{noun}s"


def print_plan(plan: ArchivePlan, jobs: Sequence[ShardJob], card: Card) -> None:
    """Prints what a conversion would make and leave out."""
    for name, number in plan.steps.items():
        print(f"{name}: {number}")
    for unit, counts in plan.excluded.items():
        for reason, number in sorted(counts.items()):
            print(f"excluded {unit}, {reason}: {number}")
    for name, number in sorted(plan.notes.items()):
        print(f"note, {name}: {number}")
    for name, number in sorted(plan.violations.items()):
        print(f"not as documented, {name}: {number}")
    for split in SPLITS:
        mine = [sample for job in jobs if job.split == split for sample in job.samples]
        groups = {sample.meta["group"] for sample in mine}
        images = sum(len(sample.images) for sample in mine)
        print(f"{split}: {len(mine)} samples of {len(groups)} {plural(card.group)}, {images} images")
        for task in card.tasks if mine else ():
            if task.dense:
                there = sum(task.name in sample.mask_tasks for sample in mine)  # what is in them is seen when converted
                found = {"missing": len(mine) - there, "mask": there}
            else:
                found = label_counts(task, [sample.meta["labels"][task.name] for sample in mine])
            print(f"  {task.name}: " + " ".join(f"{word}:{n}" for word, n in found.items()))


def label_counts(task: TaskSpec, labels: Sequence[Any]) -> dict[str, int]:
    """How often which answer occurs: codes, or how many are known, and of survivals how many are events."""
    if task.coded:
        codes = Counter(labels)
        return {"missing" if code < 0 else str(code): number for code, number in sorted(codes.items())}
    known = [label for label in labels if task.known(label)]
    missing = {"missing": len(labels) - len(known)}
    if task.kind == "survival":
        events = sum(int(label[1]) for label in known)
        return missing | {"censored": len(known) - events, "event": events}
    return missing | {"known": len(known)}


def _duplicates(records: Sequence[Record], manifests: Mapping[str, Manifest]) -> tuple[int, int]:
    """Images whose pixels belong to another patient too, and those of them in another split: leakage."""
    split_of = {
        group: split for split, manifest in manifests.items() for shard in manifest.shards for group in shard.groups
    }
    owner: dict[str, str] = {}
    patients = splits = 0
    for record in records:
        for digest, group in record.digests:
            first = owner.setdefault(digest, group)
            patients += first != group
            splits += split_of.get(first) != split_of.get(group)
    return patients, splits


def _image_violations(facts: Mapping[str, Counter[str]], quarantined: Mapping[str, int]) -> Counter[str]:
    """Statements about the images that do not hold."""
    found: Counter[str] = Counter()
    flips = facts.get("flip", Counter())
    agreed, total = flips.get("agrees with laterality", 0), sum(flips.values())
    if total and agreed / total < FLIP_AGREEMENT:
        found["chest_wall_disagrees_with_laterality"] = total - agreed
    if quarantined.get("beyond_bits_stored"):
        found["values_beyond_bits_stored"] = quarantined["beyond_bits_stored"]
    for name in ("slices_not_0_to_255", "mask_size_differs", "no_mask", "several_masks", "mask_empty"):
        if quarantined.get(name):
            found[name] = quarantined[name]
    if snapped := facts.get("mask", Counter()).get("grey values snapped", 0):
        found["mask_grey_values_not_0_128_255"] = snapped
    area = sum(quarantined.get(f"breast_area_too_{size}", 0) for size in ("small", "large"))
    if area:
        found["implausible_breast_area"] = area
    return found


def _facts(records: Sequence[Record]) -> dict[str, Counter[str]]:
    """Histograms over all records."""
    facts: dict[str, Counter[str]] = {}
    for record in records:
        for name, counts in record.facts.items():
            facts.setdefault(name, Counter()).update(counts)
    return facts


def _published_content(source: Published) -> dict[str, Any]:
    return {"splits": list(source.splits), "counted": source.counted, "labels": source.labels}


def build(
    plan: ArchivePlan,
    records: Sequence[Record],
    manifests: Mapping[str, Manifest],
    known: Sequence[Published],
    synthetic: bool,
    whole: bool = True,
) -> dict[str, Any]:
    """Content of ``conversion.json``: numbers only.

    Args:
        plan: what the tables say.
        records: what became of the samples.
        manifests: manifests of the splits.
        known: what is published of the labels.
        synthetic: whether the archive is a phantom.
        whole: False if only some samples are converted (``--limit``); labels are then not compared with published
            counts.
    """
    facts = _facts(records)
    quarantined = Counter(item["reason"] for record in records for item in record.quarantine)
    histograms = {split: manifest.label_histograms for split, manifest in manifests.items()}
    across_patients, across_splits = _duplicates(records, manifests)
    violations = plan.violations + _image_violations(facts, quarantined)
    if across_patients:
        violations["duplicate_pixels_across_patients"] = across_patients
    if across_splits:
        violations["duplicate_pixels_across_splits"] = across_splits
    preprocessing = next(iter(manifests.values())).preprocessing
    if whole and not synthetic:
        violations += unlike_published(known, histograms)
    card = next(iter(manifests.values())).card
    risks = [task.name for several in follow_ups(card.tasks).values() for task in several]
    total = sum(manifest.num_samples for manifest in manifests.values())
    censored = {name: sum(tables.get(name, {}).get("-1", 0) for tables in histograms.values()) for name in risks}
    return {
        "dataset": card.name,
        "synthetic": synthetic,
        "tables": table_summary(plan),
        "violations": dict(sorted(violations.items())),
        "samples_attempted": sum(
            len(record.keys) + record.samples_without_image + record.incomplete for record in records
        ),
        "samples_written": {split: manifest.num_samples for split, manifest in manifests.items()},
        "patients": {split: manifest.num_groups for split, manifest in manifests.items()},
        "samples_without_a_good_image": sum(record.samples_without_image for record in records),
        "samples_incomplete_after_reading": sum(record.incomplete for record in records),
        "images_written": sum(record.images for record in records),
        "images_quarantined": dict(sorted(quarantined.items())),
        "duplicate_pixels_across_patients": across_patients,
        "duplicate_pixels_across_splits": across_splits,
        "histograms": {name: dict(sorted(counts.items())) for name, counts in sorted(facts.items())},
        "labels": histograms,
        "published_labels": {source.name: _published_content(source) for source in known},
        "censored": censored,
        "censored_share": {name: round(number / total, 4) if total else 0.0 for name, number in censored.items()},
        "modalities": {split: manifest.modality_counts for split, manifest in manifests.items()},
        "preprocessing": preprocessing,
    }


def _label_tables(report: Mapping[str, Any], card: Card) -> list[dict[str, Any]]:
    """One table per task: a row per class with its count and share in every split, and what is published."""
    sources = [
        Published(name, tuple(value["splits"]), value["labels"], value["counted"])
        for name, value in report["published_labels"].items()
    ]
    tables = []
    for task in card.tasks:
        if task.dense:
            continue
        rows: list[tuple[str, list[str]]] = []
        if not task.coded:
            words = ("known", "-1") if task.kind == "number" else ("event", "censored", "-1")
            for word in words:
                counts = [str(labels.get(task.name, {}).get(word, 0)) for labels in report["labels"].values()]
                rows.append(("missing" if word == "-1" else word, counts))
            tables.append({"task": task.name, "columns": list(report["labels"]), "rows": rows})
            continue
        here = [source for source in sources if task.name in source.labels]
        known = {
            split: sum(n for code, n in labels.get(task.name, {}).items() if code != "-1")
            for split, labels in report["labels"].items()
        }
        for code in [*range(task.num_classes), -1]:
            cells = []
            for split, labels in report["labels"].items():
                number = labels.get(task.name, {}).get(str(code), 0)
                share = f" ({100 * number / known[split]:.1f} %)" if code >= 0 and known[split] else ""
                cells.append(f"{number}{share}")
            for source in here:
                cells.append(_published_cell(source, task.name, code))
            rows.append(("missing" if code < 0 else task.class_names[code], cells))
        tables.append({"task": task.name, "columns": [*report["labels"], *(s.name for s in here)], "rows": rows})
    return tables


def _reasons(quarantine: Sequence[Mapping[str, str]], card: Card) -> list[tuple[str, list[int]]]:
    """Refused images by reason, the most frequent first: one number per modality, and their sum."""
    names = [*card.modalities]
    counts = Counter((item["reason"], item["modality"]) for item in quarantine)
    by_reason = Counter(item["reason"] for item in quarantine)
    return [
        (reason, [*(counts[reason, name] for name in names), total])
        for reason, total in sorted(by_reason.items(), key=lambda pair: (-pair[1], pair[0]))
    ]


def _missing(report: Mapping[str, Any], card: Card) -> list[tuple[str, list[str]]]:
    """Share of the samples without a label, by task and split."""
    rows = []
    for task in card.tasks:
        cells = []
        for split, labels in report["labels"].items():
            total, lacking = report["samples_written"][split], labels.get(task.name, {}).get("-1", 0)
            cells.append(f"{lacking} of {total} ({100 * lacking / total:.1f} %)" if total else "–")
        rows.append((task.name, cells))
    return rows


def _published_cell(source: Published, task: str, code: int) -> str:
    share = source.share(task, code)
    if share is None:
        return ""
    part = f"{100 * share:.1f} %"
    return f"{source.labels[task][str(code)]:.0f} ({part})" if source.counted else part


def _contact_sheet(folder: Path, manifests: Mapping[str, Manifest]) -> tuple[str, str]:
    """The contact sheet as a PNG in base64, and what it shows; both empty if no sample was written."""
    from data_tools.inspect import contact_sheet

    pictures = any(one.kind != "table" for manifest in manifests.values() for one in manifest.card.inputs)
    if not pictures or not any(manifest.num_samples for manifest in manifests.values()):
        return "", ""
    stream = io.BytesIO()
    shown = contact_sheet(folder, dict(manifests), stream)
    return base64.b64encode(stream.getvalue()).decode("ascii"), shown


def write(
    folder: Path,
    report: Mapping[str, Any],
    quarantine: Sequence[Mapping[str, str]],
    manifests: Mapping[str, Manifest],
    card: Card,
    made: Mapping[str, Any],
) -> None:
    """Writes the three files of the report into the folder of the shards.

    Args:
        folder: of the shards.
        report: content of ``conversion.json``.
        quarantine: key, modality and reason of every image that was refused.
        manifests: manifests of the splits.
        card: card of the data set.
        made: how they were made, see :func:`data_tools.convert.provenance.shown`.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    for name, content in (("conversion.json", report), ("quarantine.json", {"images": list(quarantine)})):
        (folder / name).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")), autoescape=True, undefined=StrictUndefined
    )
    sheet, shown = _contact_sheet(folder, manifests)
    page = environment.get_template("conversion.html.j2").render(
        report=report,
        label_tables=_label_tables(report, card),
        quarantine=quarantine,
        reasons=_reasons(quarantine, card),
        missing=_missing(report, card),
        made=made,
        labels={
            **{one.name: one.label or one.name for one in card.inputs},
            **{task.name: task.label or task.name for task in card.tasks},
        },
        sheet=sheet,
        shown=shown,
        modalities=card.modalities,
        own=card.source is not None and not card.source.reader,
        groups=plural(card.group),
    )
    (folder / "conversion.html").write_text(page, encoding="utf-8")
