"""Inspection of shards: it must find damage, patients in two splits and anything identifying."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_tools import deidentify, inspect
from m4oe_ds.data.cards import find_card
from m4oe_ds.data.codecs import encode
from m4oe_ds.data.schema import SPLITS
from m4oe_ds.data.shard_reader import verify_shards
from m4oe_ds.data.shard_writer import ShardWriter
from m4oe_ds.errors import DataError

SPEC = find_card("embed")


def meta_of(split: str, patient: int, side: str, modality: str) -> dict[str, Any]:
    group = deidentify.hash16(b"secret", split, str(patient))
    geometry = {
        "original_shape": [40, 30], "crop": [0, 0, 40, 30], "flipped": False, "padded_shape": [40, 32],
        "stored_shape": [20, 16],
    }  # fmt: skip
    return {
        "schema_version": 2,
        "dataset": "embed",
        "split": split,
        "key": f"embed-{group}-{side}",
        "group": group,
        "exam": group,
        "side": side,
        "labels": {task.name: patient % 2 for task in SPEC.tasks},
        "modalities": [modality],
        "geometry": {modality: geometry},
        "screening": True,
        "vendor": "ge",
    }


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Three splits of three patients with one image per breast."""
    out = tmp_path / "shards"
    for split in SPLITS:
        writer = ShardWriter(
            out,
            SPEC,
            split,
            samples_per_shard=4,
            synthetic=True,
            preprocessing={},
        )
        for patient in range(3):
            for side in "lr":
                pixels = np.full((20, 16), 20000 * (patient + 1), np.uint16)
                writer.write(meta_of(split, patient, side, "ffdm_cc"), {"ffdm_cc.b2": encode(pixels, "b2")})
        writer.close({"ffdm_cc": {"mean": 0.5, "std": 0.1}})
    return out


def append(path: Path, name: str, data: bytes, **header: Any) -> None:
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        for field, value in header.items():
            setattr(member, field, value)
        archive.addfile(member, io.BytesIO(data))


def test_good_shards_have_no_problem(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = shards.with_name("sheet.png")
    assert inspect.main([str(shards), "--phi", "--contact-sheet", str(sheet)]) == 0
    text = capsys.readouterr().out
    assert "train: 6 synthetic samples of 3 patients in 2 shards" in text
    assert "ffdm_cc 6, ffdm_mlo 0" in text
    assert "birads: negative 4, benign 2, work-up 0, missing 0" in text
    with Image.open(sheet) as image:
        shown = np.asarray(image)
    assert shown.shape[1] <= 1400
    assert "12 of 18 synthetic samples, 4 from each split" in text
    greys = {tuple(colour) for colour in shown.reshape(-1, 3)}
    assert {(int(20000 * k * 255 / 65535),) * 3 for k in (1, 2, 3)} <= greys


def test_damage_is_found(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shards / "val" / "embed-val-000000.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    (shards / "test" / "embed-test-000001.tar").unlink()
    assert inspect.main([str(shards)]) == 1
    problems = capsys.readouterr().err.strip().splitlines()
    assert len(problems) == 2
    assert "sha256" in problems[0]
    assert "missing" in problems[1]


def test_a_patient_in_two_splits_is_found(shards: Path) -> None:
    shutil.rmtree(shards / "test")
    writer = ShardWriter(
        shards,
        SPEC,
        "test",
        samples_per_shard=4,
        synthetic=True,
        preprocessing={},
    )
    meta = meta_of("train", 1, "l", "ffdm_cc") | {"split": "test"}
    writer.write(meta, {"ffdm_cc.b2": encode(np.zeros((20, 16), np.uint16), "b2")})
    writer.close()
    assert inspect.inspect(shards)[1] == ["1 patients are in both train and test; convert the archive again"]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("1.2.840.113619.2.66.1", "UID"),
        ("2014-03-02", "date"),
        ("20140302", "date"),
        ("02/11/2014", "date"),
        ("exam 9999000000000001", "16-digit"),
        ("90000001", "8-digit"),
        ("image 1942326353", "10 to 15"),
        ("48575a27b7c992427041a82fa750d3fa", "32-digit"),
        ("PatientID", "attribute"),
        ("a/anon_dicom_path", "attribute"),
    ],
)
def test_identifying_content_is_found_wherever_it_is(shards: Path, text: str, kind: str) -> None:
    content = json.dumps({"note": {"x": [1, text]}})
    (shards / "report.json").write_text(content)
    found = inspect.scan_identifiers(shards)
    assert len(found) == 1
    assert kind in found[0]
    assert text not in found[0]
    (shards / "report.json").unlink()
    meta = meta_of("train", 7, "l", "ffdm_cc") | {"vendor": text}
    append(shards / "train" / "embed-train-000000.tar", f"{meta['key']}.meta.json", json.dumps(meta).encode())
    found = inspect.scan_identifiers(shards)
    assert len(found) == 2  # for what it is, and for standing where only a vendor may
    assert kind in found[0]
    assert "a value of vendor" in found[1]
    assert not [line for line in found if text in line]


