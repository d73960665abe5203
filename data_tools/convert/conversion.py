"""A whole conversion: from tables to jobs, shards, manifests, checks and the published folder."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_tools.archives.groups import with_subgroups
from data_tools.archives.plan import ArchiveOptions, ArchivePlan
from data_tools.archives.published import Published
from data_tools.archives.readers import find_reader
from data_tools.archives.table import plan_table
from data_tools.convert import provenance, shards
from data_tools.convert import report as conversion_report
from data_tools.convert.jobs import ShardJob, Storing, fingerprint, make_jobs
from data_tools.convert.options import ConvertOptions
from data_tools.convert.sample import SampleJob
from data_tools.deidentify import SYNTHETIC_SECRET, load_secret
from data_tools.identifiers import scan_identifiers
from data_tools.inspect import check
from data_tools.outputs import next_to, write_private
from data_tools.pixels import geometry, grayscale
from data_tools.pixels.dicom import BadImage, lacking_decoders, require_decoders, transfer_syntax
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.roots import Address, is_synthetic
from m4oe_ds.errors import DataError, UserError

logger = logging.getLogger(__name__)

_FINGERPRINT = ".fingerprint"


@dataclass(frozen=True)
class _Conversion:
    """What is to be done.

    Attributes:
        options: options of the command.
        plan: what the tables say.
        jobs: all shards, also those of other parts.
        synthetic: whether the archive is a phantom.
        clock: when it began.
    """

    options: ConvertOptions
    plan: ArchivePlan
    jobs: Sequence[ShardJob]
    synthetic: bool
    clock: provenance.Clock


def convert_archive(options: ConvertOptions) -> dict[str, Any]:
    """Converts an archive with options that were checked; see :func:`data_tools.convert.command.convert`."""
    clock = provenance.Clock()
    plan = _plan(options)
    synthetic = is_synthetic(options.folder)
    if not options.dry_run:
        options.out.resolve().parent.mkdir(exist_ok=True)  # one folder: more that lack are a slip of the pen
    rows, cols = options.size
    storing = Storing(options.card, _converter(options), rows, cols, options.codec, options.samples_per_shard)
    jobs = make_jobs(plan, options.folder, storing, _secret(options, synthetic), options.shares, options.limit)
    summary = {"synthetic": synthetic, "tables": conversion_report.table_summary(plan)}
    if options.dry_run:
        conversion_report.print_plan(plan, jobs, options.card)
        print("dry run: nothing written")
        return summary
    if not jobs:
        common = plan.excluded["exams"].most_common(shards.REASONS_SHOWN)
        reasons = ", ".join(f"{number} exams {reason}" for reason, number in common)
        raise DataError(
            f"no sample to convert ({reasons or 'no exam'})", str(options.folder), "look at it with --dry-run"
        )
    if storing.converter in ("mammogram", "film"):
        _check_decoders([sample for job in jobs for sample in job.samples])
    return _convert(_Conversion(options, plan, jobs, synthetic, clock)) or summary


def _plan(options: ConvertOptions) -> ArchivePlan:
    """What the tables of the archive say.

    Raises:
        DataError: an archive, table, column or option that cannot be used; with ``--strict`` also violations.
    """
    if not _reader(options):
        plan = plan_table(options.card, options.card_name, options.folder, options.max_missing, options.require)
        for line in plan.doubts:
            logger.warning(line)
        return plan
    how = ArchiveOptions(
        birads_scheme=options.birads_scheme,
        risk_scope=options.risk_scope,
        require=options.require,
        fold=options.fold,
        birads_sites=options.birads_sites,
        exclude_screen_detected=options.exclude_screen_detected,
    )
    assert isinstance(options.folder, Path)  # the options were checked
    reader = find_reader(_reader(options))
    plan = reader.plan_archive(options.folder, how)
    with_subgroups(plan, options.card, reader.ATTRIBUTES)
    _report_violations(plan.violations, options)
    return plan


def _reader(options: ConvertOptions) -> str:
    source = options.card.source
    return "" if source is None else source.reader


def _converter(options: ConvertOptions) -> str:
    return find_reader(_reader(options)).CONVERTER if _reader(options) else "exam"


def _published(options: ConvertOptions, preprocessing: Mapping[str, Any]) -> list[Published]:
    return find_reader(_reader(options)).published(preprocessing) if _reader(options) else []


def _report_violations(violations: Mapping[str, int], options: ConvertOptions) -> None:
    """Says that the archive is not as documented, as an error under ``--strict``."""
    if not violations:
        return
    listed = ", ".join(f"{name} {number}" for name, number in sorted(violations.items()))
    if options.strict:
        raise DataError(f"is not as documented: {listed}", str(options.folder), "look at it, or leave out --strict")
    logger.warning("the archive is not as documented: %s", listed)


def _secret(options: ConvertOptions, synthetic: bool) -> bytes:
    """The secret of the pseudonyms; a dry run makes none and counts splits under a stand-in."""
    if synthetic and options.salt_file is None:
        return SYNTHETIC_SECRET
    path = options.salt_file or next_to(options.out, "secret")
    if options.dry_run and not path.exists():
        return b"dry run"
    return load_secret(path)


def _check_decoders(samples: Sequence[SampleJob]) -> None:
    """Fails before hours of work if a transfer syntax of the archive has no decoder here.

    Where every syntax of the documentation can be decoded there is nothing to find; otherwise all headers are read.
    """
    lacking = lacking_decoders()
    if not lacking:
        return
    logger.warning("%d transfer syntaxes have no decoder here: every header is read to see if they occur", len(lacking))
    images = [path for sample in samples for candidates in sample.images.values() for path in candidates]
    masks = [
        path for sample in samples for several in sample.outlines.values() for one in several for path in one.files
    ]
    for path in (*images, *masks):
        try:
            syntax = transfer_syntax(Path(path))
        except BadImage as bad:
            logger.debug("header check: %s", bad.reason)  # counted and quarantined when its turn comes
            continue
        if str(syntax) in lacking:
            require_decoders([syntax])


def _preprocessing(options: ConvertOptions) -> dict[str, Any]:
    """What manifests and reports say about how images and labels were made."""
    rows, cols = options.size
    source = options.card.source
    if source is not None and not source.reader:
        return {
            "rows": rows,
            "cols": cols,
            "volume_size": list(source.volume_size),
            "codec": options.codec,
            "values": "8 and 16 bits as stored; all else over the range of the card, of volumes or of percentiles",
            "ranges": {name: list(ends) for name, ends in source.ranges.items()},
            "fit": "whole pictures in the middle, aspect kept; cubic voxels",
            "max_missing": options.max_missing,
            "require": options.require,
            "split": "by the table" if source.split else str(options.shares),
            "samples_per_shard": options.samples_per_shard,
        }
    return {
        "rows": rows,
        "cols": cols,
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
        "split": str(options.shares),
        "fold": options.fold,
        "samples_per_shard": options.samples_per_shard,
    }


def _partial_folder(out: Path, digest: str) -> Path:
    """The folder of an unfinished conversion, new or to be continued.

    Raises:
        DataError: it was begun with other options or another archive.
    """
    partial = next_to(out, "partial")
    partial.mkdir(exist_ok=True)
    mark = partial / _FINGERPRINT
    if mark.is_file():
        if mark.read_text(encoding="utf-8") != digest:
            raise DataError(
                "holds an unfinished conversion with other options or tables",
                str(partial),
                "remove it, or give the options it was begun with",
            )
        return partial
    temporary = partial / f"{_FINGERPRINT}.{os.getpid()}"
    temporary.write_text(digest, encoding="utf-8")
    os.replace(temporary, mark)
    return partial


def _convert(work: _Conversion) -> dict[str, Any] | None:
    """Makes the shards of this part, and all else if no other part is unfinished; None otherwise."""
    options, jobs = work.options, work.jobs
    preprocessing = _preprocessing(options)
    partial = _partial_folder(options.out, fingerprint(jobs, preprocessing))
    mine = [job for place, job in enumerate(jobs) if options.part.has(place)]
    rules = shards.ShardRules(options.require, options.max_quarantine, str(options.folder))
    try:
        shards.make_shards(partial, mine, options.card, rules, options.processes)
    except UserError:
        if isinstance(options.folder, Address):  # a server that fails after hours must not cost them
            logger.warning("what is finished is kept in %s: the same command goes on from there", partial)
        elif options.part.parts == 1:
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
        return _finish(work, records, partial, preprocessing)


def _finish(
    work: _Conversion, records: Sequence[shards.Record], partial: Path, preprocessing: Mapping[str, Any]
) -> dict[str, Any]:
    """Manifests, report, last check and mapping; then the folder takes its name."""
    options, plan = work.options, work.plan
    manifests = shards.write_manifests(partial, work.jobs, records, options.card, work.synthetic, preprocessing)
    whole = options.limit is None
    known = _published(options, preprocessing)
    report = conversion_report.build(plan, records, manifests, known, work.synthetic, whole)
    if options.strict and report["violations"]:
        _report_violations(report["violations"], options)
    found = set(report["violations"]) - set(plan.violations)
    if found:
        said = ", ".join(f"{name.replace('_', ' ')} {report['violations'][name]}" for name in sorted(found))
        what = "the images are not as documented" if _reader(options) else "look at these images"
        logger.warning("%s: %s", what, said)
    quarantine = [item for record in records for item in record.quarantine]
    made = provenance.shown(options)
    conversion_report.write(partial, report, quarantine, manifests, options.card, made)
    _check_made(partial, manifests)
    columns = ("key", "patient", "exam", "side", "split")
    if not _reader(options):
        columns = ("key", "group", "sample", "side", "split")
    write_private(next_to(options.out, "mapping.csv"), columns, _mapping(work.jobs, records, columns))
    provenance.write(options, work.clock)
    shards.remove_records(partial)
    for leftover in (_FINGERPRINT, ".finishing"):
        (partial / leftover).unlink(missing_ok=True)
    os.rename(partial, options.out)
    _print_made(report, len(quarantine), options.out, conversion_report.plural(options.card.group))
    return report


def _check_made(partial: Path, manifests: Mapping[str, Manifest]) -> None:
    """The last check of an unpublished conversion: tars against manifests, and nothing identifying but pixels aside.

    Pixels come out of the codec, and burnt-in text is masked; ``data_tools.inspect --phi`` searches their bytes too.

    Raises:
        DataError: the first problem and how many there are.
    """
    problems = check(partial, dict(manifests), checksums=False) + scan_identifiers(partial, pixels=False)
    if problems:
        raise DataError(
            f"{len(problems)} problems, the first: {problems[0]}",
            str(partial),
            "do not use these shards; remove the folder and report this: it is an error of this package",
        )


def _mapping(
    jobs: Sequence[ShardJob], records: Sequence[shards.Record], columns: Sequence[str]
) -> list[dict[str, str]]:
    """Which key is which exam, for every sample that was written, in order of the keys."""
    written = {key for record in records for key in record.keys}
    samples = sorted((sample for job in jobs for sample in job.samples), key=lambda sample: sample.meta["key"])
    return [
        dict(
            zip(
                columns,
                (sample.meta["key"], *sample.source, sample.meta.get("side", ""), sample.meta["split"]),
                strict=True,
            )
        )
        for sample in samples
        if sample.meta["key"] in written
    ]


def _print_made(report: Mapping[str, Any], quarantined: int, out: Path, groups: str) -> None:
    """Says what was made, and warns of empty splits."""
    written: Mapping[str, int] = report["samples_written"]
    for split, number in written.items():
        if number == 0:
            logger.warning("split %s of %s is empty: too few %s", split, out, groups)
    print(
        f"converted {sum(written.values())} samples with {report['images_written']} images "
        f"({', '.join(f'{split} {n}' for split, n in written.items())}); "
        f"{quarantined} images quarantined, {report['samples_without_a_good_image']} samples without "
        f"a good image; report: {out / 'conversion.html'}"
    )
    print(f"next: m4oe inspect {shlex.quote(str(out))}")
