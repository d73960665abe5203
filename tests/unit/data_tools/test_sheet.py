"""A contact sheet says what it shows: short key, side, labels in words, and fits a page."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import ImageFont

from data_tools import sheet
from m4oe_ds.data.cards import find_card, parse_card
from m4oe_ds.data.schema import short_key
from m4oe_ds.yaml_tree import parse_tree

KEY = "embed-0a1b2c3d4e5f6071-l"
OTHERS = """
name: my-eyes
unit: eye
modalities: {photo: {kind: image}, clinic: {kind: table, columns: {age: {kind: number}}}}
tasks:
  rim: {kind: mask, of: photo, classes: [disc]}
  pressure: {kind: number, unit: mmHg, label: eye pressure}
  blind: {kind: survival, horizons: [1, 2], unit: years, label: blindness}
"""


def meta(**labels: Any) -> dict[str, Any]:
    return {"key": KEY, "side": "l", "labels": labels}


def test_title_and_labels_in_words() -> None:
    card = find_card("embed")
    labels = {"birads": 2, "density": 1, "risk1": 0, "risk2": 0, "risk3": 1, "risk4": 1, "risk5": 1}
    found = sheet.exhibit(meta(**labels), {}, card, "train")
    assert found.title == "train, 0a1b2c, left breast"
    assert found.labels == ("BI-RADS: work-up", "breast density: B", "cancer within 3 years: within 3 y")
    free = labels | {"risk3": -1, "risk4": -1, "risk5": -1, "birads": -1}
    assert sheet.in_words(card, free) == ["breast density: B", "cancer within 2 years: no cancer"]
    assert sheet.in_words(card, dict.fromkeys(labels, -1)) == ["no label"]


def test_other_kinds_of_labels() -> None:
    card = parse_card(parse_tree(OTHERS, "eyes.yaml"), "eyes.yaml")
    assert sheet.in_words(card, {"rim": 1, "pressure": 17.5, "blind": [2.5, 1]}) == [
        "rim: outlined",
        "eye pressure: 17.5 mmHg",
        "blindness: at 2.5 years",
    ]
    assert sheet.in_words(card, {"rim": -1, "pressure": None, "blind": [3, 0]}) == ["blindness: not by 3 years"]


@pytest.mark.parametrize(("name", "count", "columns"), [("embed", 12, 2), ("vindr", 12, 3), ("gamma", 2, 2)])
def test_a_page_holds_several_columns(name: str, count: int, columns: int) -> None:
    card = find_card(name)
    picture = np.full((sheet.TILE, 100, 3), (200, 30, 30), np.uint8)
    shown = [one for one in card.inputs if one.kind != "table"]
    labels = {task.name: 0 for task in card.tasks}
    one = sheet.exhibit(meta(**labels), {shown[0].name: picture}, card)
    image = sheet.draw([one] * count, card, "some samples")
    assert image.width <= sheet.WIDTH + 100
    pixels = np.asarray(image)
    red = (pixels == (200, 30, 30)).all(2)
    starts = np.flatnonzero(np.diff(red.any(0).astype(int)) == 1)
    assert len(starts) == columns
    assert red.sum() == count * 100 * (sheet.TILE - 3)
    assert (pixels[:20] < 100).any()  # the heading


def test_texts_stay_within_their_block() -> None:
    font = ImageFont.load_default(12)
    words = " ".join(["several words"] * 12)
    lines = sheet._wrapped(words, 150, font)
    assert " ".join(lines) == words
    assert all(font.getlength(line) <= 150 for line in lines)
    assert font.getlength(sheet._fitting(words, 150, font)) <= 150
    assert sheet._fitting(words, 150, font).endswith("...")
    assert sheet._fitting("short", 150, font) == "short"


def test_short_keys() -> None:
    assert short_key(KEY) == "0a1b2c-l"
    assert short_key("my-eyes-00ff00ff00ff00ff") == "00ff00"
    assert short_key("a") == "a"
