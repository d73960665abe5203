"""Turns an archive into shards: ``python -m data_tools.convert --dataset embed --root DIR --out DIR``.

Reads the tables, decides labels, images and splits, then decodes every image, cuts it to the breast and writes shards
without anything that names a person. The bytes of the shards depend on the archive, the options and the secret, not on
the number of processes. Beside ``--out`` it leaves ``<out>.mapping.csv`` (which key is which exam) and, unless
``--salt-file`` is given, ``<out>.secret``: both stay private.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m4oe_ds.data.schema import DATASETS, SCHEMA_VERSION, SPLITS
from m4oe_ds.errors import DataError, UserError

if TYPE_CHECKING:
    from data_tools.embed import Plan
    from data_tools.view import SampleResult, SampleTask
    from m4oe_ds.data.manifest import Manifest

logger = logging.getLogger(__name__)

HEADERS_CHECKED_FIRST = 64  # spread over the archive, to find a missing decoder before hours of work
REASON_SHOWN = 3


def build_parser() -> argparse.ArgumentParser:
    """The options of the command line."""
    parser = argparse.ArgumentParser(prog="python -m data_tools.convert", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--dataset", choices=("embed",), required=True)
    parser.add_argument("--root", type=Path, required=True, help="archive: the folder with tables/ and images/")
    parser.add_argument("--out", type=Path, required=True, help="folder to make; must not exist")
    parser.add_argument("--workers", type=int, default=None, help="processes; default: the processors, at most 8")
    parser.add_argument("--rows", type=int, default=1024, help="of the stored images; default 1024")
    parser.add_argument("--cols", type=int, default=832, help="of the stored images; default 832")
    parser.add_argument("--codec", choices=("b2", "png"), default="b2", help="pixel codec; default b2")
    parser.add_argument("--samples-per-shard", type=int, default=64, help="default 64")
    parser.add_argument("--birads-scheme", choices=("triage", "release"), default="triage", help="default triage")
    parser.add_argument("--risk-scope", choices=("exam", "side"), default="exam", help="default exam: both breasts")
    parser.add_argument("--require", choices=("any", "complete"), default="any", help="images a sample needs")
    parser.add_argument("--split", default="70/10/20", help="percent of patients in train/val/test")
    parser.add_argument("--salt-file", type=Path, default=None, help="secret of the pseudonyms; made if absent")
    parser.add_argument("--limit", type=int, default=None, help="convert only this many samples")
    parser.add_argument("--dry-run", action="store_true", help="read the tables, print the counts, write nothing")
    parser.add_argument("--max-quarantine", type=float, default=0.2, help="share of bad images accepted; default 0.2")
    return parser


def parse_split(text: str) -> tuple[int, ...]:
    """Percentages of train, val and test from e.g. ``70/10/20``.

    Raises:
        DataError: not three whole numbers that sum to 100.
    """
    parts = text.split("/")
    shares = tuple(int(part) for part in parts if part.isdigit())
    if len(parts) != len(SPLITS) or len(shares) != len(SPLITS) or sum(shares) != 100:
        raise DataError(f"{text!r} is not three percentages that sum to 100", "--split", "use e.g. 70/10/20")
    return shares


def _check_options(options: argparse.Namespace) -> None:
    for name in ("rows", "cols", "samples_per_shard", "workers", "limit"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise DataError(f"{value} is below 1", f"--{name.replace('_', '-')}", "use a positive number")
    if not 0.0 <= options.max_quarantine <= 1.0:
        raise DataError(f"{options.max_quarantine} is outside 0..1", "--max-quarantine", "use a share")
    if options.out.exists():
        raise DataError("exists already", str(options.out), "choose another --out or remove it")
    if not options.dry_run and not options.out.resolve().parent.is_dir():
        raise DataError("its parent folder does not exist", str(options.out), "make it or choose another --out")


def _beside(out: Path, suffix: str) -> Path:
    return out.with_name(f"{out.name}.{suffix}")


def _secret(options: argparse.Namespace, synthetic: bool) -> bytes:
    """The secret of the pseudonyms; a dry run makes none and counts splits under a stand-in."""
    from data_tools.deidentify import SYNTHETIC_SECRET, load_secret

    if synthetic and options.salt_file is None:
        return SYNTHETIC_SECRET
    path = options.salt_file or _beside(options.out, "secret")
    if options.dry_run and not path.exists():
        return b"dry run"
    return load_secret(path)


def _tasks(plan: Plan, options: argparse.Namespace, secret: bytes, shares: Sequence[int]) -> list[SampleTask]:
    """Work of every sample in the order of the shards: by key, which is as good as shuffled."""
    from data_tools.deidentify import hash16, split_of, vendor_family
    from data_tools.view import SampleTask

    tasks = []
    for sample in plan.samples:
        side = sample.side.lower()
        name = hash16(secret, "sample", options.dataset, sample.patient, sample.exam, side)
        split = split_of(secret, sample.patient, shares)
        key = f"{options.dataset}-{name}-{side}"
        meta = {
            "schema_version": SCHEMA_VERSION,
            "dataset": options.dataset,
            "split": split,
            "key": key,
            "group": hash16(secret, "patient", options.dataset, sample.patient),
            "exam": hash16(secret, "exam", options.dataset, sample.patient, sample.exam),
            "side": side,
            "labels": sample.labels,
            "screening": sample.screening,
            "vendor": vendor_family(sample.manufacturer),
        }
        images = {name: str(options.root / "images" / path) for name, path in sample.images.items()}
        tasks.append(SampleTask(meta, images, options.rows, options.cols, options.codec, (sample.patient, sample.exam)))
    tasks.sort(key=lambda task: task.meta["key"])
    return tasks[: options.limit]


def _check_decoders(tasks: Sequence[SampleTask]) -> None:
    """Looks at some headers across the archive and fails early if one of their syntaxes has no decoder here."""
    from data_tools.dicom import BadImage, require_decoders, transfer_syntax

    paths = [path for task in tasks for path in task.images.values()]
    found = set()
    for path in paths[:: max(1, len(paths) // HEADERS_CHECKED_FIRST)]:
        try:
            found.add(transfer_syntax(Path(path)))
        except BadImage as bad:
            logger.debug("header check: %s", bad.reason)  # counted and quarantined when its turn comes
    require_decoders(found)


def _results(tasks: Sequence[SampleTask], workers: int) -> Iterator[SampleResult]:
    """Converts the samples in ``workers`` processes and yields them in order, few at a time in memory."""
    from data_tools.view import convert_sample

    if workers <= 1:
        yield from map(convert_sample, tasks)
        return
    import multiprocessing
    from collections import deque
    from concurrent.futures import Future, ProcessPoolExecutor

    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # the processes are the parallelism
    try:
        with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            waiting: deque[Future[SampleResult]] = deque()
            try:
                for task in tasks:
                    waiting.append(pool.submit(convert_sample, task))
                    if len(waiting) >= 4 * workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


class _Totals:
    """What is counted while samples pass by; sums are whole numbers, so their order does not matter."""

    def __init__(self, modalities: Sequence[str]) -> None:
        self.sums = {split: {name: [0, 0, 0] for name in modalities} for split in SPLITS}
        self.quarantine: list[dict[str, str]] = []
        self.facts: dict[str, Counter[str]] = {}
        self.samples_without_image = 0
        self.incomplete = 0
        self.images = 0
        self.duplicates = 0
        self._owner: dict[str, str] = {}

    def add(self, result: SampleResult) -> None:
        key, group = result.meta["key"], result.meta["group"]
        for modality, reason in result.bad:
            self.quarantine.append({"key": key, "modality": modality, "reason": reason})
        for name, counts in result.facts.items():
            self.facts.setdefault(name, Counter()).update(counts)
        for digest in result.digests:
            self.duplicates += self._owner.setdefault(digest, group) != group

    def add_kept(self, result: SampleResult) -> None:
        self.images += len(result.sums)
        for name, numbers in result.sums.items():
            total = self.sums[result.meta["split"]][name]
            for place, number in enumerate(numbers):
                total[place] += number

    def statistics(self, split: str) -> dict[str, dict[str, float]]:
        """Mean and standard deviation of stored pixels / 65535 per modality present in a split."""
        out = {}
        for name, (count, total, squares) in self.sums[split].items():
            if count:
                mean = total / count
                variance = (count * squares - total * total) / (count * count)  # exact: whole numbers until here
                out[name] = {"mean": mean / 65535, "std": variance**0.5 / 65535}
        return out


def _preprocessing(options: argparse.Namespace) -> dict[str, Any]:
    from data_tools import geometry, grayscale

    return {
        "rows": options.rows,
        "cols": options.cols,
        "codec": options.codec,
        "grey": "modality LUT, first VOI LUT or window, else percentiles; MONOCHROME1 inverted; 0..65535",
        "percentiles": list(grayscale.PERCENTILES),
        "background": "zero outside the largest bright component",
        "chest_wall": "left",
        "margin_share": geometry.MARGIN_SHARE,
        "birads_scheme": options.birads_scheme,
        "risk_scope": options.risk_scope,
        "require": options.require,
        "split": options.split,
    }


@dataclass
class _Converted:
    totals: _Totals
    manifests: dict[str, Manifest]
    mapping: list[dict[str, str]]


def _write_shards(
    partial: Path, tasks: Sequence[SampleTask], options: argparse.Namespace, synthetic: bool, workers: int
) -> _Converted:
    """Converts all samples into ``partial``; one folder per split."""
    from tqdm import tqdm

    from m4oe_ds.data.manifest import ShardWriter

    spec = DATASETS[options.dataset]
    totals = _Totals(spec.modalities)
    writers = {
        split: ShardWriter(
            partial, options.dataset, split, modalities=spec.modalities, tasks=spec.tasks,
            samples_per_shard=options.samples_per_shard, synthetic=synthetic, preprocessing=_preprocessing(options),
        )
        for split in SPLITS
    }  # fmt: skip
    mapping = []
    planned = sum(len(task.images) for task in tasks)
    results = _results(tasks, workers)
    try:
        for task, result in zip(tasks, tqdm(results, total=len(tasks), desc="samples", unit="sample"), strict=True):
            totals.add(result)
            _check_quarantine(totals, planned, options)
            if not result.members:
                totals.samples_without_image += 1
                continue
            if options.require == "complete" and len(result.members) < len(spec.modalities):
                totals.incomplete += 1
                continue
            totals.add_kept(result)
            writers[result.meta["split"]].write(result.meta, result.members)
            mapping.append(_mapping_row(result.meta, task.source))
    except UserError:
        for writer in writers.values():
            writer.close()  # releases its files; the folder is removed by the caller
        raise
    manifests = {split: writer.close(totals.statistics(split)) for split, writer in writers.items()}
    return _Converted(totals, manifests, mapping)


def _check_quarantine(totals: _Totals, planned: int, options: argparse.Namespace) -> None:
    """Stops as soon as more images are bad than accepted: the number never falls again."""
    bad = len(totals.quarantine)
    if bad > options.max_quarantine * planned:
        common = ", ".join(f"{name} {n}" for name, n in _reasons(totals).most_common(REASON_SHOWN))
        raise DataError(
            f"{bad} of {planned} images are bad so far ({common}), more than --max-quarantine {options.max_quarantine}",
            str(options.root), "check that the archive is complete, or raise --max-quarantine",
        )  # fmt: skip


def _mapping_row(meta: dict[str, Any], source: tuple[str, str]) -> dict[str, str]:
    return {
        "key": meta["key"], "patient": source[0], "exam": source[1], "side": meta["side"],
        "split": meta["split"],
    }  # fmt: skip


def _reasons(totals: _Totals) -> Counter[str]:
    return Counter(item["reason"] for item in totals.quarantine)


def _write_private(path: Path, rows: list[dict[str, str]]) -> None:
    """Writes the mapping of keys to exams, readable by its owner only from the first byte on."""
    temporary = path.with_name(f".{path.name}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, ("key", "patient", "exam", "side", "split"), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _table_summary(plan: Plan) -> dict[str, Any]:
    return {
        "steps": plan.steps,
        "excluded": {unit: dict(sorted(counts.items())) for unit, counts in plan.excluded.items()},
        "notes": dict(sorted(plan.notes.items())),
    }


def _report(plan: Plan, tasks: Sequence[SampleTask], done: _Converted, synthetic: bool) -> dict[str, Any]:
    """Content of conversion.json: numbers only."""
    totals = done.totals
    histograms = {split: manifest.label_histograms for split, manifest in done.manifests.items()}
    return {
        "synthetic": synthetic,
        "tables": _table_summary(plan),
        "samples_attempted": len(tasks),
        "samples_written": {split: manifest.num_samples for split, manifest in done.manifests.items()},
        "patients": {split: manifest.num_groups for split, manifest in done.manifests.items()},
        "samples_without_a_good_image": totals.samples_without_image,
        "samples_incomplete_after_reading": totals.incomplete,
        "images_written": totals.images,
        "images_quarantined": dict(sorted(_reasons(totals).items())),
        "duplicate_pixels_across_patients": totals.duplicates,
        "histograms": {name: dict(sorted(counts.items())) for name, counts in sorted(totals.facts.items())},
        "labels": histograms,
        "censored": {
            f"risk{k}": sum(tables.get(f"risk{k}", {}).get("-1", 0) for tables in histograms.values())
            for k in range(1, 6)
        },
        "modalities": {split: manifest.modality_counts for split, manifest in done.manifests.items()},
        "preprocessing": next(iter(done.manifests.values())).preprocessing,
    }


def _print_plan(plan: Plan, tasks: Sequence[SampleTask]) -> None:
    summary = _table_summary(plan)
    for name, number in summary["steps"].items():
        print(f"{name}: {number}")
    for unit, counts in summary["excluded"].items():
        for reason, number in counts.items():
            print(f"excluded {unit}, {reason}: {number}")
    for name, number in summary["notes"].items():
        print(f"note, {name}: {number}")
    for split in SPLITS:
        mine = [task for task in tasks if task.meta["split"] == split]
        groups = {task.meta["group"] for task in mine}
        print(f"{split}: {len(mine)} samples of {len(groups)} patients, {sum(len(t.images) for t in mine)} images")


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Converts an archive as the command line does.

    Returns:
        The content of ``conversion.json``; for a dry run the counts of the tables.

    Raises:
        DataError: an archive, table, column or option that cannot be used, or too many bad images.
        EnvironmentProblem: no decoder for a transfer syntax of the archive.
    """
    from data_tools import embed

    options = build_parser().parse_args(list(arguments))
    shares = parse_split(options.split)
    _check_options(options)
    clinical, metadata = embed.read_tables(options.root)
    plan = embed.build_plan(
        clinical, metadata, DATASETS[options.dataset].modalities,
        embed.Options(options.birads_scheme, options.risk_scope, options.require),
    )  # fmt: skip
    synthetic = (options.root / "phantom.json").is_file()
    tasks = _tasks(plan, options, _secret(options, synthetic), shares)
    if options.dry_run:
        _print_plan(plan, tasks)
        print("dry run: nothing written")
        return {"synthetic": synthetic, "tables": _table_summary(plan)}
    if not tasks:
        reasons = ", ".join(f"{n} exams {reason}" for reason, n in plan.excluded["exams"].most_common(REASON_SHOWN))
        raise DataError(
            f"no sample to convert ({reasons or 'no exam'})", str(options.root), "look at it with --dry-run"
        )
    _check_decoders(tasks)
    workers = options.workers or min(8, os.cpu_count() or 1)
    return _convert(plan, tasks, options, synthetic, min(workers, len(tasks)))


def _convert(
    plan: Plan, tasks: Sequence[SampleTask], options: argparse.Namespace, synthetic: bool, workers: int
) -> dict[str, Any]:
    partial = _beside(options.out, "partial")
    if partial.exists():
        logger.warning("removing what an interrupted conversion left in %s", partial)
        shutil.rmtree(partial)
    partial.mkdir()
    try:
        done = _write_shards(partial, tasks, options, synthetic, workers)
        report = _report(plan, tasks, done, synthetic)
        _write_json(partial / "conversion.json", report)
        _write_json(partial / "quarantine.json", {"images": done.totals.quarantine})
        _write_private(_beside(options.out, "mapping.csv"), done.mapping)
        os.rename(partial, options.out)
    except UserError:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    for split, number in report["samples_written"].items():
        if number == 0:
            logger.warning("split %s of %s is empty: too few patients", split, options.out)
    print(
        f"converted {sum(report['samples_written'].values())} samples with {report['images_written']} images "
        f"({', '.join(f'{split} {n}' for split, n in report['samples_written'].items())}); "
        f"{len(done.totals.quarantine)} images quarantined, {report['samples_without_a_good_image']} samples without "
        f"a good image; {options.out}"
    )
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        run(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
