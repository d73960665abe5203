"""What `m4oe analyze` adds to a run folder is in the report: clinical tables, maps, gallery, figures with captions."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from m4oe_ds.data.cards import find_card
from m4oe_ds.evaluation.clinical import write_report
from m4oe_ds.report import clinical_tables
from m4oe_ds.report.clinical_tables import number
from m4oe_ds.report.figures import view_png
from m4oe_ds.report.html import render
from m4oe_ds.report.words import Words
from m4oe_ds.runs.folder import RunFolder
from tests.unit.report.test_html import MODALITIES, TASKS, Tags, fill


def gallery() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {
        "keys": np.array(["embed-0000000000000001-l", "another"]),
        "present": np.array([[True] * 4, [True, True, False, True]]),
        "modalities": np.array(MODALITIES),
        "tasks": np.array([task.name for task in TASKS]),
        "expert_usage": np.full(3, 1 / 3),
        "expert_weight": random.random((3, 2)).astype(np.float32),
        "expert_source": random.integers(0, 4, (3, 2, 2)),
        "expert_patch": random.integers(0, 255, (3, 2, 9, 9)).astype(np.uint8),
    }
    for i in range(4):
        arrays[f"view_{i}"] = random.integers(0, 255, (2, 16, 14)).astype(np.uint8)
        arrays[f"map_{i}"] = random.random((2, len(TASKS), 2, 2)).astype(np.float32) / 16
    return arrays


def filled(parent: Path) -> Path:
    """A run folder with made-up numbers and what ``m4oe analyze`` adds."""
    run = fill(parent / "run")
    files = RunFolder(run)
    own, tuning = files.predictions("test"), files.predictions("val")
    write_report(files.clinical, own, tuning, "test", "", TASKS, resamples=5, card=find_card("embed"))
    (run / "analysis").mkdir()
    np.savez(run / "analysis" / "gallery.npz", **gallery())
    (run / "figures").mkdir(exist_ok=True)
    for name in ("fig3bc_utilisation", "fig3a_competition_density", "fig3a_competition_risk1", "fig4_synergy"):
        (run / "figures" / f"{name}.png").write_bytes(view_png(np.zeros((30, 700), dtype=np.uint8)))
    (run / "figures" / "fig3bc_utilisation.csv").write_text("model,modality,share\nm4oe,ffdm_cc,0.123456789\n")
    columns = "model,task,modality1,modality2,target,estimator,redundancy,unique1,unique2,synergy,total,null_q95"
    (run / "figures" / "fig4_synergy.csv").write_text(columns + "\nm,t,a,b,x,y,1,2,3,0.25,5,0.125\n")
    table = [
        {"reference": "truth", "explanation": "routing", "level": "sample", "spearman": 0.33, "low": 0.2, "high": 0.45},
        {"reference": "truth", "explanation": "saliency", "level": "sample", "spearman": 0.5, "low": 0.4, "high": 0.6},
        {
            "reference": "ablation",
            "explanation": "routing",
            "level": "sample",
            "spearman": 0.1,
            "low": -0.1,
            "high": 0.3,
        },
    ]
    skipped = {"sweep": "no sweep given"}
    (run / "analysis.json").write_text(
        json.dumps({"split": "test", "interpretability": {"table": table}, "skipped": skipped})
    )
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return filled(tmp_path_factory.mktemp("report"))


def test_everything_is_in_the_report(folder: Path) -> None:
    text = render(folder).read_text()
    tags = Tags()
    tags.feed(text)
    assert not tags.open
    assert tags.undescribed == 0
    for phrase in (
        "agree weakly with the planted truth of the synthetic data: Spearman coefficient 0.33 [0.20, 0.45]",
        "agree not demonstrably with what leaving a modality out",
        "saliency 0.50",
        "sweep (no sweep given)",
        "<td>0.1235</td>",
        "<td>0.25</td><td>0.125</td>",
    ):
        assert phrase in text, phrase
    for phrase in (
        "Clinical figures, test split",
        "Operating points",
        "Calibration",
        "Subgroups: Side",
        "not which pixels",
        "in the black of a picture",
        "Expert gallery",
        "Modality utilisation (Fig. 3b, c)",
    ):
        assert phrase in text, phrase
    assert text.count("<h3>Modality competition") == 2
    assert "<details><summary>" not in text.partition('id="clinical"')[2].partition('id="contribution"')[0]  # open
    assert "Ablation (Fig. 7)" not in text  # not drawn
    assert "run <code>m4oe analyze" not in text
    for name in ("calibration", "experts", "dispatch_map_1", "dispatch_map_2"):
        for kind in ("png", "svg", "csv"):
            assert (folder / "figures" / f"{name}.{kind}").is_file()


def test_a_run_that_was_not_analysed_says_how(tmp_path: Path) -> None:
    text = render(fill(tmp_path / "run")).read_text()
    assert "run <code>m4oe analyze</code>" in text
    assert "analysis" not in text.split("Not in this run folder")[-1][:200]


def test_tables_hold_every_figure(folder: Path) -> None:
    clinical = json.loads((folder / "clinical.json").read_text())
    tables = {table["title"]: table for table in clinical_tables.from_report(clinical, Words(find_card("embed")))}
    binary = [task for task in TASKS if task.num_classes == 2]
    assert len(tables["Operating points"]["rows"]) == 2 * len(binary)  # no validation predictions here
    assert {row[2] for row in tables["Operating points"]["rows"]} == {"evaluated data"}
    assert len(tables["Calibration"]["rows"]) == len(TASKS)
    assert tables["Subgroups: Side"]["header"] == ["task", "Left"]
    assert tables["Subgroups: Breast density"]["header"][1] == "A"
    cell = tables["Subgroups: Side"]["rows"][1]
    assert cell[0] == "Cancer within 1 year"
    assert re.fullmatch(r"(–|0\.\d+ \[.*\])\n\d+ of \d+ patients", cell[1])
    assert all(len(row) == len(table["header"]) for table in tables.values() for row in table["rows"])


def test_numbers_and_reasons() -> None:
    assert number({"value": 0.8123, "low": 0.701, "high": 0.9}) == "0.812 [0.70, 0.90]"
    assert number({"value": 1.5, "low": None, "high": None}) == "1.500"
    assert number({"value": None, "reason": "one class only"}) == "– (one class only)"
    assert number(None) == "–"
