"""A small but complete M4oE problem: every layer kind, two modalities, missing labels spread unevenly over samples."""

from __future__ import annotations

from typing import Any

import torch

from m4oe_ds import config_loader, deepspeed_json
from m4oe_ds.config import Config
from m4oe_ds.data.batch import Batch
from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.data.task_statistics import TaskStatistics
from m4oe_ds.losses.objective import Objective
from m4oe_ds.models import spec_for
from m4oe_ds.models.interface import ModelSpec
from m4oe_ds.runs import objective as assembled

TINY = (
    "data.modalities=[ffdm_cc, syn_mlo]",
    "model.dim=16",
    "model.embedder.backbone=vit_tiny_patch16_224",
    "model.embedder.options={patch_size: 8, embed_dim: 16, depth: 1, num_heads: 2}",
    "model.router.scale_init=8",
    "data.image_size=[16, 16]",
    "model.msoe={num_experts: 4, depth: 1, num_heads: 2}",
    "model.mtoe={num_experts: 8, num_heads: 2}",
    "model.fusion={num_experts: 4, depth: 1, num_heads: 2}",
)


def config(*overrides: str) -> Config:
    """The small M4oE, or the system named, with the other side where it compares both; all seven EMBED tasks."""
    sides = ("data.contralateral=true",) if "model.name=asymmirai" in overrides else ()
    return config_loader.load(None, (*TINY, *sides, *overrides))


def samples(spec: ModelSpec, count: int, seed: int) -> Batch:
    """``count`` random samples; the first quarter has no labels at all, one modality is absent here and there."""
    generator = torch.Generator().manual_seed(seed)
    height, width = spec.image_size
    labels, mask = {}, torch.rand(count, len(spec.tasks), generator=generator) < 0.6
    mask[: count // 4] = False
    for k, task in enumerate(spec.tasks):
        if not task.coded:
            labels[task.name] = _uncoded(task, count, spec, generator)
            continue
        drawn = torch.randint(task.num_classes, (count,), generator=generator)
        labels[task.name] = torch.where(mask[:, k], drawn, torch.full_like(drawn, -1))
    present = torch.rand(count, len(spec.modalities), generator=generator) < 0.8
    present[:, 0] = True
    views = {
        name: torch.randn(count, channels, height, width, generator=generator) * present[:, i, None, None, None]
        for i, (name, channels) in enumerate(zip(spec.modalities, spec.channels, strict=True))
    }
    return Batch(
        views,
        present,
        labels,
        mask,
        torch.ones(count, dtype=torch.bool),
        tuple(f"k{i}" for i in range(count)),
        tuple(f"g{i}" for i in range(count)),
        spec.modalities,
        spec.task_names,
        _other_breast(views, present, generator),
    )


def _uncoded(task: TaskSpec, count: int, spec: ModelSpec, generator: torch.Generator) -> torch.Tensor:
    """Masks; numbers around 80; times up to beyond the last horizon, half of them of events."""
    shape = (count, *spec.answer_shape(task))
    drawn = torch.rand(shape, generator=generator)
    if task.dense:
        return (drawn < 0.3).float()
    if task.kind == "survival":
        return torch.stack([drawn[:, 0] * 1.3 * task.horizons[-1], (drawn[:, 1] < 0.5).float()], 1)
    return 80 + 12 * drawn


def _other_breast(
    views: dict[str, torch.Tensor], present: torch.Tensor, generator: torch.Generator
) -> dict[str, torch.Tensor]:
    """What ``data.contralateral`` adds to a batch: a different image wherever there is one."""
    extras = {
        f"contralateral.{name}": torch.randn(view.shape, generator=generator) * present[:, i, None, None, None]
        for i, (name, view) in enumerate(views.items())
    }
    return {**extras, "contralateral_present": present.clone()}


def part(batch: Batch, start: int, stop: int) -> Batch:
    """Rows ``start`` to ``stop`` of a batch."""
    return Batch(
        {name: view[start:stop] for name, view in batch.views.items()},
        batch.present[start:stop],
        {name: label[start:stop] for name, label in batch.labels.items()},
        batch.label_mask[start:stop],
        batch.valid[start:stop],
        batch.keys[start:stop],
        batch.groups[start:stop],
        batch.modalities,
        batch.tasks,
        {name: extra[start:stop] for name, extra in batch.extras.items()},
    )


def objective(spec: ModelSpec, alpha: float = 0.05) -> Objective:
    """The objective of a default configuration: cross-entropy for every task (masks: with Dice), and information."""
    return objective_of_run(config(f"loss.alpha={alpha}"), spec)


def objective_of_run(cfg: Config, spec: ModelSpec) -> Objective:
    """What a run of this configuration trains; the labels that class weights are made from are random."""
    return assembled.objective(cfg, spec, statistics(samples(spec, 64, seed=0), spec), torch.device("cpu"))


def statistics(batch: Batch, spec: ModelSpec) -> dict[str, TaskStatistics]:
    """What the labels of a batch say, were they the training split."""
    found = {}
    for k, task in enumerate(spec.tasks):
        known = batch.label_mask[:, k]
        counts = torch.bincount(batch.labels[task.name][known], minlength=task.num_classes) if task.coded else []
        scale = {"centre": 86.0, "spread": 3.5, "median": 86.0} if task.kind == "number" else {}
        found[task.name] = TaskStatistics(int(known.sum()), tuple(map(int, counts)), **scale)
    return found


def deepspeed_config(stage: int, train: int, accumulation: int, clipping: float, **extra: Any) -> dict[str, Any]:
    """fp32 Adam under ZeRO ``stage``."""
    return {
        "train_batch_size": train,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clipping,
        "optimizer": {
            "type": "Adam",
            "params": {"lr": 1e-3, "torch_adam": True, "adam_w_mode": False},
        },
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": 1000000,
            "allgather_bucket_size": 1000000,
            "stage3_prefetch_bucket_size": 100000,
            "stage3_param_persistence_threshold": 500,  # biases and norms stay, everything larger is partitioned
            "overlap_comm": False,
        },
        **extra,
    }


def trajectory(
    cfg: Config, ds: dict[str, Any], steps: int, rank: int, world: int, seed: int = 1, **options: Any
) -> list[dict[str, Any]]:
    """Global figures of ``steps`` optimizer steps; the samples of a step do not depend on the world size."""
    from m4oe_ds.training import engine as engines
    from m4oe_ds.training.step import train_step

    sizes = deepspeed_json.batch_sizes(ds, world, "test")
    engine, _ = engines.create(cfg, ds, sizes, world)
    engine.train()
    spec = spec_for(cfg)
    goal = objective_of_run(cfg, spec)
    figures = []
    for step in range(steps):
        everything = samples(spec, sizes.train, seed=seed * 1000 + step)
        micro = sizes.micro
        batches = [
            part(everything, (a * world + rank) * micro, (a * world + rank + 1) * micro)
            for a in range(sizes.accumulation)
        ]
        figures.append(train_step(engine, batches, goal, torch.float32, **options).collect(goal))
    engine.destroy()
    return figures
