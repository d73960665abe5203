"""A thousand damaged inputs, seeded: every one is converted or counted under a reason; nothing crashes or hangs."""

from __future__ import annotations

import csv
import io
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data_tools.archives import embed
from data_tools.archives.plan import ArchiveOptions
from data_tools.convert import ConvertOptions, convert
from data_tools.convert.images import convert_sample
from data_tools.convert.options import Shares
from data_tools.convert.sample import SampleJob
from data_tools.phantom import archive as phantom
from m4oe_ds.data.cards import find_card
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.shard_reader import verify_shards
from m4oe_ds.errors import DataError
from tests.integration.shards import stream as stream_of

DICOMS, TABLES, SHARDS = 640, 160, 200


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fuzz") / "archive"
    phantom.generate("embed", out, 9, 2, workers=1)
    return out


@pytest.fixture(scope="module")
def shards(archive: Path) -> Path:
    out = archive.with_name("shards")
    small = ConvertOptions(dataset="embed", root=archive, out=out, workers=0, rows=32, cols=26, samples_per_shard=6)
    convert(replace(small, split=Shares(100, 0, 0)))
    return out / "train"


def mutate(data: bytes, random: np.random.Generator) -> bytes:
    """Bit flips (few, or in the first kilobytes), a cut, a doubled or lost piece, or wrong length fields."""
    out = bytearray(data)
    kind = int(random.integers(6))
    if kind == 0:
        for place in random.integers(len(out), size=int(random.integers(1, 30))):
            out[place] ^= 1 << int(random.integers(8))
    elif kind == 1:  # headers are where damage does most
        for place in random.integers(min(len(out), 2500), size=int(random.integers(1, 12))):
            out[place] = int(random.integers(256))
    elif kind == 2:
        out = out[: int(random.integers(len(out)))]
    elif kind == 3:
        start, length = int(random.integers(len(out))), int(random.integers(1, 600))
        out = out[:start] + out[start + length :]
    elif kind == 4:
        start, length = int(random.integers(len(out))), int(random.integers(1, 600))
        out = out[:start] + out[start : start + length] + out[start:]
    else:
        place = int(random.integers(len(out) - 4))
        out[place : place + 4] = int(random.integers(2**32)).to_bytes(4, "little")
    return bytes(out)


def test_damaged_dicom_files_are_converted_or_counted(archive: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    good: dict[str, list[bytes]] = {}
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    for path in sorted((archive / "images").rglob("*.dcm")):
        try:
            syntax = str(dcmread(path, stop_before_pixels=True).file_meta.TransferSyntaxUID)
        except (InvalidDicomError, AttributeError):
            continue
        if len(good.setdefault(syntax, [])) < 4:
            good[syntax].append(path.read_bytes())
    assert len(good) >= 4  # uncompressed, JPEG 2000, RLE, JPEG-LS
    syntaxes = sorted(good)
    outcomes: Counter[str] = Counter()
    path = tmp_path / "image.dcm"
    meta = {"key": "embed-0000000000000000-l", "group": "", "dataset": "embed", "side": "l", "vendor": "", "labels": {}}
    for number in range(DICOMS):
        sources = good[syntaxes[number % len(syntaxes)]]
        path.write_bytes(mutate(sources[number % len(sources)], random))
        result = convert_sample(SampleJob(meta, {"ffdm_cc": (str(path),)}, 32, 26, "b2"))
        assert len(result.bad) + len(result.meta["modalities"]) == 1  # one or the other, never neither
        outcomes["converted" if result.meta["modalities"] else result.bad[0][1]] += 1
    assert sum(outcomes.values()) == DICOMS
    assert outcomes["converted"] > DICOMS // 10
    assert len(outcomes) > 5, outcomes


def test_damaged_tables_are_planned_or_refused_in_one_line(archive: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(8)
    root = tmp_path / "archive"
    (root / "tables").mkdir(parents=True)
    names = ("EMBED_OpenData_clinical.csv", "EMBED_OpenData_metadata.csv")
    whole = len(embed.plan_archive(archive, ArchiveOptions()).samples)
    outcomes: Counter[str] = Counter()
    for number in range(TABLES):
        for name in names:
            shutil.copy(archive / "tables" / name, root / "tables" / name)
        victim = root / "tables" / names[number % 2]
        if number % 4 < 2:
            victim.write_bytes(mutate(victim.read_bytes(), random))
        else:  # a value of a cell, so that the table stays a table
            rows = list(csv.reader(io.StringIO(victim.read_text())))
            row, column = int(random.integers(1, len(rows))), int(random.integers(len(rows[0])))
            rows[row][column] = str(random.choice(["", "nan", "-1", "1e17", "2014-13-45", "\x00", "é" * 200, "Ⅳ"]))
            with victim.open("w", newline="") as stream:
                csv.writer(stream).writerows(rows)
        try:
            plan = embed.plan_archive(root, ArchiveOptions())
        except DataError as error:
            outcomes["in several lines" if "\n" in str(error) else "refused"] += 1
            continue
        assert len(plan.samples) <= whole + 2
        for sample in plan.samples:
            for task in find_card("embed").tasks:
                assert -1 <= sample.labels[task.name] < task.num_classes
        outcomes["planned"] += 1
    assert sum(outcomes.values()) == TABLES
    assert set(outcomes) == {"refused", "planned"}


def test_damaged_shards_are_noticed_by_the_manifest_and_read_without_a_crash(shards: Path, tmp_path: Path) -> None:
    """Every change of a shard is found by its checksum; reading on regardless gives samples or padding, counted."""
    random = np.random.default_rng(9)
    manifest = Manifest.load(shards)
    spec = find_card("embed")
    clean = {shard.name: (shards / shard.name).read_bytes() for shard in manifest.shards}
    shortened = 0
    for number in range(SHARDS):
        folder = tmp_path / "train"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(shards, folder)
        name = manifest.shards[number % len(manifest.shards)].name
        damaged = mutate(clean[name], random)
        (folder / name).write_bytes(damaged)
        if damaged == clean[name]:
            continue
        found = verify_shards(folder, manifest, mode="full")
        assert len(found) == 1
        assert name in found[0]
        if len(damaged) < len(clean[name]):
            shortened += 1
            assert verify_shards(folder, manifest, mode="size") != []
        reading = stream_of(folder, spec, 7, (32, 26), max_bad_fraction=1.0)
        seen = sum(int(batch.valid.sum()) for batch in reading.evaluation())
        assert seen + len(reading.quarantine.reasons) == manifest.num_samples
    assert shortened > SHARDS // 10
