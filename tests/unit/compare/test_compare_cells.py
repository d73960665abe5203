"""The cells of a comparison are the rows of the paper's tables, every configuration loads, folders are recognised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from m4oe_ds import config_loader
from m4oe_ds.cli import main
from m4oe_ds.compare import run
from m4oe_ds.compare.cells import METHODS, Cell, enumerate_cells, parse_sweep
from m4oe_ds.compare.published import published
from m4oe_ds.errors import ConfigError

QUESTIONS, PAPER = published().columns, published().figures
EVERYTHING = enumerate_cells(list(QUESTIONS), list(METHODS), [0])


def plan(folder: Path, preset: str = "smoke") -> run.CellPlan:
    return run.CellPlan(folder, preset, "ds_configs/zero2.json", 1, 60.0)


def test_every_row_of_the_papers_tables_has_its_cells() -> None:
    found = {(cell.dataset, "multi" if cell.setting == "multi" else "single", cell.method) for cell in EVERYTHING}
    wanted = {(dataset, setting, method) for (setting, method), values in PAPER.items() for dataset in values}
    assert wanted <= found
    for (_, method), values in PAPER.items():
        assert all(len(numbers) == len(QUESTIONS[dataset]) for dataset, numbers in values.items()), method


def test_single_task_cells_train_one_task_each() -> None:
    mirai = [cell for cell in EVERYTHING if cell.method == "mirai" and cell.dataset == "embed"]
    assert sorted(cell.setting for cell in mirai) == ["birads", "density", "multi", "risk1"]
    for cell in mirai:
        config = config_loader.load("configs/compare/smoke/embed.yaml", cell.overrides)
        assert len(config.data.tasks) == (0 if cell.setting == "multi" else 1)
        assert cell.scored == (QUESTIONS["embed"] if cell.setting == "multi" else (cell.setting,))


def test_names_are_unique_and_methods_stay_where_they_make_sense() -> None:
    assert len({cell.name for cell in EVERYTHING}) == len(EVERYTHING)
    assert not any(cell.dataset == "gamma" and "mirai" in cell.method for cell in EVERYTHING)
    assert not any(cell.dataset != "gamma" and cell.method.startswith("eye") for cell in EVERYTHING)


@pytest.mark.parametrize("preset", ["smoke", "paper"])
def test_every_cell_has_a_configuration_that_builds(preset: str, tmp_path: Path) -> None:
    import torch

    from m4oe_ds.models import build

    for cell in EVERYTHING:
        path = plan(tmp_path, preset).config(cell.dataset)
        config = config_loader.load(path, [*cell.overrides, "model.embedder.weights="])
        assert config.run.seed == 0
        with torch.device("meta"):
            build(config)


def test_every_system_has_its_own_encoders_in_the_native_regime(tmp_path: Path) -> None:
    import torch

    from m4oe_ds.models import build

    size = {"eyestar": 21_284_672}  # ResNet-34 of the fundus; the others have a ResNet-18
    for cell in enumerate_cells(list(QUESTIONS), list(METHODS), [0], ["multi"], "native"):
        name = METHODS[cell.method].model
        assert cell.regime == ("vit" if name == "m4oe" else "native")
        if name == "m4oe":
            continue
        config = config_loader.load(plan(tmp_path).config(cell.dataset), cell.overrides)
        with torch.device("meta"):
            model: Any = build(config)
        first, *others = (encoder.backbone for encoder in model.encoders.by_modality.values())
        if name == "eyemost":
            assert [type(part).__name__ for part in (first, *others)] == ["ResNet", "VolumeResNet10"]
            assert type(first.layer1[0]).__name__ == "Bottle2neck"  # of Res2Net
        else:
            assert sum(p.numel() for p in first.parameters()) == size.get(name, 11_176_512), cell.name


def test_seeds_regimes_and_sweeps() -> None:
    cells = enumerate_cells(["embed"], ["ours", "mirai"], [3, 4], ["multi"], "native", ["run.max_steps=2"])
    assert [(cell.method, cell.seed) for cell in cells] == [("ours", 3), ("ours", 4), ("mirai", 3), ("mirai", 4)]
    assert all("run.max_steps=2" in cell.overrides for cell in cells)
    assert ["model.regime=native" in cell.overrides for cell in cells] == [False, False, True, True]
    swept = enumerate_cells(["embed"], ["ours"], [0], sweeps=["experts=16,32", "alpha=0.1"])
    assert [cell.sweep for cell in swept] == ["experts=16", "experts=32", "alpha=0.1"]
    assert [cell.overrides[-2] for cell in swept] == [
        "model.mtoe.num_experts=16",
        "model.mtoe.num_experts=32",
        "loss.alpha=0.1",
    ]
    for text in ("experts", "experts=", "depth=1"):
        with pytest.raises(ConfigError, match="--sweep"):
            parse_sweep(text)


@pytest.mark.parametrize(("arguments", "word"), [(["imagenet"], "data set"), (["embed", "resnet"], "method")])
def test_unknown_names_are_refused(arguments: list[str], word: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown {word}"):
        enumerate_cells(arguments[:1], arguments[1:] or ["ours"], [0])


def test_a_folder_is_recognised_by_what_it_was_made_from(tmp_path: Path) -> None:
    import json

    cell = Cell("embed", "ours", "multi", 0, ("run.seed=0",))
    where = plan(tmp_path)
    assert run.state(cell, where) == "new"
    folder = tmp_path / "cells" / cell.name
    folder.mkdir(parents=True)
    (folder / "cell.json").write_text(json.dumps(run.identity(cell, where)))
    assert run.state(cell, where) == "started"
    (folder / "error.txt").write_text("x")
    assert run.state(cell, where) == "failed"
    (folder / "metrics.json").write_text("{}")
    assert run.state(cell, where) == "done"
    assert run.run_cell(cell, where) == ""  # nothing is run again
    with pytest.raises(ConfigError, match="other settings"):
        run.state(Cell("embed", "ours", "multi", 0, ("run.seed=0", "loss.alpha=0.5")), where)


def test_a_preset_without_a_data_set_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="preset small has no data set gamma"):
        plan(tmp_path, "small").config("gamma")


def test_dry_run_and_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--dry-run", "--datasets", "gamma", "--methods", "ours", "--output", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "3 cells"
    assert "gamma-cup-ours-seed0" in lines[1]
    assert main(["compare", "--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(METHODS)
