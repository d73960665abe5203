"""DeepSpeed's launcher for several ranks on this machine: its command, and what it must find in the environment."""

from __future__ import annotations

import base64
import json
import os
import sys

from m4oe_ds.coordinates import free_port


def launcher(ranks: int) -> list[str]:
    """The launcher's command, up to ``--module NAME`` and its arguments.

    It is the part of DeepSpeed's launcher that starts the ranks of one machine. The part before it, the command
    ``deepspeed``, would set aside the GPUs that ``CUDA_VISIBLE_DEVICES`` names, and look for other machines.

    Args:
        ranks: processes to start, one per GPU.
    """
    world = base64.urlsafe_b64encode(json.dumps({"localhost": devices(ranks)}).encode()).decode()
    command = [sys.executable, "-u", "-m", "deepspeed.launcher.launch", "--quiet", f"--world_info={world}"]
    return [*command, "--master_addr=127.0.0.1", f"--master_port={free_port()}"]


def devices(ranks: int) -> list[str]:
    """Devices of the ranks by what CUDA calls them: the first of those that are visible.

    Args:
        ranks: their number.
    """
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return visible[:ranks] if len(visible) >= ranks else [str(number) for number in range(ranks)]


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
