"""Who this process is among the ranks: from the ``deepspeed`` launcher (or torchrun), ``srun``, or alone. No torch."""

from __future__ import annotations

import re
import socket
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass

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


def check_accelerator(environ: Mapping[str, str]) -> None:
    """``DS_ACCELERATOR``, which DeepSpeed takes at its word: what it names must be here.

    Args:
        environ: usually ``os.environ``.

    Raises:
        EnvironmentProblem: it is not, or nothing that this trainer runs on.
    """
    wanted = environ.get("DS_ACCELERATOR", "")
    if wanted not in ("", "cpu", "cuda"):
        raise EnvironmentProblem(f"{wanted!r} is no accelerator of this trainer", "DS_ACCELERATOR", "use cuda or cpu")
    if wanted == "cuda":
        import torch

        if not torch.cuda.is_available():
            fix = "unset it, or see what `m4oe doctor` says of the driver"
            raise EnvironmentProblem("cuda, but torch sees no GPU on this machine", "DS_ACCELERATOR", fix)


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
