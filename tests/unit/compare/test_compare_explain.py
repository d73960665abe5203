"""Agreement of explanations over seeds: gathered from the analyses of cells, undefined ones left out, failed named."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from m4oe_ds.cli import main
from m4oe_ds.compare import explain, run
from m4oe_ds.compare.cells import Cell, enumerate_cells


def score(value: float | None, planted: float = 0.7) -> dict[str, Any]:
    number = {"n": 9, "pearson": value, "spearman": value, "kendall": value}
    return {
        "sample": {"density": number, "all": number},
        "within": {"density": number, "all": number},
        "population": number,
        "means": {"explanation": [[0.6, 0.4]], "reference": [[planted, 1 - planted]]},
    }


def analysis(truth: float | None, ablation: float, information: float) -> dict[str, Any]:
    scores = {"truth": {"routing": score(truth)}, "ablation": {"routing": score(ablation)}}
    return {
        "modalities": ["ffdm_cc", "ffdm_mlo"],
        "tasks": ["density"],
        "interpretability": {"scores": scores},
        "utilisation": {"layer": "mtoe", "information_k": [information, 0.0], "utilisation_largest": 0.5},
    }


@pytest.fixture
def finished(tmp_path: Path) -> tuple[list[Cell], run.CellPlan]:
    """Three finished seeds of ours, the third without an analysis; a single-task cell, which is never analysed."""
    cells = enumerate_cells(["embed"], ["ours"], [0, 1, 2], ["multi"]) + enumerate_cells(
        ["embed"], ["ours"], [0], ["single"]
    )
    plan = run.CellPlan(tmp_path, "smoke", "ds_configs/zero2.json", 1, 60.0)
    for cell in cells:
        folder = plan.of(cell)
        folder.mkdir(parents=True)
        (folder / "cell.json").write_text(json.dumps(run.identity(cell, plan)))
        (folder / "metrics.json").write_text("{}")
    for cell, content in zip(cells, [analysis(0.5, 0.1, 0.2), analysis(0.7, 0.3, 0.4)], strict=False):
        (plan.of(cell) / "analysis.json").write_text(json.dumps(content))
    return cells, plan


def test_coefficients_are_averaged_over_the_seeds_that_have_them(finished: tuple[list[Cell], run.CellPlan]) -> None:
    cells, plan = finished
    found = explain.collect(cells, plan)
    entry = next(e for e in found if (e.reference, e.level, e.task) == ("truth", "within", "density"))
    assert (entry.seeds, entry.values) == ((0, 1), (0.5, 0.7))
    assert entry.text == "+0.60 ± 0.14"
    header, row = explain.table(found)
    assert dict(zip(header, row, strict=True)) == {
        "data set": "embed",
        "system": "Ours",
        "explanation": "routing",
        "truth: sample": "+0.60 ± 0.14",
        "truth: within": "+0.60 ± 0.14",
        "truth: population": "+0.60 ± 0.14",
        "ablation: sample": "+0.20 ± 0.14",
        "ablation: within": "+0.20 ± 0.14",
        "ablation: population": "+0.20 ± 0.14",
    }
    assert explain.task_table(found)[1:] == [["embed", "density", "+0.60 ± 0.14"]]
    assert explain.share_table(cells, plan)[1] == ["embed", "density", "ffdm_cc", "0.700", "0.600"]
    assert explain.information(cells, plan)[1] == ["embed", "Ours", "mtoe", "0.1500 ± 0.0707", "0.500"]


def test_an_undefined_coefficient_is_left_out(finished: tuple[list[Cell], run.CellPlan]) -> None:
    cells, plan = finished
    (plan.of(cells[0]) / "analysis.json").write_text(json.dumps(analysis(None, 0.1, 0.2)))
    entry = next(e for e in explain.collect(cells, plan) if (e.reference, e.level) == ("truth", "population"))
    assert (entry.seeds, entry.values, entry.text) == ((1,), (0.7,), "+0.70")


def test_only_finished_multi_task_cells_without_analysis_are_analysed(
    finished: tuple[list[Cell], run.CellPlan], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cells, plan = finished
    fake = tmp_path / "python"  # what the command would say when it fails
    fake.write_text('#!/bin/sh\necho "$@"\necho error: no weights\nexit 2\n')
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    said: list[str] = []
    assert explain.analyse(cells, plan, 2, said.append) == {cells[2].name: "error: no weights"}
    assert "m4oe_ds analyze" in (plan.of(cells[2]) / "analyze.txt").read_text()
    assert len(said) == 1


def test_the_command_collects_and_fails_without_any_explanation(
    finished: tuple[list[Cell], run.CellPlan], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    chosen = ["compare", "--datasets", "embed", "--methods", "ours", "--settings", "multi", "--collect", "--explain"]
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    assert main([*chosen, "--output", str(nothing)]) == 1
    assert "no finished cell" in capsys.readouterr().out
    assert main([*chosen, "--sweep", "alpha=0,0.1", "--output", str(nothing)]) != 0
    printed = capsys.readouterr()
    assert "leave out --sweep" in printed.err
    assert not printed.out
