"""``m4oe predict --table``: samples of a card's own table, from a run folder that was moved away from its shards."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_tools.convert import ConvertOptions, convert
from m4oe_ds import cli, config_loader
from m4oe_ds.data.cards import find_card, write_card
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.models import spec_for
from m4oe_ds.runs.finished import open_run, training_data
from m4oe_ds.runs.folder import RunFolder
from tests.integration import servers, shards
from tests.integration.test_predict_runs import content, error, evaluated, make_run, probabilities, read

pytestmark = pytest.mark.integration
CARD = """\
name: cups
unit: cup
group: potter
sides: {l: left, r: right}
modalities:
  photo: {kind: image, channels: 3, label: photograph}
  drawing: {kind: image}
  facts:
    kind: table
    columns:
      height: {kind: number, column: Height}
      glaze: {kind: category, values: [none, salt, ash]}
tasks:
  shape: {kind: classes, classes: [bowl, beaker], label: shape of the cup}
  age: {kind: ordinal, classes: [new, old, ancient]}
source:
  table: cups.csv
  sample: cup
  group: potter
  side: side
  split: part
  files: {photo: "photos/{cup}.png", drawing: drawing_file}
  labels: {shape: shape, age: {column: years, values: {"1": new, "2": old, "3": ancient}}}
  subgroups: {kiln: kiln}
  size: [40, 48]
"""
SIZE = 12


def columns(number: int) -> dict[str, str]:
    """The row of one cup."""
    return {
        "cup": f"cup{number:02}",
        "potter": f"p{number // 2}",
        "side": ("left", "R")[number % 2],
        "part": ("train", "test", "val")[number // 2 % 3],
        "drawing_file": "" if number == 3 else f"drawings/d{number}.png",
        "Height": "" if number == 4 else f"{7.5 + number}",
        "glaze": ("none", "salt", "ash")[number % 3],
        "shape": ("bowl", "beaker")[number % 2],
        "years": str(1 + number % 3),
        "kiln": "west",
    }


def write_rows(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def cups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of cups with its card, its shards next to it, and a run whose shards are gone from where it trained."""
    root, random = tmp_path_factory.mktemp("cups") / "data", np.random.default_rng(0)
    (root / "photos").mkdir(parents=True)
    (root / "drawings").mkdir()
    for number in range(SIZE):
        photo, drawing = random.integers(0, 256, (30, 44, 3), np.uint8), random.integers(0, 256, (50, 41), np.uint8)
        Image.fromarray(photo).save(root / "photos" / f"cup{number:02}.png")
        Image.fromarray(drawing).save(root / "drawings" / f"d{number}.png")
    write_rows(root / "cups.csv", [columns(number) for number in range(SIZE)])
    card = root / "card.yaml"
    card.write_text(CARD)
    data = root.with_name("shards")
    salt = root.with_name("salt")
    salt.write_bytes(b"0123456789abcdef" * 4)
    convert(ConvertOptions(card_path=card, root=root, out=data, workers=0, salt_file=salt))
    run = root.with_name("run")
    more = (f"data.dataset={card}", f"data.root={data}")
    make_run(run, data, *more)
    config = config_loader.load(None, (*shards.SMALL, *more))
    write_card(run / "card.yaml", find_card(str(card)))
    training_data(config, spec_for(config), Manifest.load(data / "train")).save(RunFolder(run).data)
    return root


def predict(root: Path, table: Path, out: Path, *more: str) -> int:
    """The command in this process, with the secret of the conversion."""
    run, salt = str(root.with_name("run")), str(root.with_name("salt"))
    given = ["--table", str(table), "--root", str(root), "--salt-file", salt]
    return cli.main(["predict", run, *given, "--out", str(out), "--workers", "0", *more])


