"""Subgroups reach a shard as the coarse groups that a card lists, and as nothing else."""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path

import pytest

from data_tools.archives import embed, rsna, vindr
from data_tools.archives.groups import first_said, group_of, with_subgroups
from data_tools.archives.plan import ArchiveOptions, ArchivePlan, Sample
from data_tools.archives.readers import READERS, find_reader
from data_tools.archives.values import MISSING_WORDS, OddValue
from data_tools.convert import ConvertOptions, convert
from data_tools.identifiers import _group_allowed, _odd_values
from data_tools.phantom import archive as phantom
from m4oe_ds.data.cards import Card, Subgroup, find_card, parse_card
from m4oe_ds.data.cards.bands import possible_groups
from m4oe_ds.errors import ConfigError
from m4oe_ds.yaml_tree import parse_tree

AGE = Subgroup("age", bands=(40.0, 50.0))
SITE = Subgroup("site")
RACE = Subgroup("race", values={"African American or Black": "Black", "Asian": "Asian", "Multiple": "other"})


def planned(**attributes: str) -> ArchivePlan:
    return ArchivePlan(samples=[Sample("p", "e", "L", {}, {}, attributes=attributes)])


def card_of(source: str) -> Card:
    head = "name: a\nmodalities: {x: {kind: image}}\ntasks: {t: {kind: binary}}\n"
    return parse_card(parse_tree(head + source, "a.yaml"), "a.yaml")


@pytest.mark.parametrize(
    ("subgroup", "text", "group"),
    [
        (AGE, "39.99", "<40"),
        (AGE, "40", "40-49"),
        (AGE, " 95.2 ", ">=50"),
        (AGE, "", None),
        (AGE, "NaN", None),
        (RACE, "African American  or Black", "Black"),  # as the table has it, with two spaces
        (RACE, "asian", "Asian"),
        (RACE, "", None),
        (Subgroup("site"), "A", "A"),
    ],
)
def test_groups(subgroup: Subgroup, text: str, group: str | None) -> None:
    assert group_of(subgroup, text, MISSING_WORDS) == group
    possible = possible_groups(subgroup)
    assert group is None or possible is None or group in possible


@pytest.mark.parametrize(
    ("subgroup", "text"), [(AGE, "old"), (AGE, "19550712"), (RACE, "Martian"), (SITE, "2014-03-01"), (SITE, "93")]
)
def test_what_fits_no_group_is_odd(subgroup: Subgroup, text: str) -> None:
    with pytest.raises(OddValue):
        group_of(subgroup, text, MISSING_WORDS)


@pytest.mark.parametrize(
    ("subgroup", "value", "allowed"),
    [(SITE, "north", True), (SITE, "93", False), (SITE, 93, False), (AGE, "40-49", True), (AGE, "47", False)],
)
def test_a_group_in_a_shard_is_one_that_a_conversion_can_have_written(
    subgroup: Subgroup, value: object, allowed: bool
) -> None:
    assert _group_allowed(subgroup, value) == allowed


def test_an_archive_gives_what_its_card_lists_and_counts_the_rest() -> None:
    card = find_card("embed")
    offered = embed.ATTRIBUTES
    plan = planned(age_at_study="47.11", ETHNICITY_DESC="Caucasian or White")
    with_subgroups(plan, card, offered)
    assert plan.samples[0].subgroups == {"age": "40-49", "race": "white"}
    plan = planned(age_at_study="forty", ETHNICITY_DESC="Unknown, Unavailable or Unreported")
    with_subgroups(plan, card, offered)
    assert plan.samples[0].subgroups == {}
    assert dict(plan.notes) == {"age_without_a_subgroup": 1}


@pytest.mark.parametrize("name", READERS)
def test_shipped_cards_ask_for_coarse_groups_of_columns_that_their_readers_offer(name: str) -> None:
    card = find_card(name)
    assert card.source is not None
    with_subgroups(planned(), card, find_reader(name).ATTRIBUTES)
    expected = {"embed": {"age", "race"}, "rsna": {"age", "site"}, "vindr": {"age"}}.get(name, set())
    assert set(card.source.subgroups) == expected
    for subgroup in card.source.subgroups.values():
        assert len(possible_groups(subgroup) or range(99)) <= 6


def test_a_card_cannot_pass_a_column_of_an_archive_on() -> None:
    for source, what in (
        ("source: {reader: embed, subgroups: {id: empi_anon}}", "no column 'empi_anon' for subgroups"),
        ("source: {reader: embed, subgroups: {age: age_at_study}}", "would pass every value"),
        (
            "source: {reader: embed, subgroups: {age: {column: age_at_study, bands: [40, 50, 51]}}}",
            r"source\.subgroups\.age\.bands: has bands narrower than 5: 50 to 51",
        ),
    ):
        with pytest.raises(ConfigError, match=what):
            with_subgroups(planned(), card_of(source), embed.ATTRIBUTES)


@pytest.mark.parametrize(
    ("subgroups", "what"),
    [
        ("{a: {column: c, bands: [1], values: {x: y}}}", "exclude each other"),
        ("{a: {column: c, values: {x: " + "y" * 33 + "}}}", "at most 32 letters"),
        ("{a: {bands: [1]}}", r"subgroups\.a\.column is missing"),
    ],
)
def test_mistakes_in_a_card(subgroups: str, what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        card_of(f"source: {{reader: embed, subgroups: {subgroups}}}")


def test_race_by_its_older_name_and_ages_of_headers() -> None:
    assert first_said([{embed.AGE: ""}, {embed.AGE: "50", "RACE_DESC": "Asian"}], embed.SPELLINGS) == {
        embed.AGE: "50",
        embed.RACE: "Asian",
    }
    assert [vindr.age_in_years(text) for text in ("053Y", "606M", "", "53")] == ["53", "50.5", "", "53"]
    row = dict.fromkeys(rsna.COLUMNS, "") | {"patient_id": "1", "image_id": "2", "laterality": "L", "view": "CC"}
    plan = rsna.build_plan([row | {"age": "61.0", "site_id": "2"}], ArchiveOptions())
    assert plan.samples[0].attributes == {"age": "61.0", "site_id": "2"}


def test_shards_hold_groups_alone_and_the_search_for_identifiers_knows_them(tmp_path: Path) -> None:
    archive, out = tmp_path / "archive", tmp_path / "shards"
    phantom.generate("embed", archive, 3, 3, risk_prevalence=0.5, workers=0, faults="none")
    convert(ConvertOptions(dataset="embed", root=archive, out=out, rows=32, cols=26, workers=0, codec="png"))
    card, seen = find_card("embed"), []
    for path in out.rglob("*.tar"):
        with tarfile.open(path) as shard:
            for member in shard:
                stream = shard.extractfile(member) if member.name.endswith(".meta.json") else None
                if stream is not None:
                    seen.append(json.load(stream))
    groups = [meta.get("subgroups", {}) for meta in seen]
    assert {"age"} <= set().union(*groups) <= {"age", "race"}
    assert all(re.fullmatch("40-49|50-59|60-69|>=70", group["age"]) for group in groups)
    assert {group.get("race", "") for group in groups} <= {"Black", "white", "Asian", ""}
    assert not any(_odd_values(meta, card) for meta in seen)
    for exact in ("47", "Caucasian or White", 47):
        assert _odd_values(seen[0] | {"subgroups": {"age": exact}}, card) == ["subgroups"]
