"""Scanned films and the masks of their lesions, from an archive to shards, against what was drawn."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from data_tools.archives.plan import Outline
from data_tools.convert.film import at_film_size, convert_film, read_outline
from data_tools.convert.sample import SampleJob
from data_tools.identifiers import scan_identifiers
from data_tools.phantom import archive as phantom
from data_tools.phantom.films import FilmHeader, write_film
from data_tools.pixels.dicom import BadImage
from m4oe_ds.data.codecs import decode
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.schema import SPLITS
from m4oe_ds.data.shard_reader import verify_shards
from tests.unit.data_tools.archives.archive_cases import Key, converted, run
from tests.unit.data_tools.pixels.test_film_masks import by_hand

PATIENTS = 17
SIZE = {"rows": 104, "cols": 85}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cbis") / "archive"
    phantom.generate("cbis", out, PATIENTS, 3, workers=1)
    return out


@pytest.fixture(scope="module")
def shards(archive: Path) -> Path:
    out = archive.with_name("shards")
    run("cbis", archive, out, **SIZE)
    return out


def truth(root: Path) -> dict[Key, dict[str, Any]]:
    samples = json.loads((root / "truth.json").read_text())["samples"]
    return {(sample["patient"], sample["exam"], sample["side"]): sample["expected"] for sample in samples}


def test_every_label_and_view_is_the_planted_one(archive: Path, shards: Path) -> None:
    found, expected = converted(shards), truth(archive)
    assert set(found) == {name for name, value in expected.items() if value["modalities"]}
    for name, (split, members) in found.items():
        meta = json.loads(members["meta.json"])
        assert meta["labels"] == expected[name]["labels"]["triage"], name
        assert meta["modalities"] == expected[name]["modalities"], name
        if expected[name]["split"]:
            assert split == "test"
        drawn = {task for task in ("lesion_cc", "lesion_mlo") if meta["labels"][task] == 1}
        assert set(members) == {"meta.json"} | {f"{one}.b2" for one in (*meta["modalities"], *drawn)}


def test_masks_have_the_area_that_was_drawn(archive: Path, shards: Path) -> None:
    seen: Counter[str] = Counter()
    for name, (_, members) in converted(shards).items():
        meta = json.loads(members["meta.json"])
        for task, kinds in truth(archive)[name]["mask_pixels"].items():
            stored = decode(members[f"{task}.b2"], "b2")
            assert stored.dtype == np.uint8
            geometry = meta["geometry"][f"film_{task[7:]}"]
            pixel = np.prod(geometry["padded_shape"]) / np.prod(geometry["stored_shape"])
            for bit, kind in enumerate(("mass", "calcification")):
                area = float(((stored >> bit) & 1).sum() * pixel)
                assert area == pytest.approx(kinds[kind], rel=0.12), (name, task, kind)
                seen[kind] += kinds[kind] > 0
            assert stored.max() < 4
    assert min(seen["mass"], seen["calcification"]) > 10


def test_what_cannot_be_used_is_counted_each_under_its_reason(archive: Path, shards: Path) -> None:
    report = json.loads((shards / "conversion.json").read_text())
    assert report["images_quarantined"] == {
        "mask_empty": 1,
        "mask_of_another_scan": 2,
        "mask_size_differs": 1,
        "no_mask": 1,
        "several_masks": 1,
        "undecodable_pixels": 1,
    }
    assert report["images_written"] + 1 == report["tables"]["steps"]["images_planned"]
    assert report["histograms"]["mask"]["scaled"] == 1
    assert report["histograms"]["laterality"] == {"agrees": report["images_written"]}
    assert report["histograms"]["flip"] == {"agrees with laterality": report["images_written"]}
    assert report["histograms"]["grey_method"] == {"percentile": report["images_written"]}
    assert report["synthetic"] is True
    assert {"mask_size_differs", "no_mask", "several_masks", "mask_empty"} <= set(report["violations"])
    assert "label_counts_unlike_published" not in report["violations"]
    assert "counted in the published tables, test" in (shards / "conversion.html").read_text()


def test_nothing_identifying_is_written(archive: Path, shards: Path) -> None:
    assert scan_identifiers(shards) == []
    content = b"".join(path.read_bytes() for path in shards.rglob("*") if path.is_file())
    for word in ("P_0000", "Mass-T", "Calc-T", "1.2.826", "DDSM-NA"):
        assert word.encode() not in content
    for split in SPLITS:
        assert verify_shards(shards / split, Manifest.load(shards / split)) == []


def test_two_processes_write_the_same_bytes(archive: Path, shards: Path, tmp_path: Path) -> None:
    run("cbis", archive, tmp_path / "again", workers=2, **SIZE)
    for path in (path for path in shards.rglob("*") if path.is_file()):
        assert (tmp_path / "again" / path.relative_to(shards)).read_bytes() == path.read_bytes()


def film_of(side: str) -> tuple[NDArray[np.uint16], NDArray[np.uint8]]:
    """A film with a half disc of tissue at its chest wall, letters, a frame, and a bright square; and its mask."""
    y, x = np.mgrid[:400, :300]
    edge = 1 - np.hypot(y - 210, x) / 150  # thinner towards the skin
    film = np.where(edge > 0, 3000 + 15000 * np.sqrt(np.clip(edge, 0, 1)), 200).astype(np.uint16)
    film[:90, :40] = np.maximum(film[:90, :40], 12000)  # muscle, which touches the frame
    mask = np.zeros((400, 300), np.uint8)
    mask[180:230, 50:90] = 255
    film[mask > 0] = 60000
    film[20:40, 220:280] = 50000
    film[:5] = 65000
    if side == "r":
        film, mask = film[:, ::-1].copy(), mask[:, ::-1].copy()
    return film, mask


def save(path: Path, pixels: NDArray[Any], side: str = "l") -> str:
    write_film(path, pixels, FilmHeader("P", "1.2.3", "1.2.4", "1.2.5", "", side.upper(), "CC"))
    return str(path)


def job_of(folder: Path, side: str, masks: dict[str, NDArray[Any]]) -> SampleJob:
    film, _ = film_of(side)
    outline = Outline("film_cc", 1, tuple(save(folder / f"{name}.dcm", one) for name, one in masks.items()))
    meta = {"key": "k", "group": "g", "exam": "e", "side": side, "vendor": "", "labels": {}, "split": "train"}
    images = {"film_cc": (save(folder / "film.dcm", film, side),)}
    return SampleJob(meta, images, 200, 160, "b2", converter="film", outlines={"lesion_cc": (outline,)})


@pytest.mark.parametrize("side", ["l", "r"])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_mask_lies_where_the_image_shows_the_lesion(side: str, scaled: bool, tmp_path: Path) -> None:
    film, mask = film_of(side)
    stored_mask = np.kron(mask, np.ones((2, 2), np.uint8)) if scaled else mask
    result = convert_film(job_of(tmp_path, side, {"1-1": film[150:250, 20:120], "1-2": stored_mask}))
    assert result.bad == []
    assert result.meta["labels"] == {"lesion_cc": 1}
    found = decode(result.members["lesion_cc.b2"], "b2")
    geometry = result.meta["geometry"]["film_cc"]
    np.testing.assert_array_equal(found, by_hand((mask > 0).astype(np.uint8) << 1, geometry))
    pixels = decode(result.members["film_cc.b2"], "b2")
    bright = pixels > 0.65 * pixels.max()  # the square is the brightest: letters and frame are gone
    assert (bright & (found == 2)).sum() / (bright | (found == 2)).sum() > 0.9
    assert geometry["flipped"] == (side == "r")
    assert geometry["crop"][3] < 200  # the frame did not become part of the breast, and stretch it over the film


@pytest.mark.parametrize(
    ("masks", "reason"),
    [
        (lambda film, mask: {"1-1": film[150:250, 20:120]}, "no_mask"),
        (lambda film, mask: {"1-1": mask, "1-2": mask}, "several_masks"),
        (lambda film, mask: {"1-1": mask[:300]}, "mask_size_differs"),
        (lambda film, mask: {"1-1": np.kron(mask, np.ones((3, 3), np.uint8))}, "mask_size_differs"),
        (lambda film, mask: {"1-1": np.zeros_like(mask)}, "mask_empty"),
        (lambda film, mask: {"1-1": np.where(mask > 0, 200, 0).astype(np.uint8)}, "no_mask"),
        (lambda film, mask: {"1-1": np.where(mask > 0, 65535, 0).astype(np.uint16)}, "no_mask"),
        (lambda film, mask: {"1-1": np.roll(mask, 200, axis=1)}, "mask_outside_the_breast"),
    ],
)
def test_a_mask_that_is_not_one_leaves_the_film_without(masks: Any, reason: str, tmp_path: Path) -> None:
    result = convert_film(job_of(tmp_path, "l", masks(*film_of("l"))))
    assert result.meta["modalities"] == ["film_cc"]
    assert result.bad == [("lesion_cc", reason)]
    assert result.meta["labels"] == {"lesion_cc": -1}
    assert "lesion_cc.b2" not in result.members


def test_one_bad_lesion_leaves_none_of_its_film(tmp_path: Path) -> None:
    film, mask = film_of("l")
    job = job_of(tmp_path, "l", {"1-1": mask})
    other = Outline("film_cc", 0, (save(tmp_path / "cut.dcm", film[:50, :50]),))
    job = replace(job, outlines={"lesion_cc": (*job.outlines["lesion_cc"], other)})
    assert convert_film(job).bad == [("lesion_cc", "no_mask")]


def test_masks_of_another_scan_must_have_its_size() -> None:
    mask = np.ones((100, 80), np.uint8)
    assert at_film_size(mask, (100, 80), own=False)[1] == "as it is"
    with pytest.raises(BadImage, match="mask_of_another_scan"):
        at_film_size(mask, (200, 160), own=False)
    assert at_film_size(mask, (150, 120), own=True)[0].shape == (150, 120)
    assert at_film_size(mask, (150, 121), own=True)[1] == "scaled"
    drawn = np.arange(6, dtype=np.uint8)[None].repeat(3, axis=0)
    assert at_film_size(drawn, (2, 4), own=True)[0].tolist() == [[0, 2, 3, 5]] * 2  # the pixels under the centres
    with pytest.raises(BadImage, match="mask_size_differs"):
        at_film_size(mask, (150, 122), own=True)


def test_a_mask_that_cannot_be_read_is_no_cut_out(tmp_path: Path) -> None:
    _, mask = film_of("l")
    path = Path(save(tmp_path / "mask.dcm", mask))
    path.write_bytes(path.read_bytes()[:-60000])
    with pytest.raises(BadImage, match="undecodable_pixels"):
        read_outline([str(path)])
    with pytest.raises(BadImage, match="missing_file"):
        read_outline([str(tmp_path / "nowhere.dcm")])
