"""A page per patient: both sides, overlays of each task on the views, outlines of what was planted, no identifier."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from m4oe_ds.data.cards import find_card
from m4oe_ds.report import overlays, patient_pages
from m4oe_ds.report.html import environment, render
from m4oe_ds.report.patients import patients
from m4oe_ds.report.words import Words
from m4oe_ds.runs.folder import RunFolder
from tests.unit.report.test_html import MODALITIES, TASKS, Tags, fill

GROUP, OTHER = "00000000000000aa", "00000000000000bb"
KEYS = ("embed-0000000000000001-l", "embed-0000000000000000-r", "embed-0000000000000002-r")
PLACE = {"tasks": ["risk1", "risk2"], "kind": "sign", "row": 0.25, "column": 0.5, "height": 0.1, "width": 0.125}


def run(folder: Path) -> Path:
    """A run whose first two samples are the sides of one patient, and a third of another; maps of the first two."""
    fill(folder)
    files = RunFolder(folder)
    with np.load(files.predictions("test")) as stored:
        arrays = dict(stored)
    arrays["keys"] = np.array([*KEYS, *arrays["keys"][3:].tolist()])
    arrays["groups"] = np.array([GROUP, GROUP, OTHER, *arrays["groups"][3:].tolist()])
    np.savez(files.predictions("test"), **arrays)
    random = np.random.default_rng(1)
    views = random.integers(20, 255, (3, 4, 16, 14)).astype(np.uint8)
    present = np.ones((3, 4), dtype=bool)
    present[1, 3] = False
    np.savez(
        files.examples,
        keys=np.array(KEYS),
        present=present,
        views=views,
        contribution=arrays["contribution"][:3],
        exams=np.array(["e1", "e1", "e2"]),
        kinds=np.array(["image"] * 4),
    )
    gallery: dict[str, Any] = {
        "keys": np.array(KEYS[:2]),
        "present": present[:2],
        "modalities": np.array(MODALITIES),
        "tasks": np.array([task.name for task in TASKS]),
        "kinds": np.array(["image"] * 4),
        "layers": np.ones(4, dtype=int),
        "expert_usage": np.ones(1),
        "expert_weight": np.full((1, 1), 0.5, np.float32),
        "expert_source": np.array([[[0, 0, -1]]]),  # of no table
        "expert_patch": np.zeros((1, 1, 3, 3), np.uint8),
    }
    for i in range(4):
        gallery[f"view_{i}"] = views[:2, i]
        gallery[f"map_{i}"] = random.random((2, len(TASKS), 4, 2)).astype(np.float32) / 32
    (folder / "analysis").mkdir()
    np.savez(files.analysis_arrays("gallery"), **gallery)
    outlines = {KEYS[0]: {"ffdm_cc": [PLACE]}}
    files.planted.write_text(json.dumps({"keys": list(KEYS), "outlines": outlines}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = run(tmp_path_factory.mktemp("pages") / "run")
    (made / "patients").mkdir()
    (made / "patients" / "of-an-earlier-report.html").write_text("old")
    render(made)
    return made


def test_there_is_one_page_per_patient_linked_both_ways(folder: Path) -> None:
    assert sorted(path.name for path in (folder / "patients").iterdir()) == [f"{GROUP}.html", f"{OTHER}.html"]
    text = (folder / "report.html").read_text()
    for group in (GROUP, OTHER):
        assert f'href="patients/{group}.html"' in text
    page = (folder / "patients" / f"{GROUP}.html").read_text()
    assert 'href="../report.html#samples"' in page
    assert f'href="{OTHER}.html"' in page


def test_a_page_shows_both_sides_with_words_and_keys(folder: Path) -> None:
    page = (folder / "patients" / f"{GROUP}.html").read_text()
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    assert tags.undescribed == 0
    assert not re.search(r"https?://", page)
    for phrase in (
        "Left breast",
        "Right breast",
        *KEYS[:2],
        GROUP,
        "Digital mammogram, CC",
        "Cancer within 3 years",
        "not patient data",
        "outside the breast",
        "absent",
    ):
        assert phrase in page, phrase
    assert KEYS[2] not in page
    assert page.index("<h2>Left breast") < page.index("<h2>Right breast")  # in the order of the card, not of the keys
    assert "Not among the samples kept" not in page
    lone = (folder / "patients" / f"{OTHER}.html").read_text()
    assert "Not among the samples kept for this report: left breast" in lone
    assert "run <code>m4oe analyze</code>" in lone  # no map of it
    assert "<script" not in lone  # nothing to fade


def test_every_view_has_an_overlay_per_task_and_controls(folder: Path) -> None:
    page = (folder / "patients" / f"{GROUP}.html").read_text()
    assert page.count('class="over"') == len(TASKS) * 7  # one of the eight views is absent
    assert page.count('data-task="0"') == 7
    assert page.count(" hidden src=") == (len(TASKS) - 1) * 7  # one task is shown without any script
    assert 'type="range"' in page
    for number, task in enumerate(TASKS):
        assert f'<option value="{number}"' in page, task


def test_what_was_planted_is_outlined_where_it_lies(folder: Path) -> None:
    page = (folder / "patients" / f"{GROUP}.html").read_text()
    assert page.count("<ellipse ") == 1
    assert '<ellipse cx="0.5000" cy="0.2500" rx="0.1250" ry="0.1000">' in page
    assert "Planted: Cancer within 1 year, Cancer within 2 years" in page
    assert "Outline what was planted" in page
    assert "<ellipse" not in (folder / "patients" / f"{OTHER}.html").read_text()


def test_nothing_is_outlined_on_data_that_are_not_synthetic(tmp_path: Path) -> None:
    made = run(tmp_path / "run")
    (made / "environment.json").write_text(json.dumps({"synthetic": False, "dataset": "embed"}))
    render(made)
    page = (made / "patients" / f"{GROUP}.html").read_text()
    assert "<ellipse" not in page
    assert "Planted" not in page
    assert "phantom" not in page


def test_a_model_without_contributions_has_pages_too() -> None:
    arrays = {
        "keys": np.array(["k-l"]),
        "groups": np.array(["g"]),
        "tasks": np.array(["density"]),
        "modalities": np.array(["ffdm_cc"]),
        "prob_density": np.full((1, 4), 0.25),
        "label_density": np.array([0]),
    }
    examples = {"keys": arrays["keys"], "present": np.array([[True]]), "views": np.zeros((1, 1, 4, 4), np.uint8)}
    (found,) = patients(examples, arrays, {}, {}, find_card("embed"))
    assert found["group"] == "g"
    assert found["samples"][0]["side"] == "left"
    assert found["samples"][0]["answers"][0]["shares"] == []


def one_map() -> dict[str, np.ndarray]:
    """One sample, two modalities of four tokens, one task: 0.5 on one token of the first, whose rest is uniform."""
    weight = np.full((1, 1, 2, 2), 0.125, np.float32)
    first = weight.copy()
    first[0, 0, 0, 1] = 0.5
    view = np.full((1, 4, 4), 200, np.uint8)
    view[0, :2, 2:] = 0
    return {
        "keys": np.array(["k"]),
        "present": np.array([[True, True]]),
        "modalities": np.array(["x", "y"]),
        "tasks": np.array(["t"]),
        "map_0": first,
        "map_1": weight,
        "view_0": view,
        "view_1": np.full((1, 4, 4), 200, np.uint8),
    }


def test_heights_start_at_uniform_routing_and_end_at_the_largest_token() -> None:
    first, second = overlays.above_uniform(one_map(), 0)
    assert first[0].tolist() == [[0, 1], [0, 0]]
    assert not second.any()
    pixels = np.array(Image.open(io.BytesIO(overlays.heat_png(first[0]))))
    assert pixels.shape == (2, 2, 4)
    assert pixels[..., 3].tolist() == [[0, 255], [0, 0]]  # uniform routing lets the view through
    assert overlays.largest_over_uniform(one_map(), 0).tolist() == [4.0]


def test_weight_outside_the_picture_is_said_in_the_word_of_the_card() -> None:
    sample: dict[str, Any] = {"key": "k", "views": []}
    overlays.lay(sample, one_map(), {}, Words(find_card("gamma")))
    assert sample["reading"] == (
        "The brightest token of a question has 4.0 times the weight of uniform routing. 36% of the weight on images "
        "lies on tokens outside the eye, where the picture is black; they are 12% of the area."
    )
    assert overlays.empty_tokens(one_map()["view_0"][0], (2, 2)).tolist() == [[False, True], [False, False]]


def test_names_of_pages_hold_no_path(tmp_path: Path) -> None:
    found = [{"group": group, "samples": []} for group in ("../../escape", "a b", "fine-1")]
    frame = patient_pages.Frame("run", False, Words())
    shown = patient_pages.write(RunFolder(tmp_path / "run"), found, frame, environment())
    names = sorted(path.name for path in (tmp_path / "run" / "patients").iterdir())
    assert names == sorted(patient["file"] for patient in shown)
    assert names[-1] == "fine-1.html"
    assert all(re.fullmatch(r"[0-9a-f]{16}\.html", name) for name in names[:2])
    assert not list(tmp_path.rglob("escape*"))


def test_images_in_the_page_are_the_views(folder: Path) -> None:
    page = (folder / "patients" / f"{GROUP}.html").read_text()
    source = re.search(r'<img src="data:image/png;base64,([^"]+)" alt="Digital mammogram, CC, left breast"', page)
    assert source
    with np.load(RunFolder(folder).examples) as stored:
        wanted = stored["views"][0, 0]
    assert np.array_equal(np.array(Image.open(io.BytesIO(base64.b64decode(source.group(1))))), wanted)
