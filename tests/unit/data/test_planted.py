"""What was planted in phantoms is found where the converter put it, and nothing is said of other data."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_tools.convert import ConvertOptions, convert
from data_tools.phantom import archive as phantom
from data_tools.pixels.fit import crop_geometry, fit_mask
from m4oe_ds.data.codecs import decode
from m4oe_ds.data.planted import in_stored, outlines
from m4oe_ds.errors import DataError


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("crop", [(30, 20, 300, 150), (0, 40, 200, 260), (-10, -5, 300, 300)])
def test_a_circle_lies_where_the_converter_puts_its_mask(crop: tuple[int, int, int, int], flipped: bool) -> None:
    row, column, radius = 120.0, 90.0, 18.0
    y, x = np.ogrid[:320, :300]
    mask = (((y - row) ** 2 + (x - column) ** 2) <= radius**2).astype(np.uint8)
    geometry = crop_geometry(mask.shape, crop, 256, 208) | {"flipped": flipped}
    stored = fit_mask(mask, geometry) > 0
    rows, columns = np.nonzero(stored)
    place = in_stored(geometry, row, column, radius)
    assert place["row"] * 256 == pytest.approx(rows.mean() + 0.5, abs=0.6)
    assert place["column"] * 208 == pytest.approx(columns.mean() + 0.5, abs=0.6)
    area = np.pi * place["height"] * 256 * place["width"] * 208
    assert area == pytest.approx(stored.sum(), rel=0.06)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom of a few patients with many findings, converted; its truth stays next to the shards."""
    out = tmp_path_factory.mktemp("planted") / "shards"
    archive = out.with_name("shards-archive")
    phantom.generate("embed", archive, 8, 3, risk_prevalence=1.0)
    convert(ConvertOptions(dataset="embed", root=archive, out=out, rows=128, cols=104, workers=0))
    return out


def keys_of(shards: Path, split: str = "train") -> list[str]:
    with shards.with_name("shards.mapping.csv").open(newline="") as stream:
        return [row["key"] for row in csv.DictReader(stream) if row["split"] == split]


def images(shards: Path) -> dict[str, np.ndarray]:
    """Stored images by name of the member."""
    found = {}
    for path in (shards / "train").glob("*.tar"):
        with tarfile.open(path) as archive:
            for member in archive:
                stream = archive.extractfile(member)
                if member.name.endswith(".b2") and stream is not None:
                    found[member.name.removesuffix(".b2")] = decode(io.BytesIO(stream.read()).getvalue(), "b2")
    return found


def test_outlines_lie_on_what_was_drawn(shards: Path) -> None:
    keys, pixels = keys_of(shards), images(shards)
    found = outlines(str(shards), "train", keys)
    assert set(found) == set(keys)
    brighter: list[bool] = []
    for key, views in found.items():
        for modality, several in views.items():
            image = pixels[f"{key}.{modality}"].astype(float)
            y, x = np.ogrid[: image.shape[0], : image.shape[1]]
            for one in several:
                assert 0 < one["row"] < 1
                assert 0 < one["column"] < 1
                dy = ((y + 0.5) / image.shape[0] - one["row"]) / one["height"]
                dx = ((x + 0.5) / image.shape[1] - one["column"]) / one["width"]
                distance = np.hypot(dy, dx)
                inside, around = image[distance < 0.6], image[(distance > 1.4) & (distance < 2) & (image > 0)]
                brighter.append(inside.mean() > around.mean())
    assert len(brighter) >= 20
    assert np.mean(brighter) > 0.85  # of some the contrast is that of the tissue
    assert {tuple(one["tasks"]) for views in found.values() for several in views.values() for one in several} == {
        ("risk1", "risk2", "risk3", "risk4", "risk5"),
        ("birads",),
    }


def test_nothing_is_said_without_a_phantom(shards: Path, tmp_path: Path) -> None:
    keys = keys_of(shards)
    assert outlines(str(tmp_path / "absent"), "train", keys) == {}
    assert outlines(str(shards), "absent", keys) == {}
    assert outlines(str(shards), "train", ["embed-0000000000000000-l"]) == {}


def test_a_truth_of_data_that_are_not_synthetic_is_not_believed(shards: Path, tmp_path: Path) -> None:
    copy = stand_in(shards, tmp_path, lambda truth: truth | {"synthetic": False})
    assert outlines(str(copy), "train", keys_of(shards)) == {}


def test_a_damaged_truth_is_an_error_in_one_line(shards: Path, tmp_path: Path) -> None:
    copy = stand_in(shards, tmp_path, lambda truth: {"synthetic": True})
    with pytest.raises(DataError, match=r"damaged .KeyError.; make the phantom again"):
        outlines(str(copy), "train", keys_of(shards))


def stand_in(shards: Path, folder: Path, change: Any) -> Path:
    """The same shards with another truth next to them."""
    copy = folder / "shards"
    copy.symlink_to(shards)
    (folder / "shards.mapping.csv").write_text(shards.with_name("shards.mapping.csv").read_text())
    truth = json.loads((shards.with_name("shards-archive") / "truth.json").read_text())
    (folder / "shards.truth.json").write_text(json.dumps(change(truth)))
    return copy
