"""Subgroups: the coarse attributes of a sample that its card allows into a shard, made from fields of the tables.

A field itself never reaches a shard: a number becomes one of the card's bands, a text one of the groups that the card
lists for it. Only a table of one's own may pass words on as they are: few ones without numbers in them, each shared by
several patients (:func:`singled_out`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from itertools import pairwise

from data_tools.archives import values
from data_tools.archives.plan import ArchivePlan, Row
from data_tools.archives.values import OddValue
from m4oe_ds.data.cards import Card, Subgroup
from m4oe_ds.data.cards.bands import band
from m4oe_ds.errors import ConfigError


def group_of(subgroup: Subgroup, text: str, missing: Set[str]) -> str | None:
    """The group of a field; None where the field is missing.

    Args:
        subgroup: what the card says.
        text: the field.
        missing: words that mean that it is empty, in lower case.

    Raises:
        OddValue: no number, none of the listed values, or a value that no shard may hold.
    """
    text = _plain(text)
    if subgroup.values:
        known = {_plain(value).casefold(): group for value, group in subgroup.values.items()}
        if text.casefold() in known:
            return values.group_value(known[text.casefold()])
    if text.casefold() in missing:
        return None
    if subgroup.values:
        raise OddValue("none of the listed values")
    if subgroup.bands:
        value = values.number(text, frozenset(missing))
        assert value is not None
        return band(value, subgroup.bands)
    return values.passed_value(text)


def too_fine(subgroup: Subgroup) -> str:
    """What is too fine in the bands of a subgroup; empty if nothing is."""
    borders = subgroup.bands
    narrow = [f"{low:g} to {high:g}" for low, high in pairwise(borders) if high - low < values.NARROWEST_BAND]
    return f"has bands narrower than {values.NARROWEST_BAND}: {', '.join(narrow)}; make them wider" if narrow else ""


def singled_out(subgroup: Subgroup, holders: Mapping[str, Set[str]], group: str) -> str:
    """Why the values of a column may not go into shards; empty if they may.

    Args:
        subgroup: what the card says.
        holders: by group of the subgroup, the patients or other groups that are in it.
        group: what the card calls them.
    """
    count = len(holders)
    if count > values.MOST_GROUPS:
        return f"{count} different values, at most {values.MOST_GROUPS} may go into shards; make it coarser"
    if subgroup.bands or subgroup.values:
        return ""  # a person has listed what may pass
    if count > values.MOST_PASSED:
        return (
            f"{count} different values, at most {values.MOST_PASSED} may go into shards as they are; give it `bands`, "
            "or list `values`"
        )
    few = sum(len(found) < values.FEWEST_HOLDERS for found in holders.values())
    if few:
        return (
            f"{few} of {count} values shared by fewer than {values.FEWEST_HOLDERS} of `source.group` ({group}), whom "
            "they could single out; list `values`, with one group for the rare ones"
        )
    return ""


def _plain(text: str) -> str:
    """A field with one space between its words: tables have several in places."""
    return " ".join(text.split())


def first_said(rows: Sequence[Row], spellings: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Fields of several rows about one exam: of each column what the first row that says something says.

    Args:
        rows: the rows.
        spellings: by column the names that it has in one table or another.
    """
    return {
        column: next((row[name] for row in rows for name in names if row.get(name, "").strip()), "")
        for column, names in spellings.items()
    }


def with_subgroups(plan: ArchivePlan, card: Card, offered: tuple[str, ...]) -> None:
    """Gives the samples of an archive the subgroups that the card lists; fields that fit none are counted in the notes.

    Args:
        plan: what the reader says; changed in place.
        card: card of the data set.
        offered: columns that the reader can make subgroups of.

    Raises:
        ConfigError: the card names another column, lets every value of one pass, or has narrow bands.
    """
    wanted = card.source.subgroups if card.source is not None else {}
    for name, subgroup in wanted.items():
        if subgroup.column not in offered:
            known = f"its reader offers {', '.join(offered)}" if offered else "its reader offers none"
            raise ConfigError(f"has no column {subgroup.column!r} for subgroups", f"source.subgroups.{name}", known)
        if not (subgroup.bands or subgroup.values):
            raise ConfigError(
                "would pass every value of an archive on", f"source.subgroups.{name}", "give it `bands` or `values`"
            )
        if reason := too_fine(subgroup):
            raise ConfigError(reason, f"source.subgroups.{name}.bands")
    missing = values.missing_words(card)
    for place, sample in enumerate(plan.samples):
        found = {}
        for name, subgroup in wanted.items():
            try:
                group = group_of(subgroup, sample.attributes.get(subgroup.column, ""), missing)
            except OddValue:
                plan.notes[f"{name}_without_a_subgroup"] += 1
                continue
            if group is not None:
                found[name] = group
        plan.samples[place] = replace(sample, subgroups=found)
