"""What a comparison would cost before it is run: device hours and disk, by the model behind ``m4oe plan``.

Recording a large model takes seconds, and a comparison has many: what the presets train was recorded once into
``costs.json`` (``python tools/compare_costs.py``), under a digest of the configuration. A model of other settings is
recorded when it is asked for.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from m4oe_ds import config_loader, deepspeed_json
from m4oe_ds.compare.cells import Cell
from m4oe_ds.compare.run import CellPlan, state
from m4oe_ds.config import Config, ModelConfig, to_dict
from m4oe_ds.models.registry import spec_for
from m4oe_ds.planning.candidates import Costs, evaluate
from m4oe_ds.planning.hardware import ACCELERATORS, Accelerator, Cluster, Pool
from m4oe_ds.planning.memory import Layout
from m4oe_ds.progress import Progress

TABLE = Path(__file__).with_name("costs.json")
STATE_BYTES = 12  # of a parameter in a checkpoint: master weight and two moments of Adam
WEIGHT_BYTES = 4  # of a parameter in the weights that a finished run keeps
ACCURACY = (
    "ESTIMATE of the plan's model (m4oe plan), training steps alone: validation, evaluation, start-up and reading are "
    "not in it. Its step times were 23 to 32 % off on CPUs and were never checked on a GPU; its memory was within 10 %."
)


@dataclass(frozen=True)
class ModelCost:
    """What one model costs on one device.

    Attributes:
        parameters: of the whole model.
        step_s: seconds of an optimizer step.
        memory: bytes at the peak.
        fits: whether the device has them.
    """

    parameters: int
    step_s: float
    memory: float
    fits: bool


@dataclass(frozen=True)
class CellCost:
    """A cell with what it costs.

    Attributes:
        cell: the cell.
        model: its model.
        steps: optimizer steps.
        done: whether it is trained already.
        kept: checkpoints that are there at once while it trains.
    """

    cell: Cell
    model: ModelCost
    steps: int
    done: bool
    kept: int

    @property
    def hours(self) -> float:
        """Device hours of its training."""
        return self.steps * self.model.step_s / 3600


def digest(config: Config, precision: str, batch: int) -> str:
    """What the cost of a model depends on, as a key of the table."""
    options = to_dict(config)
    # what is at its default is left out: an option that a later version adds leaves the table as it is
    model = _given(options["model"], to_dict(ModelConfig()))
    model.get("embedder", {}).pop("weights", None)
    spec = spec_for(config)
    data = [
        [[one.kind, *spec.shape(one.name)] for one in spec.inputs],
        [[task.kind, task.num_classes] for task in spec.tasks],
        config.data.contralateral,
    ]
    content = [model, data, options["loss"]["alpha"] != 0, precision, batch]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=list).encode()).hexdigest()[:12]


def _given(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, dict) and isinstance(defaults.get(name), dict) and defaults[name]:
            found[name] = _given(value, defaults[name])
        elif value != defaults.get(name):
            found[name] = value
    return {name: value for name, value in found.items() if value != {}}


def record(config: Config, precision: Any, batch: int, devices: Sequence[Accelerator]) -> dict[str, Any]:
    """Parameters, and by device step seconds, peak bytes and whether these fit, at the larger micro-batch that does.

    Args:
        config: configuration of the run.
        precision: fp32, bf16 or fp16.
        batch: samples of an optimizer step.
        devices: kinds of device.
    """
    costs, found = Costs(config), {}
    sizes = [size for size in (8, 2) if batch % size == 0] or [1]
    total = 0
    for device in devices:
        for micro in sizes:
            layout = Layout(1, 1, 2, micro, batch // micro, precision)
            one = evaluate(costs, Cluster((Pool(1, device),)), layout, config.model.activation_checkpointing)
            total = one.cost.total
            found[device.name] = [round(one.time.total, 5), round(one.memory.peak), one.fits]
            if one.fits:
                break
    return {"parameters": total, "devices": found}


@cache
def _table() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8")) if TABLE.is_file() else {}
    return content


def shape_of(cell: Cell) -> str:
    """Cells of one shape have equal costs: a single task stands for every other, a seed for all."""
    setting = "multi" if cell.setting == "multi" else "single"
    return "-".join([cell.dataset, setting, cell.method, cell.sweep, cell.regime])


def estimate(
    cells: Sequence[Cell], plan: CellPlan, device: Accelerator, samples_of: Callable[[Config], int], limit_s: float
) -> tuple[list[CellCost], list[str]]:
    """The cost of every cell, and the shapes that there was no time to record.

    Args:
        cells: the cells.
        plan: how they are run.
        device: kind of the device that trains each.
        samples_of: training samples of a configuration's data.
        limit_s: most seconds to spend on recording models that are not in the table.
    """
    content = deepspeed_json.read(plan.ds_config)
    precision = next((name for name in ("bf16", "fp16") if content.get(name, {}).get("enabled")), "fp32")
    batch = int(content.get("train_batch_size", 32))
    shapes: dict[str, ModelCost | None] = {}
    found, left, begin = [], [], time.monotonic()
    with Progress("costs", len({shape_of(cell) for cell in cells}), "kinds of model") as progress:
        for cell in cells:
            config = config_loader.load(plan.config(cell.dataset), cell.overrides)
            if shape_of(cell) not in shapes:
                in_time = time.monotonic() - begin < limit_s
                shapes[shape_of(cell)] = _model(config, precision, batch, device, in_time)
                progress.update()
            model = shapes[shape_of(cell)]
            if model is None:
                left.append(shape_of(cell))
                continue
            steps = config.run.num_epochs * max(1, math.ceil(samples_of(config) / batch))
            steps = min(steps, config.run.max_steps) if config.run.max_steps else steps
            kept = config.run.checkpoint.keep_last + 1
            found.append(CellCost(cell, model, steps, state(cell, plan) == "done", kept))
    return found, sorted(set(left))


def _model(config: Config, precision: str, batch: int, device: Accelerator, in_time: bool) -> ModelCost | None:
    key = digest(config, precision, batch)
    entry = _table().get(key)
    if entry is None or device.name not in entry["devices"]:
        if not in_time:
            return None
        weightless = replace(config.model.embedder, weights="")
        small = replace(config, model=replace(config.model, embedder=weightless))
        entry = record(small, precision, batch, [device])
    step_s, memory, fits = entry["devices"][device.name]
    return ModelCost(entry["parameters"], step_s, memory, fits)


def describe(costs: Sequence[CellCost], left: Sequence[str], device: Accelerator, count: int, ranks: int) -> list[str]:
    """Hours and disk as lines.

    Args:
        costs: of :func:`estimate`.
        left: shapes of unknown cost.
        device: kind of device.
        count: devices of the cluster.
        ranks: processes, and so devices, of a cell.
    """
    todo = [one for one in costs if not one.done]
    hours = sum(one.hours for one in todo)
    lines = ["", f"cost of the {len(todo)} cells that are not done, on {count} x {device.name}"]
    groups: dict[tuple[str, str], list[CellCost]] = {}
    for one in todo:
        groups.setdefault((one.cell.dataset, one.cell.method), []).append(one)
    lines.append(
        "  data set   method                 cells  M parameters  step ms  steps each  device hours  GB at peak"
    )
    for (dataset, method), several in groups.items():
        largest = max(several, key=lambda one: one.model.step_s)
        lines.append(
            f"  {dataset:10} {method:22} {len(several):5} {largest.model.parameters / 1e6:13.1f} "
            f"{1e3 * largest.model.step_s:8.1f} {largest.steps:11,} {sum(one.hours for one in several):13.1f} "
            f"{largest.model.memory / 1e9:11.1f}{'' if largest.model.fits else '  DOES NOT FIT'}"
        )
    at_once = max(1, count // ranks)
    kept = sum(WEIGHT_BYTES * one.model.parameters for one in costs)
    running = sorted((STATE_BYTES * one.kept * one.model.parameters for one in todo), reverse=True)[:at_once]
    lines.append(f"device hours: {hours:,.0f}, so {hours / count:,.0f} hours with all {count} devices at work")
    lines.append(
        f"disk: {kept / 1e9:,.1f} GB of weights that stay, up to {sum(running) / 1e9:,.1f} GB of checkpoints of the "
        f"{len(running)} largest at once"
    )
    if left:
        lines.append(f"not in it, as there was no time to record them: {', '.join(left)}")
    return [*lines, ACCURACY]


def device_of(cluster: Cluster) -> tuple[Accelerator, int]:
    """The kind of device of a cluster and how many it has; of several kinds the most numerous."""
    pool = max(cluster.pools, key=lambda pool: pool.count)
    return pool.device, pool.count


def known_devices() -> list[Accelerator]:
    """Kinds of device that the table is made for."""
    return list(ACCELERATORS.values())
