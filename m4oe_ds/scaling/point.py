"""One measured point: a short real training run of this process group."""

from __future__ import annotations

import datetime
import os
import resource
import statistics
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from m4oe_ds import config_loader, coordinates, deepspeed_json
from m4oe_ds.config import Config
from m4oe_ds.data.batch import Batch
from m4oe_ds.errors import ConfigError
from m4oe_ds.models import spec_for
from m4oe_ds.parallel import exchange, launch, reduce
from m4oe_ds.planning.model_cost import zero_batch
from m4oe_ds.runs import assemble
from m4oe_ds.runs.objective import objective
from m4oe_ds.scaling.rows import StudyRow
from m4oe_ds.scaling.study import described, digest
from m4oe_ds.training import engine as engines
from m4oe_ds.training import profiling
from m4oe_ds.training.records import environment
from m4oe_ds.training.step import train_step

PROFILED = 4  # further steps, recorded for the split of a step
PHASES = (profiling.FORWARD, profiling.BACKWARD, profiling.OPTIMIZER)


@dataclass(frozen=True)
class PointRequest:
    """What to measure.

    Attributes:
        config: path of the configuration.
        ds_config: path of the DeepSpeed JSON.
        overrides: ``--set`` options.
        experts: experts of the MToE; 0 = as in the configuration.
        ep: 0 = as many as fit.
        mode: weak or strong.
        micro: samples per rank (weak).
        batch: samples per step (strong).
        steps: number of timed steps.
        warm_up: number of steps before them.
        profiled: number of profiled steps after them, for the split; 0 = no split.

    Raises:
        ConfigError: a number below its smallest.
    """

    config: str
    ds_config: str
    overrides: tuple[str, ...]
    experts: int
    ep: int
    mode: str
    micro: int
    batch: int
    steps: int
    warm_up: int
    profiled: int = PROFILED

    def __post_init__(self) -> None:
        smallest = {"experts": 0, "ep": 0, "micro": 1, "batch": 1, "steps": 1, "warm_up": 0, "profiled": 0}
        for name, least in smallest.items():
            if getattr(self, name) < least:
                raise ConfigError(
                    f"{getattr(self, name)} is too small", f"--{name.replace('_', '-')}", f"write {least} or more"
                )


def resolve(request: PointRequest) -> Config:
    """The configuration of a point.

    Raises:
        ConfigError: unknown keys, or a configuration without MToE.
    """
    overrides = [*request.overrides, f"parallel.ep_size={request.ep}"]
    overrides += [f"model.mtoe.num_experts={request.experts}"] if request.experts else []
    config = config_loader.load(request.config, overrides)
    if not config.model.use_mtoe:
        raise ConfigError("a study on expert count needs an MToE", "model.use_mtoe", "set it to true")
    return config


def measure(request: PointRequest) -> StudyRow | None:
    """Runs the point in this process group; the row on rank 0, None elsewhere.

    Data come from the shards of ``data.root`` where there are any; else random tensors of the same shape are made
    outside the timed part of a step, and ``data_ms`` is None.

    Raises:
        ConfigError: a batch that the ranks cannot share.

    Collectives: starts and ends a process group; every rank must call it.
    """
    config = resolve(request)
    ds_config = deepspeed_json.read(request.ds_config)
    place = coordinates.resolve(os.environ)
    micro = request.micro
    if request.mode == "strong":
        if request.batch % place.world:
            raise ConfigError(f"a batch of {request.batch} cannot be shared by {place.world} ranks", "--batch")
        micro = request.batch // place.world
    ds_config |= {"train_batch_size": micro * place.world, "gradient_accumulation_steps": 1}
    ds_config.pop("train_micro_batch_size_per_gpu", None)
    sizes = deepspeed_json.batch_sizes(ds_config, place.world, request.ds_config)
    device = launch.start(place, config.parallel.timeout_minutes)
    before = _resident()
    torch.manual_seed(config.run.seed)
    engine, topology = engines.create(config, ds_config, sizes, place.world)
    engine.train()
    spec = spec_for(config)
    dtype = engines.compute_dtype(engine)
    goal = objective(config, spec, None, device)
    stream = _shards(config, spec, micro) if config.data.root else None
    batches = _forever(stream) if stream is not None else _random(config, micro, reduce.rank())

    def step(batch: Batch) -> None:
        train_step(engine, [batch], goal, dtype)
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(request.warm_up):
        step(next(batches))
    sent, seconds = exchange.bytes_sent(), []
    for _ in range(request.steps):
        made = next(batches) if stream is None else None
        reduce.barrier()
        started = time.perf_counter()
        step(next(batches) if made is None else made)
        seconds.append(time.perf_counter() - started)
    sent = exchange.bytes_sent() - sent
    slowest = reduce.maximum_over_ranks(torch.tensor(seconds, dtype=torch.float64, device=device)).tolist()
    used = torch.cuda.max_memory_allocated() if device.type == "cuda" else _resident() - before
    memory = float(reduce.maximum_over_ranks(torch.tensor(float(used), dtype=torch.float64, device=device)))
    parts = _split(batches, step, request.profiled)
    row = _row(request, config, engine, topology.ep_size, place.world, sizes, slowest, memory, sent, parts)
    row["data"] = "random tensors" if stream is None else f"shards of {config.data.root}"
    if stream is None:
        row["data_ms"] = None
    result = StudyRow(**row) if reduce.rank() == 0 else None
    launch.stop()
    return result