def test_keys_and_answers_are_those_of_conversion_and_evaluation(cups: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"  # of a run that kept nothing of its data the shards say how to standardise
    shutil.copytree(cups.with_name("run"), old)
    (old / "data.json").unlink()
    theirs = evaluated(old, ["train", "val", "test"])
    assert len(theirs) == SIZE
    # elsewhere: neither the card nor the shards are where the run was trained, and the table has no answers
    away = tmp_path / "away"
    shutil.copytree(cups.with_name("run"), away / "run")
    shutil.copytree(cups, away / "files")
    (away / "files" / "card.yaml").unlink()
    shutil.copy(cups.with_name("salt"), away)
    config = away / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(cups.parent), "/nowhere"))
    answers = ("shape", "years", "part", "kiln")
    rows = [{k: v for k, v in columns(number).items() if k not in answers} for number in range(SIZE)]
    table = write_rows(away / "new.csv", rows[::-1])
    assert predict(away / "files", table, tmp_path / "out") == 0
    mine = probabilities(tmp_path / "out")
    assert mine.keys() == theirs.keys()
    for key, values in theirs.items():
        np.testing.assert_allclose(mine[key], values, rtol=0, atol=1e-6)
    assert np.std(np.stack(list(mine.values())), axis=0).max() > 1e-3  # samples differ, so equality says something
    made = content(tmp_path / "out")
    assert made["rows"] == {"found": SIZE, "predicted": SIZE, "left_out": {}}
    assert made["files"]["used"] == made["files"]["found"] == 2 * SIZE - 1
    assert made["words"]["samples"] == "cups"
    assert made["words"]["tasks"] == {"shape": "shape of the cup", "age": "age"}
    assert made["notes"] == []
    wanted = {row["sample"]: row["key"] for row in read(cups.with_name("shards.mapping.csv"))}
    for sample in made["samples"]:
        assert sample["key"] == wanted[rows[::-1][sample["row"] - 2]["cup"]]
        assert sample["missing"] == (["drawing"] if rows[::-1][sample["row"] - 2]["cup"] == "cup03" else [])
        assert set(sample["tasks"]["shape"]["contribution"]) == {"photo", "drawing", "facts"}
    mapping = {row["sample"]: row["key"] for row in read(tmp_path / "out.mapping.csv")}
    assert mapping == wanted
    text = "".join(path.read_text() for path in (tmp_path / "out").iterdir())
    assert not [row["cup"] for row in rows if row["cup"] in text]
    assert "breast" not in text
    assert "mammo" not in text


def test_evaluation_needs_the_shards_of_its_split_alone(cups: Path, tmp_path: Path) -> None:
    run = cups.with_name("run")
    shutil.copytree(cups.with_name("shards") / "test", tmp_path / "test")
    there, here = open_run(run, "test"), open_run(run, "test", str(tmp_path))
    assert set(here.manifests) == {"test"}
    for batch, other in zip(there.batches("test"), here.batches("test"), strict=True):
        assert batch.keys == other.keys
        for name, view in batch.views.items():
            torch.testing.assert_close(other.views[name], view, rtol=0, atol=0)


