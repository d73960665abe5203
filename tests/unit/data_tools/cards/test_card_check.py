"""``m4oe card check`` on a data set that is right, and on wrong ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_tools.cards.check import CheckOptions, check_card
from data_tools.cards.text import lines_of
from m4oe_ds.cli import main
from tests.unit.data_tools.card_cases import CARD, card_of, rows, write_case, write_table


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The card of a data set that nothing is wrong with."""
    return write_case(tmp_path_factory.mktemp("own"))


def checked(card: Path, **more: Any) -> Any:
    return check_card(card_of(card), CheckOptions(card_path=card, **{"workers": 0, **more}))


def test_a_good_card_is_explained(case: Path) -> None:
    found = checked(case, full=True)
    content = found.content
    assert found.problems == []
    assert (content["samples"], content["groups"]) == (24, 12)
    assert content["splits"]["counts"]["train"] == {"samples": 12, "groups": 6}
    assert content["files"]["photo"] == {
        "kind": "image",
        "pattern": "{photo}",
        "there": 19,
        "not_named": 5,
        "missing": 0,
        "outside": 0,
    }
    assert content["labels"]["grade"]["counts"]["train"] == {"none": 3, "early": 3, "advanced": 3, "missing": 3}
    assert content["labels"]["pressure"]["range"]["least"] == 12
    assert content["labels"]["blind"]["within"]["2"] == {"events": 4, "followed": 10}
    assert content["columns"]["clinic.sex"] == {"kind": "category", "missing": 3, "counts": {"f": 9, "m": 12}}
    assert content["subgroups"]["age"] == {"40-59": 9, "<40": 4, ">=60": 8, "missing": 3}
    read = content["read"]
    assert (read["samples"], read["good"], read["bad"]) == (24, 43, {})
    assert read["facts"]["photo_size"] == {"30x50": 19}
    assert read["facts"]["scan_bits"] == {"16": 24}
    assert read["mask_shares"]["rim"]["disc"] == pytest.approx(3 * read["mask_shares"]["rim"]["cup"], rel=0.1)
    assert [one["row"] for one in content["examples"]] == [2, 3, 4, 5, 6]
    assert content["examples"][0]["inputs"] == {"photo": False, "scan": True, "clinic": False}
    assert content["examples"][1]["labels"]["grade"] == "early"
    assert content["next"].startswith(f"m4oe convert --card {case} --out shards/eyes")


