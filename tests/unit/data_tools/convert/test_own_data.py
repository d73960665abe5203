"""One's own data from a card to shards: what is stored, always in the same bytes, and nothing that names anybody."""

from __future__ import annotations

import csv
import json
import re
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.convert import ConvertOptions, convert
from data_tools.convert.options import Part, Shares
from data_tools.convert.sample import Sums
from data_tools.inspect import contact_sheet, inspect, load_splits
from m4oe_ds.data.codecs import decode
from m4oe_ds.data.schema import SPLITS
from m4oe_ds.errors import DataError
from tests.unit.data_tools.card_cases import CARD, rows, write_case

SECRET = "0123456789abcdef0123456789abcdef"


def options(card: Path, out: Path, **more: Any) -> ConvertOptions:
    """A small conversion with a fixed secret."""
    secret = card.parent / "secret"
    secret.write_text(SECRET)
    return ConvertOptions(
        card_path=card, out=out, **{"workers": 0, "salt_file": secret, "samples_per_shard": 5, **more}
    )


@pytest.fixture(scope="module")
def card(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The card of a small data set."""
    return write_case(tmp_path_factory.mktemp("own") / "data")


@pytest.fixture(scope="module")
def shards(card: Path) -> Path:
    """Its shards."""
    out = card.parent.parent / "shards"
    convert(options(card, out))
    return out


def members(folder: Path) -> dict[str, dict[str, bytes]]:
    """``{sample in the table: {member: bytes}}``."""
    with folder.with_name(f"{folder.name}.mapping.csv").open() as stream:
        names = {row["key"]: row["sample"] for row in csv.DictReader(stream)}
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted(folder.rglob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                key, _, name = member.name.partition(".")
                stream_ = archive.extractfile(member)
                assert stream_ is not None
                found.setdefault(names[key], {})[name] = stream_.read()
    return found


def meta(sample: dict[str, bytes]) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(sample["meta.json"])
    return content


def test_every_kind_is_stored(shards: Path, card: Path) -> None:
    found = members(shards)
    assert sorted(found) == [row["eye"] for row in rows()]
    one = found["eye004"]
    assert sorted(one) == ["clinic.json", "fluid.b2", "meta.json", "photo.b2", "rim.b2", "scan.b2"]
    photo = decode(one["photo.b2"], "b2")
    assert (photo.shape, photo.dtype) == ((32, 40, 3), np.uint8)
    content = meta(one)
    assert content["geometry"]["photo"]["padded_shape"] == [40, 50]  # not stretched: 0.8 times 30 x 50 with bars
    assert not photo[:4].any()
    assert not photo[-4:].any()
    assert photo[4].any()
    rim = decode(one["rim.b2"], "b2")
    assert set(np.unique(rim)) == {0, 1, 2}
    inside = photo[rim > 0].mean()
    assert inside > 150 > photo[4:28][rim[4:28] == 0].mean()  # the mask lies over the bright square
    scan = decode(one["scan.b2"], "b2")
    assert (scan.shape, scan.dtype) == ((8, 16, 16), np.uint16)
    assert content["geometry"]["scan"]["voxel"] == 1.5
    fluid = decode(one["fluid.b2"], "b2")
    assert fluid.shape == scan.shape
    assert 0 < fluid.sum() < fluid.size / 4
    assert one["clinic.json"] == b'{"age":38.0,"sex":0}'
    assert content["labels"] == {"grade": 0, "rim": 1, "fluid": 1, "pressure": 13.0, "blind": [0.5, 0.0]}
    assert content["subgroups"] == {"age": "<40", "site": "A"}
    assert (content["side"], content["split"]) == ("l", "val")
    assert set(content) & {"vendor", "screening"} == set()
    assert re.fullmatch(r"my-eyes-[0-9a-f]{16}-l", content["key"])


def test_what_is_missing_is_missing(shards: Path) -> None:
    found = members(shards)
    assert meta(found["eye000"])["modalities"] == ["scan"]
    assert "clinic.json" not in found["eye000"]
    assert meta(found["eye000"])["labels"] == {"grade": 0, "rim": -1, "fluid": 1, "pressure": 12.0, "blind": [0.5, 0.0]}
    assert meta(found["eye006"])["labels"]["pressure"] is None
    assert meta(found["eye005"])["labels"]["blind"] is None
    assert meta(found["eye005"])["labels"]["rim"] == -1  # its photograph is not named


def test_manifests_carry_card_and_statistics(shards: Path, card: Path) -> None:
    manifests = load_splits(shards)
    assert [manifests[split].num_samples for split in SPLITS] == [12, 6, 6]
    assert manifests["train"].modalities == ("photo", "scan", "clinic")
    ages = [30 + 2 * k for k in range(24) if (k // 2) % 4 in (0, 1) and k % 8]
    statistics = manifests["train"].pixel_statistics
    assert statistics["clinic.age"] == pytest.approx({"mean": np.mean(ages), "std": np.std(ages)})
    assert set(statistics) == {"photo", "scan", "clinic.age"}
    left, right = meta(members(shards)["eye002"]), meta(members(shards)["eye003"])
    assert left["group"] == right["group"]
    assert left["exam"] != right["exam"]
    counts = manifests["train"].label_histograms
    assert counts["grade"] == {"-1": 3, "0": 3, "1": 3, "2": 3}
    assert counts["blind"] == {"-1": 2, "censored": 6, "event": 4}


def test_training_reads_them(shards: Path) -> None:
    from m4oe_ds.data.collate import Sizes, collate
    from m4oe_ds.data.reading import Reading

    manifest = load_splits(shards)["train"]
    read = Reading(manifest.card.inputs, manifest.tasks, (32, 40), (8, 16, 16), manifest.normalisation())
    samples = [read.sample(one, 0) for name, one in members(shards).items() if meta(one)["split"] == "train"]
    batch = collate(samples, manifest.card.inputs, manifest.tasks, Sizes((32, 40), (8, 16, 16)))
    assert [tuple(view.shape) for view in batch.views.values()] == [(12, 3, 32, 40), (12, 1, 8, 16, 16), (12, 2, 2)]
    ages = batch.views["clinic"][:, 0, 0][batch.views["clinic"][:, 0, 1] > 0]
    assert float(ages.mean()) == pytest.approx(0, abs=1e-5)
    assert batch.labels["rim"].shape == (12, 2, 32, 40)
    assert batch.labels["fluid"].shape == (12, 1, 8, 16, 16)
    assert batch.labels["blind"].shape == (12, 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_bytes_do_not_depend_on_workers(workers: int, card: Path, shards: Path, tmp_path: Path) -> None:
    convert(options(card, tmp_path / "again", workers=workers))
    assert _bytes(tmp_path / "again") == _bytes(shards)


def test_one_folder_above_the_shards_is_made(card: Path, tmp_path: Path) -> None:
    convert(options(card, tmp_path / "shards" / "own"))  # what `m4oe card check` says to type next
    assert (tmp_path / "shards" / "own" / "train").is_dir()


def test_parts_give_the_same_bytes(card: Path, shards: Path, tmp_path: Path) -> None:
    for number in (2, 1, 3):
        convert(options(card, tmp_path / "parts", part=Part(number, 3)))
        assert (tmp_path / "parts").is_dir() == (number == 3)
    assert _bytes(tmp_path / "parts") == _bytes(shards)


def test_another_table_does_not_continue_an_unfinished_conversion(card: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    other = write_case(data)
    convert(options(other, tmp_path / "out", part=Part(1, 2)))
    table = rows()
    table[1]["age of patient"] = 99
    write_case(data, table=table)
    with pytest.raises(DataError, match="unfinished conversion with other options or tables"):
        convert(options(other, tmp_path / "out", part=Part(2, 2)))


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_nothing_identifies(shards: Path) -> None:
    lines, problems = inspect(shards, phi=True)
    assert problems == []
    assert "nothing identifying found" in lines
    everything = b"".join(data for name, data in _bytes(shards).items())
    everything = re.sub(rb"base64,[A-Za-z0-9+/=]+", b"", everything)  # in so many letters anything is found
    assert not re.search(rb"eye0\d\d|p00\d|photos/|age of patient.{0,9}\d", everything)


def test_columns_are_not_quoted_in_the_card_of_a_manifest(shards: Path) -> None:
    card = json.loads((shards / "train" / "manifest.json").read_text())["card"]
    assert list(card["modalities"]) == ["photo", "scan", "clinic"]  # in its own order
    assert list(card["tasks"]) == ["grade", "rim", "fluid", "pressure", "blind"]


def test_the_report_speaks_the_words_of_the_card(shards: Path, tmp_path: Path) -> None:
    page = (shards / "conversion.html").read_text()
    assert not re.search("chest wall|breast|BI-RADS|documented", page)
    assert "train 12 (6 patients)" in page
    assert "Of volumes the middle slice" in page
    assert ">censored<" in page
    assert re.search(r"12 of 24 samples, 4 from each split, spread over the shards", page)
    shown = contact_sheet(shards, load_splits(shards), tmp_path / "sheet.png")
    assert shown == "12 of 24 samples, 4 from each split"
    assert "blind: censored 6, event 4, missing 2" in "\n".join(inspect(shards)[0])


def test_png_is_used_where_it_can_be(card: Path, tmp_path: Path) -> None:
    convert(options(card, tmp_path / "png", codec="png"))
    names = {name for sample in members(tmp_path / "png").values() for name in sample}
    assert names == {"photo.png", "rim.png", "scan.b2", "fluid.b2", "clinic.json", "meta.json"}
    assert inspect(tmp_path / "png", phi=True)[1] == []


def test_bad_files_are_quarantined_with_their_masks(card: Path, tmp_path: Path) -> None:
    from PIL import Image

    own = write_case(tmp_path / "data")
    (own.parent / "photos" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(own.parent / "rims" / "2.png")
    report = convert(options(own, tmp_path / "out"))
    assert report["images_quarantined"] == {"mask_size_differs": 1, "undecodable_pixels": 1}
    found = members(tmp_path / "out")
    assert meta(found["eye001"])["modalities"] == ["scan", "clinic"]
    assert meta(found["eye001"])["labels"]["rim"] == -1
    assert meta(found["eye002"])["labels"]["rim"] == -1
    assert "rim.b2" not in found["eye002"]


def test_slices_as_channels(card: Path, tmp_path: Path) -> None:
    text = CARD.replace("scan:   {kind: volume}", "scan:   {kind: volume, slices: 4}")
    text = re.sub(r"  fluid:    .*\n|    fluid: .*\n", "", text)
    path = card.parent / "slices.yaml"
    path.write_text(text)
    convert(options(path, tmp_path / "out"))
    sample = members(tmp_path / "out")["eye001"]
    scan = decode(sample["scan.b2"], "b2")
    assert scan.shape == (4, 32, 40)
    assert all(plane.any() for plane in scan)
    geometry = meta(sample)["geometry"]["scan"]
    assert geometry["content_shape"] == [4, 32, 40]
    assert geometry["spacing"] == [2.0, 1.0, 1.0]


def test_a_table_alone(tmp_path: Path) -> None:
    text = """name: rows
modalities: {m: {kind: table, columns: {n: {kind: number}, same: {kind: number}}}}
tasks: {a: {kind: binary}}
source: {table: t.csv, sample: id, labels: {a: a}}
"""
    (tmp_path / "t.csv").write_text("id,n,same,a\n" + "".join(f"r{k},{k / 3},7,{k % 2}\n" for k in range(40)))
    (tmp_path / "t.yaml").write_text(text)
    convert(options(tmp_path / "t.yaml", tmp_path / "out"))
    manifest = load_splits(tmp_path / "out")["train"]
    assert manifest.num_samples == 28
    assert manifest.pixel_statistics["m.same"] == {"mean": 7.0, "std": 1.0}
    assert inspect(tmp_path / "out", phi=True)[1] == []


def test_eight_and_sixteen_bits_in_one_modality(card: Path, tmp_path: Path) -> None:
    from PIL import Image

    own = write_case(tmp_path / "data", CARD.replace("channels: 3", "channels: 1"))
    for k in range(24):
        pixels = np.random.default_rng(k).integers(0, 256, (30, 50))
        stored = (257 * pixels).astype(np.uint16) if k % 2 else pixels.astype(np.uint8)
        Image.fromarray(stored).save(own.parent / "photos" / f"{k}.png")
    convert(options(own, tmp_path / "out"))
    found = load_splits(tmp_path / "out")["train"].pixel_statistics["photo"]
    assert found["mean"] == pytest.approx(0.5 * 0.75, rel=0.02)  # bars are a quarter


def test_a_range_is_a_window(card: Path, tmp_path: Path) -> None:
    path = card.parent / "window.yaml"
    path.write_text(CARD.replace("  labels:", "  ranges: {photo: [50, 200], scan: [-1, 1]}\n  labels:"))
    report = convert(options(path, tmp_path / "out"))
    assert report["images_quarantined"] == {}
    assert report["preprocessing"]["ranges"] == {"photo": [50.0, 200.0], "scan": [-1.0, 1.0]}
    sample = members(tmp_path / "out")["eye001"]
    for name in ("photo", "scan"):
        pixels = decode(sample[f"{name}.b2"], "b2")
        assert pixels.dtype == np.uint16
        assert pixels.max() > 40000  # averaged over what is shrunk


def test_sums_of_both_depths_are_exact() -> None:
    pixels = np.arange(256, dtype=np.uint8)
    wide = pixels.astype(np.uint16) * 257
    assert Sums.of(pixels) + Sums.of(wide) == Sums.of(np.concatenate([wide, wide]))
    assert Sums.of(pixels) + Sums.of(pixels) == Sums.of(np.concatenate([pixels, pixels]))


def test_options_of_a_card(card: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert options(card, out).folder == card.parent
    assert options(card, out).size == (32, 40)
    assert options(card, out, rows=16, cols=20).size == (16, 20)
    assert options(card, out, split=Shares(50, 25, 25)).shares == (50, 25, 25)
    given = ConvertOptions.from_arguments(["--card", str(card), "--out", str(out), "--max-missing", "0.5"])
    assert (given.card_path, given.dataset, given.max_missing) == (card, "", 0.5)
    wrong: Sequence[tuple[dict[str, Any], str]] = (
        ({"dataset": "embed"}, "one of --dataset and --card"),
        ({"birads_scheme": "release"}, "--birads-scheme: is for archives"),
        ({"strict": True}, "--strict: is for archives"),
        ({"max_missing": 2.0}, "--max-missing"),
        ({"root": tmp_path / "nowhere"}, "is not a folder"),
    )
    for more, expected in wrong:
        with pytest.raises(DataError, match=expected):
            options(card, out, **more).check()
    with pytest.raises(DataError, match="one of --dataset and --card"):
        ConvertOptions(out=out).check()
    with pytest.raises(DataError, match="--root: the archive has to be named"):
        ConvertOptions(dataset="embed", out=out).check()


def test_a_dry_run_says_what_would_be_made(card: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from m4oe_ds.cli import main

    assert main(["convert", "--card", str(card), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "train: 12 samples of 6 patients" in printed
    assert "  blind: missing:2 censored:6 event:4" in printed
    assert "  rim: missing:5 mask:7" in printed  # as the manifest of the conversion counts them
    assert not (tmp_path / "out").exists()


def test_what_can_hardly_be_meant_is_said_before_anything_is_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = rows()
    table[1]["patient"] = table[1]["patient"].upper()  # the other eye of the first patient, in another split perhaps
    for row in table:
        row["grade"] = ""
        row["years"] = row["years"] and 365 * row["years"]
    case = write_case(tmp_path / "data", table=table)
    convert(options(case, tmp_path / "out", dry_run=True))
    said = [record.getMessage() for record in caplog.records]
    assert sum("column 'patient': 1 name in several spellings" in line for line in said) == 1
    assert "grade: no answer at all" in said
    assert any("is the column in years?" in line for line in said)


def test_a_table_without_doubts_is_converted_in_silence(
    card: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    convert(options(card, tmp_path / "out", dry_run=True))
    assert [record.getMessage() for record in caplog.records] == []
