"""A comparison on a card of one's own: columns, metrics and words are those of the card, and nothing is published."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from m4oe_ds import config_loader
from m4oe_ds.cli import main
from m4oe_ds.compare import command, results, tables
from m4oe_ds.compare.cells import Cell, Subject, enumerate_cells, left_out
from m4oe_ds.compare.published import published
from m4oe_ds.data.cards import find_card

COUNT = 40
CARD = """name: heads
unit: head
headline: [region, volume]
modalities:
  ct: {kind: image}
  mr: {kind: image}
tasks:
  volume: {kind: number, unit: ml}
  region: {kind: classes, classes: [brain, neck, spine]}
  lesion: {kind: mask, of: ct, classes: [lesion]}
  death: {kind: survival, horizons: [1, 2], unit: years}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "heads.yaml").write_text(CARD)
    path = tmp_path / "train.yaml"
    path.write_text(
        f"run: {{name: heads}}\ndata: {{dataset: {tmp_path / 'heads.yaml'}, root: {tmp_path / 'shards'}}}\n"
    )
    return path


def finished(folder: Path, cell: Cell, error: float) -> None:
    """A run whose numbers are off by ``error`` and whose classes are right as often as that is small."""
    keys, groups = np.arange(COUNT).astype(str), np.array([f"g{i // 2}" for i in range(COUNT)])
    arrays = {"keys": keys, "groups": groups, "label_volume": np.linspace(0, 10, COUNT).astype("float32")}
    arrays["value_volume"] = arrays["label_volume"] + np.where(np.arange(COUNT) % 3, error, -error)
    arrays["label_region"] = np.arange(COUNT) % 3
    arrays["prob_region"] = np.eye(3)[(np.arange(COUNT) + (np.arange(COUNT) < 10 * error)) % 3]
    run = folder / "cells" / cell.name
    (run / "predictions").mkdir(parents=True)
    np.savez(run / "predictions" / "test.npz", **arrays)
    right = float((arrays["prob_region"].argmax(1) == arrays["label_region"]).mean())
    tasks = {
        "volume": {
            "kind": "number",
            "n": COUNT,
            "unit": "ml",
            "metrics": {"mae": {"value": error}},
            "baseline": {"mae": 2.5},
        },
        "region": {
            "kind": "classification",
            "n": COUNT,
            "prior": 0.35,
            "metrics": {"accuracy": {"value": right}, "auroc": {"value": 0.9}},
        },
    }
    (run / "metrics.json").write_text(json.dumps({"test": {"tasks": tasks}}))


def test_columns_are_the_headline_of_the_card_and_the_cells_load(config: Path, tmp_path: Path) -> None:
    data = config_loader.load(config).data
    subject = Subject.of(find_card(data.dataset))
    assert subject.columns == ("region", "volume")
    assert Subject.of(find_card(data.dataset), tasks=["death"]).columns == ("death",)
    cells = enumerate_cells([subject], ["ours", "aide"], [0])
    assert [cell.name for cell in cells] == [
        "heads-region-ours-seed0",
        "heads-volume-ours-seed0",
        "heads-multi-ours-seed0",
        "heads-multi-aide-seed0",
    ]
    assert [cell.scored for cell in cells[1:3]] == [("volume",), ("region", "volume")]
    for cell in cells:
        assert config_loader.load(config, cell.overrides).data.tasks in ((), (cell.setting,))


def test_what_makes_no_sense_is_named_once_with_its_reason(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subject = Subject.of(find_card(config_loader.load(config).data.dataset))
    lines = left_out([subject], ["ours", "eyemost", "eyemost_mtoe", "mirai"])
    assert len(lines) == 2
    assert lines[0].startswith("left out: eyemost on heads: it answers with classes and masks only, and volume")
    assert "mirai" in lines[1]
    assert main(["compare", "--config", str(config), "--methods", "eyemost"]) == 3
    assert "no cell: left out: eyemost on heads" in capsys.readouterr().err
    assert main(["compare", "--config", str(config), "--list"]) == 0
    text = capsys.readouterr().out
    assert "no: it compares two sides" in text or "no: it predicts no masks" in text
    assert main(["compare", "--config", str(config), "--dry-run", "--methods", "ours,mirai"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [lines[1], "3 cells"]
    assert main(["compare", "--config", str(config), "--preset", "smoke"]) == 3


def test_tables_have_the_metric_of_each_kind_and_no_published_column(config: Path, tmp_path: Path) -> None:
    subject = Subject.of(find_card(config_loader.load(config).data.dataset))
    cells = enumerate_cells([subject], ["ours", "aide"], [0, 1], ["multi"])
    for cell in cells:
        finished(tmp_path, cell, {"ours": 0.5, "aide": 1.5}[cell.method] + 0.1 * cell.seed)
    figures, missing = results.collect(cells, tmp_path, resamples=100)
    assert not missing
    (off,) = [f for f in figures if (f.method, f.metric) == ("aide", "mae")]
    assert (off.mean, off.difference, off.unit) == (pytest.approx(1.55), pytest.approx(1.0), "ml")
    assert off.p < 0.05
    header, trivial, *rows = tables.table1(figures)
    assert header == ["setting", "method", "heads region", "heads volume (MAE, ml)"]
    assert trivial == ["", "majority class, median, or chance", "35.0", "2.500"]
    assert {row[1]: row[3] for row in rows} == {"AIDE": "1.550 ± 0.071 (+1.000, p 0.02)", "Ours": "0.550 ± 0.071"}
    made = command._paper_tables(figures)
    assert set(made) == {"table1", "table1_auroc"}  # one row of an ablation is none
    assert published().source not in made["table1"][0]
    assert "paper" not in str(made["table1"][1])


def test_an_ablation_on_ones_own_data_has_its_table(config: Path, tmp_path: Path) -> None:
    subject = Subject.of(find_card(config_loader.load(config).data.dataset))
    cells = enumerate_cells([subject], ["ours", "ours_no_mi"], [0], ["multi"])
    for cell in cells:
        finished(tmp_path, cell, 0.5)
    figures, _ = results.collect(cells, tmp_path, resamples=10)
    caption, (header, *rows) = command._paper_tables(figures)["table2"]
    assert "heads" in caption
    assert header == ["MToE", "MSoE", "MI", "region", "volume"]
    assert [row[3] == "-" for row in rows] == [True, True, False, False]