def test_reading_says_how_far_it_is(
    case: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("M4OE_PROGRESS", "1")
    count = len(checked(case, full=True).results)
    assert f"0/{count}" in capsys.readouterr().err


def test_nothing_in_it_names_anybody(case: Path) -> None:
    found = checked(case)
    everything = "\n".join(lines_of(found.content)) + json.dumps(found.content)
    assert not re.search(r"eye0\d\d|p0\d\d|photos/\d", everything)


def test_the_command_prints_and_draws(case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    sheet = tmp_path / "sheet.png"
    assert main(["card", "check", str(case), "--workers", "0", "--contact-sheet", str(sheet)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("my-eyes: 24 eyes of 12 patients in cases.csv\n")
    assert printed.splitlines()[-1].startswith("next: m4oe convert")
    with Image.open(sheet) as picture:
        assert picture.width <= 1400  # eight samples in columns that fit a page
        assert picture.height < 1000
    assert main(["card", "check", str(case), "--workers", "0", "--contact-sheet", str(sheet), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 24


def test_a_card_that_would_not_convert_ends_with_an_error(
    case: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = write_case(tmp_path / "data")
    table = rows()
    table[1]["photo"] = "photos/77.png"
    table[2]["grade"] = "sever"
    table[9]["eye"] = "eye001"
    write_table(card.parent / "cases.csv", table)
    assert main(["card", "check", str(card), "--workers", "0"]) == 4
    printed = capsys.readouterr().out
    problems = printed.split("problems\n")[1]
    assert len(re.findall(r"^  \S", problems, re.MULTILINE)) == 3
    assert "1 of 19 files of photo are not there, first in row 3" in problems
    assert f"next: mend this, then: m4oe card check {card}" in problems
    write_table(card.parent / "cases.csv", [{**row, "iop": "1"} for row in rows()])
    assert main(["card", "check", str(card), "--workers", "0"]) == 0


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    card = write_case(tmp_path / "data")
    for path in (tmp_path / "data" / "photos").iterdir():
        path.write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    found = checked(card, full=True)
    assert found.content["read"]["bad"]["photo"] == {"undecodable_pixels": 19}
    assert re.search(r"19 of 43 files read cannot be used \(photo undecodable pixels 19\)", "\n".join(found.problems))
    assert checked(card, full=True, max_quarantine=0.5).problems == []


WARNED = {
    "one patient": (lambda row, k: row.update(patient="p1", split="train"), "1 group with more than 10 %"),
    "no test": (lambda row, k: row.update(split="train"), "split test is empty: nothing can be evaluated"),
    "one age": (lambda row, k: row.update({"age of patient": 50}), "column clinic.age has one value only"),
    "one sex": (lambda row, k: row.update(sex="f"), "column clinic.sex: never m"),
    "no answer": (lambda row, k: row.update(grade=""), "grade: no answer at all"),
    "one pressure": (lambda row, k: row.update(iop=12), "pressure: all numbers are equal"),
    "short follow-up": (lambda row, k: row.update(years=0.5, blind=0), "nobody is followed to the horizon 1, 2 years"),
    "a patient in two spellings": (
        lambda row, k: row.update(patient=row["patient"].upper() if k == 1 else row["patient"]),
        "column 'patient': 1 name in several spellings",
    ),
    "zeros before a number": (
        lambda row, k: row.update(patient="p0" if k == 1 else row["patient"]),
        "column 'patient': 1 name in several spellings",
    ),
    "a letter that nobody sees": (
        lambda row, k: row.update(patient=row["patient"] + "\u200b" * (k == 1)),
        "column 'patient': 1 name in several spellings",
    ),
    "one answer": (lambda row, k: row.update(grade="none"), "grade: every answer is none"),
    "answers in test alone": (
        lambda row, k: row.update(grade=row["grade"] if row["split"] == "test" else ""),
        "grade: no answer in train, where it is to be learnt",
    ),
    "one answer in train": (
        lambda row, k: row.update(grade=row["grade"] if row["split"] in ("VALID", "test") else "early"),
        "grade: every answer in train is early",
    ),
    "masks in test alone": (
        lambda row, k: row.update(rim=row["rim"] if row["split"] == "test" else ""),
        "rim: no answer in train, where it is to be learnt",
    ),
    "a pressure that means none": (
        lambda row, k: row.update(iop=-999 if k == 1 else row["iop"]),
        "pressure: 1 value -999, all others from 12 to 17.75: if it means missing",
    ),
    "an age that means none": (
        lambda row, k: row.update({"age of patient": 999 if k == 1 else row["age of patient"]}),
        "clinic.age: 1 value 999, far from all others: if it means missing",
    ),
    "years in days": (
        lambda row, k: row.update(years=row["years"] and 365 * row["years"]),
        "blind: no event within the last horizon, 2 years, of times up to 1277.5: is the column in years?",
    ),
    "everybody": (
        lambda row, k: row.update(blind=row["years"] and 1), "blind: everybody of 20 followed has the event",
    ),
    "codes from 1": (
        lambda row, k: row.update(grade=1 + k % 2),
        "grade: no field is 0, which is none, and the least is 1, read as early",
    ),
    "one picture": (lambda row, k: row.update(photo="photos/1.png", rim=""), "1 file of photo in several groups"),
}  # fmt: skip


@pytest.mark.parametrize("name", WARNED)
def test_warnings(name: str, case: Path) -> None:
    change, expected = WARNED[name]
    table = rows()
    for k, row in enumerate(table):
        change(row, k)
    card = case.parent / "warned.yaml"
    card.write_text(CARD.replace("cases.csv", "warned.csv"))
    write_table(case.parent / "warned.csv", table)
    warnings = checked(card).content["warnings"]
    assert any(expected in line for line in warnings), warnings
    assert not any(expected in line for line in checked(case).content["warnings"])


def test_pictures_that_are_turned_under_their_masks(tmp_path: Path) -> None:
    card = write_case(tmp_path / "data")
    assert not any("EXIF" in line for line in checked(card).content["warnings"])
    for path in (tmp_path / "data" / "photos").iterdir():
        picture = Image.open(path)
        tags = picture.getexif()
        tags[0x0112] = 3  # half a turn, after which a mask still has the right size
        picture.save(path, exif=tags)
    assert any("turned as their EXIF orientation says" in line for line in checked(card).content["warnings"])


def test_a_column_of_the_censored_is_doubted(case: Path) -> None:
    card = case.parent / "censored.yaml"
    text = CARD.replace("cases.csv", "censored.csv").replace("event: blind}", "event: censored}")
    card.write_text(text)
    write_table(case.parent / "censored.csv", [{**row, "censored": row["blind"]} for row in rows()])
    doubt = "blind: 1 in the column 'censored' is read as an event"
    assert any(doubt in line for line in checked(card).content["warnings"])
    card.write_text(text.replace("event: censored}", 'event: censored, values: {"0": "yes", "1": "no"}}'))
    assert not any(doubt in line for line in checked(card).content["warnings"])


def test_a_card_of_an_archive_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(CARD[: CARD.index("source:")] + "source: {reader: embed}\n")
    assert main(["card", "check", str(path)]) == 4
    assert "m4oe convert --dry-run" in capsys.readouterr().err
