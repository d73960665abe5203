"""A card with a task of every kind through model, objective, training and predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m4oe_ds import config_loader
from m4oe_ds.data.cards import parse_card
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.task_statistics import TaskStatistics, statistics_of
from m4oe_ds.errors import ConfigError
from m4oe_ds.evaluation.inference import overlap, predict_split
from m4oe_ds.evaluation.metrics import evaluate_split
from m4oe_ds.evaluation.metrics_text import format_table
from m4oe_ds.losses import binary_cross_entropy_dice
from m4oe_ds.losses.objective import Objective
from m4oe_ds.models import available, build, spec_for
from m4oe_ds.models.heads import SegmentationHead
from m4oe_ds.runs.objective import objective
from m4oe_ds.yaml_tree import parse_tree
from tests.distributed import problem
from tests.integration import shards, six_kinds

CPU = torch.device("cpu")
SHAPES = {"make": (3,), "lit": (2,), "grade": (4,), "age": (1,), "failure": (3,), "parts": (2, 16, 16)}
STATISTICS = {
    "make": TaskStatistics(9, (3, 3, 3)),
    "lit": TaskStatistics(9, (4, 5)),
    "grade": TaskStatistics(9, (3, 2, 2, 2)),
    "age": TaskStatistics(9, centre=80.0, spread=12.0, median=79.0),
    "failure": TaskStatistics(9, risks=(0.1, 0.3, 0.5), events=4),
    "parts": TaskStatistics(9),
}

REFUSING = {
    "asymmirai": "asymmirai does not fit .*: it predicts no masks, and parts is one",
    "eyemost": "it answers with classes and masks only, and age is of kind number",
    "eyestar": "it answers with classes and masks only, and age is of kind number",
    "mirai": "it tells its inputs apart by their view .* and the card gives front view none",
}


def config(folder: Path, *overrides: str) -> Any:
    path = six_kinds.card(folder)
    return problem.config("data.modalities=[]", f"data.dataset={path}", *overrides)


def learnt(model: torch.nn.Module, goal: Objective, batches: list[Any], steps: int, rate: float) -> list[float]:
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    losses = []
    for step in range(steps):
        batch = batches[step % len(batches)]
        optimizer.zero_grad()
        parts = goal.task_parts(model(batch), batch).values()
        value = torch.stack([part.sum / part.count.clamp_min(1) for part in parts]).sum()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    return losses


def test_the_card_has_every_kind() -> None:
    card = parse_card(parse_tree(six_kinds.CARD, "lamps.yaml"), "lamps.yaml")
    assert tuple(task.kind for task in card.tasks) == six_kinds.KINDS


@pytest.mark.parametrize("switch", ["model.use_mtoe=true", "model.use_mtoe=false"])
def test_every_head_answers_in_its_shape_and_gets_a_gradient(tmp_path: Path, switch: str) -> None:
    cfg = config(tmp_path, switch)
    spec = spec_for(cfg)
    model, goal = build(cfg), objective(cfg, spec, STATISTICS, CPU)
    batch = problem.samples(spec, 8, seed=1)
    output = model(batch)
    assert {name: tuple(logits.shape[1:]) for name, logits in output.logits.items()} == SHAPES
    for name in spec.task_names:
        model.zero_grad()
        part = goal.task_parts(model(batch), batch)[name]
        part.sum.backward()
        touched = {
            task: any(p.grad is not None and bool(p.grad.any()) for p in model.heads[task].parameters())
            for task in spec.task_names
        }
        assert touched == {task: task == name for task in spec.task_names}
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.heads[name].parameters())


def test_tasks_of_other_kinds_leave_the_initial_values_of_the_old_ones() -> None:
    """A model of shipped cards is what it was: the heads are made in the order of the tasks, of the same layers."""
    cfg = problem.config()
    model = build(cfg)
    assert sorted(name for name, _ in model.heads["density"].named_parameters()) == [
        "classify.bias",
        "classify.weight",
        "norm.bias",
        "norm.weight",
        "project.bias",
        "project.weight",
    ]


@pytest.mark.parametrize("name", available())
def test_every_system_takes_the_card_or_says_why_not(tmp_path: Path, name: str) -> None:
    path = six_kinds.card(tmp_path)
    extra = ("data.contralateral=true",) if name == "asymmirai" else ()
    chosen = ("data.modalities=[]", f"data.dataset={path}", f"model.name={name}", *extra)
    if name in REFUSING:
        with pytest.raises(ConfigError, match=REFUSING[name]):
            problem.config(*chosen)
        return
    cfg = problem.config(*chosen)
    spec = spec_for(cfg)
    model = build(cfg)
    goal = objective(cfg, spec, STATISTICS, CPU)
    batch = problem.samples(spec, 4, seed=1)
    output = model(batch)
    assert {task: tuple(logits.shape[1:]) for task, logits in output.logits.items()} == SHAPES
    parts = goal.task_parts(output, batch)
    assert all(bool(part.sum.isfinite()) for part in parts.values())


VECTORS = "data.tasks=[make, lit, grade, age, failure]"


def opened(tmp_path: Path, sizes: dict[str, int], *overrides: str) -> tuple[Any, Any, Path]:
    """Configuration, specification and shards of the lamps."""
    path, folder = six_kinds.write(tmp_path, sizes)
    cfg = config_loader.load(
        None,
        (*six_kinds.SMALL, f"data.dataset={path}", f"data.root={folder}", "data.image_size=[16, 16]", *overrides),
    )
    return cfg, spec_for(cfg), folder


def test_numbers_survival_and_classes_are_learnt_from_shards(tmp_path: Path) -> None:
    """Shards, training, predictions and metrics, each next to its baseline."""
    cfg, spec, folder = opened(tmp_path, {"train": 60, "test": 40}, VECTORS)
    train = Manifest.load(folder / "train")
    statistics = statistics_of(train, spec.tasks)
    values = train.sample_values("age")
    assert statistics["age"].centre == pytest.approx(float(np.nanmean(values)))
    assert statistics["age"].spread == pytest.approx(float(np.nanstd(values)))
    assert statistics["age"].median == pytest.approx(float(np.nanmedian(values)))
    goal = objective(cfg, spec, statistics, CPU)
    model = build(cfg)
    batches = list(shards.stream(folder / "train", spec, 20).evaluation())
    losses = learnt(model, goal, batches, 90, 5e-3)
    assert losses[-1] < 0.7 * losses[0]
    stream = shards.stream(folder / "test", spec, 16).evaluation()
    arrays = predict_split(model.eval(), stream, spec, goal, CPU, torch.float32).arrays()
    report = evaluate_split(arrays, spec.tasks, resamples=20, train=statistics)["tasks"]
    kinds = ["classification", "classification", "classification", "number", "survival"]
    assert [entry["kind"] for entry in report.values()] == kinds
    assert report["age"]["metrics"]["mae"]["value"] < 0.6 * report["age"]["baseline"]["mae"]
    assert report["age"]["baseline"]["value"] == statistics["age"].median
    assert report["age"]["beats_chance"]
    failure = report["failure"]
    assert failure["metrics"]["uno_c"]["value"] > 0.6
    assert failure["baseline"]["risks"] == list(statistics["failure"].risks)
    assert report["grade"]["metrics"]["class_error"]["value"] < report["grade"]["baseline"]["class_error"]
    known, manifest = np.isfinite(arrays["label_age"]), Manifest.load(folder / "test")
    stored = manifest.sample_values("age")[manifest.sample_known("age")]
    np.testing.assert_allclose(np.sort(arrays["label_age"][known]), np.sort(stored), 1e-6)
    assert ((arrays["risk_failure"] >= 0) & (arrays["risk_failure"] <= 1)).all()
    assert (np.diff(arrays["risk_failure"], axis=1) >= 0).all()


def test_predictions_of_every_kind_are_scored_and_told(tmp_path: Path) -> None:
    cfg, spec, folder = opened(tmp_path, {"train": 12, "test": 12})
    statistics = statistics_of(Manifest.load(folder / "train"), spec.tasks)
    goal = objective(cfg, spec, statistics, CPU)
    batches = list(shards.stream(folder / "test", spec, 6).evaluation())
    outputs = []

    def forward(batch: Any) -> Any:
        outputs.append((batch, model(batch)))
        return outputs[-1][1]

    model = build(cfg).eval()
    found = predict_split(forward, batches, spec, goal, CPU, torch.float32)
    rows = {key: row for row, key in enumerate(found.keys.tolist())}
    for batch, output in outputs:
        for b, key in enumerate(batch.keys):
            row, known = rows[key], batch.label_mask[b].tolist()
            value = float(output.logits["age"][b, 0]) * statistics["age"].spread + statistics["age"].centre
            assert found.values["age"][row] == pytest.approx(value, rel=1e-5)
            assert np.isfinite(found.labels["age"][row]) == known[3]
            assert np.isfinite(found.labels["failure"][row]).all() == known[4]
            assert np.isfinite(found.dice["parts"][row]).all() == known[5] == (batch.labels["parts"][b].sum() > 0)
            if known[5]:
                a, t = (output.logits["parts"][b] > 0).flatten(1), batch.labels["parts"][b].flatten(1) > 0
                dice = 2 * (a & t).sum(1) / (a.sum(1) + t.sum(1))
                np.testing.assert_allclose(found.dice["parts"][row], dice, rtol=1e-5)
                np.testing.assert_allclose(found.areas["parts"][row], t.float().mean(1), rtol=1e-5)
    report = evaluate_split(found.arrays(), spec.tasks, resamples=10, train=statistics)["tasks"]
    masks = report["parts"]
    assert masks["n"] == 9
    assert set(masks["metrics"]) == {"dice", "dice_bulb", "dice_socket"}
    assert 0 < masks["baseline"]["dice_socket"] < masks["baseline"]["dice_bulb"] < 1
    table = format_table({"tasks": report})
    assert max(map(len, table.splitlines())) <= 120
    for said in ("months", "training median", "Uno's C", "within 2.5 years", "Dice bulb", "the whole picture"):
        assert said in table, table


@pytest.mark.parametrize(("grid", "size"), [((2, 2), (16, 20)), ((2, 2, 2), (8, 16, 12))])
def test_the_mask_head_learns_masks_of_several_classes(grid: tuple[int, ...], size: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    head = SegmentationHead(8, grid, size, classes=2, channels=16)
    tokens, target = torch.randn(2, 2 ** len(grid), 8), torch.zeros(2, 2, *size)
    target[0, 0, : size[0] // 2] = target[1, 0, size[0] // 2 :] = 1  # the first class changes its side
    target[:, 1, ..., : size[-1] // 2] = 1
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        part = binary_cross_entropy_dice(head(tokens), target, torch.ones(2, dtype=torch.bool))
        part.sum.backward()
        optimizer.step()
    assert head(tokens).shape == target.shape
    assert float(overlap(head(tokens) > 0, target > 0, 2).min()) > 0.9
