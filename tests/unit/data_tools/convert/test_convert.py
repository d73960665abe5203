"""The whole conversion of a synthetic archive with every fault, against the truth planted in it."""

from __future__ import annotations

import csv
import json
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools import deidentify
from data_tools.convert import ConvertOptions, convert
from data_tools.convert.command import main
from data_tools.convert.options import Part
from data_tools.identifiers import scan_identifiers
from data_tools.phantom import archive as phantom
from m4oe_ds.arguments import REFUSED
from m4oe_ds.data.cards import find_card
from m4oe_ds.data.codecs import decode
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.schema import SPLITS
from m4oe_ds.data.shard_reader import read_sample, verify_shards
from m4oe_ds.errors import DataError

PATIENTS, SEED = 14, 5


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen synthetic patients: one per group of faults or unusual format."""
    out = tmp_path_factory.mktemp("convert") / "archive"
    phantom.generate("embed", out, PATIENTS, SEED, workers=1)
    return out


@pytest.fixture(scope="session")
def shards(archive: Path) -> Path:
    out = archive.with_name("shards")
    convert(options(archive, out))
    return out


def options(archive: Path, out: Path, **more: Any) -> ConvertOptions:
    """Small images, few samples per shard, and no process but this one unless ``more`` says so."""
    small = {"workers": 0, "rows": 64, "cols": 52, "samples_per_shard": 5}
    return ConvertOptions(dataset="embed", root=archive, out=out, **{**small, **more})


def arguments(archive: Path, out: Path, *more: str) -> list[str]:
    """The same on the command line."""
    size = ("--workers", "0", "--rows", "64", "--cols", "52", "--samples-per-shard", "5")
    return ["--dataset", "embed", "--root", str(archive), "--out", str(out), *size, *more]


def converted(shards: Path) -> dict[tuple[str, str, str], dict[str, bytes]]:
    """Members of every sample by (patient, exam, side), through the private mapping."""
    with shards.with_name(f"{shards.name}.mapping.csv").open(newline="") as stream:
        names = {row["key"]: (row["patient"], row["exam"], row["side"]) for row in csv.DictReader(stream)}
    out = {}
    for split in SPLITS:
        for shard in Manifest.load(shards / split).shards:
            for start, stop in zip(shard.offsets, shard.offsets[1:], strict=False):
                members = read_sample(shards / split / shard.name, start, stop)
                key = members.pop("__key__")
                out[names[key if isinstance(key, str) else key.decode()]] = members
    return out


def truth(archive: Path) -> dict[tuple[str, str, str], dict[str, Any]]:
    """What the phantom expects of every breast of a screening exam."""
    samples = json.loads((archive / "truth.json").read_text())["samples"]
    with (archive / "tables" / "EMBED_OpenData_clinical.csv").open(newline="") as stream:
        screening = {row["acc_anon"] for row in csv.DictReader(stream) if "screen" in row["desc"].lower()}
    return {
        (sample["patient"], sample["exam"], sample["side"]): sample["expected"]
        for sample in samples
        if sample["exam"] in screening
    }


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_labels_modalities_and_drops_are_those_planted(archive: Path, shards: Path) -> None:
    found, expected = converted(shards), truth(archive)
    kept = {name for name, value in expected.items() if value["dropped"] is None and value["modalities"]}
    assert set(found) == kept
    for name in kept:
        meta = json.loads(found[name]["meta.json"])
        assert meta["labels"] == expected[name]["labels"]["triage"], name
        assert meta["modalities"] == expected[name]["modalities"], name
        assert set(found[name]) == {"meta.json"} | {f"{modality}.b2" for modality in meta["modalities"]}
        assert meta["side"] == name[2]


def test_numbers_of_the_report_add_up(archive: Path, shards: Path) -> None:
    report = json.loads((shards / "conversion.json").read_text())
    expected = truth(archive)
    dropped = {
        reason: len({name[1] for name, value in expected.items() if value["dropped"] == reason})
        for reason in ("male", "prior_cancer")
    }
    exams = report["tables"]["excluded"]["exams"]
    assert {reason: exams[reason] for reason in dropped} == dropped
    assert exams["diagnostic"] == 1
    faults = json.loads((archive / "faults.json").read_text())["faults"]
    bad = report["images_quarantined"]
    assert bad["missing_file"] == faults["missing_file"]
    assert sum(bad.values()) == sum(faults[f"{kind}_file"] for kind in ("missing", "truncated", "garbage", "short"))
    images = report["tables"]["excluded"]["images"]
    assert images["spot_or_magnification"] == faults["spot_magnification"]
    assert images["duplicate_row"] == faults["duplicate_metadata_row"]
    assert report["tables"]["steps"]["images_planned"] == report["images_written"] + sum(bad.values())
    assert sum(report["histograms"]["transfer_syntax"].values()) == report["images_written"]
    assert report["histograms"]["flip"] == {"agrees with laterality": report["images_written"]}
    assert report["synthetic"] is True


def test_shards_verify_and_patients_stay_in_one_split(shards: Path) -> None:
    groups: list[set[str]] = []
    for split in SPLITS:
        manifest = Manifest.load(shards / split)
        assert verify_shards(shards / split, manifest, mode="full") == []
        groups.append({group for shard in manifest.shards for group in shard.groups})
    assert sum(map(len, groups)) == len(set.union(*groups))
    assert groups[0]


def test_pixel_statistics_are_those_of_the_stored_pixels(shards: Path) -> None:
    manifest = Manifest.load(shards / "train")
    values: dict[str, list[np.ndarray]] = {}
    for shard in manifest.shards:
        for start, stop in zip(shard.offsets, shard.offsets[1:], strict=False):
            for name, data in read_sample(shards / "train" / shard.name, start, stop).items():
                if name.endswith(".b2"):
                    values.setdefault(name[:-3], []).append(decode(data, "b2") / 65535)
    assert set(values) == set(find_card("embed").modalities)
    for name, arrays in values.items():
        pixels = np.stack(arrays)
        assert pixels.shape[1:] == (64, 52)
        assert manifest.pixel_statistics[name]["mean"] == pytest.approx(pixels.mean(), rel=1e-9)
        assert manifest.pixel_statistics[name]["std"] == pytest.approx(pixels.std(), rel=1e-9)


def test_nothing_identifying_is_written(archive: Path, shards: Path) -> None:
    assert scan_identifiers(shards) == []
    secrets = {part.encode() for name in truth(archive) for part in name[:2]}
    content = b"".join(tree(shards).values())
    assert not [secret for secret in secrets if secret in content]
    mapping = shards.with_name("shards.mapping.csv")
    assert stat.S_IMODE(mapping.stat().st_mode) == 0o600


def test_two_processes_write_the_same_bytes(archive: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    convert(options(archive, out, workers=2))
    assert tree(out) == tree(shards)


def test_release_scheme_png_and_another_secret(archive: Path, shards: Path, tmp_path: Path) -> None:
    out, salt = tmp_path / "out", tmp_path / "salt"
    convert(options(archive, out, birads_scheme="release", codec="png", salt_file=salt, limit=6))
    assert stat.S_IMODE(salt.stat().st_mode) == 0o600
    found, expected, before = converted(out), truth(archive), converted(shards)
    assert len(found) == 6
    for name, members in found.items():
        meta = json.loads(members["meta.json"])
        assert meta["labels"] == expected[name]["labels"]["release"]
        assert meta["key"] != json.loads(before[name]["meta.json"])["key"]
        modality = meta["modalities"][0]
        same = decode(members[f"{modality}.png"], "png"), decode(before[name][f"{modality}.b2"], "b2")
        np.testing.assert_array_equal(*same)


def test_complete_leaves_out_breasts_with_a_bad_image(archive: Path, tmp_path: Path) -> None:
    convert(options(archive, tmp_path / "out", require="complete"))
    complete = {
        name for name, value in truth(archive).items() if value["dropped"] is None and len(value["modalities"]) == 4
    }
    assert set(converted(tmp_path / "out")) == complete


def test_dry_run_writes_nothing(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(archive, tmp_path / "out", "--dry-run")) == 0
    text = capsys.readouterr().out
    assert "samples_planned" in text
    assert "excluded exams, male" in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["--split", "70/10/10"], "--split"),
        (["--split", "a/b/c"], "--split"),
        (["--max-quarantine", "0.01"], "images are bad"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], match: str
) -> None:
    assert main(arguments(archive, tmp_path / "out", *more)) == DataError.exit_code
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert match in line
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("more", [["--rows", "0"], ["--max-quarantine", "3"]])
def test_numbers_out_of_bounds_are_refused(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments(archive, tmp_path / "out", *more))
    assert ended.value.code == REFUSED
    assert capsys.readouterr().err.startswith(f"error: {more[0]}: ")
    assert not (tmp_path / "out").exists()


def test_nothing_identifying_is_printed_logged_or_raised(archive: Path, tmp_path: Path) -> None:
    """All that a conversion says, faults and a stop included, searched for every identifier, date and path of the
    archive.
    """
    import re
    import subprocess
    import sys

    said = ""
    for more in (["--dry-run"], ["--workers", "1"], ["--max-quarantine", "0"], ["--strict", "--require", "complete"]):
        command = [
            sys.executable,
            "-m",
            "data_tools.convert",
            *arguments(archive, tmp_path / more[-1].strip("-")),
            *more,
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        said += done.stdout + done.stderr
    assert "converted" in said
    assert "images are bad so far" in said
    with (archive / "tables" / "EMBED_OpenData_metadata.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    secrets = {part for row in rows for part in row["anon_dicom_path"].split("/") if len(part) > 9}
    secrets |= {row[name] for row in rows for name in ("empi_anon", "acc_anon")} - {""}
    secrets |= {row["study_date_anon"][:10] for row in rows}
    assert len(secrets) > 100
    said = said.replace(str(archive), "").replace(str(tmp_path), "")
    assert not [secret for secret in secrets if secret in said]
    assert not re.search(r"\d+(\.\d+){5,}", said)


def test_a_shard_with_an_identifier_is_never_published(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A field of the allow-list with a patient's number in it: the scan at the end does not let the folder appear."""
    from data_tools.convert import jobs

    monkeypatch.setattr(jobs, "vendor_family", lambda _: "27770")
    with pytest.raises(
        DataError, match=r"problems, the first: .* has a value of vendor that no shard may have"
    ) as caught:
        convert(options(archive, tmp_path / "out"))
    assert "27770" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_every_header_is_read_where_a_decoder_is_lacking(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One JPEG-LS image anywhere in the archive stops the run at once if nothing decodes it, and only then."""
    import pydicom.pixels
    from pydicom.uid import HTJ2K, JPEGLSLossless

    from m4oe_ds.errors import EnvironmentProblem

    real = pydicom.pixels.get_decoder

    class Absent:
        is_available = False

    monkeypatch.setattr(pydicom.pixels, "get_decoder", lambda uid: Absent() if uid == JPEGLSLossless else real(uid))
    with pytest.raises(EnvironmentProblem, match="pyjpegls"):
        convert(options(archive, tmp_path / "out"))
    assert not (tmp_path / "out.partial").exists()
    monkeypatch.setattr(pydicom.pixels, "get_decoder", lambda uid: Absent() if uid == HTJ2K else real(uid))
    convert(options(archive, tmp_path / "out", limit=2))


def test_existing_output_and_missing_archive_are_refused(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="exists already"):
        convert(options(archive, tmp_path / "out"))
    with pytest.raises(DataError, match="not a folder"):
        convert(options(tmp_path / "absent", tmp_path / "new"))


def test_a_real_archive_gets_a_secret_of_its_own(archive: Path, tmp_path: Path) -> None:
    root = tmp_path / "archive"
    shutil.copytree(archive / "tables", root / "tables")
    (root / "images").symlink_to(archive / "images")
    out = tmp_path / "out"
    convert(options(root, out, limit=4, max_quarantine=1.0))
    secret = tmp_path / "out.secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert len(secret.read_bytes().strip()) >= deidentify.MIN_SECRET_BYTES
    report = json.loads((out / "conversion.json").read_text())
    assert report["synthetic"] is False
    assert secret.read_text().strip() not in (out / "conversion.json").read_text()


def test_split_shares_are_kept() -> None:
    splits = [deidentify.split_of(b"a secret for tests", str(n), (70, 10, 20)) for n in range(4000)]
    for split, share in zip(SPLITS, (0.7, 0.1, 0.2), strict=True):
        assert splits.count(split) / 4000 == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize(
    ("manufacturer", "family"),
    [
        ("HOLOGIC, Inc.", "hologic"), ("Lorad, A Hologic Company", "hologic"), ("GE MEDICAL SYSTEMS", "ge"),
        ("GE", "ge"), ("FUJIFILM Corporation", "fujifilm"), ("SIEMENS", "siemens"), ("Gendex", "other"), ("", "other"),
    ],
)  # fmt: skip
def test_vendor_family(manufacturer: str, family: str) -> None:
    assert deidentify.vendor_family(manufacturer) == family


def test_a_killed_conversion_goes_on_and_gives_the_same_bytes(archive: Path, shards: Path, tmp_path: Path) -> None:
    """A real SIGKILL in the middle, then the same command again: shards made before are kept as they are."""
    import os
    import signal
    import subprocess
    import sys
    import time

    out = tmp_path / "out"
    command = [sys.executable, "-m", "data_tools.convert", *arguments(archive, out)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    records = tmp_path / "out.partial" / ".records"
    deadline = time.monotonic() + 900
    while len(list(records.glob("embed-*.json")) if records.is_dir() else []) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not out.exists()
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out.partial").glob("*/embed-*.tar")}
    finished = {path.stem for path in records.glob("embed-*.json")}
    convert(options(archive, out))
    assert tree(out) == tree(shards)
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*/*.tar")}
    assert all(after[name] == before[name] for name in finished)


def test_an_unfinished_conversion_with_other_options_is_refused(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(options(archive, out, part=Part(1, 2)))
    with pytest.raises(DataError, match="unfinished conversion with other options"):
        convert(options(archive, out, birads_scheme="release"))


def test_parts_in_any_order_make_the_same_shards(archive: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for part in (Part(3, 3), Part(1, 3)):
        convert(options(archive, out, part=part))
        assert not out.exists()
    convert(options(archive, out, part=Part(2, 3)))
    assert tree(out) == tree(shards)


def test_a_damaged_finished_shard_is_made_again(archive: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert(options(archive, out, part=Part(1, 2)))
    tar = next((tmp_path / "out.partial").glob("*/*.tar"))
    tar.write_bytes(tar.read_bytes()[:1000])
    convert(options(archive, out, part=Part(2, 2)))  # finds the other half short: not finished
    assert not out.exists()
    convert(options(archive, out, part=Part(1, 2)))
    assert tree(out) == tree(shards)
