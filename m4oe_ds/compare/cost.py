"""What a comparison would cost before it is run: device hours and disk, by the model behind ``m4oe plan``.

Recording a large model takes seconds, and a comparison has many: what the presets train was recorded once into
``costs.json`` (``python tools/compare_costs.py``), under a digest of the configuration and of the job. What has other
settings is recorded when it is asked for.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from m4oe_ds import config_loader, deepspeed_json
from m4oe_ds.compare.cells import Cell
from m4oe_ds.compare.run import CellPlan, state
from m4oe_ds.config import Config, ModelConfig, to_dict
from m4oe_ds.models.registry import expert_counts, spec_for
from m4oe_ds.parallel.topology import choose_ep_size
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
class Job:
    """How a cell trains, of the DeepSpeed JSON and the number of ranks: what the trainer itself makes of them.

    Attributes:
        ranks: processes, and so devices, of a cell.
        micro: samples per forward and rank.
        accumulation: forwards per optimizer step.
        precision: fp32, bf16 or fp16.
        stage: ZeRO stage, 1 to 3.
        offload: whether the optimizer is in host memory.
    """

    ranks: int
    micro: int
    accumulation: int
    precision: str
    stage: int
    offload: bool

    @classmethod
    def of(cls, content: Mapping[str, Any], ranks: int, path: str) -> Job:
        """The job of a DeepSpeed JSON.

        Args:
            content: the JSON.
            ranks: processes of a cell.
            path: of the JSON, for errors.

        Raises:
            ConfigError: batch sizes that are missing or contradict each other at this number of ranks.
        """
        sizes = deepspeed_json.batch_sizes(content, ranks, path)
        zero = content.get("zero_optimization", {})
        offload = (zero.get("offload_optimizer") or {}).get("device", "none") != "none"
        precision = deepspeed_json.precision(content)
        return cls(ranks, sizes.micro, sizes.accumulation, precision, zero.get("stage", 2), offload)

    @property
    def batch(self) -> int:
        """Samples of an optimizer step."""
        return self.ranks * self.micro * self.accumulation


@dataclass(frozen=True)
class ModelCost:
    """What one model costs in one job.

    Attributes:
        parameters: of the whole model.
        step_s: seconds of an optimizer step, on all ranks at once.
        memory: bytes at the peak of a rank.
        fits: whether its device has them.
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
        ranks: devices that it trains on.
    """

    cell: Cell
    model: ModelCost
    steps: int
    done: bool
    kept: int
    ranks: int

    @property
    def hours(self) -> float:
        """Device hours of its training."""
        return self.ranks * self.steps * self.model.step_s / 3600


def digest(config: Config, job: Job) -> str:
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
    content = [model, data, options["loss"]["alpha"] != 0, options["parallel"]["ep_size"], asdict(job)]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=list).encode()).hexdigest()[:12]


def _given(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in options.items():
        if isinstance(value, dict) and isinstance(defaults.get(name), dict) and defaults[name]:
            found[name] = _given(value, defaults[name])
        elif value != defaults.get(name):
            found[name] = value
    return {name: value for name, value in found.items() if value != {}}


def record(config: Config, job: Job, devices: Sequence[Accelerator]) -> dict[str, Any]:
    """Parameters, and by device step seconds, peak bytes and whether these fit.

    Args:
        config: configuration of the run.
        job: how it trains.
        devices: kinds of device.

    Raises:
        ConfigError: ``parallel.ep_size`` does not fit the ranks.
    """
    costs, found, total = Costs(config), {}, 0
    ep = choose_ep_size(config.parallel.ep_size, job.ranks, expert_counts(config))
    layout = Layout(job.ranks, ep, job.stage, job.micro, job.accumulation, job.precision, job.offload)
    for device in devices:
        one = evaluate(costs, Cluster((Pool(job.ranks, device),)), layout, config.model.activation_checkpointing)
        total = one.cost.total
        found[device.name] = [round(one.time.total, 5), round(one.memory.peak), one.fits]
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
    cells: Sequence[Cell],
    plan: CellPlan,
    job: Job,
    device: Accelerator,
    samples_of: Callable[[Config], int],
    limit_s: float,
) -> tuple[list[CellCost], list[str]]:
    """The cost of every cell, and the shapes that there was no time to record.

    Args:
        cells: the cells.
        plan: where they are.
        job: how they train.
        device: kind of the devices that train each.
        samples_of: training samples of a configuration's data.
        limit_s: most seconds to spend on recording models that are not in the table.
    """
    shapes: dict[str, ModelCost | None] = {}
    found, left, begin = [], [], time.monotonic()
    with Progress("costs", len({shape_of(cell) for cell in cells}), "kinds of model") as progress:
        for cell in cells:
            config = config_loader.load(plan.config(cell.dataset), cell.overrides)
            if shape_of(cell) not in shapes:
                in_time = time.monotonic() - begin < limit_s
                shapes[shape_of(cell)] = _model(config, job, device, in_time)
                progress.update()
            model = shapes[shape_of(cell)]
            if model is None:
                left.append(shape_of(cell))
                continue
            steps = config.run.num_epochs * max(1, math.ceil(samples_of(config) / job.batch))
            steps = min(steps, config.run.max_steps) if config.run.max_steps else steps
            kept = config.run.checkpoint.keep_last + 1
            found.append(CellCost(cell, model, steps, state(cell, plan) == "done", kept, job.ranks))
    return found, sorted(set(left))


def _model(config: Config, job: Job, device: Accelerator, in_time: bool) -> ModelCost | None:
    key = digest(config, job)
    entry = _table().get(key)
    if entry is None or device.name not in entry["devices"]:
        if not in_time:
            return None
        weightless = replace(config.model.embedder, weights="")
        small = replace(config, model=replace(config.model, embedder=weightless))
        entry = record(small, job, [device])
    step_s, memory, fits = entry["devices"][device.name]
    return ModelCost(entry["parameters"], step_s, memory, fits)


def describe(costs: Sequence[CellCost], left: Sequence[str], cluster: Cluster, job: Job) -> list[str]:
    """Hours and disk as lines.

    Args:
        costs: of :func:`estimate`.
        left: shapes of unknown cost.
        cluster: the devices; the most numerous kind is counted on.
        job: how the cells train.
    """
    device, count = device_of(cluster)
    todo = [one for one in costs if not one.done]
    hours = sum(one.hours for one in todo)
    lines = ["", f"cost of the {_number(len(todo), 'cell')} not done, on {count} x {device.name}, {_job_text(job)}"]
    others = {pool.device.name: 0 for pool in cluster.pools if pool.device.name != device.name}
    for pool in cluster.pools:
        if pool.device.name in others:
            others[pool.device.name] += pool.count
    for name, number in others.items():
        lines.append(f"left out of it: {number} x {name}: the estimate is for one kind of device, the most numerous")
    if job.ranks > count:
        lines.append(f"a cell takes {job.ranks} devices (--ranks), more than the {count} here: none can run")
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
            f"{largest.model.memory / 1e9:11.1f}{'' if all(one.model.fits for one in several) else '  DOES NOT FIT'}"
        )
    at_once = max(1, count // job.ranks)
    kept = sum(WEIGHT_BYTES * one.model.parameters for one in costs)
    running = sorted((STATE_BYTES * one.kept * one.model.parameters for one in todo), reverse=True)[:at_once]
    used = min(count, at_once * job.ranks)
    at_work = f"{hours / used:,.0f} hours with {'all ' if used == count > 1 else ''}{_number(used, 'device')} at work"
    lines.append(f"device hours: {hours:,.0f}, so {at_work}")
    lines.append(
        f"disk: {kept / 1e9:,.1f} GB of weights that stay, up to {sum(running) / 1e9:,.1f} GB of checkpoints of the "
        f"{f'{len(running)} largest' if len(running) != 1 else 'largest'} at once"
    )
    if left:
        lines.append(f"not in it, as there was no time to record them: {', '.join(left)}")
    return [*lines, ACCURACY]


def _job_text(job: Job) -> str:
    per = f"{_number(job.ranks, 'device')} a cell, micro-batch {job.micro}"
    return per + (f" x {job.accumulation} accumulation steps" if job.accumulation > 1 else "") + f", {job.precision}"


def _number(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def device_of(cluster: Cluster) -> tuple[Accelerator, int]:
    """The kind of device that a cluster has most of, and how many."""
    counts: dict[str, int] = {}
    for pool in cluster.pools:
        counts[pool.device.name] = counts.get(pool.device.name, 0) + pool.count
    name = max(counts, key=lambda name: counts[name])
    return next(pool.device for pool in cluster.pools if pool.device.name == name), counts[name]


def known_devices() -> list[Accelerator]:
    """Kinds of device that the table is made for."""
    return list(ACCELERATORS.values())
