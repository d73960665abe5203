"""The reader of one's own table: every fault is counted and told with its row, and nothing odd becomes missing."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_tools.archives.table import plan_table
from data_tools.archives.tables import read_table
from data_tools.archives.values import Choice, OddValue, number
from m4oe_ds.data.cards.bands import band
from m4oe_ds.errors import DataError
from tests.unit.data_tools.card_cases import CARD, Row, card_of, rows, write_case, write_table

Change = Callable[[list[Row]], Any]


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The card of a data set that nothing is wrong with."""
    return write_case(tmp_path_factory.mktemp("own"))


def planned(card: Path, table: list[Row] | None = None, text: str = "", max_missing: float = 0.0) -> Any:
    """The plan of another table, or of another card, over the same files."""
    other = card.parent / "other.yaml"
    source = (text or card.read_text()).replace("cases.csv", "other.csv")
    other.write_text(source)
    write_table(card.parent / "other.csv", rows() if table is None else table)
    return plan_table(card_of(other), str(other), card.parent, max_missing)


def test_rows_become_samples(case: Path) -> None:
    plan = planned(case)
    assert plan.steps == {"table_rows": 24, "samples_planned": 24, "images_planned": 43}
    first, second, last = plan.samples[0], plan.samples[1], plan.samples[23]
    assert (first.patient, first.name, first.side, first.split) == ("p000", "eye000", "l", "train")
    assert first.images == {"scan": ("scans/eye000.nii.gz",)}  # its field of the photograph is empty
    assert first.labels == {"grade": 0, "rim": -1, "fluid": -1, "pressure": 12.0, "blind": [0.5, 0.0]}
    assert first.tables == {}  # neither age nor sex is known
    assert second.tables == {"clinic": {"age": 32.0, "sex": 1}}
    assert second.subgroups == {"age": "<40", "site": "B"}
    assert last.labels["grade"] == -1  # an empty field, and no other, is missing
    assert last.labels["blind"] is None
    assert [mask.pattern for mask in second.layers["rim"]] == ["rims/1.png"]
    assert set(first.layers) == {"fluid"}
    assert plan.samples[4].split == "val"


def put(column: str, value: object, *places: int) -> Change:
    """Sets a column in some rows."""

    def change(table: list[Row]) -> None:
        for place in places:
            table[place][column] = value

    return change


def drop(column: str) -> Change:
    """Takes a column away."""
    return lambda table: [row.pop(column) for row in table]


def rename(old: str, new: str) -> Change:
    """Renames a column."""
    return lambda table: [row.update({new: row.pop(old)}) for row in table]


def everywhere(column: str, value: object) -> Change:
    """Sets a column in every row."""
    return lambda table: [row.update({column: value}) for row in table]


