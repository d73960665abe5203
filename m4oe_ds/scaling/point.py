"""One measured point: a short real training run of this process group."""

from __future__ import annotations

import datetime
import os
import resource
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from m4oe_ds import config_loader, deepspeed_json
from m4oe_ds.config import Config
from m4oe_ds.data.batch import Batch
from m4oe_ds.errors import ConfigError
from m4oe_ds.models import spec_for
from m4oe_ds.parallel import exchange, launch, reduce
from m4oe_ds.planning.model_cost import objective_of, zero_batch
from m4oe_ds.scaling.rows import Row
from m4oe_ds.training import assemble, profiling
from m4oe_ds.training import engine as engines
from m4oe_ds.training.records import environment
from m4oe_ds.training.step import train_step

PROFILED = 2  # further steps, recorded for the split of a step


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        config, ds_config: paths. overrides: ``--set`` options. experts: of the MToE; 0 = the configuration's.
        ep: 0 = as many as fit. mode: weak or strong. micro: samples per rank (weak). batch: samples per step (strong).
        steps: timed. warm_up: before them.
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


def resolve(request: Request) -> Config:
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


def measure(request: Request) -> Row | None:
    """Runs the point in this process group; the row on rank 0, None elsewhere.

    Data come from the shards of ``data.root`` where there are any, else random tensors of the same shape are used and
    ``data_ms`` is None.

    Raises:
        ConfigError: a batch that the ranks cannot share.

    Collectives: starts and ends a process group; every rank must call it.
    """
    config = resolve(request)
    ds_config = deepspeed_json.read(request.ds_config)
    place = launch.resolve(os.environ)
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
    objective = objective_of(config, spec)
    stream = _shards(config, spec, micro) if config.data.root else None
    batches = _forever(stream) if stream is not None else _random(config, micro, reduce.rank())

    def step(batch: Batch) -> None:
        train_step(engine, [batch], objective, dtype)
        if device.type == "cuda":
            torch.cuda.synchronize()

    for _ in range(request.warm_up):
        step(next(batches))
    sent, seconds = exchange.bytes_sent(), []
    for _ in range(request.steps):
        reduce.barrier()
        started = time.perf_counter()
        step(next(batches))
        seconds.append(time.perf_counter() - started)
    sent = exchange.bytes_sent() - sent
    slowest = reduce.maximum_over_ranks(torch.tensor(seconds, dtype=torch.float64, device=device)).tolist()
    used = torch.cuda.max_memory_allocated() if device.type == "cuda" else _resident() - before
    memory = float(reduce.maximum_over_ranks(torch.tensor(float(used), dtype=torch.float64, device=device)))
    split = _split(batches, step)
    row = _row(request, config, engine, topology.ep_size, place.world, sizes, slowest, memory, sent, split)
    if stream is None:
        row["data_ms"] = None
    result = Row(**row) if reduce.rank() == 0 else None
    launch.stop()
    return result


def _row(
    request: Request, config: Config, engine: Any, ep: int, world: int, sizes: Any, seconds: list[float], memory: float,
    sent: int, split: dict[str, float],
) -> dict[str, Any]:  # fmt: skip
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
        "experts": config.model.mtoe.num_experts, "ep": ep, "world": world, "mode": request.mode, "batch": sizes.train,
        "micro": sizes.micro, "stage": engine.zero_optimization_stage(), "precision": precision,
        "device": gpus[0] if cuda and gpus else f"{facts['hardware']['cpu']} CPU, {facts['hardware']['cpu_cores']} cores",
        "parameters": total, "step_ms": 1e3 * median, "step_ms_low": 1e3 * low, "step_ms_high": 1e3 * high,
        "samples_per_s": sizes.train / median, "memory_bytes": memory, "all_to_all_bytes": sent / request.steps,
        "measured": True, "source": f"{datetime.date.today().isoformat()}, {versions}", **split,
    }  # fmt: skip


def _split(batches: Iterator[Batch], step: Any) -> dict[str, float]:
    """Milliseconds of the parts of a step on this rank, by the profiler."""
    recorder = profiling.Recording()
    for _ in range(PROFILED):
        step(recorder.wait_for(batches))
    summary = recorder.end(PROFILED)
    exchanged = other = 0.0
    for name, ms in summary["communication_ms"].items():
        if "all_to_all" in name.lower() or "sendrecv" in name.lower():
            exchanged += ms
        else:
            other += ms
    parts = summary["split_ms"]
    return {
        "compute_ms": max(parts.get("forward", 0.0) + parts.get("backward", 0.0) - exchanged - other, 0.0),
        "all_to_all_ms": exchanged,
        "reduction_ms": other,
        "optimizer_ms": parts.get("optimizer", 0.0),
        "data_ms": parts["data"],
    }


def _random(config: Config, micro: int, rank: int) -> Iterator[Batch]:
    """Random views with every label present, new ones every step."""
    spec = spec_for(config)
    generator = torch.Generator().manual_seed(config.run.seed + rank)
    while True:
        batch = zero_batch(spec, micro, torch.float32)
        for view in batch.views.values():
            view.normal_(generator=generator)
        yield batch


def _shards(config: Config, spec: Any, micro: int) -> Any:
    if "://" not in config.data.root and not (Path(config.data.root) / "train" / "manifest.json").is_file():
        return None
    manifest = assemble.load_manifests(config, ("train",))["train"]
    return assemble.stream(config, "train", spec, micro, 1, manifest)


def _forever(stream: Any) -> Iterator[Batch]:
    epoch = 0
    while True:
        for batches in stream.epoch(epoch, 0):
            yield batches[0]
        epoch += 1


def _resident() -> int:
    """Largest resident set so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
