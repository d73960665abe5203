"""Cards: what is read from them, and how they travel."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from m4oe_ds import config_loader
from m4oe_ds.data.cards import Card, card_from, find_card, parse_card, read_card, shipped, write_card
from m4oe_ds.data.cards.parse import RESERVED
from m4oe_ds.data.cards.source import columns_of
from m4oe_ds.errors import ConfigError
from m4oe_ds.yaml_tree import parse_tree

EYES = """
name: my-eyes
unit: eye
group: person
sides: {l: left, r: right}
notice: not to be shared
headline: [glaucoma]
modalities:
  fundus: {kind: image, channels: 3, label: colour photograph}
  oct: {kind: volume, label: OCT volume}
  clinic:
    kind: table
    columns: {age: {kind: number}, sex: {kind: category, values: [f, m], column: Sex at birth}}
tasks:
  glaucoma: {kind: ordinal, classes: [none, early, advanced], label: glaucoma grade}
  rim: {kind: mask, of: fundus, classes: [disc, cup]}
  pressure: {kind: number, unit: mmHg}
  blind: {kind: survival, horizons: [1, 2, 5], unit: years, event: blindness}
  treated: {kind: binary}
source:
  table: tables/cases.csv
  sample: eye_id
  group: patient_id
  side: laterality
  split: {train: 70, val: 10, test: 20}
  files: {fundus: "photos/{photo}", oct: oct_path}
  ranges: {oct: [-100, 300.5]}
  labels:
    glaucoma: {column: grade, values: {0: none, 1: early, 2: advanced, 3: advanced}}
    rim: {disc: {file: "masks/{eye_id}_d.png", at_least: 192}, cup: "masks/{eye_id}_c.png"}
    pressure: iop
    blind: {time: years, event: blind}
    treated: treated
  subgroups: {age: {column: age, bands: [40, 60, 80]}, site: scanner}
  missing: ["?", unknown]
  size: [256, 320]
"""


def eyes(text: str = EYES) -> Card:
    return parse_card(parse_tree(text, "eyes.yaml"), "eyes.yaml")


def test_everything_of_a_card_is_read() -> None:
    card = eyes()
    assert (card.name, card.unit, card.group, card.notice) == ("my-eyes", "eye", "person", "not to be shared")
    assert card.sides == {"l": "left", "r": "right"}
    assert card.modalities == ("fundus", "oct", "clinic")
    assert card.modality("fundus").channels == 3
    assert [column.column for column in card.modality("clinic").columns] == ["age", "Sex at birth"]
    assert card.modality("clinic").columns[1].values == ("f", "m")
    assert [task.kind for task in card.tasks] == ["ordinal", "mask", "number", "survival", "binary"]
    assert card.task("treated").class_names == ("no", "yes")
    assert (card.task("blind").horizons, card.task("blind").num_classes) == ((1.0, 2.0, 5.0), 3)
    assert card.task("rim").of == "fundus"
    source = card.source
    assert source is not None
    assert (source.shares, source.size, source.missing) == ((70, 10, 20), (256, 320), ("?", "unknown"))
    assert source.ranges == {"oct": (-100.0, 300.5)}
    assert source.labels["glaucoma"].values["3"] == "advanced"
    assert [mask.at_least for mask in source.labels["rim"].masks] == [192.0, None]
    assert source.subgroups["age"].bands == (40.0, 60.0, 80.0)
    wanted = {
        "eye_id", "patient_id", "laterality", "photo", "oct_path", "grade", "iop", "years", "blind", "treated", "age",
        "scanner", "Sex at birth",
    }  # fmt: skip
    assert set(columns_of(source, card.inputs)) == wanted


def test_a_card_travels_as_yaml_and_as_json(tmp_path: Path) -> None:
    card = eyes()
    write_card(tmp_path / "card.yaml", card)
    assert read_card(tmp_path / "card.yaml") == card
    assert card_from(json.loads(json.dumps(card.content)), "manifest.json") == card


@pytest.mark.parametrize("name", shipped())
def test_shipped_cards_are_known_by_their_names_and_have_readers(name: str) -> None:
    card = find_card(name)
    assert card.name == name
    assert card.source is not None
    assert card.source.reader == name
    assert card_from(card.content, "here") == card
    assert all(task.label for task in card.tasks)
    assert all(one.label for one in card.inputs)


def test_names_that_a_container_of_modules_cannot_hold_are_reserved() -> None:
    lower = re.compile("[a-z][a-z0-9_]*")
    attributes = {name for box in (nn.ModuleDict(), nn.ParameterDict()) for name in dir(box) if lower.fullmatch(name)}
    assert attributes <= RESERVED
    assert "meta" in RESERVED  # the member of a sample that is no modality
    nn.ModuleDict({"train_": nn.Identity(), "age": nn.Identity()})  # what the message advises works
    assert torch.is_tensor(nn.ParameterDict({"type_": nn.Parameter(torch.zeros(1))})["type_"])


def test_a_configuration_names_a_card_beside_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "eyes.yaml").write_text(EYES)
    (tmp_path / "mine" / "run.yaml").write_text("data: {dataset: eyes.yaml, tasks: [pressure]}\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = config_loader.load(tmp_path / "mine" / "run.yaml")
    assert config.data.dataset == str(tmp_path / "mine" / "eyes.yaml")
    monkeypatch.chdir(tmp_path / "mine")
    assert config_loader.load(None, ["data.dataset=eyes.yaml"]).data.dataset == str(tmp_path / "mine" / "eyes.yaml")
    (tmp_path / "mine" / "run.yaml").write_text("data: {dataset: eyes.yaml, tasks: [presure]}\n")
    said = r"run\.yaml:1: data\.tasks: 'presure' is not one of the tasks of my-eyes; did you mean"
    with pytest.raises(ConfigError, match=said):
        config_loader.load(tmp_path / "mine" / "run.yaml")


def test_a_configuration_with_a_card_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("run: {name: x}\ndata:\n  dataset: eyes.yaml\n")
    with pytest.raises(ConfigError, match=r"run\.yaml:3: data\.dataset: .*eyes\.yaml: no such card"):
        config_loader.load(tmp_path / "run.yaml")
    (tmp_path / "run.yaml").write_text("data: {dataset: embde}\n")
    with pytest.raises(
        ConfigError, match=r"run\.yaml:1: data\.dataset: unknown data set 'embde'; did you mean embed\?"
    ):
        config_loader.load(tmp_path / "run.yaml")


def test_the_mistakes_of_a_card_reach_the_user_of_a_configuration(tmp_path: Path) -> None:
    (tmp_path / "eyes.yaml").write_text(EYES.replace("kind: ordinal", "kind: ordinl"))
    (tmp_path / "run.yaml").write_text("data: {dataset: eyes.yaml}\n")
    with pytest.raises(ConfigError, match=r"eyes\.yaml:15: tasks\.glaucoma\.kind 'ordinl' is not known"):
        config_loader.load(tmp_path / "run.yaml")


def test_a_card_that_changes_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "eyes.yaml"
    path.write_text(EYES)
    assert find_card(str(path)).unit == "eye"
    path.write_text(EYES.replace("unit: eye", "unit: organ"))
    import os

    os.utime(path, ns=(1, 1))
    assert find_card(str(path)).unit == "organ"
