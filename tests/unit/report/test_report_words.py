"""Labels of the card where there is one, names where there is none."""

from __future__ import annotations

from m4oe_ds.data.cards import find_card
from m4oe_ds.report.words import NAMES, Words

WORDS = Words(find_card("embed"))


def test_words_are_those_of_the_card() -> None:
    assert WORDS.task("risk3") == "Cancer within 3 years"
    assert WORDS.modality("ffdm_cc") == "Digital mammogram, CC"
    assert WORDS.classes("birads") == ["negative", "benign", "work-up"]
    assert WORDS.side("embed-0123456789abcdef-r") == "right"
    assert WORDS.subgroup("side", "l") == ("Side", "left")
    assert WORDS.subgroup("density", "A") == ("Breast density", "A")
    assert WORDS.subgroup("vendor", "ge") == ("Vendor", "GE")
    assert WORDS.subgroup("age", ">=70") == ("Age", "≥ 70")
    assert WORDS.subgroup("age_band", "50-59") == ("Age band", "50-59")
    assert (WORDS.unit, WORDS.groups) == ("breast", "patients")
    assert (WORDS.column("density"), WORDS.column("step")) == ("Breast density", "step")


def test_without_a_card_names_are_shown() -> None:
    assert NAMES.task("risk3") == "Risk3"
    assert NAMES.classes("t", {"class_names": ["a"]}, 2) == ["a", "1"]
    assert NAMES.side("k-l") == ""
    assert (NAMES.unit, NAMES.sides()) == ("sample", [])