def _row(
    request: PointRequest,
    config: Config,
    engine: Any,
    ep: int,
    world: int,
    sizes: Any,
    seconds: list[float],
    memory: float,
    sent: int,
    parts: dict[str, float | None],
) -> dict[str, Any]:
    facts = environment()
    versions = ", ".join(f"{name} {facts['versions'][name]}" for name in ("torch", "deepspeed"))
    gpus, cuda = facts["hardware"]["gpus"], torch.cuda.is_available()
    median = statistics.median(seconds)
    low, _, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else (median, median, median)
    total = 0
    for parameter in engine.module.parameters():
        count = int(getattr(parameter, "ds_numel", parameter.numel()))
        total += count * (1 if getattr(parameter, "allreduce", True) else ep)
    precision = "bf16" if engine.bfloat16_enabled() else "fp16" if engine.fp16_enabled() else "fp32"
    return {
        "experts": config.model.mtoe.num_experts,
        "ep": ep,
        "world": world,
        "mode": request.mode,
        "batch": sizes.train,
        "micro": sizes.micro,
        "stage": engine.zero_optimization_stage(),
        "precision": precision,
        "device": gpus[0]
        if cuda and gpus
        else f"{facts['hardware']['cpu']} CPU, {facts['hardware']['cpu_cores']} cores",
        "parameters": total,
        "step_ms": 1e3 * median,
        "step_ms_low": 1e3 * low,
        "step_ms_high": 1e3 * high,
        "samples_per_s": sizes.train / median,
        "memory_bytes": memory,
        "all_to_all_bytes": sent / request.steps,
        "measured": True,
        "source": f"{datetime.date.today().isoformat()}, {versions}",
        "setting": described(request.config, request.ds_config, request.overrides),
        "digest": digest(request.config, request.ds_config, request.overrides),
        **parts,
    }


def _split(batches: Iterator[Batch], step: Any, steps: int) -> dict[str, float | None]:
    """Milliseconds of the parts of a step on this rank, by the profiler; Nones without steps."""
    if not steps:
        return dict.fromkeys(("compute_ms", "all_to_all_ms", "reduction_ms", "optimizer_ms", "data_ms"))
    recorder = profiling.Recording()
    for _ in range(steps):
        step(recorder.wait_for(batches))
    summary = recorder.end(steps)
    return {**attribute(recorder.profile.events(), summary["split_ms"], steps), "data_ms": summary["split_ms"]["data"]}


def attribute(events: Iterable[Any], phases: Mapping[str, float], steps: int) -> dict[str, float]:
    """Takes the collectives out of the phases they ran in: compute, all-to-all, reduction and optimizer in ms per step.

    Args:
        events: events of the profiler, over ``steps`` steps.
        phases: ms per step of forward, backward and optimizer, all included.
    """
    ranges: list[tuple[str, float, float]] = []
    collectives: list[tuple[str, float, float]] = []
    for event in events:
        name, start, end = event.name, event.time_range.start, event.time_range.end
        if name in PHASES:
            ranges.append((name, start, end))
        elif name.startswith(
            ("gloo:", "ncclDevKernel", "ncclKernel")
        ):  # not "nccl:...", which only launches the kernel
            collectives.append((name.lower(), start, end))
    inside = dict.fromkeys(PHASES, 0.0)
    exchanged = other = 0.0
    for name, start, end in collectives:
        ms = (end - start) / 1e3 / steps
        if any(mark in name for mark in ("all_to_all", "sendrecv")):
            exchanged += ms
        else:
            other += ms
        # all-reduces of label counts and of the timing's barrier belong to no phase
        phase = next((kind for kind, first, last in ranges if first <= start and end <= last), None)
        if phase is not None:
            inside[phase] += ms
    rest = {name: max(phases.get(name.removeprefix("m4oe."), 0.0) - inside[name], 0.0) for name in PHASES}
    return {
        "compute_ms": rest[profiling.FORWARD] + rest[profiling.BACKWARD],
        "all_to_all_ms": exchanged,
        "reduction_ms": other,
        "optimizer_ms": rest[profiling.OPTIMIZER],
    }


def _random(config: Config, micro: int, rank: int) -> Iterator[Batch]:
    """Random views with every label present, new ones every step."""
    spec = spec_for(config)
    generator = torch.Generator().manual_seed(config.run.seed + rank)
    while True:
        batch = zero_batch(spec, micro, torch.float32)
        for one in spec.inputs:
            if one.kind != "table":  # any number would be no category
                batch.views[one.name].normal_(generator=generator)
        yield batch


def _shards(config: Config, spec: Any, micro: int) -> Any:
    if "://" not in config.data.root and not (Path(config.data.root) / "train" / "manifest.json").is_file():
        return None
    return assemble.stream(config, "train", spec, micro, 1, assemble.load_manifests(config, ("train",)))


def _forever(stream: Any) -> Iterator[Batch]:
    epoch = 0
    while True:
        for batches in stream.epoch(epoch, 0):
            yield batches[0]
        epoch += 1


def _resident() -> int:
    """Largest resident set so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
