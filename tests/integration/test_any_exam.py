"""Three data sets of one's own from tables to predictions, as a user would type it; trained on two real ranks."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from tests.integration import any_exam, commands

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]
SMALL = (
    "model.dim=16",
    "model.embedder.options={patch_size: 8, embed_dim: 16, depth: 1, num_heads: 2}",
    "model.embedder.volume_patch=[8, 8, 8]",
    "model.msoe={num_experts: 2, depth: 1, num_heads: 2}",
    "model.mtoe={num_experts: 4, num_heads: 2}",
    "model.fusion={num_experts: 2, depth: 1, num_heads: 2}",
    "data.image_size=[32, 32]",
    "data.volume_size=[16, 16, 16]",
    "run.num_epochs=2",
    "run.tensorboard=false",
    "evaluation.resamples=50",
)
FOREIGN = re.compile("breast|mammogra|fundus|glaucoma|BI-RADS|optic", re.IGNORECASE)  # words of other exams


def m4oe(*arguments: str) -> str:
    """What a command prints; it must succeed."""
    done = commands.m4oe(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def metrics_of(kind: str, run: Path) -> dict[str, float | None]:
    tasks = json.loads((run / "metrics.json").read_text())["test"]["tasks"]
    found = {name: entry["metrics"] for name, entry in tasks.items()}
    names = {
        "image_and_table": {"diagnosis": "accuracy", "thickness": "mae"},
        "volume_and_image_with_masks": {"grade": "kappa", "tumour": "dice", "cells": "dice"},
        "survival_with_gaps": {"death": "uno_c"},
    }[kind]
    return {task: found[task][metric]["value"] for task, metric in names.items()}


@pytest.mark.parametrize("kind", any_exam.MAKERS)
def test_from_a_table_to_predictions(kind: str, tmp_path: Path) -> None:
    root = tmp_path / "mine"
    card = any_exam.MAKERS[kind](root)
    shards, run, out = tmp_path / "shards", tmp_path / "run", tmp_path / "predicted"
    assert "m4oe convert --card" in m4oe("card", "check", str(card))
    assert "converted 40 samples" in m4oe("convert", "--card", str(card), "--out", str(shards), "--workers", "0")
    assert "nothing identifying found" in m4oe("inspect", str(shards), "--phi")

    settings = [f"--set={item}" for item in (*SMALL, f"data.dataset={card}", f"data.root={shards}")]
    trained = commands.train(
        ["--ds_config", str(ds_config(tmp_path)), "--config", "configs/small.yaml", "--output", str(run), *settings], 2
    )
    assert trained.returncode == 0, trained.stdout + trained.stderr
    before = metrics_of(kind, run)
    assert all(value is not None for value in before.values()), before

    card.rename(card.with_suffix(".moved"))  # a finished run explains itself
    m4oe("evaluate", str(run), "--split", "test")
    assert metrics_of(kind, run) == pytest.approx(before, abs=1e-6)
    m4oe("report", str(run))
    page = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", (run / "report.html").read_text())
    assert not FOREIGN.search(page), FOREIGN.search(page)
    assert {"image_and_table": "mm", "volume_and_image_with_masks": "brain", "survival_with_gaps": "years"}[
        kind
    ] in page

    for folder in (shards, shards.with_name("shards.mapping.csv")):  # nor does it need its shards
        folder.rename(folder.with_name(f"{folder.name}.gone"))
    secret = str(shards.with_name("shards.secret"))
    m4oe(
        "predict",
        str(run),
        "--table",
        str(root / "cases.csv"),
        "--out",
        str(out),
        "--salt-file",
        secret,
        "--workers",
        "0",
    )
    with (out / "predictions.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == any_exam.COUNT
    with shards.with_name("shards.mapping.csv.gone").open(newline="") as stream:
        assert {row["key"] for row in csv.DictReader(stream)} == {row["key"] for row in rows}
    columns = {
        "image_and_table": ["diagnosis_probability_melanoma", "thickness_value", "diagnosis_contribution_history"],
        "volume_and_image_with_masks": ["grade_predicted", "tumour_mask", "cells_mask_nest"],
        "survival_with_gaps": ["death_risk_1", "death_risk_4", "death_contribution_back"],
    }[kind]
    assert all(row[name] for row in rows for name in columns if "contribution" not in name)
    assert set(columns) <= set(rows[0])


def ds_config(folder: Path) -> Path:
    """ZeRO 2 with a batch that so few samples fill."""
    content = json.loads((commands.ROOT / "ds_configs" / "zero2.json").read_text())
    path = folder / "ds.json"
    path.write_text(json.dumps({**content, "train_batch_size": 8}))
    return path
