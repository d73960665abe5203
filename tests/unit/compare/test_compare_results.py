"""Tables from result folders whose figures are known: means, spreads, paired differences, baselines, holes."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from m4oe_ds.cli import main
from m4oe_ds.compare import results, tables
from m4oe_ds.compare.cells import Cell, enumerate_cells
from m4oe_ds.data.cards import find_card
from m4oe_ds.errors import DataError
from m4oe_ds.evaluation.intervals import resampled_indices
from m4oe_ds.evaluation.metrics import evaluate_split

COUNT = 60
TASKS = find_card("vindr").tasks


def write(folder: Path, cell: Cell, skill: float, keys_from: int = 0) -> dict[str, float]:
    """A finished run whose answers are right with probability ``skill``; its accuracies."""
    random = np.random.default_rng([cell.seed, int(100 * skill)])
    labels_of = np.random.default_rng(7)  # the same test set for everybody
    keys = np.array([f"vindr-{i + keys_from:016x}-l" for i in range(COUNT)])
    arrays: dict[str, np.ndarray] = {"keys": keys, "groups": np.array([f"g{i // 2}" for i in range(COUNT)])}
    for task in TASKS:
        label = labels_of.integers(-1, task.num_classes, COUNT)
        answer = np.where(
            random.random(COUNT) < skill, np.maximum(label, 0), random.integers(0, task.num_classes, COUNT)
        )
        arrays[f"label_{task.name}"] = label
        arrays[f"prob_{task.name}"] = 0.1 + 0.9 * np.eye(task.num_classes)[answer]
    run = folder / "cells" / cell.name
    (run / "predictions").mkdir(parents=True)
    np.savez(run / "predictions" / "test.npz", **arrays)  # type: ignore[arg-type]
    metrics = evaluate_split(arrays, TASKS, resamples=0)
    (run / "metrics.json").write_text(json.dumps({"test": metrics}))
    return {name: entry["metrics"]["accuracy"]["value"] for name, entry in metrics["tasks"].items()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Cell], dict[str, dict[str, float]]]:
    folder = tmp_path_factory.mktemp("compare")
    cells = enumerate_cells(["vindr"], ["mirai", "ours", "aide"], [0, 1, 2], ["multi"])
    skills = {"mirai": 0.3, "ours": 0.9}
    accuracy = {cell.name: write(folder, cell, skills[cell.method]) for cell in cells if cell.method in skills}
    return folder, cells, accuracy


def test_means_spreads_and_holes(made: tuple) -> None:
    folder, cells, accuracy = made
    figures, missing = results.collect(cells, folder, resamples=200)
    assert {cell.method for cell in missing} == {"aide"}
    for method in ("mirai", "ours"):
        for task in ("density", "birads"):
            (found,) = [f for f in figures if (f.method, f.task, f.metric) == (method, task, "accuracy")]
            values = [accuracy[f"vindr-multi-{method}-seed{seed}"][task] for seed in (0, 1, 2)]
            assert found.values == pytest.approx(values)
            assert found.mean == pytest.approx(statistics.mean(values))
            assert found.spread == pytest.approx(statistics.stdev(values))
            assert found.seeds == (0, 1, 2)
            assert (found.difference is None) == (method == "ours")
    (mirai,) = [f for f in figures if (f.method, f.task, f.metric) == ("mirai", "density", "accuracy")]
    (ours,) = [f for f in figures if (f.method, f.task, f.metric) == ("ours", "density", "accuracy")]
    assert mirai.difference == pytest.approx(mirai.mean - ours.mean)
    assert mirai.high < 0
    assert mirai.p < 0.02
    assert mirai.majority == ours.majority


def test_auroc_is_compared_by_patients_too(made: tuple) -> None:
    folder, cells, _ = made
    figures, _ = results.collect(cells, folder, resamples=200)
    found = {f.method: f for f in figures if f.metric == "auroc" and f.task == "density"}
    assert found["ours"].difference is None
    assert found["mirai"].difference == pytest.approx(found["mirai"].mean - found["ours"].mean)
    assert found["mirai"].low < found["mirai"].difference < found["mirai"].high < 0
    assert found["mirai"].p < 0.02
    # one resample by hand: the same patients for both systems and all seeds
    (once,) = [
        f
        for f in results.collect(cells, folder, resamples=1)[0]
        if (f.metric, f.task, f.method) == ("auroc", "density", "mirai")
    ]
    means = []
    for method in ("mirai", "ours"):
        values = []
        for seed in (0, 1, 2):
            with np.load(folder / "cells" / f"vindr-multi-{method}-seed{seed}" / "predictions" / "test.npz") as arrays:
                known = arrays["label_density"] >= 0
                labels, probability, groups = (arrays[n][known] for n in ("label_density", "prob_density", "groups"))
            (rows,) = resampled_indices(groups, 1, 0)
            values += [roc_auc_score(labels[rows] == k, probability[rows, k]) for k in range(4)]
        means.append(statistics.mean(values))
    assert once.low == pytest.approx(means[0] - means[1])


def test_table_in_the_papers_layout(made: tuple) -> None:
    folder, cells, _ = made
    figures, _ = results.collect(cells, folder, resamples=50)
    rows = tables.table1(figures)
    assert rows[0] == ["setting", "method", "vindr density", "paper, real data", "vindr birads", "paper, real data"]
    assert rows[1][1] == "majority class"
    by_label = {row[1]: row for row in rows[2:]}
    assert set(by_label) == {"Mirai", "Ours"}
    assert by_label["Ours"][3] == "89.6"
    assert by_label["Mirai"][5] == "65.9"
    assert "±" in by_label["Ours"][2]
    assert "p 0." in by_label["Mirai"][2]
    assert "(" not in by_label["Ours"][2]
    text = tables.write("table1", rows, folder)
    assert text.splitlines()[1].count("---") == len(rows[0])
    assert (folder / "table1.csv").read_text().startswith("setting,method")


def test_other_test_samples_are_refused(tmp_path: Path) -> None:
    cells = enumerate_cells(["vindr"], ["mirai", "ours"], [0], ["multi"])
    write(tmp_path, cells[0], 0.3)
    write(tmp_path, cells[1], 0.9, keys_from=5)
    with pytest.raises(DataError, match="different test samples"):
        results.collect(cells, tmp_path, resamples=5)


def test_sweeps_become_rows_in_the_order_of_their_values(tmp_path: Path) -> None:
    cells = enumerate_cells(["vindr"], ["ours"], [0], sweeps=["experts=32,8"])
    for cell, skill in zip(cells, (0.9, 0.4), strict=True):
        write(tmp_path, cell, skill)
    figures, missing = results.collect(cells, tmp_path)
    assert not missing
    rows = [row for row in tables.sweep_rows(figures)[1:] if row[4:6] == ["density", "accuracy"]]
    assert [row[1] for row in rows] == ["8", "32"]
    assert float(rows[0][6]) < float(rows[1][6])


def test_collect_prints_tables_and_names_what_is_missing(made: tuple, capsys: pytest.CaptureFixture[str]) -> None:
    folder, cells, _ = made
    from m4oe_ds.compare import run

    plan = run.CellPlan(folder, "smoke", "ds_configs/zero2.json", 1, 60.0)
    for cell in cells:
        if cell.method != "aide":
            (folder / "cells" / cell.name / "cell.json").write_text(json.dumps(run.identity(cell, plan)))
    options = ["--datasets", "vindr", "--methods", "mirai,ours,aide", "--seeds", "0,1,2", "--settings", "multi"]
    assert main(["compare", *options, "--collect", "--output", str(folder)]) == 1
    text = capsys.readouterr().out
    assert "SYNTHETIC" in text
    assert "missing: vindr-multi-aide-seed2" in text
    assert "6 of 9 cells" in text
    content = json.loads((folder / "results.json").read_text())
    assert content["synthetic"] is True
    assert len(content["missing"]) == 3
