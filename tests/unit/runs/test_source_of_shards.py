"""A card that was changed after its conversion is not what the shards were made with."""

from __future__ import annotations

import pytest

from m4oe_ds.analysis.sections import subgroups_lacking
from m4oe_ds.data.cards import Card, card_from, find_card, parse_card
from m4oe_ds.errors import DataError
from m4oe_ds.runs.assemble import check_source
from m4oe_ds.yaml_tree import parse_tree
from tests.unit.data.test_cards import EYES


def card(text: str) -> Card:
    return parse_card(parse_tree(text, "eyes.yaml"), "eyes.yaml")


@pytest.mark.parametrize(
    ("good", "bad", "part"),
    [
        ("0: none, 1: early", "0: early, 1: none", "labels"),  # the same classes, of other fields
        ("group: patient_id", "group: eye_id", "group"),
        ('"photos/{photo}"', '"films/{photo}"', "files"),
    ],
)
def test_changes_after_the_conversion_are_told(good: str, bad: str, part: str) -> None:
    stored, changed = card_from(card(EYES).content, "manifest.json"), EYES.replace(good, bad)
    assert changed != EYES
    check_source(stored, card(EYES), "shards/train")
    check_source(stored, card(EYES.replace("tables/cases.csv", "moved.csv")), "shards/train")
    with pytest.raises(DataError, match=rf"shards/train: was converted before .* was changed \({part} of its source\)"):
        check_source(stored, card(changed), "shards/train")


def test_shards_older_than_the_subgroups_of_a_shipped_card_are_still_learnt_from() -> None:
    """The reader says what is learnt; subgroups only tell results apart."""
    wanted = find_card("embed")
    before = card_from({**wanted.content, "source": {"reader": "embed"}}, "manifest.json")
    assert before.source != wanted.source
    check_source(before, wanted, "shards/train")
    assert subgroups_lacking(before) == ["age", "race"]
    assert subgroups_lacking(wanted) == subgroups_lacking(card(EYES)) == []
