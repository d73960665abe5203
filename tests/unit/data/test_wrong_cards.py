"""Forty and more mistakes in a card: each is one line that says where, what, and often what was meant."""

from __future__ import annotations

import pytest

from m4oe_ds.data.cards import parse_card
from m4oe_ds.errors import ConfigError
from m4oe_ds.yaml_tree import parse_tree
from tests.unit.data.test_cards import EYES


def line_of(text: str) -> int:
    """Number of the line of the good card that holds a text."""
    return next(number for number, line in enumerate(EYES.splitlines(), 1) if text in line)


MISTAKES = {
    "name with capitals": ("name: my-eyes", "name: MyEyes", "name 'MyEyes' must be lower-case letters"),
    "name with underscore": ("name: my-eyes", "name: my_eyes", "such as my-scans"),
    "name too long": ("name: my-eyes", f"name: {'e' * 40}", "has 40 letters; at most 32"),
    "name is a list": ("name: my-eyes", "name: [my, eyes]", "name must be text, got ['my', 'eyes']"),
    "no name": ("name: my-eyes", "title: eyes", "name is missing"),
    "unknown key": ("unit: eye", "units: eye", "unknown key units; did you mean unit?"),
    "duplicate key": ("unit: eye", "name: eye", "duplicate key name"),
    "side of two letters": ("{l: left, r: right}", "{le: left, r: right}", "sides has 'le'; a side is one lower-case"),
    "three sides": ("{l: left, r: right}", "{l: a, r: b, m: c}", "has 3 sides; a body has two at most"),
    "headline without task": (
        "headline: [glaucoma]", "headline: [glaucom]",
        "headline names 'glaucom', which is no task",
    ),
    "kind of modality": ("kind: image,", "kind: picture,", "modalities.fundus.kind 'picture' is not known"),
    "no kind of modality": ("{kind: image, channels: 3,", "{channels: 3,", "modalities.fundus.kind is missing"),
    "five channels": ("channels: 3,", "channels: 5,", "channels must be a whole number from 1 to 4, got 5"),
    "channels as text": (
        "channels: 3,", "channels: three,",
        "channels must be a whole number from 1 to 4, got 'three'",
    ),
    "channels true": ("channels: 3,", "channels: true,", "from 1 to 4, got True"),
    "colour volume": (
        "{kind: volume,", "{kind: volume, channels: 3,",
        "modalities.oct.channels must be a whole number",
    ),
    "capital in a modality": ("  oct: {kind", "  OCT: {kind", "'OCT' cannot name a modality"),
    "dot in a modality": ("  oct: {kind", "  oct.v: {kind", "'oct.v' cannot name a modality"),
    "reserved modality": (
        "  oct: {kind", "  train: {kind",
        "'train' cannot name a modality: it is reserved; write train_",
    ),
    "modality is text": (
        "  oct: {kind: volume, label: OCT volume}", "  oct: volume", "modalities.oct must be a mapping, got 'volume'"
    ),
    "misspelt key of a modality": (
        "label: OCT volume", "lable: OCT volume",
        "unknown key modalities.oct.lable; did you",
    ),
    "table without columns": (
        "    columns: {age: {kind: number}, sex: {kind: category, values: [f, m], column: Sex at birth}}",
        "    label: clinic", "modalities.clinic.columns is missing",
    ),
    "kind of column": (
        "{age: {kind: number}", "{age: {kind: numeric}",
        "columns.age.kind 'numeric' is not known; did you mean",
    ),
    "category without values": ("{age: {kind: number}", "{age: {kind: category}", "columns.age.values is missing"),
    "column with a blank": (
        "{age: {kind: number}", "{age at exam: {kind: number}",
        "'age at exam' cannot name a column",
    ),
    "kind of task": ("kind: ordinal", "kind: ordered", "tasks.glaucoma.kind 'ordered' is not known"),
    "no classes": ("classes: [none, early, advanced], ", "", "tasks.glaucoma.classes is missing"),
    "one class": ("[none, early, advanced]", "[none]", "classes has 1 classes; this kind has 2 to 1000"),
    "class twice": ("[none, early, advanced]", "[none, early, none]", "classes lists none twice"),
    "class without a name": ("[none, early, advanced]", "[none, '', advanced]", "classes has an empty text in its"),
    "three answers of a binary task": (
        "{kind: binary}", "{kind: binary, classes: [a, b, c]}",
        "has 3 classes; this kind has 2",
    ),
    "task named as a modality": ("  pressure: {kind", "  clinic: {kind", "tasks has names of modalities: clinic"),
    "mask of nothing": ("of: fundus,", "", "tasks.rim.of is missing"),
    "mask of an unknown modality": ("of: fundus,", "of: fundsu,", "tasks.rim.of names 'fundsu', which is no modality"),
    "mask of a table": ("of: fundus,", "of: clinic,", "tasks.rim.of names 'clinic', a table"),
    "horizons that fall": ("horizons: [1, 2, 5]", "horizons: [1, 5, 2]", "tasks.blind.horizons must ascend"),
    "horizon of zero": ("horizons: [1, 2, 5]", "horizons: [0, 2, 5]", "tasks.blind.horizons must be above 0"),
    "horizons as text": ("horizons: [1, 2, 5]", "horizons: [one, two]", "horizons must be some numbers in a list"),
    "no horizons": ("horizons: [1, 2, 5], ", "", "tasks.blind.horizons is missing"),
    "key of another kind": (
        "{kind: number, unit: mmHg}", "{kind: number, classes: [a, b]}",
        "unknown key tasks.pressure.classes",
    ),
    "absolute table": ("tables/cases.csv", "/data/cases.csv", "source.table '/data/cases.csv' must be a path below"),
    "table outside": ("tables/cases.csv", "../cases.csv", "source.table '../cases.csv' must be a path below"),
    "table of another format": (
        "tables/cases.csv", "tables/cases.sav",
        "source.table 'tables/cases.sav' must be one of .csv",
    ),
    "no sample": ("sample: eye_id", "samples: eye_id", "source.sample is missing"),
    "stratum without classes": (
        "unit: eye", "strata: [pressure]",
        "strata names 'pressure', which is no task of classes",
    ),
    "side without sides": (
        "sides: {l: left, r: right}", "title: eyes",
        "source.side names a column, but the card lists no",
    ),
    "shares of 90": (
        "val: 10, test: 20", "val: 10, test: 10",
        "source.split must sum to 100 percent with some for train, got 70/10/10",
    ),
    "no files of a modality": (', oct: oct_path}', "}", "source.files.oct is missing: say where its files lie"),
    "files of a table": (', oct: oct_path}', ', oct: oct_path, clinic: "a/{b}.csv"}', "source.files.clinic is a table"),
    "files of nothing": (
        ', oct: oct_path}', ', oct: oct_path, octt: a}',
        "source.files.octt is no modality; did you mean oct?",
    ),
    "one file for all": (
        '"photos/{photo}"', '"photos/photo.png"',
        "is one file for all samples; write a {column} in it",
    ),
    "open brace": ('"photos/{photo}"', '"photos/{photo"', "has a brace without its partner"),
    "empty braces": ('"photos/{photo}"', '"photos/{}"', "has empty braces; write a column between them"),
    "file outside": ('"photos/{photo}"', '"../{photo}"', "must be a path below the folder of the data"),
    "range of three": ("[-100, 300.5]", "[-100, 0, 300]", "source.ranges.oct must be 2 numbers in a list"),
    "labels of nothing": (
        "    pressure: iop", "    presure: iop",
        "source.labels.presure is no task; did you mean pressure?",
    ),
    "label left out": ("    pressure: iop\n", "", "source.labels.pressure is missing: say where its answers stand"),
    "value of no class": ("2: advanced, 3: advanced", "2: advanced, 3: late", "values.3 is 'late', which is no class"),
    "survival without event": ("{time: years, event: blind}", "{time: years}", "source.labels.blind.event is missing"),
    "time and event in one column": (
        "{time: years, event: blind}", "{time: blind, event: blind}",
        "source.labels.blind has the column 'blind' for both the time and the event",
    ),
    "an answer that is shown": (
        "    pressure: iop", "    pressure: age",
        "source.labels.pressure is answered by the column 'age', which modalities.clinic.columns.age shows",
    ),
    "a mask that is shown": (
        ', cup: "masks/{eye_id}_c.png"}', ', cup: "photos/{photo}"}',
        "source.labels.rim is answered by 'photos/{photo}', which source.files.fundus shows to the model",
    ),
    "mask of a class left out": (
        ', cup: "masks/{eye_id}_c.png"}', "}",
        "source.labels.rim.cup is missing: say where the mask",
    ),
    "bands that fall": ("bands: [40, 60, 80]", "bands: [60, 40]", "source.subgroups.age.bands must ascend"),
    "size of one": ("size: [256, 320]", "size: [256]", "source.size must be 2 numbers in a list"),
    "size too small": ("size: [256, 320]", "size: [4, 4]", "source.size must be 2 whole numbers from 8 to 8192"),
    "reader and table": ("  table: tables/cases.csv", "  reader: embed", "unknown key source.sample"),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES, ids=lambda name: name.replace(" ", "_"))