def test_bad_rows_and_files_are_counted_by_row_and_the_rest_is_predicted(
    cups: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "files"
    shutil.copytree(cups, root)
    for name in ("run", "salt"):
        (tmp_path / name).symlink_to(cups.with_name(name))
    rows = [columns(number) for number in range(SIZE)]
    rows[1]["Height"] = "tall"
    rows[2]["potter"] = ""
    rows[5]["cup"] = rows[6]["cup"]
    rows[7]["side"] = "middle"
    rows[8]["drawing_file"] = "drawings/nothing.png"
    rows[9]["drawing_file"] = "../salt"
    rows[10] = dict.fromkeys(rows[10], "")
    (root / "photos" / "cup11.png").write_bytes(b"no picture")
    table = write_rows(root / "new.csv", rows)
    assert predict(root, table, tmp_path / "out") == 0
    made, shown = content(tmp_path / "out"), capsys.readouterr()
    assert made["rows"]["left_out"] == {
        "empty_row": [12],
        "no_identifier": [4],
        "sample_not_unique": [7, 8],
        "unknown_side": [9],
        "unreadable_value": [3],
    }
    assert made["rows"]["predicted"] == 6
    assert sorted(sample["row"] for sample in made["samples"]) == [2, 5, 6, 10, 11, 13]
    by_row = {sample["row"]: sample for sample in made["samples"]}
    assert by_row[13]["missing"] == ["photo"]
    assert by_row[10]["missing"] == by_row[11]["missing"] == ["drawing"]
    files = made["files"]
    assert files["rows"]["not_there"] == [10]
    assert files["rows"]["outside_the_folder"] == [11]
    assert files["used"] + sum(files["left_out"].values()) == files["found"]
    assert [reason for reason, numbers in files["rows"].items() if numbers == [13]]
    assert "left out: sample_not_unique: rows 7, 8" in shown.out
    assert "columns of answers that are there and not read: shape, years" in shown.out
    assert shown.out.strip().splitlines()[-1].startswith("predicted 6 samples of ")
    assert "cup0" not in shown.out + shown.err + json.dumps(made)
    assert predict(root, table, tmp_path / "two", "--limit", "2") == 0
    assert len(content(tmp_path / "two")["rows"]["left_out"]["beyond_limit"]) == 4


@servers.needs_nginx
def test_files_below_an_address_are_predicted_as_those_here(cups: Path, tmp_path: Path) -> None:
    rows = [columns(number) for number in range(SIZE)]
    rows[8]["drawing_file"] = "drawings/nothing.png"
    rows[9]["drawing_file"] = "../salt"
    table = write_rows(tmp_path / "new.csv", rows)
    assert predict(cups, table, tmp_path / "here") == 0
    with servers.nginx(cups, tmp_path / "server") as address:
        assert predict(cups, table, tmp_path / "there", "--root", f"{address}/plain") == 0
    here, there = content(tmp_path / "here"), content(tmp_path / "there")
    assert there["files"]["rows"]["not_there"] == [10]
    assert there["files"]["rows"]["outside_the_folder"] == [11]
    assert len(there["samples"]) == SIZE
    assert there == here


def test_numbers_of_another_unit_are_doubted(cups: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [columns(number) for number in range(SIZE)]
    assert predict(cups, write_rows(tmp_path / "same.csv", rows), tmp_path / "out") == 0
    assert "another unit" not in capsys.readouterr().out
    for row in rows:
        row["Height"] = row["Height"] and str(10 * float(row["Height"]))
    assert predict(cups, write_rows(tmp_path / "mm.csv", rows), tmp_path / "mm") == 0
    assert "column 'Height': 1" in capsys.readouterr().out
    assert any("another unit, or another column?" in line for line in content(tmp_path / "mm")["notes"])


def test_what_does_not_fit_is_one_line(cups: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, run = tmp_path / "out", str(cups.with_name("run"))
    rows = [{k: v for k, v in columns(number).items() if k != "Height"} for number in range(2)]
    assert predict(cups, write_rows(tmp_path / "new.csv", rows), out) == 4
    assert "card.yaml" in (line := error(capsys))
    assert "modalities.facts.columns.height names the column 'Height', which" in line
    assert cli.main(["predict", run, "--dicom", str(cups), "--out", str(out)]) == 3
    assert "use `m4oe predict RUN --table FILE [--root DIR]`" in error(capsys)
    assert predict(cups, tmp_path / "none.csv", out) == 4
    assert "none.csv: is not a file" in error(capsys)
    nothing = write_rows(tmp_path / "nothing.csv", [columns(number) | {"potter": ""} for number in range(2)])
    assert predict(cups, nothing, out) == 4
    assert "no usable row among 2 rows (no_identifier 2)" in error(capsys)
    with pytest.raises(SystemExit):
        predict(cups, nothing, out, "--dicom", str(cups))
    assert not out.exists()
