"""A small problem with every kind of modality: an image, a volume in 3-D with a mask, and a table with gaps."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from m4oe_ds import config_loader, deepspeed_json
from m4oe_ds.config import Config
from m4oe_ds.data.batch import Batch
from m4oe_ds.models import spec_for
from m4oe_ds.models.interface import ModelSpec
from m4oe_ds.runs.objective import objective
from m4oe_ds.training import engine as engines
from m4oe_ds.training.step import train_step
from tests.distributed import problem

CARD = """
name: kinds
modalities:
  photo: {kind: image, channels: 3}
  scan: {kind: volume}
  clinic:
    kind: table
    columns:
      age: {kind: number}
      sex: {kind: category, values: [female, male]}
      marker: {kind: number}
      ward: {kind: category, values: [a, b, c]}
tasks:
  grade: {kind: classes, classes: [low, middle, high]}
  event: {kind: binary, classes: [free, ill]}
  lesion: {kind: mask, of: scan, classes: [lesion]}
"""
TINY = (
    *problem.TINY[1:],
    "data.volume_size=[8, 16, 8]",
    "model.embedder.volume_patch=[4, 8, 4]",
)


def config(folder: Path, *overrides: str) -> Config:
    """The small M4oE of :mod:`tests.distributed.problem` on the card above, which is written into ``folder``."""
    path = folder / "card.yaml"
    if not path.is_file():
        path.write_text(CARD, encoding="utf-8")
    return config_loader.load(None, (f"data.dataset={path}", *TINY, *overrides))


def samples(spec: ModelSpec, count: int, seed: int) -> Batch:
    """``count`` random samples: labels, modalities and values of the table are missing here and there."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(count, len(spec.tasks), generator=generator) < 0.6
    present = torch.rand(count, len(spec.modalities), generator=generator) < 0.8
    present[:, 0] = True
    views, labels = {}, {}
    for i, one in enumerate(spec.inputs):
        shape = spec.shape(one.name)
        view = torch.randn(count, *shape, generator=generator)
        for k, column in enumerate(one.columns):
            if column.kind == "category":
                view[:, k, 0] = torch.randint(len(column.values), (count,), generator=generator).float()
        if one.kind == "table":
            view[..., 1] = (torch.rand(count, shape[0], generator=generator) < 0.7).float()
            view[..., 0] *= view[..., 1]
        views[one.name] = view * present[:, i].view(-1, *[1] * len(shape))
    for k, task in enumerate(spec.tasks):
        if task.dense:
            labels[task.name] = (torch.rand(count, *spec.answer_shape(task), generator=generator) < 0.3).float()
        else:
            drawn = torch.randint(task.num_classes, (count,), generator=generator)
            labels[task.name] = torch.where(mask[:, k], drawn, torch.full_like(drawn, -1))
    names = [tuple(f"{letter}{i}" for i in range(count)) for letter in "kg"]
    valid = torch.ones(count, dtype=torch.bool)
    return Batch(views, present, labels, mask, valid, names[0], names[1], spec.modalities, spec.task_names)


def with_view(batch: Batch, name: str, view: torch.Tensor) -> Batch:
    """The batch with another tensor of one modality."""
    return dataclasses.replace(batch, views={**batch.views, name: view})


def trajectory(cfg: Config, stage: int, steps: int, rank: int, world: int) -> list[tuple[float, float]]:
    """Loss and gradient norm of ``steps`` optimizer steps on 8 samples each, whatever the number of ranks."""
    ds = problem.deepspeed_config(stage, 8, 1, 0.0)
    sizes = deepspeed_json.batch_sizes(ds, world, "test")
    engine, _ = engines.create(cfg, ds, sizes, world)
    engine.train()
    spec = spec_for(cfg)
    goal = objective(cfg, spec, problem.statistics(samples(spec, 64, 0), spec), torch.device("cpu"))
    figures = []
    for step in range(steps):
        batch = problem.part(samples(spec, 8, 100 + step), rank * sizes.micro, (rank + 1) * sizes.micro)
        found = train_step(engine, [batch], goal, torch.float32).collect(goal)
        figures.append((found["loss"], found["grad_norm"]))
    engine.destroy()
    return figures