def test_a_mistake_is_told_with_its_line(case: str) -> None:
    good, bad, message = MISTAKES[case]
    assert EYES.count(good) >= 1, good
    text = EYES.replace(good, bad, 1)
    with pytest.raises(ConfigError) as found:
        parse_card(parse_tree(text, "eyes.yaml"), "eyes.yaml")
    lines = str(found.value).splitlines()
    matching = [line for line in lines if message in line]
    assert matching, lines
    place, _, _ = matching[0].partition(" ")
    name, number = place.rstrip(":").split(":")
    assert name == "eyes.yaml"
    assert 1 <= int(number) <= len(text.splitlines())
    if "missing" not in message and bad and case not in ("duplicate key", "reader and table"):
        changed = next(
            n for n, (a, b) in enumerate(zip(EYES.splitlines(), text.splitlines(), strict=False), 1) if a != b
        )
        assert int(number) == changed or case in ("side without sides", "task named as a modality")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "eyes.yaml: is not a card"),
        ("- a\n- b\n", "eyes.yaml: is not a card"),
        ("name: [", "eyes.yaml:1: not valid YAML"),
        ("name: x\nmodalities: &a\n  b: *a\n", "a value contains itself"),
        ("name: x\nmodalities: {}\ntasks: {}\n", "eyes.yaml:2: modalities is empty; name at least one modality"),
        ("name: x\nmodalities: {a: {kind: image}}\ntasks: {b: !!python/name:os.system x}\n", "is not a valid value"),
    ],
)
def test_what_is_no_card_at_all(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as found:
        parse_card(parse_tree(text, "eyes.yaml"), "eyes.yaml")
    assert message in str(found.value)
    assert line_of("unit: eye") == 3
