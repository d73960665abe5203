"""One resolved launch environment from the ``deepspeed`` launcher (or torchrun), ``srun``, or plain ``python``."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch

from m4oe_ds.errors import EnvironmentProblem

_RENDEZVOUS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_SLURM = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID")


@dataclass(frozen=True)
class LaunchEnvironment:
    """Coordinates of this process.

    Attributes:
        rank: rank of this process.
        world: number of all processes.
        local_rank: local rank of this process on this machine.
        local_size: processes on this machine.
        master_addr: address of rank 0.
        master_port: port of rank 0, where all meet.
        source: ``launcher``, ``slurm`` or ``single``.
    """

    rank: int
    world: int
    local_rank: int
    local_size: int
    master_addr: str
    master_port: int
    source: str


def resolve(environ: Mapping[str, str], expand_hosts: Callable[[str], list[str]] | None = None) -> LaunchEnvironment:
    """Launch environment from variables; launcher variables win over SLURM's, else a single process.

    A job allocation without a job step (``salloc``, or the body of a batch script) is a single process.

    Args:
        environ: usually ``os.environ``.
        expand_hosts: turns a SLURM node list into host names.

    Raises:
        EnvironmentProblem: variables set in part or contradicting each other, naming those missing.
    """
    if "RANK" in environ or "WORLD_SIZE" in environ:
        return _from_launcher(environ)
    step = environ.get("SLURM_STEP_ID", "")
    if step.isdigit() and int(environ.get("SLURM_NTASKS", "1")) >= 1 and "SLURM_PROCID" in environ:
        return _from_slurm(environ, expand_hosts or _scontrol_hosts)
    return LaunchEnvironment(0, 1, 0, 1, "127.0.0.1", free_port(), "single")


def _from_launcher(environ: Mapping[str, str]) -> LaunchEnvironment:
    missing = [name for name in _RENDEZVOUS if name not in environ]
    if missing:
        given = [name for name in _RENDEZVOUS if name in environ]
        raise EnvironmentProblem(
            f"launch variables set in part: {', '.join(given)} without {', '.join(missing)}",
            fix="start with the deepspeed launcher, torchrun or srun, or unset them",
        )
    local_size = next(name for name in ("LOCAL_SIZE", "LOCAL_WORLD_SIZE", "WORLD_SIZE") if name in environ)
    return _checked(
        _integer(environ, "RANK"),
        _integer(environ, "WORLD_SIZE"),
        _integer(environ, "LOCAL_RANK"),
        _integer(environ, local_size),
        environ["MASTER_ADDR"],
        _integer(environ, "MASTER_PORT"),
        "launcher",
    )


def _from_slurm(environ: Mapping[str, str], expand_hosts: Callable[[str], list[str]]) -> LaunchEnvironment:
    missing = [name for name in _SLURM if name not in environ]
    if missing:
        raise EnvironmentProblem(
            f"inside a SLURM step but {', '.join(missing)} is not set", fix="start with srun --export=ALL"
        )
    address = environ.get("MASTER_ADDR")
    if address is None:  # scontrol is called only where it is needed
        address = expand_hosts(environ["SLURM_STEP_NODELIST"])[0]
    given = "MASTER_PORT" in environ
    port = _integer(environ, "MASTER_PORT") if given else 20000 + _integer(environ, "SLURM_JOB_ID") % 20000
    return _checked(
        _integer(environ, "SLURM_PROCID"),
        _integer(environ, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environ else "SLURM_NTASKS"),
        _integer(environ, "SLURM_LOCALID"),
        _tasks_here(environ),
        address,
        port,
        "slurm",
    )


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


def _checked(
    rank: int, world: int, local_rank: int, local_size: int, addr: str, port: int, source: str
) -> LaunchEnvironment:
    if not 0 <= rank < world:
        raise EnvironmentProblem(f"rank {rank} is not below the world size {world}", fix="check RANK and WORLD_SIZE")
    return LaunchEnvironment(rank, world, local_rank, local_size, addr, port, source)


def _integer(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except ValueError:
        raise EnvironmentProblem(f"{name}={environ[name]!r} is not a number", fix="unset it and start again") from None


def _tasks_here(environ: Mapping[str, str]) -> int:
    """Tasks on this node from forms like ``2(x3),1``."""
    text = environ.get("SLURM_STEP_TASKS_PER_NODE", environ.get("SLURM_NTASKS_PER_NODE", environ["SLURM_NTASKS"]))
    counts: list[int] = []
    for count, repeat in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(repeat or 1)
    node = int(environ.get("SLURM_NODEID", "0"))
    return counts[min(node, len(counts) - 1)] if counts else 1


def _scontrol_hosts(nodelist: str) -> list[str]:
    try:
        result = subprocess.run(
            ["scontrol", "show", "hostnames", nodelist], capture_output=True, text=True, check=True, timeout=30
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise EnvironmentProblem(
            f"cannot expand the node list {nodelist!r}: {error}", fix="put scontrol on PATH or set MASTER_ADDR"
        ) from error
    return result.stdout.split()


def free_port() -> int:
    """A port of this machine that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
