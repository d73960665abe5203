"""DeepSpeed's launcher for several ranks on this machine: its command, and what it must find in the environment."""

from __future__ import annotations

import os
import sys

from m4oe_ds.coordinates import free_port


def launcher(ranks: int) -> list[str]:
    """The launcher's command, up to ``--module NAME`` and its arguments.

    Args:
        ranks: processes to start, one per GPU.
    """
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "-q", "--num_accelerators", str(ranks)]
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
