"""Shards and manifests: reproducible bytes, an allow-list of fields, damage found, every sample addressable."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from m4oe_ds.data import codecs
from m4oe_ds.data.cards import find_card
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.schema import MANIFEST_FIELDS, META_FIELDS, OPTIONAL_META_FIELDS, SCHEMA_VERSION
from m4oe_ds.data.shard_reader import read_sample, verify_shards
from m4oe_ds.data.shard_writer import ShardWriter
from m4oe_ds.errors import DataError

SPEC = find_card("rsna")


def key(number: int) -> str:
    return f"rsna-{number:016x}-l"


def sample(number: int, modalities: tuple[str, ...] = SPEC.modalities, **labels: int) -> tuple[dict, dict]:
    """Metadata and members of a sample whose pixels tell its number."""
    meta: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "dataset": "rsna",
        "split": "train",
        "key": key(number),
        "group": f"{number // 2:016x}",
        "exam": f"{number:016x}",
        "side": "l",
        "labels": labels or {"density": number % 4, "birads": -1},
        "modalities": list(modalities),
        "geometry": {name: {"stored_shape": [4, 3]} for name in modalities},
        "screening": None,
        "vendor": "other",
    }
    members = {
        f"{name}.b2": codecs.encode(np.full((4, 3), 100 * number + i, np.uint16))
        for i, name in enumerate(SPEC.modalities)
        if name in modalities
    }
    return meta, members


def writer(folder: Path, samples_per_shard: int = 3) -> ShardWriter:
    return ShardWriter(
        folder,
        SPEC,
        "train",
        samples_per_shard=samples_per_shard,
        synthetic=True,
        preprocessing={"height": 4},
    )


def views_of(number: int) -> tuple[str, ...]:
    return SPEC.modalities if number % 3 else SPEC.modalities[1:]


def split(folder: Path, count: int = 8) -> tuple[Path, Manifest]:
    """A split of ``count`` samples, every third without its first modality."""
    writing = writer(folder)
    for number in range(count):
        writing.write(*sample(number, views_of(number)))
    manifest = writing.close({name: {"mean": 0.5, "std": 0.25} for name in SPEC.modalities})
    return folder / "train", manifest


# ----------------------------------------------------------------------------------------------------- contents


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first, _ = split(tmp_path / "a")
    second, _ = split(tmp_path / "b")
    files = sorted(path.name for path in first.iterdir())
    assert files == ["manifest.json", *(f"rsna-train-00000{i}.tar" for i in range(3))]
    assert files == sorted(path.name for path in second.iterdir())
    for name in files:
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_order_of_members_and_fields_in_the_call_does_not_matter_for_the_metadata(tmp_path: Path) -> None:
    meta, members = sample(1)
    shards = []
    for folder, fields in (("a", meta), ("b", dict(reversed(meta.items())))):
        writing = writer(tmp_path / folder)
        writing.write(fields, members)
        writing.close()
        shards.append((tmp_path / folder / "train" / "rsna-train-000000.tar").read_bytes())
    assert shards[0] == shards[1]


def test_tar_headers_name_no_person_machine_or_time(tmp_path: Path) -> None:
    folder, _ = split(tmp_path)
    with tarfile.open(folder / "rsna-train-000000.tar") as tar:
        for member in tar:
            assert (member.uname, member.gname, member.mtime) == ("m4oe", "m4oe", 0)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    folder, manifest = split(tmp_path)
    assert Manifest.load(folder) == manifest
    assert Manifest.load(folder).digest == manifest.digest
    assert set(json.loads((folder / "manifest.json").read_text())) == MANIFEST_FIELDS


def test_counts_labels_and_presence(tmp_path: Path) -> None:
    _, manifest = split(tmp_path)
    assert (manifest.num_samples, manifest.num_groups) == (8, 4)
    assert [shard.num_samples for shard in manifest.shards] == [3, 3, 2]
    assert manifest.sample_labels("density").tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert manifest.sample_labels("birads").tolist() == [-1] * 8
    assert manifest.sample_labels("unheard").tolist() == [-1] * 8
    assert manifest.label_histograms == {"density": {"0": 2, "1": 2, "2": 2, "3": 2}, "birads": {"-1": 8}}
    assert manifest.modality_counts == {"ffdm_cc": 5, "ffdm_mlo": 8}
    expected = [[name in views_of(number) for name in ("ffdm_mlo", "syn_cc", "ffdm_cc")] for number in range(8)]
    assert manifest.sample_present(["ffdm_mlo", "syn_cc", "ffdm_cc"]).tolist() == expected
    assert manifest.samples() == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1)]


def test_every_offset_reads_exactly_the_members_written(tmp_path: Path) -> None:
    folder, manifest = split(tmp_path)
    for number, (s, i) in enumerate(manifest.samples()):
        shard = manifest.shards[s]
        found = read_sample(folder / shard.name, shard.offsets[i], shard.offsets[i + 1])
        meta, members = sample(number, views_of(number))
        assert found.pop("__key__") == key(number)
        assert json.loads(found.pop("meta.json")) == meta
        assert found == members


def test_the_shards_are_ordinary_tar_files(tmp_path: Path) -> None:
    folder, _ = split(tmp_path, count=2)
    with tarfile.open(folder / "rsna-train-000000.tar") as tar:
        assert sorted(tar.getnames()) == [
            f"{key(0)}.ffdm_mlo.b2",
            f"{key(0)}.meta.json",
            f"{key(1)}.ffdm_cc.b2",
            f"{key(1)}.ffdm_mlo.b2",
            f"{key(1)}.meta.json",
        ]


def test_the_digest_sees_content_not_formatting(tmp_path: Path) -> None:
    folder, manifest = split(tmp_path)
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content))
    assert Manifest.load(folder).digest == manifest.digest
    content["shards"][0]["labels"]["density"][0] = 3
    path.write_text(json.dumps(content))
    assert Manifest.load(folder).digest != manifest.digest


def test_an_empty_split_has_a_manifest(tmp_path: Path) -> None:
    manifest = writer(tmp_path).close()
    assert (manifest.num_samples, manifest.shards) == (0, ())
    assert manifest.sample_present(["ffdm_cc"]).shape == (0, 1)
    assert Manifest.load(tmp_path / "train") == manifest


# ------------------------------------------------------------------------------------------------ writer refuses


def refused(folder: Path, meta: dict[str, Any], members: dict[str, bytes]) -> str:
    with pytest.raises(DataError) as caught:
        writer(folder).write(meta, members)
    return str(caught.value)


def test_a_field_outside_the_allow_list_is_refused_without_its_value(tmp_path: Path) -> None:
    meta, members = sample(0)
    message = refused(tmp_path, {**meta, "patient_name": "Doe^Jane"}, members)
    assert "patient_name" in message
    assert "Doe" not in message


@pytest.mark.parametrize("field", sorted(META_FIELDS - OPTIONAL_META_FIELDS - {"key"}))
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    meta, members = sample(0)
    del meta[field]
    assert field in refused(tmp_path, meta, members)


def test_a_geometry_field_outside_the_allow_list_is_refused(tmp_path: Path) -> None:
    meta, members = sample(0)
    meta["geometry"]["ffdm_cc"]["acquired"] = "20200101"
    message = refused(tmp_path, meta, members)
    assert "acquired" in message
    assert "20200101" not in message


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "rsna-1-l",
        "rsna-0123456789ABCDEF-l",
        "rsna-0123456789abcdef-left",
        "RSNA-0123456789abcdef-l",
        "../rsna-0123456789abcdef-l",
        "rsna-0123456789abcdef-l.x",
        "rsna-0123456789abcdef-l\n",
    ],
)
def test_a_malformed_key_is_refused_and_not_repeated(tmp_path: Path, bad: str) -> None:
    meta, members = sample(0)
    message = refused(tmp_path, {**meta, "key": bad}, members)
    assert "must be <name of the card>-<16 hex digits>, and -<side>" in message
    assert not bad or bad not in message  # it may be an identifier of the archive


def test_a_key_is_written_once(tmp_path: Path) -> None:
    writing = writer(tmp_path, samples_per_shard=1)
    writing.write(*sample(5))
    with pytest.raises(DataError, match="written before"):
        writing.write(*sample(5))


@pytest.mark.parametrize(
    ("task", "code"),
    [("density", 4), ("density", -2), ("birads", 3), ("density", 1.0), ("density", "1"), ("density", None)],
)
def test_a_label_outside_its_classes_is_refused(tmp_path: Path, task: str, code: Any) -> None:
    meta, members = sample(0)
    meta["labels"] = {task: code}
    message = refused(tmp_path, meta, members)
    assert f"label {code!r} of {task}" in message


def test_members_must_match_the_modalities(tmp_path: Path) -> None:
    meta, members = sample(0)
    one = {name: data for name, data in members.items() if name.startswith("ffdm_cc")}
    assert "members" in refused(tmp_path / "a", meta, one)
    assert "members" in refused(tmp_path / "b", meta, {**members, "syn_cc.b2": b""})
    foreign = {**meta, "modalities": [*meta["modalities"], "syn_cc"]}
    assert "members" in refused(tmp_path / "c", foreign, {**members, "syn_cc.b2": b""})


def test_a_refused_sample_leaves_the_split_usable(tmp_path: Path) -> None:
    writing = writer(tmp_path)
    writing.write(*sample(0))
    with pytest.raises(DataError):
        writing.write(*sample(0))
    writing.write(*sample(1))
    manifest = writing.close()
    assert manifest.num_samples == 2
    assert verify_shards(tmp_path / "train", manifest) == []


def test_a_folder_with_files_is_refused(tmp_path: Path) -> None:
    split(tmp_path)
    with pytest.raises(DataError, match="already holds files"):
        writer(tmp_path)


def test_an_unfinished_shard_does_not_look_like_one(tmp_path: Path) -> None:
    writing = writer(tmp_path, samples_per_shard=10)
    writing.write(*sample(0))
    assert all(path.name.startswith(".") for path in (tmp_path / "train").iterdir())
    writing.close()
    assert [path.name for path in sorted((tmp_path / "train").iterdir())] == ["manifest.json", "rsna-train-000000.tar"]


# ---------------------------------------------------------------------------------------------------------- load


def test_a_missing_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="m4oe convert"):
        Manifest.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"schema_version": 99}, "schema version 99"),
        ({"schema_version": None}, "schema version None"),
        ({"hospital": "x"}, "hospital"),
        ({"tasks": [{"name": "density"}]}, "damaged"),
        ({"tasks": 3}, "damaged"),
        ({"shards": [{"name": "x.tar"}]}, "damaged"),
        ({"shards": None}, "damaged"),
    ],
)
def test_a_manifest_of_another_form_is_refused(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    folder, _ = split(tmp_path)
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(DataError, match=named) as caught:
        Manifest.load(folder)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("field", sorted(MANIFEST_FIELDS - {"schema_version", "card"}))
def test_a_manifest_with_a_missing_field_names_it(tmp_path: Path, field: str) -> None:
    folder, _ = split(tmp_path, count=1)
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    del content[field]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=field):
        Manifest.load(folder)


def test_shards_older_than_cards_are_of_the_shipped_card(tmp_path: Path) -> None:
    folder, manifest = split(tmp_path, count=1)
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    assert list(content) == sorted(content)
    assert content["card"] == SPEC.content
    assert list(content["card"]["modalities"]) == list(SPEC.modalities)  # their order is that of the batch
    del content["card"]
    path.write_text(json.dumps(content))
    assert Manifest.load(folder) == manifest
    assert Manifest.load(folder).digest == manifest.digest  # checkpoints of that time may be resumed
    path.write_text(json.dumps({**content, "dataset": "unheard-of"}))
    with pytest.raises(DataError, match="its card cannot be used: unknown data set 'unheard-of'"):
        Manifest.load(folder)


def test_a_card_that_says_otherwise_than_the_manifest_is_refused(tmp_path: Path) -> None:
    folder, _ = split(tmp_path, count=1)
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    del content["card"]["tasks"]["birads"]
    content["card"]["headline"] = ["density"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="its card has other modalities or tasks than it lists"):
        Manifest.load(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_a_manifest_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError):
        Manifest.load(tmp_path)


# -------------------------------------------------------------------------------------------------------- verify


def test_sound_shards_verify(tmp_path: Path) -> None:
    folder, manifest = split(tmp_path)
    assert verify_shards(folder, manifest) == []


def test_a_missing_shard_is_found(tmp_path: Path) -> None:
    folder, manifest = split(tmp_path)
    (folder / "rsna-train-000001.tar").unlink()
    for mode in ("full", "size"):
        (problem,) = verify_shards(folder, manifest, mode=mode)
        assert "rsna-train-000001.tar is missing" in problem


def test_a_shortened_shard_is_found(tmp_path: Path) -> None:
    folder, manifest = split(tmp_path)
    path = folder / "rsna-train-000002.tar"
    path.write_bytes(path.read_bytes()[:-1])
    for mode in ("full", "size"):
        (problem,) = verify_shards(folder, manifest, mode=mode)
        assert f"{manifest.shards[2].bytes - 1} bytes instead of {manifest.shards[2].bytes}" in problem


def test_a_flipped_byte_is_found_by_the_full_check_only(tmp_path: Path) -> None:
    folder, manifest = split(tmp_path)
    path = folder / "rsna-train-000000.tar"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    (problem,) = verify_shards(folder, manifest)
    assert "rsna-train-000000.tar: sha256 differs" in problem
    assert verify_shards(folder, manifest, mode="size") == []


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_the_ranks_share_the_check_without_gaps(tmp_path: Path, world: int) -> None:
    folder, manifest = split(tmp_path)
    for shard in manifest.shards:
        (folder / shard.name).unlink()
    found = [verify_shards(folder, manifest, rank=rank, world=world) for rank in range(world)]
    assert sum(map(len, found)) == len(manifest.shards) == len({line for lines in found for line in lines})


# -------------------------------------------------------------------------------------------------- damaged reads


def test_a_range_beyond_the_end_and_a_missing_file(tmp_path: Path) -> None:
    folder, manifest = split(tmp_path)
    shard = manifest.shards[-1]
    with pytest.raises(DataError, match="ends at byte"):
        read_sample(folder / shard.name, shard.offsets[0], shard.bytes + 512)
    with pytest.raises(DataError, match="cannot read"):
        read_sample(folder / "absent.tar", 0, 512)


def test_a_range_of_two_samples_is_refused(tmp_path: Path) -> None:
    folder, manifest = split(tmp_path)
    shard = manifest.shards[0]
    with pytest.raises(DataError, match="2 samples"):
        read_sample(folder / shard.name, shard.offsets[0], shard.offsets[2])


def test_an_unknown_kind_of_address_is_refused() -> None:
    with pytest.raises(DataError, match="ftp://"):
        read_sample("ftp://host/x.tar", 0, 1)


def test_damaged_bytes_give_members_or_a_data_error_and_nothing_else(tmp_path: Path) -> None:
    from m4oe_ds.data.shard_reader import parse_sample

    folder, manifest = split(tmp_path, count=1)
    shard = manifest.shards[0]
    data = (folder / shard.name).read_bytes()[shard.offsets[0] : shard.offsets[1]]
    random = np.random.default_rng(0)
    refused_count = 0
    for _ in range(300):
        changed = bytearray(data)
        block = 512 * int(random.integers(len(data) // 512))
        where = block + int(random.integers(512 if random.random() < 0.5 else 160))  # often in a tar header
        changed[where] ^= 1 << int(random.integers(8))
        if random.random() < 0.2:
            del changed[int(random.integers(len(changed))) :]
        try:
            members = parse_sample(bytes(changed))
        except DataError:
            refused_count += 1
        else:
            assert isinstance(members, dict)
    assert refused_count > 30
