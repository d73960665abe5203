"""Checks that need every rank: they meet, exchange bytes for a while, and train one step."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from m4oe_ds import config_loader, deepspeed_json
from m4oe_ds.coordinates import resolve
from m4oe_ds.doctor.finding import Finding, good, note
from m4oe_ds.errors import UserError

MESSAGE_BYTES = 16_000_000  # about what a layer of the paper's size exchanges per rank
CLOCKS_APART = 5.0  # seconds; meeting at a barrier is much quicker
SLOW = 1e9  # bytes per second and rank below which exchange takes longer than arithmetic


def check_ranks(config_name: str, ds_name: str, overrides: Sequence[str], seconds: float) -> list[Finding]:
    """Findings on rank 0, empty on the others.

    Args:
        config_name: configuration of the step.
        ds_name: DeepSpeed JSON of the step; its batch is replaced by one sample per rank.
        overrides: ``--set`` options.
        seconds: how long bytes are exchanged.

    Raises:
        UserError: the ranks do not meet, or the step cannot be made.

    Collectives: starts and ends a process group; every rank must call it.
    """
    from m4oe_ds.parallel import launch

    place = resolve(os.environ)
    started = time.perf_counter()
    device = launch.start(place, timeout_minutes=2)
    found = [
        good("ranks", f"{place.world} met in {time.perf_counter() - started:.1f} s ({place.source}, {device.type})")
    ]
    found.append(_clocks(place.world, device))
    found += _exchange(place.world, device, seconds)
    found.append(_step(config_name, ds_name, overrides, place.world, device))
    launch.stop()
    return found if place.rank == 0 else []


def _clocks(world: int, device: Any) -> Finding:
    """Clocks of the machines against each other: dates of files and signatures of requests depend on them."""
    import torch
    import torch.distributed as dist

    from m4oe_ds.parallel import reduce

    reduce.barrier()
    # seconds of today: float32, which a device may be limited to, has no room for more
    own = torch.tensor([time.time() % 86400], dtype=torch.float32, device=device)
    times = [torch.empty_like(own) for _ in range(world)]
    dist.all_gather(times, own)
    apart = max(times).item() - min(times).item()
    apart = min(apart, 86400 - apart)
    if apart > CLOCKS_APART:
        return note("clocks", f"up to {apart:.1f} s apart", "synchronise the machines (chrony, ntpd)")
    return good("clocks", f"at most {apart:.1f} s apart")


def _exchange(world: int, device: Any, seconds: float) -> Iterator[Finding]:
    """Bytes sent among all ranks for a while, as experts exchange their slots."""
    import torch
    import torch.distributed as dist

    from m4oe_ds.parallel import reduce

    sent = torch.zeros(MESSAGE_BYTES // 4 // world * world, device=device)
    received, count = torch.empty_like(sent), 0
    reduce.barrier()
    started = time.perf_counter()
    while bool(reduce.maximum_over_ranks(torch.tensor(float(time.perf_counter() - started < seconds), device=device))):
        dist.all_to_all_single(received, sent)
        count += 1
    if device.type == "cuda":
        torch.cuda.synchronize()
    rate = count * sent.numel() * 4 * (world - 1) / world / (time.perf_counter() - started)
    text = f"{rate / 1e9:.2f} GB/s sent per rank over {seconds:g} s, {count} times {sent.numel() * 4 / 1e6:.0f} MB"
    if world > 1:
        slow = device.type == "cuda" and rate < SLOW
        fix = "see NCCL_SOCKET_IFNAME and NCCL_DEBUG=INFO; keep parallel.ep_size within a machine"
        yield note("all-to-all", text, fix) if slow else good("all-to-all", text)


def _step(config_name: str, ds_name: str, overrides: Sequence[str], world: int, device: Any) -> Finding:
    """One training step of a configuration, one sample per rank."""
    import torch

    from m4oe_ds.models import spec_for
    from m4oe_ds.planning.model_cost import zero_batch
    from m4oe_ds.runs.objective import objective
    from m4oe_ds.training import engine as engines
    from m4oe_ds.training.step import train_step

    config = config_loader.load(config_name, overrides)
    content = {**deepspeed_json.read(ds_name), "train_batch_size": world, "gradient_accumulation_steps": 1}
    content.pop("train_micro_batch_size_per_gpu", None)
    sizes = deepspeed_json.batch_sizes(content, world, ds_name)
    engine, topology = engines.create(config, content, sizes, world)
    engine.train()
    spec, dtype = spec_for(config), engines.compute_dtype(engine)
    batch = zero_batch(spec, sizes.micro, torch.float32)
    goal = objective(config, spec, None, device)
    started = time.perf_counter()
    report = train_step(engine, [batch], goal, dtype, where="the doctor's step")
    loss = report.collect(goal)["loss"]
    text = f"one of {config_name} with {ds_name}, experts over {topology.ep_size} of {world} ranks: "
    return good("training step", text + f"loss {loss:.3f}, {time.perf_counter() - started:.1f} s")


def main(arguments: Sequence[str] | None = None) -> int:
    """A rank that ``m4oe doctor`` starts; rank 0 writes what was found."""
    parser = argparse.ArgumentParser(prog="python -m m4oe_ds.doctor.ranks")
    parser.add_argument("--config", required=True)
    parser.add_argument("--ds_config", required=True)
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--findings", type=Path, required=True)
    parser.add_argument("--local_rank", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        found = check_ranks(options.config, options.ds_config, options.set, options.seconds)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    if found:
        options.findings.write_text(json.dumps([asdict(finding) for finding in found]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
