"""Joining the process group, and this rank's device."""

from __future__ import annotations

import logging
import os
import warnings
from datetime import timedelta

import torch

from m4oe_ds.coordinates import LaunchEnvironment
from m4oe_ds.errors import EnvironmentProblem


def start(environment: LaunchEnvironment, timeout_minutes: float = 10.0) -> torch.device:
    """Joins the process group through DeepSpeed and returns this rank's device.

    Collectives: blocks until all ``environment.world`` processes have joined.

    Raises:
        EnvironmentProblem: the group does not form, or there is no GPU for this rank.
    """
    cuda = torch.cuda.is_available()
    index = device_index(environment, torch.cuda.device_count()) if cuda else environment.local_rank
    for name, value in {
        "RANK": environment.rank,
        "WORLD_SIZE": environment.world,
        "LOCAL_RANK": index,  # DeepSpeed takes it for the number of the device
        "LOCAL_SIZE": environment.local_size,
        "MASTER_ADDR": environment.master_addr,
        "MASTER_PORT": environment.master_port,
    }.items():
        os.environ[name] = str(value)

    import deepspeed
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    # deepspeed 0.19.8 calls collectives that torch 2.13 has renamed; nothing a user could do about it
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.c10d_logger")
    if not cuda:
        # The shared-memory helper is compiled at the first start (up to a minute, needs a compiler) and only serves
        # inference; a process killed during that build leaves a lock behind that blocks every later start.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    device = torch.device("cuda", index) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    try:
        deepspeed.init_distributed(
            dist_backend="nccl" if cuda else "gloo",
            auto_mpi_discovery=False,
            timeout=timedelta(minutes=timeout_minutes),
            verbose=False,
        )
    except (RuntimeError, ValueError) as error:
        raise EnvironmentProblem(
            f"rank {environment.rank} of {environment.world} could not join the process group: {error}",
            f"{environment.master_addr}:{environment.master_port}",
            "check that this address is reachable and the port free",
        ) from error
    return device


def device_index(environment: LaunchEnvironment, visible: int) -> int:
    """Number of this rank's GPU among the ``visible`` ones.

    A rank that sees one GPU uses it, whatever its local rank: ``srun --gpus-per-task`` hides the others.

    Raises:
        EnvironmentProblem: more ranks on this machine than visible GPUs.
    """
    if visible == 1:
        return 0
    if environment.local_rank >= visible:
        raise EnvironmentProblem(
            f"local rank {environment.local_rank} has no GPU, {visible} are visible",
            fix="start one rank per GPU (--ntasks-per-node equal to --gpus-per-node), check CUDA_VISIBLE_DEVICES",
        )
    return environment.local_rank


def stop() -> None:
    """Leaves the process group: barrier first, so that no rank tears down while another still communicates."""
    import deepspeed.comm as dist

    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()