WRONG: dict[str, tuple[Change, str]] = {
    "an unknown class": (
        put("grade", "sever", 4, 5),
        r"column 'grade': 2 values none of the names of grade \(none, early, advanced\), first in row 6 \('sever' 2\)",
    ),
    "a code too large": (put("grade", "3", 0), r"'grade': 1 value none of the names .* row 2 \('3' 1\)"),
    "a code between": (put("grade", "1.5", 0), r"'grade': 1 value none of the names"),
    "a word for a number": (put("iop", "high", 3), r"'iop': 1 value not a number, for pressure, first in row 5 "),
    "a decimal comma": (put("iop", "12,5", 3), "write a decimal point"),
    "an infinite number": (put("iop", "inf", 3), "'iop': 1 value not a number"),
    "an identifier as a number": (put("iop", "1234567890123", 3), "looks like an identifier or a date"),
    "a date as a number": (put("iop", "20240131", 3), "looks like an identifier or a date"),
    "a negative time": (put("years", "-1", 0), r"column 'years': 1 value a time below 0, for blind"),
    "an odd event": (put("blind", "2", 0), r"column 'blind': 1 value none of the names, for blind, first in row 2"),
    "a time without an event": (put("blind", "", 0), "there without an event"),
    "an event without a time": (put("years", "", 0), "there without a time"),
    "a word for an age": (put("age of patient", "old", 1), r"'age of patient': 1 value not a number, for clinic.age"),
    "an unknown category": (put("sex", "x", 1), r"column 'sex': 1 value none of the names, for clinic.sex, .* row 3$"),
    "a sample twice": (put("eye", "eye001", 7), r"'eye': 1 sample there more than once, first in rows 3 and 9"),
    "a sample without a name": (put("eye", "", 7), r"'eye': 1 value missing, but every sample needs one, .* row 9"),
    "a group without a name": (put("patient", "n/a", 7, 8), r"column 'patient': 2 values missing, but every"),
    "a rounded identifier": (everywhere("patient", "12.0"), "24 values of patient are not whole numbers"),
    "a group in two splits": (put("split", "test", 1), r"column 'split': 1 group of 'patient' in more than one split"),
    "an unknown split": (put("split", "holdout", 0, 1), r"2 values none of train, val, test, .* \('holdout' 2\)"),
    "a missing split": (put("split", "", 0, 1), "'split': 2 values missing"),
    "an unknown side": (put("side", "B", 0), r"column 'side': 1 value no side of the card \(l or left, r or right\)"),
    "a long subgroup": (put("scanner", "x" * 40, 0), "'scanner': 1 value longer than the 32 letters"),
    "a date as a subgroup": (put("scanner", "2024-01-31", 0), "1 value looking like an identifier or a date"),
    "a lost column": (drop("grade"), r"other.yaml:2\d: source.labels.grade names the column 'grade', which"),
    "a misspelt column": (rename("iop", "IOP"), r"names the column 'iop', .*known: IOP"),
    "a lost file": (put("photo", "photos/99.png", 1), r"1 of 19 files of photo .* in row 3; .*--max-missing 0.06"),
    "no file at all": (everywhere("photo", "photo/1.png"), r"none of the 24 files of photo is there"),
    "a path above": (put("photo", "../secret.png", 1), r"1 path of photo outside the folder .* first in row 3"),
    "a path elsewhere": (put("photo", "/etc/hostname", 1), "outside the folder of the data"),
    "a lost mask": (put("rim", "rims/99.png", 1), r"source.labels.rim: 1 of 13 files of rim are not there"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_tables_are_told_in_one_line_each(name: str, case: Path) -> None:
    change, expected = WRONG[name]
    table = rows()
    change(table)
    with pytest.raises(DataError) as caught:
        planned(case, table)
    lines = str(caught.value).splitlines()
    assert any(re.search(expected, line) for line in lines), "\n".join(lines)
    assert not re.search(r"p0\d\d|eye0\d\d|secret|hostname|2024|1234567", str(caught.value))


def test_all_faults_are_told_at_once(case: Path) -> None:
    table = rows()
    for change in (put("grade", "sever", 1), put("iop", "high", 2), put("eye", "eye001", 7), put("photo", "no.png", 1)):
        change(table)
    with pytest.raises(DataError) as caught:
        planned(case, table)
    assert len(str(caught.value).splitlines()) == 4


@pytest.mark.parametrize("word", ["", "NA", "n/a", "NaN", "None", "NULL", "<NA>", "-", "not done"])
def test_words_for_missing(word: str, case: Path) -> None:
    text = CARD.replace("  table:", "  missing: [Not Done]\n  table:")
    table = rows()
    for column in ("iop", "years", "blind", "age of patient", "sex", "photo", "rim", "scanner"):
        table[1][column] = word
    plan = planned(case, table, text)
    sample = plan.samples[1]
    assert sample.labels["pressure"] is None
    assert sample.labels["blind"] is None
    assert sample.tables == {}
    assert "photo" not in sample.images
    assert "rim" not in sample.layers
    assert sample.subgroups == {}


def test_a_class_called_none_is_a_class(case: Path) -> None:
    assert planned(case).samples[0].labels["grade"] == 0
    text = CARD.replace("  table:", "  missing: [none]\n  table:")
    with pytest.raises(
        DataError, match=r"other.yaml:\d+: source.missing lists 'none', which tasks.grade has as a name"
    ):
        planned(case, text=text)


@pytest.mark.parametrize(
    ("names", "values", "field", "code"),
    [
        (("no", "yes"), {}, "YES", 1),
        (("no", "yes"), {}, "1", 1),
        (("no", "yes"), {}, "1.0", 1),
        (("no", "yes"), {"0": "yes", "1": "no"}, "1", 0),  # what the card maps goes first
        (("no", "yes"), {"M": "yes"}, "m", 1),
        (("2", "3", "4"), {}, "2", 0),  # a name, not a code
        (("2", "3", "4"), {}, "2.0", 0),
        (("a", "A"), {}, "A", 1),
        (("none", "some"), {}, "None", 0),
        (("no", "yes"), {}, "", None),
        (("no", "yes"), {}, "NA", None),
    ],
)
def test_classes_by_name_then_by_code(
    names: tuple[str, ...], values: dict[str, str], field: str, code: int | None
) -> None:
    assert Choice(names, values, frozenset({"", "na", "none"})).code(field) == code


@pytest.mark.parametrize(
    ("names", "values", "field"),
    [
        (("no", "yes"), {"M": "yes"}, "1"),  # with a mapping there are no codes
        (("2", "3", "4"), {}, "0"),  # names that are numbers have no codes
        (("no", "yes"), {}, "2"),
        (("no", "yes"), {}, "-1"),
        (("a", "A"), {}, "b"),
    ],
)
def test_other_fields_are_odd(names: tuple[str, ...], values: dict[str, str], field: str) -> None:
    with pytest.raises(OddValue):
        Choice(names, values, frozenset({""})).code(field)


def test_bands() -> None:
    assert [band(v, (40, 60)) for v in (39.9, 40, 59, 60, 99)] == ["<40", "40-59", "40-59", ">=60", ">=60"]
    assert band(0.3, (0.25, 0.5)) == "0.25 to <0.5"
    assert band(1, (1, 2)) == "1 to <2"


def test_numbers() -> None:
    assert number("1e-3", frozenset()) == 0.001
    assert number("1234567890.5", frozenset()) == 1234567890.5  # no identifier has a fraction


def grown(count: int, scanner: Callable[[int], str]) -> list[dict[str, Any]]:
    """Rows of as many patients, one each, without files."""
    empty = {"photo": "", "rim": "", "fluid": ""}
    return [
        {**rows()[i % 24], "eye": f"e{i}", "patient": f"p{i}", "side": "L", "scanner": scanner(i), **empty}
        for i in range(count)
    ]


LISTED = "site: {column: scanner, values: {" + ", ".join(f"s{k}: g{k}" for k in range(60)) + "}}"


@pytest.mark.parametrize(
    ("count", "scanner", "subgroup", "told"),
    [
        (105, lambda i: f"s{'abcdefghijklmnopqrstu'[i % 21]}", "site: scanner", "21 different values, at most 20 may"),
        (
            24,
            lambda i: "AB"[i < 4],
            "site: scanner",
            r"1 of 2 values shared by fewer than 5 of `source.group` \(patient\)",
        ),
        (24, lambda i: f"Smith{'abcdefghijkl'[i % 12]}", "site: scanner", "12 of 12 values shared by fewer than 5"),
        (24, lambda i: "93", "site: scanner", "24 values without letters or with a number of several digits"),
        (24, lambda i: "7", "site: scanner", "24 values without letters"),
        (24, lambda i: "93 years", "site: scanner", "24 values .* with a number of several digits"),
        (24, lambda i: "b. 1931", "site: scanner", "24 values .* with a number of several digits"),
        (24, lambda i: "1 2 31", "site: scanner", "24 values without letters"),
        (60, lambda i: f"s{i}", LISTED, "60 different values, at most 50 may go into shards; make it coarser"),
        (24, lambda i: f"{i}", "site: {column: scanner, bands: [1, 6, 10]}", r"bands narrower than 5: 6 to 10; make"),
        (24, lambda i: f"{i}", "site: {column: scanner, bands: [10, 11, 12]}", "narrower than 5: 10 to 11, 11 to 12"),
    ],
)
def test_subgroups_that_could_single_out_patients(
    case: Path, count: int, scanner: Callable[[int], str], subgroup: str, told: str
) -> None:
    text = CARD.replace(', scan: "scans/{eye}.nii.gz"', ', scan: "{photo}"').replace("site: scanner", subgroup)
    with pytest.raises(DataError, match=told) as caught:
        planned(case, grown(count, scanner), text)
    assert not re.search("Smith|1931|93", str(caught.value))


@pytest.mark.parametrize(
    ("count", "scanner", "subgroup", "expected"),
    [
        (100, lambda i: f"s{'abcdefghijklmnopqrst'[i % 20]}", "site: scanner", 20),
        (10, lambda i: ("Scan X1", "north")[i % 2], "site: scanner", 2),
        (12, lambda i: f"s{i}", LISTED, 12),  # a person has listed them
        (12, lambda i: f"{7 * i}", "site: {column: scanner, bands: [5, 10, 60]}", 4),
    ],
)
def test_coarse_subgroups_pass(
    case: Path, count: int, scanner: Callable[[int], str], subgroup: str, expected: int
) -> None:
    text = CARD.replace(', scan: "scans/{eye}.nii.gz"', ', scan: "{photo}"').replace("site: scanner", subgroup)
    found = {sample.subgroups["site"] for sample in planned(case, grown(count, scanner), text).samples}
    assert len(found) == expected


def test_a_link_out_of_the_folder(case: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.png").write_bytes((case.parent / "photos" / "1.png").read_bytes())
    link = case.parent / "photos" / "link.png"
    os.symlink(tmp_path / "outside.png", link)
    table = rows()
    table[1]["photo"] = "photos/link.png"
    try:
        with pytest.raises(DataError, match="1 path of photo outside the folder of the data"):
            planned(case, table)
    finally:
        link.unlink()


def test_files_that_are_not_there_can_be_accepted(case: Path) -> None:
    table = rows()
    table[1]["photo"] = "photos/99.png"
    plan = planned(case, table, max_missing=0.06)
    assert "photo" not in plan.samples[1].images
    assert plan.notes == {"files_of_photo_not_there": 1}
    for row in table:
        row["photo"] = f"photos/{row['eye']}.jpg"
    with pytest.raises(DataError, match=r"none of the 24 files of photo is there .*holds folders 4"):
        planned(case, table, max_missing=1.0)


def test_a_class_whose_mask_is_lost_is_not_a_class_that_is_nowhere(case: Path) -> None:
    text = CARD.replace('rim: "{rim}"', 'rim: {disc: "{rim}", cup: "{cup}"}')
    lost, empty = [{**row, "cup": row["rim"]} for row in rows()], [{**row, "cup": row["rim"]} for row in rows()]
    lost[1]["cup"], empty[1]["cup"] = "rims/99.png", ""
    assert "rim" not in planned(case, lost, text, max_missing=0.1).samples[1].layers
    assert "rim" in planned(case, lost, text, max_missing=0.1).samples[2].layers
    disc, cup = planned(case, empty, text).samples[1].layers["rim"]
    assert (disc.pattern, cup) == ("rims/1.png", None)


def test_what_lies_there_is_said_where_a_pattern_finds_nothing(case: Path) -> None:
    text = CARD.replace('scan: "scans/{eye}.nii.gz"', 'scan: "scans/{eye}.nii"')
    with pytest.raises(DataError, match=r"none of the 24 files of scan is there .*; scans holds \.nii\.gz 24: check"):
        planned(case, text=text)
    text = CARD.replace('scan: "scans/{eye}.nii.gz"', 'scan: "scan/{eye}.nii.gz"')
    with pytest.raises(DataError, match="there is no folder scan below --root"):
        planned(case, text=text)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "txt", "xlsx"])
def test_formats_of_tables(suffix: str, tmp_path: Path) -> None:
    import pandas as pd

    table = [{"id": f"00{k}", "a b": "x" if k else "", "n": f"{k}.5", "s": "1234567890123456"} for k in range(3)]
    text = """name: t
modalities: {m: {kind: table, columns: {n: {kind: number}}}}
tasks: {a: {kind: classes, classes: [x, y]}}
source: {table: TABLE, sample: id, group: s, labels: {a: a b}}
""".replace("TABLE", f"t.{suffix}")
    (tmp_path / "t.yaml").write_text(text)
    frame = pd.DataFrame(table)
    path = tmp_path / f"t.{suffix}"
    if suffix == "xlsx":
        frame.to_excel(path, index=False)
    else:
        mark = {"csv": ",", "tsv": "\t", "txt": ";"}[suffix]
        path.write_text("\ufeff" + frame.to_csv(index=False, sep=mark) + "\n")
    plan = plan_table(card_of(tmp_path / "t.yaml"), str(tmp_path / "t.yaml"), tmp_path)
    assert [sample.name for sample in plan.samples] == ["000", "001", "002"]
    assert {sample.patient for sample in plan.samples} == {"1234567890123456"}  # no digit is lost
    assert [sample.labels["a"] for sample in plan.samples] == [-1, 0, 0]
    assert [sample.tables["m"]["n"] for sample in plan.samples] == [0.5, 1.5, 2.5]
    assert plan.excluded["samples"] == ({} if suffix == "xlsx" else {"empty_row": 1})


def test_shares_of_few_groups_are_kept(case: Path) -> None:
    from data_tools.convert.jobs import assign_splits

    text = CARD.replace("  split: split", "  split: {train: 50, val: 25, test: 25}")
    plan = planned(case, text=text)
    for secret in (b"one", b"two", b"three"):
        splits = list(assign_splits(plan.samples, secret, (50, 25, 25)).values())
        assert [splits.count(split) for split in ("train", "val", "test")] == [6, 3, 3]


def test_two_columns_of_one_name(case: Path) -> None:
    path = case.parent / "other.csv"
    planned(case)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(f"{line},{'iop' if k == 0 else 'x'}" for k, line in enumerate(lines)))
    other = case.parent / "other.yaml"
    with pytest.raises(DataError, match="columns that are there twice: iop"):
        plan_table(card_of(other), str(other), case.parent)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("eye000,p000,12,5", r"its heading has 3 fields, but not 1 of its rows \(first row 2, with 4\)"),
        ("eye000,p000", r"first row 2, with 2"),
        ("eye000,p000,12,,", None),  # separators at the end hold nothing
    ],
)
def test_fields_never_land_in_another_column(line: str, said: str | None, tmp_path: Path) -> None:
    """A decimal comma in a table of commas moved every field of its row by one, and nobody was told."""
    path = tmp_path / "cases.csv"
    path.write_text(f"eye,patient,iop\n{line}\neye001,p001,13\n")
    if said is None:
        assert read_table(path, ["eye", "iop"]) == [{"eye": "eye000", "iop": "12"}, {"eye": "eye001", "iop": "13"}]
    else:
        with pytest.raises(DataError, match=said):
            read_table(path, ["eye", "iop"])


