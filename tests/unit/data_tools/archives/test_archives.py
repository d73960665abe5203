"""Whole conversions of the RSNA, VinDr and GAMMA phantoms against the truth planted in them."""

from __future__ import annotations

import importlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.convert import ConvertOptions, convert
from data_tools.identifiers import scan_identifiers
from data_tools.phantom import archive as phantom
from data_tools.pixels.fit import unmap_mask
from m4oe_ds.data.codecs import decode
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.schema import SPLITS
from m4oe_ds.data.shard_reader import verify_shards
from m4oe_ds.errors import DataError
from tests.unit.data_tools.archives.archive_cases import Key, converted, plan_of, run

PATIENTS = {"rsna": 24, "vindr": 24, "gamma": 20}


@pytest.fixture(scope="session", params=sorted(PATIENTS))
def archive(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    out = tmp_path_factory.mktemp(request.param) / "archive"
    phantom.generate(request.param, out, PATIENTS[request.param], 4, workers=1)
    return request.param, out


@pytest.fixture(scope="session")
def shards(archive: tuple[str, Path]) -> Path:
    layout, root = archive
    out = root.with_name("shards")
    run(layout, root, out)
    return out


def truth(root: Path) -> dict[Key, dict[str, Any]]:
    samples = json.loads((root / "truth.json").read_text())["samples"]
    return {(sample["patient"], sample["exam"], sample["side"]): sample["expected"] for sample in samples}


def test_labels_modalities_drops_and_splits_are_those_planted(archive: tuple[str, Path], shards: Path) -> None:
    _, root = archive
    found, expected = converted(shards), truth(root)
    assert set(found) == {name for name, value in expected.items() if value["dropped"] is None and value["modalities"]}
    for name, (split, members) in found.items():
        meta = json.loads(members["meta.json"])
        assert meta["labels"] == expected[name]["labels"]["triage"], name
        assert meta["modalities"] == expected[name]["modalities"], name
        assert meta["split"] == split
        if expected[name]["split"]:
            assert split == expected[name]["split"]
    official = {name[0] for name, value in expected.items() if value["split"] == "test"}
    if official:  # and nobody else is in the official test split
        assert {name[0] for name, (split, _) in found.items() if split == "test"} <= official


def test_exclusions_and_faults_add_up(archive: tuple[str, Path], shards: Path) -> None:
    layout, root = archive
    report = json.loads((shards / "conversion.json").read_text())
    faults = json.loads((root / "faults.json").read_text())["faults"]
    module = importlib.import_module(f"data_tools.phantom.{layout}")
    assert set(module.FAULTS) <= {name for name, count in faults.items() if count}
    planned = report["tables"]["steps"]["images_planned"]
    bad = Counter(report["images_quarantined"])
    masks = bad.pop("mask_size_differs", 0)
    assert report["images_written"] + bad.total() == planned
    excluded = report["tables"]["excluded"]["images"]
    if layout == "rsna":
        assert excluded == {"other_view": faults["other_views"]}
        assert bad == {"missing_file": 1, "undecodable_pixels": 1, "beyond_bits_stored": 4}
        assert report["tables"]["notes"]["views_with_several_images"] == faults["second_take"]
    elif layout == "vindr":
        assert report["tables"]["excluded"]["exams"] == {"in_both_splits": faults["study_in_both_splits"]}
        assert bad == {"missing_file": 1, "undecodable_pixels": 1}
        assert report["violations"]["study_without_four_images"] == faults["three_images"]
        assert set(report["histograms"]["bits_stored"]) == {"12", "14"}
        assert report["histograms"]["grey_method"]["voi_lut"] == 4
    else:
        assert bad == {"slices_not_0_to_255": faults["missing_slice"], "undecodable_pixels": faults["truncated_fundus"]}
        assert masks == faults["mask_of_another_size"]
        assert report["violations"]["mask_grey_values_not_0_128_255"] == faults["smooth_mask"]
    assert "chest_wall_disagrees_with_laterality" not in report["violations"]


def test_the_page_sets_the_labels_beside_what_is_published(archive: tuple[str, Path], shards: Path) -> None:
    layout, _ = archive
    page = (shards / "conversion.html").read_text()
    cells = {
        "rsna": ("published", "1106 (9.5 %)", "6280 (67.2 %)"),
        "vindr": ("published, train and val", "published, test", "5362 (67.0 %)", "1341 (67.0 %)"),
        "gamma": ("published", "50 (50.0 %)"),
    }[layout]
    for cell in cells:
        assert f'<th class="n">{cell}</th>' in page or f'<td class="n">{cell}</td>' in page, cell
    report = json.loads((shards / "conversion.json").read_text())
    for table in report["labels"].values():
        for counts in table.values():
            assert all(isinstance(number, int) for number in counts.values())


def test_nothing_identifying_is_written(archive: tuple[str, Path], shards: Path) -> None:
    assert scan_identifiers(shards) == []
    names = {part.encode() for name in truth(archive[1]) for part in name[:2] if len(part) > 4}
    content = b"".join(path.read_bytes() for path in shards.rglob("*") if path.is_file())
    assert not [name for name in names if name in content]
    for split in SPLITS:
        assert verify_shards(shards / split, Manifest.load(shards / split)) == []


def test_two_processes_write_the_same_bytes(archive: tuple[str, Path], shards: Path, tmp_path: Path) -> None:
    layout, root = archive
    run(layout, root, tmp_path / "again", workers=2)
    for path in shards.rglob("*"):
        if path.is_file():
            assert (tmp_path / "again" / path.relative_to(shards)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("layout", ["rsna", "vindr"])
def test_other_schemes_give_their_labels(layout: str, tmp_path: Path) -> None:
    root = tmp_path / "archive"
    phantom.generate(layout, root, 10, 4, workers=1)
    expected = truth(root)
    for scheme in next(iter(expected.values()))["labels"]:
        plan = plan_of(layout, root, birads_scheme=scheme)
        for sample in plan.samples:
            name = (sample.patient, sample.exam, sample.side.lower())
            assert sample.labels == expected[name]["labels"][scheme], (scheme, name)
    with pytest.raises(DataError, match="is not defined"):
        plan_of(layout, root, birads_scheme="unheard_of")


def test_the_cup_comes_back_at_native_resolution(tmp_path: Path) -> None:
    root, out = tmp_path / "archive", tmp_path / "shards"
    phantom.generate("gamma", root, 8, 1, workers=1, faults="none")
    convert(ConvertOptions(dataset="gamma", root=root, out=out, workers=0, rows=256, cols=256))
    masks = {path.stem: path for path in root.rglob("Disc_Cup_Mask/*.png")}
    from PIL import Image

    seen = 0
    for (patient, _, _), (_, members) in converted(out).items():
        meta = json.loads(members["meta.json"])
        stored = decode(members["cup.b2"], "b2")
        assert set(np.unique(stored)) <= {0, 1}
        native = unmap_mask(stored, meta["geometry"]["fundus"])
        real = np.asarray(Image.open(masks[patient])) == 0
        assert native.shape == real.shape
        dice = 2 * (native.astype(bool) & real).sum() / (native.sum() + real.sum())
        assert dice > 0.93
        seen += 1
    assert seen == 8


def test_slices_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    """The brightness of the synthetic surface follows the slice number: 10 must not come before 2."""
    from PIL import Image

    from data_tools.convert.eye import convert_volume

    for number in np.random.default_rng(0).permutation(256):
        Image.fromarray(np.full((16, 8), number, np.uint8)).save(tmp_path / f"{number}_image.jpg", quality=100)
    volume, _ = convert_volume(tmp_path, 8, 8)
    np.testing.assert_allclose(volume.mean(axis=(1, 2)), np.arange(256), atol=1.5)


def test_folds_are_disjoint_cover_everything_and_are_stratified() -> None:
    from data_tools.archives.gamma import fold_of

    grades = {f"{n:04d}": 0 if n < 50 else 1 if n < 76 else 2 for n in range(100)}
    folds = fold_of(grades)
    assert fold_of(dict(reversed(grades.items()))) == folds
    assert Counter(folds.values()) == dict.fromkeys(range(5), 20)
    for code, total in ((0, 50), (1, 26), (2, 24)):
        sizes = Counter(folds[name] for name, grade in grades.items() if grade == code).values()
        assert max(sizes) - min(sizes) <= 1
        assert sum(sizes) == total
