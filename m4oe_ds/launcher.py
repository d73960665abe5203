"""DeepSpeed's launcher for several ranks on this machine: its command, and what it must find in the environment."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Mapping, Sequence

from m4oe_ds.coordinates import free_port
from m4oe_ds.errors import ConfigError


def visible_devices(environ: Mapping[str, str]) -> list[str]:
    """The GPUs that a process may use, as ``CUDA_VISIBLE_DEVICES`` names them; none on a machine without.

    Args:
        environ: its environment.
    """
    import torch

    if not torch.cuda.is_available():
        return []
    count = torch.cuda.device_count()
    named = [name.strip() for name in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named[:count] or [str(number) for number in range(count)]


def shares(devices: Sequence[str], workers: int, ranks: int = 1) -> list[tuple[str, ...]]:
    """GPUs of each of several jobs that run at the same time; empty ones where there are none to share.

    Args:
        devices: of :func:`visible_devices`.
        workers: jobs at a time.
        ranks: processes of a job, each on a GPU of its own.

    Raises:
        ConfigError: too few GPUs for them all.
    """
    if not devices:
        return [()] * workers
    most = len(devices) // ranks
    if workers > most:
        what = f"{workers} at a time with {ranks} rank{'s' * (ranks > 1)} each, and {len(devices)} GPUs are visible"
        raise ConfigError(what, "--workers", f"use at most {most}" if most else "use fewer --ranks")
    return [tuple(devices[number * ranks : (number + 1) * ranks]) for number in range(workers)]


def launcher(ranks: int, devices: Sequence[str] = ()) -> list[str]:
    """The launcher's command, up to ``--module NAME`` and its arguments.

    It is the part of DeepSpeed's launcher that starts the ranks of one machine. The part before it, the command
    ``deepspeed``, would set aside the GPUs that ``CUDA_VISIBLE_DEVICES`` names, and look for other machines.

    Args:
        ranks: processes to start, one per GPU.
        devices: GPUs to start them on by what CUDA calls them, the first of them; fewer than ranks = the first of all.
    """
    names = list(devices[:ranks]) if len(devices) >= ranks else [str(number) for number in range(ranks)]
    world = base64.urlsafe_b64encode(json.dumps({"localhost": names}).encode()).decode()
    command = [sys.executable, "-u", "-m", "deepspeed.launcher.launch", "--quiet", f"--world_info={world}"]
    return [*command, "--master_addr=127.0.0.1", f"--master_port={free_port()}"]


def launch_environment(ranks: int) -> dict[str, str]:
    """Variables without which the launcher starts something else on this machine, or ranks are in each other's way.

    Args:
        ranks: processes that it will start.
    """
    import torch

    found = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))}
    if not torch.cuda.is_available():
        found["DS_ACCELERATOR"] = "cpu"
    return found
