"""``m4oe card new``: what it proposes can be read, checked and converted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from data_tools.cards.check import CheckOptions, check_card
from data_tools.cards.propose import propose
from m4oe_ds.cli import main
from m4oe_ds.data.cards import Card, parse_card
from m4oe_ds.errors import DataError
from m4oe_ds.yaml_tree import parse_tree
from tests.unit.data_tools.card_cases import card_of, rows, write_case, write_table


def proposed(root: Path, table: str = "cases.csv") -> Card:
    return parse_card(parse_tree(propose(root / table, root), "proposed"), "proposed")


def test_a_table_with_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "My Eyes (2)"
    write_case(root)
    write_table(root / "cases.csv", [{**row, "scan": f"scans/{row['eye']}.nii.gz"} for row in rows()])
    out = root / "new.yaml"
    assert main(["card", "new", "--table", str(root / "cases.csv"), "--out", str(out)]) == 0
    assert f"m4oe card check {out}" in capsys.readouterr().out
    card = card_of(out)
    source = card.source
    assert source is not None
    assert card.name == "my-eyes-2"
    assert (source.sample, source.group, source.split) == ("eye", "patient", "split")
    assert {one.name: (one.kind, one.channels) for one in card.inputs} == {
        "photo": ("image", 3),
        "clinic": ("table", 0),
        "scan": ("volume", 1),
    }
    assert {task.name: task.kind for task in card.tasks} == {
        "rim": "mask",
        "fluid": "mask",
        "blind": "survival",
        "grade": "classes",
        "iop": "number",
    }
    assert card.task("rim").class_names == ("class_1", "class_2")
    assert card.task("grade").class_names[0] == "none"
    assert [column.name for column in card.modality("clinic").columns] == ["side", "age_of_patient", "sex", "scanner"]
    assert "  volume_size: [64, 128, 128]" in out.read_text()
    assert {name: tuple(one.values) for name, one in source.subgroups.items()} == {
        "side": ("L", "R"),
        "sex": ("f", "m"),
        "scanner": ("A", "B"),
    }
    assert check_card(card, CheckOptions(card_path=out, workers=0)).problems == []
    assert main(["card", "new", "--table", str(root / "cases.csv"), "--out", str(out)]) == 4  # nothing is overwritten


def test_files_are_found_by_the_name_of_the_sample(tmp_path: Path) -> None:
    write_case(tmp_path)
    write_table(tmp_path / "cases.csv", [{"eye": row["eye"], "grade": row["grade"]} for row in rows()])
    card = proposed(tmp_path)
    assert {one.name: one.kind for one in card.inputs} == {"scans": "volume"}
    assert card.source is not None
    assert card.source.files == {"scans": "scans/{eye}.nii.gz"}


def test_a_table_alone_asks_for_its_last_column(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    lines = ["id,x,y,cell type,target"] + [
        f"r{k},{random.normal():.3f},{random.normal():.3f},{'abc'[k % 3]},{k % 2}" for k in range(60)
    ]
    (tmp_path / "cases.csv").write_text("\n".join(lines) + "\n")
    card = proposed(tmp_path)
    assert [(task.name, task.kind, task.class_names) for task in card.tasks] == [("target", "binary", ("no", "yes"))]
    assert [column.kind for column in card.inputs[0].columns] == ["number", "number", "category"]
    path = tmp_path / "card.yaml"
    path.write_text(propose(tmp_path / "cases.csv", tmp_path))
    found = check_card(card_of(path), CheckOptions(card_path=path, workers=0))
    assert found.problems == []
    assert found.content["labels"]["target"]["counts"]["all"] == {"no": 30, "yes": 30, "missing": 0}


def test_dates_names_and_texts_are_left_out(tmp_path: Path) -> None:
    lines = ["case,seen,remark,empty,grade"] + [
        f"c{k},2024-01-{k + 1:02d},remark number {k},,{'ab'[k % 2]}" for k in range(28)
    ]
    (tmp_path / "cases.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match="no card can be made of it"):  # nothing to see: no files and no numbers
        propose(tmp_path / "cases.csv", tmp_path)
    (tmp_path / "cases.csv").write_text("\n".join(f"{line},{k if k else 'age'}" for k, line in enumerate(lines)) + "\n")
    text = propose(tmp_path / "cases.csv", tmp_path)
    for said in ('"seen" looks like identifiers or dates', '"remark" is free text', '"empty" is empty'):
        assert f"#   {said}" in text
    assert "2024" not in text
    assert "remark number" not in text


def test_names_that_a_card_cannot_have_are_changed(tmp_path: Path) -> None:
    lines = ["id,Age,class (0/1),2nd,type"] + [
        f"r{k},{k + 20.5},{k % 2},{'xyz'[k % 3]},{'pq'[k % 2]}" for k in range(30)
    ]
    (tmp_path / "cases.csv").write_text("\n".join(lines) + "\n")
    assert [task.name for task in proposed(tmp_path).tasks] == ["class_0_1", "c_2nd", "type_"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", "is not a readable table|has no rows"),
        ("a,b\n", "has no rows"),
        ("a,b\n1,2\n1,2\n", "no column with a value of its own"),
    ],
)
def test_tables_that_say_nothing(content: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text(content)
    with pytest.raises(DataError, match=expected):
        propose(tmp_path / "cases.csv", tmp_path)


def test_a_table_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("a,b\n1,2\n")
    (tmp_path / "root").mkdir()
    with pytest.raises(DataError, match="is not below the root"):
        propose(tmp_path / "cases.csv", tmp_path / "root")
    with pytest.raises(DataError, match="is not here"):
        propose(tmp_path / "no.csv", tmp_path)


def written(root: Path, heading: str, row: Callable[[int], str], count: int = 30) -> str:
    (root / "cases.csv").write_text("\n".join([heading, *(row(k) for k in range(count))]) + "\n")
    return propose(root / "cases.csv", root)


def test_classes_in_several_spellings_are_one(tmp_path: Path) -> None:
    text = written(
        tmp_path, "id,age,finding", lambda k: f"r{k},{k + 20.5},{('Ill', 'ill', 'ill', 'well', 'WELL', 'WELL')[k % 6]}"
    )
    assert 'finding: {kind: binary, classes: ["WELL", "ill"]}' in text


@pytest.mark.parametrize(
    ("column", "field", "expected"),
    [
        ("censored", "10", '"censored", values: {"0": "yes", "1": "no"}}  # 0 = the event came'),
        ("alive", ("no", "yes"), '"alive", values: {"no": "yes", "yes": "no"}}  # no = the event came'),
        ("died", "01", '"died"}  # 1 = the event came'),
    ],
)
def test_what_a_column_of_events_means(column: str, field: Sequence[str], expected: str, tmp_path: Path) -> None:
    """A column of the censored would have made events of them."""
    text = written(tmp_path, f"id,age,months,{column}", lambda k: f"r{k},{k + 20.5},{k + 0.5},{field[k % 3 == 0]}")
    assert f'{{time: "months", event: {expected}' in text


def test_a_column_next_to_a_time_is_no_event_for_that_alone(tmp_path: Path) -> None:
    text = written(tmp_path, "id,age,months,treated", lambda k: f"r{k},{k + 20.5},{k + 0.5},{k % 2}")
    assert "survival" not in text


def test_names_and_decimal_commas_are_no_numbers(tmp_path: Path) -> None:
    text = written(
        tmp_path,
        "key;age;pressure;scan_id;film;x",
        lambda k: f"r{k};{k + 20.5};{k},5;{k // 2 + 70};{k // 2:04d};{k + 0.5}",
    )
    assert '#   "pressure" has numbers with a decimal comma: write a decimal point' in text
    assert '#   "scan_id" looks like identifiers or dates, some of them twice' in text
    assert '#   "film" looks like identifiers or dates, some of them twice' in text
