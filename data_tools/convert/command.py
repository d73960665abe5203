"""Turns an archive into shards: ``python -m data_tools.convert --dataset embed --root DIR --out DIR``.

Reads the tables, decides labels, images and splits, then decodes every image, cuts it to the breast and writes shards
without anything that names a person. The bytes of the shards depend on the archive, the options and the secret, not on
the number of processes. A conversion that was killed goes on where it stopped when the command is given again; with
``--part 3/16`` sixteen jobs share the work and the last one finishes it. Beside ``--out`` it leaves
``<out>.mapping.csv`` (which key is which exam) and, unless ``--salt-file`` is given, ``<out>.secret``: both stay private.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_tools.convert.options import build_parser, check_options, parse_part, parse_split
from m4oe_ds.data.schema import DATASETS
from m4oe_ds.errors import DataError, UserError

if TYPE_CHECKING:
    from data_tools.archives.plan import Plan
    from data_tools.convert.jobs import ShardJob
    from data_tools.convert.sample import SampleTask
    from data_tools.convert.shards import Record
    from m4oe_ds.data.manifest import Manifest

logger = logging.getLogger(__name__)

REASON_SHOWN = 3


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


def _check_decoders(tasks: Sequence[SampleTask]) -> None:
    """Fails before hours of work if a transfer syntax of the archive has no decoder here.

    Where every syntax of the documentation can be decoded there is nothing to find; otherwise all headers are read.
    """
    from data_tools.pixels.dicom import BadImage, lacking_decoders, require_decoders, transfer_syntax

    lacking = lacking_decoders()
    if not lacking:
        return
    logger.warning("%d transfer syntaxes have no decoder here: every header is read to see if they occur", len(lacking))
    for path in (path for task in tasks for candidates in task.images.values() for path in candidates):
        try:
            syntax = transfer_syntax(Path(path))
        except BadImage as bad:
            logger.debug("header check: %s", bad.reason)  # counted and quarantined when its turn comes
            continue
        if str(syntax) in lacking:
            require_decoders([syntax])


def _preprocessing(options: argparse.Namespace) -> dict[str, Any]:
    from data_tools.pixels import geometry, grayscale

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
        "birads_sites": options.birads_sites,
        "risk_scope": options.risk_scope,
        "exclude_screen_detected": options.exclude_screen_detected,
        "require": options.require,
        "split": options.split,
        "fold": options.fold,
        "samples_per_shard": options.samples_per_shard,
    }


def write_private(path: Path, columns: Sequence[str], rows: Sequence[dict[str, str]]) -> None:
    """Writes a mapping of keys to what they stand for as CSV, readable by its owner only from the first byte on."""
    temporary = path.with_name(f".{path.name}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    os.replace(temporary, path)


def _mapping(jobs: Sequence[ShardJob], records: Sequence[Record]) -> list[dict[str, str]]:
    written = {key for record in records for key in record.keys}
    tasks = sorted((task for job in jobs for task in job.tasks), key=lambda task: task.meta["key"])
    return [
        {"key": task.meta["key"], "patient": task.source[0], "exam": task.source[1], "side": task.meta["side"],
         "split": task.meta["split"]}
        for task in tasks
        if task.meta["key"] in written
    ]  # fmt: skip


def plan_archive(options: argparse.Namespace) -> Plan:
    """What the tables of the archive say.

    Raises:
        DataError: an archive, table, column or option that cannot be used; with ``--strict`` also violations.
    """
    from data_tools.archives.plan import Options

    module = importlib.import_module(f"data_tools.archives.{options.dataset}")
    plan: Plan = module.plan_archive(
        options.root,
        Options(
            birads_scheme=options.birads_scheme, risk_scope=options.risk_scope, require=options.require,
            fold=options.fold, birads_sites=options.birads_sites,
            exclude_screen_detected=options.exclude_screen_detected,
        ),
    )  # fmt: skip
    _report_violations(plan.violations, options)
    return plan


def _report_violations(violations: Any, options: argparse.Namespace) -> None:
    """Says that the archive is not as documented, as an error under ``--strict``."""
    if not violations:
        return
    listed = ", ".join(f"{name} {number}" for name, number in sorted(violations.items()))
    if options.strict:
        raise DataError(f"is not as documented: {listed}", str(options.root), "look at it, or leave out --strict")
    logger.warning("the archive is not as documented: %s", listed)


def run(arguments: Sequence[str]) -> dict[str, Any]:
    """Converts an archive as the command line does.

    Returns:
        The content of ``conversion.json``; for a dry run or an unfinished part the counts of the tables.

    Raises:
        DataError: an archive, table, column or option that cannot be used, or too many bad images.
        EnvironmentProblem: no decoder for a transfer syntax of the archive.
    """
    from data_tools.convert.jobs import Storing, make_jobs
    from data_tools.convert.report import print_plan, table_summary

    options = build_parser((__doc__ or "").split("\n\n")[0]).parse_args(list(arguments))
    shares, part = parse_split(options.split), parse_part(options.part)
    check_options(options)
    plan = plan_archive(options)
    synthetic = (options.root / "phantom.json").is_file()
    storing = Storing(options.dataset, options.rows, options.cols, options.codec, options.samples_per_shard)
    jobs = make_jobs(plan, options.root, storing, _secret(options, synthetic), shares, options.limit)
    summary = {"synthetic": synthetic, "tables": table_summary(plan)}
    if options.dry_run:
        print_plan(plan, jobs)
        print("dry run: nothing written")
        return summary
    if not jobs:
        reasons = ", ".join(f"{n} exams {reason}" for reason, n in plan.excluded["exams"].most_common(REASON_SHOWN))
        raise DataError(
            f"no sample to convert ({reasons or 'no exam'})", str(options.root), "look at it with --dry-run"
        )
    if options.dataset != "gamma":
        _check_decoders([task for job in jobs for task in job.tasks])
    return _convert(plan, jobs, options, synthetic, part) or summary


def _partial_folder(options: argparse.Namespace, digest: str) -> Path:
    """The folder of an unfinished conversion, new or to be continued.

    Raises:
        DataError: it was begun with other options or another archive.
    """
    partial = _beside(options.out, "partial")
    partial.mkdir(exist_ok=True)
    mark = partial / ".fingerprint"
    if mark.is_file():
        if mark.read_text(encoding="utf-8") != digest:
            raise DataError(
                "holds an unfinished conversion with other options or tables", str(partial),
                "remove it, or give the options it was begun with",
            )  # fmt: skip
        return partial
    temporary = partial / f".fingerprint.{os.getpid()}"
    temporary.write_text(digest, encoding="utf-8")
    os.replace(temporary, mark)
    return partial


def _convert(
    plan: Plan, jobs: Sequence[ShardJob], options: argparse.Namespace, synthetic: bool, part: tuple[int, int]
) -> dict[str, Any] | None:
    from data_tools.convert import shards
    from data_tools.convert.jobs import fingerprint

    preprocessing = _preprocessing(options)
    partial = _partial_folder(options, fingerprint(jobs, preprocessing))
    mine = [job for number, job in enumerate(jobs) if number % part[1] == part[0] - 1]
    rules = shards.Rules(options.require, options.max_quarantine, str(options.root))
    workers = min(8, os.cpu_count() or 1) if options.workers is None else options.workers
    try:
        shards.make_shards(partial, mine, DATASETS[options.dataset], rules, workers)
    except UserError:
        if part[1] == 1:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    records = shards.all_records(partial, jobs)
    if records is None:
        print(f"part {options.part}: {len(mine)} of {len(jobs)} shards made in {partial}; others are not finished")
        return None
    with shards.only_one(partial) as mine_to_finish:
        if not mine_to_finish:
            print(f"part {options.part}: {len(mine)} of {len(jobs)} shards made; another part finishes")
            return None
        return _finish(plan, jobs, records, options, synthetic, partial, preprocessing)


def _finish(
    plan: Plan, jobs: Sequence[ShardJob], records: Sequence[Record], options: argparse.Namespace, synthetic: bool,
    partial: Path, preprocessing: dict[str, Any],
) -> dict[str, Any]:  # fmt: skip
    from data_tools.convert import report as conversion_report
    from data_tools.convert import shards

    manifests = shards.write_manifests(partial, jobs, records, options.dataset, synthetic, preprocessing)
    whole = options.limit is None
    report = conversion_report.build(plan, records, manifests, options.dataset, synthetic, whole)
    if options.strict and report["violations"]:
        _report_violations(report["violations"], options)
    found = set(report["violations"]) - set(plan.violations)
    if found:
        logger.warning("the images are not as documented: %s", ", ".join(sorted(found)))
    quarantine = [item for record in records for item in record.quarantine]
    conversion_report.write(partial, report, quarantine, manifests)
    _check_made(partial, manifests)
    columns = ("key", "patient", "exam", "side", "split")
    write_private(_beside(options.out, "mapping.csv"), columns, _mapping(jobs, records))
    shards.remove_records(partial)
    for leftover in (".fingerprint", ".finishing"):
        (partial / leftover).unlink(missing_ok=True)
    os.rename(partial, options.out)
    for split, number in report["samples_written"].items():
        if number == 0:
            logger.warning("split %s of %s is empty: too few patients", split, options.out)
    print(
        f"converted {sum(report['samples_written'].values())} samples with {report['images_written']} images "
        f"({', '.join(f'{split} {n}' for split, n in report['samples_written'].items())}); "
        f"{len(quarantine)} images quarantined, {report['samples_without_a_good_image']} samples without "
        f"a good image; report: {options.out / 'conversion.html'}"
    )
    return report


def _check_made(partial: Path, manifests: Mapping[str, Manifest]) -> None:
    """The last check of an unpublished conversion: tars against manifests, and nothing identifying but pixels aside.

    Pixels come out of the codec, and burnt-in text is masked; ``data_tools.inspect --phi`` searches their bytes too.

    Raises:
        DataError: the first problem and how many there are.
    """
    from data_tools.identifiers import scan_identifiers
    from data_tools.inspect import check

    problems = check(partial, dict(manifests), checksums=False) + scan_identifiers(partial, pixels=False)
    if problems:
        raise DataError(
            f"{len(problems)} problems, the first: {problems[0]}", str(partial),
            "do not use these shards; remove the folder and report this: it is an error of this package",
        )  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        run(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0
