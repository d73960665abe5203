"""Training steps of a configuration on random images, next to their roofline floor and the plan's memory.

No data needed.

    deepspeed benchmarks/reference_step.py --ds_config ds_configs/bf16.json --config configs/paper/embed.yaml --steps 20

Prints one Markdown table row per run; the first ``--warmup`` steps are left out of the median. The floor is what a rank
could not do without: the matrix products of forward and backward at the rate a large product reaches on this device,
plus the bytes of weights, gradients and optimizer state at the rate a large copy reaches, both measured in the same
run. Communication is not in it.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from m4oe_ds import config_loader, deepspeed_json
from m4oe_ds.config import Config
from m4oe_ds.coordinates import LaunchEnvironment, resolve
from m4oe_ds.data.batch import Batch
from m4oe_ds.errors import UserError
from m4oe_ds.models import spec_for
from m4oe_ds.models.interface import ModelSpec
from m4oe_ds.parallel import launch
from m4oe_ds.parallel.topology import Topology
from m4oe_ds.planning.memory import Layout, owned, rank_memory
from m4oe_ds.planning.model_cost import DTYPES, MicroStep, Precision, micro_step
from m4oe_ds.runs.objective import objective
from m4oe_ds.training import engine as engines
from m4oe_ds.training.step import train_step


def resident() -> int:
    """Largest resident set of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def random_batch(spec: ModelSpec, count: int, generator: torch.Generator) -> Batch:
    """``count`` samples of noise with every view and label present."""
    views = {name: torch.randn(count, *spec.shape(name), generator=generator) for name in spec.modalities}
    labels = {task.name: torch.randint(task.num_classes, (count,), generator=generator) for task in spec.tasks}
    ones = torch.ones(count, dtype=torch.bool)
    names = tuple(str(i) for i in range(count))
    return Batch(
        views,
        torch.ones(count, len(spec.modalities), dtype=torch.bool),
        labels,
        torch.ones(count, len(spec.tasks), dtype=torch.bool),
        ones,
        names,
        names,
        spec.modalities,
        spec.task_names,
    )