def test_an_open_quotation_mark_swallows_no_rows(tmp_path: Path) -> None:
    """Three rows stood in one field of a fourth: a table of two, and nobody was told."""
    path = tmp_path / "cases.csv"
    path.write_text('eye,note,iop\na,"open,12\nb,fine,13\nc,also,14\nd,closed",15\ne,x,16\n')
    with pytest.raises(DataError, match=r"quotation mark that is not closed .* before row 3"):
        read_table(path, ["eye", "iop"])
    path.write_text('eye,note,iop\na,"two lines,\nof one note",12\n')
    assert read_table(path, ["eye", "iop"]) == [{"eye": "a", "iop": "12"}]


def test_separators_at_the_end_of_every_row_are_no_index(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("eye;patient;iop\neye000;p000;12;\neye001;p001;13;\n")
    assert [row["eye"] for row in read_table(tmp_path / "cases.csv", ["eye"])] == ["eye000", "eye001"]
    (tmp_path / "cases.csv").write_text("eye,iop,\n\neye000,12\n")  # a heading without a name, and a blank line
    assert [row["iop"] for row in read_table(tmp_path / "cases.csv", ["eye", "iop"])] == ["12"]


def test_an_underscore_is_no_part_of_a_number() -> None:
    with pytest.raises(OddValue, match="not a number"):
        number("1_2", frozenset())
