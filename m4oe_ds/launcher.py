"""DeepSpeed's launcher for several ranks on this machine: its command, and what it must find in the environment."""

from __future__ import annotations

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

    Args:
        ranks: processes to start, one per GPU.
        devices: numbers of the GPUs to start them on, the first of them; fewer than ranks = those it finds itself.

    Raises:
        ConfigError: the launcher takes GPUs by their numbers alone.
    """
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "-q"]
    if len(devices) >= ranks:  # it ignores CUDA_VISIBLE_DEVICES where it is told a number of ranks
        if not all(name.isdecimal() for name in devices):
            raise ConfigError(
                "the deepspeed launcher knows GPUs by number alone",
                "CUDA_VISIBLE_DEVICES",
                f"write numbers such as 0,1 in place of {', '.join(devices)}",
            )
        command += ["--include", f"localhost:{','.join(devices[:ranks])}"]
    else:
        command += ["--num_accelerators", str(ranks)]
    return [*command, "--master_port", str(free_port())]


def launch_environment(ranks: int) -> dict[str, str]:
    """Variables without which the launcher starts something else on this machine, or ranks are in each other's way.

    Args:
        ranks: processes that it will start.
    """
    import torch

    found = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))}
    if not torch.cuda.is_available():
        found["DS_ACCELERATOR"] = "cpu"  # otherwise the launcher counts sockets, not ranks
    return found