@pytest.mark.parametrize(
    "text", ["embed-1990010112345678-l", "Explicit VR Little Endian", "416x338", "0.4.1", "a" * 64, "70/10/20"]
)
def test_ordinary_content_is_not_suspected(shards: Path, text: str) -> None:
    (shards / "report.json").write_text(json.dumps({"value": text, "bytes": 90000001, "share": 0.1234567890123456}))
    assert inspect.scan_identifiers(shards) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("vendor", "27770"), ("side", "Miller"), ("split", "0012"), ("dataset", "ward 7"), ("group", "27770"),
        ("exam", "2776" * 5), ("key", "27770"), ("screening", 27770), ("labels", {"birads": 27770}),
        ("labels", {"patient 27770": 0}), ("modalities", ["27770"]), ("geometry", {"ffdm_cc": {"crop": ["27770"]}}),
        ("geometry", {"27770": {}}), ("geometry", {"ffdm_cc": {"flipped": "27770"}}), ("schema_version", 27770),
    ],
)  # fmt: skip
def test_short_numbers_of_patients_are_found_by_their_place(shards: Path, field: str, value: Any) -> None:
    """RSNA numbers its patients with five digits: no pattern tells those from sizes; no field of a shard holds any."""
    meta = meta_of("train", 7, "l", "ffdm_cc") | {field: value}
    key = meta_of("train", 7, "l", "ffdm_cc")["key"]
    assert inspect.scan_identifiers(shards) == []
    append(shards / "train" / "embed-train-000000.tar", f"{key}.meta.json", json.dumps(meta).encode())
    found = inspect.scan_identifiers(shards)
    assert any(f"a value of {field} that no shard may have" in line for line in found), found
    assert not [line for line in found if "27770" in line or "Miller" in line]


def change_manifest(folder: Path, change: Any) -> None:
    content = json.loads((folder / "manifest.json").read_text())
    change(content["shards"][0])
    content["num_samples"] = sum(shard["num_samples"] for shard in content["shards"])
    (folder / "manifest.json").write_text(json.dumps(content))


def test_a_manifest_that_tells_of_other_samples_is_found(shards: Path) -> None:
    """Checksums alone do not show it: the tar is whole, but its list is that of other samples."""

    def fewer(shard: dict[str, Any]) -> None:
        shard["num_samples"] -= 1
        for values in (*(shard[name] for name in ("groups", "present", "exams")), *shard["labels"].values()):
            values.pop()

    assert inspect.inspect(shards)[1] == []
    change_manifest(shards / "train", fewer)
    change_manifest(shards / "val", lambda shard: shard["labels"]["density"].__setitem__(0, 3))
    change_manifest(shards / "test", lambda shard: shard["groups"].reverse())
    problems = inspect.inspect(shards)[1]
    assert len(problems) == 3
    assert "holds 4 samples, 3 in manifest.json" in problems[0]
    assert all("other patients or labels than manifest.json" in line for line in problems[1:])


def test_risk_that_falls_with_the_horizon_is_found(shards: Path, tmp_path: Path) -> None:
    shutil.rmtree(shards / "test")
    writer = ShardWriter(
        shards,
        SPEC,
        "test",
        samples_per_shard=4,
        synthetic=True,
        preprocessing={},
    )
    risks = [(0, 0, -1, 1, 1), (0, 1, -1, 0, 1), (1, -1, -1, -1, 0)]
    for number, codes in enumerate(risks):
        labels = {"birads": 0, "density": 1, **{f"risk{k + 1}": code for k, code in enumerate(codes)}}
        meta = meta_of("test", 20 + number, "l", "ffdm_cc") | {"labels": labels}
        writer.write(meta, {"ffdm_cc.b2": encode(np.zeros((20, 16), np.uint16), "b2")})
    writer.close()
    (problem,) = inspect.inspect(shards)[1]
    assert "answers about an event fall with the horizon in 2 samples" in problem


def test_identifiers_in_the_place_of_hashes_are_found(shards: Path) -> None:
    path = shards / "train" / "embed-train-000000.tar"
    for number in range(3):
        meta = meta_of("train", number, "l", "ffdm_cc") | {"exam": f"999900000000000{number}"}
        append(path, f"{meta['key']}.meta.json", json.dumps(meta).encode())
    assert any("plain numbers" in line for line in inspect.scan_identifiers(shards))