def ceilings(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Operations per second of a 2048 x 2048 x 2048 product in ``dtype``, and bytes per second read and written by a
    copy.
    """

    def fastest(work: Callable[[], object]) -> float:
        times = []
        for _ in range(8):
            started = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        return min(times)

    side = 2048 if device.type == "cpu" else 8192
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    flops = 2.0 * side**3 / fastest(lambda: a @ b)
    source = torch.empty(2**26 if device.type == "cpu" else 2**29, device=device)
    target = torch.empty_like(source)
    return flops, 2.0 * source.nbytes / fastest(lambda: target.copy_(source))


def floor_seconds(cost: MicroStep, layout: Layout, device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Arithmetic and memory floor of one optimizer step on this rank."""
    flops, bandwidth = ceilings(device, dtype)
    held, own = cost.dense + cost.expert, owned(cost, layout)
    # weights read in forward and backward and written after the step, gradients written and read; Adam reads and writes
    # the fp32 weight and two moments
    moved = layout.accumulation * cost.width * 4 * held + cost.width * held + 6 * 4 * own
    return layout.accumulation * cost.flops() / flops, moved / bandwidth


def parse() -> argparse.Namespace:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--ds_config", required=True)
    options.add_argument("--config", required=True)
    options.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--warmup", type=int, default=5)
    options.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    return options.parse_args()


@dataclass(frozen=True)
class Started:
    """An engine that is ready to train.

    Attributes:
        config: configuration of the model and its losses.
        place: place of this process among the ranks.
        device: device of this rank.
        sizes: sizes of the batches.
        resident_before: resident set before the engine was there, in bytes.
        engine: the DeepSpeed engine.
        topology: topology of the ranks.
    """

    config: Config
    place: LaunchEnvironment
    device: torch.device
    sizes: deepspeed_json.BatchSizes
    resident_before: int
    engine: Any
    topology: Topology

    def memory_gb(self) -> float:
        """Largest memory so far, in 10^9 bytes: on the CPU, the growth of the resident set."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated() / 1e9
        return (resident() - self.resident_before) / 1e9

    def num_parameters(self) -> int:
        """Parameters of the whole model, the experts of other ranks included."""
        return sum(
            getattr(p, "ds_numel", p.numel()) * (1 if getattr(p, "allreduce", True) else self.topology.ep_size)
            for p in self.engine.module.parameters()
        )

    def cost(self) -> tuple[MicroStep, Layout]:
        """What the plan knows of a step of it, and its layout."""
        dtype = engines.compute_dtype(self.engine)
        precision = cast(Precision, next(name for name, value in DTYPES.items() if value == dtype))
        layout = Layout(
            self.place.world,
            self.topology.ep_size,
            self.engine.zero_optimization_stage(),
            self.sizes.micro,
            self.sizes.accumulation,
            precision,
            adam_temporaries=1 if self.device.type == "cuda" else 2,
        )
        return micro_step(self.config, precision, self.sizes.micro, self.topology.ep_size), layout


def start(arguments: argparse.Namespace) -> Started:
    """The engine of the configuration, with random weights: a benchmark needs no download.

    Raises:
        UserError: a configuration that is wrong, or does not fit the ranks.
    """
    config = config_loader.load(arguments.config, (*arguments.set, "model.embedder.weights=''"))
    ds_config = deepspeed_json.read(arguments.ds_config)
    place = resolve(os.environ)
    device = launch.start(place)
    sizes = deepspeed_json.batch_sizes(ds_config, place.world, arguments.ds_config)
    before = resident()
    engine, topology = engines.create(config, ds_config, sizes, place.world)
    return Started(config, place, device, sizes, before, engine, topology)


def timed_steps(started: Started, count: int) -> tuple[list[float], list[float]]:
    """Seconds and loss of every one of ``count`` optimizer steps on random images."""
    config, engine = started.config, started.engine
    spec, dtype = spec_for(config), engines.compute_dtype(engine)
    goal = objective(config, spec, None, started.device)
    generator = torch.Generator().manual_seed(started.place.rank)
    batches = [random_batch(spec, started.sizes.micro, generator) for _ in range(started.sizes.accumulation)]
    engine.train()
    times, losses = [], []
    for _ in range(count):
        begin = time.perf_counter()
        report = train_step(engine, batches, goal, dtype)
        if started.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
        losses.append(report.collect(goal)["loss"])
    return times, losses


def main() -> int:
    """Runs the steps and prints the row on rank 0."""
    arguments = parse()
    try:
        started = start(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    times, losses = timed_steps(started, arguments.steps)
    measured = times[arguments.warmup :] or times
    median = statistics.median(measured)
    memory = started.memory_gb()
    cost, layout = started.cost()
    predicted = rank_memory(cost, layout).peak / 1e9
    device, place, sizes = started.device, started.place, started.sizes
    arithmetic, moving = floor_seconds(cost, layout, device, engines.compute_dtype(started.engine))
    floor = arithmetic + moving
    if place.rank == 0:
        name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
        print(
            "| configuration | parameters | device x ranks | ep | batch | median step s (min, max) | "
            "floor s (arithmetic + memory) | step / floor | samples/s | GB | of the plan's | loss |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|---|---|")
        print(
            f"| {arguments.config} + {arguments.ds_config} | {started.num_parameters():,} | {name} x {place.world} | "
            f"{started.topology.ep_size} | {sizes.train} | {median:.3f} ({min(measured):.3f}, {max(measured):.3f}) | "
            f"{floor:.3f} ({arithmetic:.3f} + {moving:.3f}) | {median / floor:.2f} | {sizes.train / median:.1f} | "
            f"{memory:.2f} | {memory / predicted:.0%} | {losses[0]:.3f} -> {losses[-1]:.3f} |"
        )
    launch.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