def test_unknown_fields_headers_and_strays_are_found(shards: Path) -> None:
    path = shards / "train" / "embed-train-000000.tar"
    meta = meta_of("train", 8, "l", "ffdm_cc") | {"age": 61}
    append(path, f"{meta['key']}.meta.json", json.dumps(meta).encode())
    append(path, "image.dcm", b"x", mtime=1400000000, uname="90000001")
    (shards / "notes.txt").write_text("x")
    text = "\n".join(inspect.scan_identifiers(shards))
    for part in ("1 fields that no shard may have", "not named after", "time of modification", "8-digit", "notes.txt"):
        assert part in text


def test_a_folder_without_shards_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main([str(tmp_path)]) == DataError.exit_code
    assert "m4oe convert" in capsys.readouterr().err


# ------------------------------------------------------------------------------------- every byte of every file


def png(**text: str) -> bytes:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for name, value in text.items():
        info.add_text(name, value)
    stream = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(stream, format="PNG", pnginfo=info)
    return stream.getvalue()


def dicom_header() -> bytes:
    from data_tools.phantom.dicom import DicomFacts, write_mammogram

    facts = DicomFacts(
        "90000001",
        "9999000000000001",
        "1.2.3.4.5.6.7",
        "1.2.3.4.5.6.8",
        "1.2.3.4.5.6.9",
        "2014-03-02",
        "101500",
        "",
        "",
        "L",
        "CC",
        "F",
        "X",
        "Y",
        12,
        ((2047, 4096),),
    )
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.dcm"
        write_mammogram(path, np.zeros((8, 8), np.uint16), facts)
        return path.read_bytes()


PIXELS = encode(np.zeros((20, 16), np.uint16), "b2")
POISON = {
    "a number behind the pixels": ("ffdm_cc.b2", PIXELS + b"9999000000000001", "16-digit"),
    "a UID inside the pixels": ("ffdm_cc.b2", PIXELS[:30] + b"1.2.840.113619.2.66.1" + PIXELS[30:], "UID"),
    "a date inside the pixels": ("ffdm_cc.b2", PIXELS + b"\x0020140302\x00", "date"),
    "a DICOM file as pixels": ("ffdm_cc.b2", dicom_header(), "DICOM header"),
    "a DICOM element behind the pixels": ("ffdm_cc.b2", PIXELS + dicom_header()[132:], "DICOM header"),
    "text in a PNG": ("ffdm_cc.png", png(Comment="nothing"), "text, time, EXIF"),
    "something behind the end of a PNG": ("ffdm_cc.png", png() + b"x", "text, time, EXIF"),
    "a thumbnail": ("icon.jpg", b"\xff\xd8\xff", "no shard may have"),
}


@pytest.mark.parametrize("name", sorted(POISON))
def test_identifiers_in_members_are_found(shards: Path, name: str) -> None:
    member, data, expected = POISON[name]
    key = meta_of("train", 9, "l", "ffdm_cc")["key"]
    append(shards / "train" / "embed-train-000000.tar", f"{key}.{member}", data)
    found = "\n".join(inspect.scan_identifiers(shards))
    assert expected in found
    for secret in ("90000001", "9999000000000001", "20140302", "1.2.840"):
        assert secret not in found


def test_identifiers_in_tar_metadata_reports_and_behind_the_end_are_found(shards: Path) -> None:
    path = shards / "train" / "embed-train-000000.tar"
    with tarfile.open(path, "a", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo(f"{meta_of('train', 9, 'l', 'ffdm_cc')['key']}.ffdm_cc.b2")
        member.size, member.pax_headers = len(PIXELS), {"comment": "exam of 2014-03-02"}
        archive.addfile(member, io.BytesIO(PIXELS))
    assert "a date" in "\n".join(inspect.scan_identifiers(shards))
    other = shards / "val" / "embed-val-000000.tar"
    other.write_bytes(other.read_bytes() + b"PatientID")
    assert "data after its last member" in "\n".join(inspect.scan_identifiers(shards))
    (shards / "conversion.html").write_text("<p>exam <b>9999000000000001</b></p>")
    assert "conversion.html: holds a 16-digit number" in "\n".join(inspect.scan_identifiers(shards))
    (shards / "conversion.html").write_text(f"<code>{meta_of('train', 9, 'l', 'ffdm_cc')['key']}</code>")
    assert "conversion.html" not in "\n".join(inspect.scan_identifiers(shards))


def test_every_long_part_says_how_far_it_is(
    shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("M4OE_PROGRESS", "1")
    assert inspect.inspect(shards, phi=True)[1] == []
    printed = capsys.readouterr().err
    for part in ("checking train", "reading train", "checking test", "searched for identifiers"):
        assert part in printed
    manifest = inspect.load_splits(shards)["train"]
    assert verify_shards(shards / "train", manifest, rank=1, world=2) == []
    assert capsys.readouterr().err == ""  # of several ranks one speaks
