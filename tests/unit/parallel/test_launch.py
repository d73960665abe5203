"""Coordinates of this process from launcher variables, a SLURM step, or nothing."""

from __future__ import annotations

import socket

import pytest
import torch

from m4oe_ds import coordinates
from m4oe_ds.coordinates import LaunchEnvironment, resolve
from m4oe_ds.errors import EnvironmentProblem
from m4oe_ds.parallel.launch import device_index

LAUNCHER = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "node-a", "MASTER_PORT": "29501"}
SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "4",
    "SLURM_NTASKS": "7",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "2",
    "SLURM_STEP_NODELIST": "node-[a-d]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
}


def expand(nodelist: str) -> list[str]:
    assert nodelist == "node-[a-d]"
    return ["node-a", "node-b", "node-c", "node-d"]


def never(nodelist: str) -> list[str]:
    raise AssertionError(f"nobody should expand {nodelist}")


def without(environ: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in environ.items() if name not in names}


# ----------------------------------------------------------------------------------------------------- launcher


def test_launcher_variables() -> None:
    found = resolve({**LAUNCHER, "LOCAL_SIZE": "4"}, never)
    assert found == LaunchEnvironment(5, 8, 1, 4, "node-a", 29501, "launcher")


def test_the_local_size_of_torchrun_and_its_default() -> None:
    assert resolve({**LAUNCHER, "LOCAL_WORLD_SIZE": "2"}).local_size == 2
    assert resolve(LAUNCHER).local_size == 8


def test_launcher_variables_win_over_a_slurm_step() -> None:
    assert resolve({**SLURM, **LAUNCHER}, never).source == "launcher"


@pytest.mark.parametrize(
    "missing", [("LOCAL_RANK",), ("MASTER_ADDR",), ("MASTER_PORT",), ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")]
)
def test_variables_set_in_part_are_refused_and_the_missing_ones_listed(missing: tuple[str, ...]) -> None:
    with pytest.raises(EnvironmentProblem) as caught:
        resolve(without(LAUNCHER, *missing))
    absent = str(caught.value).split("without", 1)[1].split(";", 1)[0]
    assert [name.strip() for name in absent.split(",")] == list(missing)


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "LOCAL_SIZE"])
def test_a_variable_that_is_not_a_number_is_named_with_its_value(name: str) -> None:
    with pytest.raises(EnvironmentProblem, match=f"{name}='two'"):
        resolve({**LAUNCHER, name: "two"})


@pytest.mark.parametrize("rank", ["8", "-1"])
def test_a_rank_outside_the_world_is_refused(rank: str) -> None:
    with pytest.raises(EnvironmentProblem, match=f"rank {rank} is not below the world size 8"):
        resolve({**LAUNCHER, "RANK": rank})


# -------------------------------------------------------------------------------------------------------- slurm


def test_a_slurm_step() -> None:
    found = resolve(SLURM, expand)
    assert (found.rank, found.world, found.local_rank, found.source) == (4, 7, 0, "slurm")
    assert found.master_addr == "node-a"
    assert 1024 < found.master_port < 65536


@pytest.mark.parametrize(
    ("tasks", "sizes"),
    [("2(x3),1", [2, 2, 2, 1]), ("4", [4]), ("3,1(x2)", [3, 1, 1]), ("8(x2)", [8, 8])],
)
def test_tasks_per_node_are_expanded(tasks: str, sizes: list[int]) -> None:
    for node, size in enumerate(sizes):
        environ = {**SLURM, "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_NODEID": str(node)}
        assert resolve(environ, expand).local_size == size


def test_all_tasks_of_a_job_meet_at_the_same_port_and_jobs_at_different_ones() -> None:
    ports = {resolve({**SLURM, "SLURM_PROCID": str(rank)}, expand).master_port for rank in range(7)}
    assert len(ports) == 1
    assert resolve({**SLURM, "SLURM_JOB_ID": "4712"}, expand).master_port not in ports


def test_a_step_smaller_than_its_job_counts_the_tasks_of_the_step() -> None:
    found = resolve({**SLURM, "SLURM_STEP_NUM_TASKS": "5"}, expand)
    assert (found.rank, found.world) == (4, 5)


def test_a_given_rendezvous_is_used_without_asking_for_host_names() -> None:
    """The error of a missing scontrol says to set MASTER_ADDR, so setting it must be enough."""

    def unavailable(nodelist: str) -> list[str]:
        raise EnvironmentProblem(f"cannot expand the node list {nodelist!r}")

    found = resolve({**SLURM, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29999"}, unavailable)
    assert (found.master_addr, found.master_port, found.source) == ("10.0.0.1", 29999, "slurm")


@pytest.mark.parametrize("name", ["SLURM_LOCALID", "SLURM_STEP_NODELIST", "SLURM_JOB_ID"])
def test_a_step_with_missing_variables_names_them(name: str) -> None:
    with pytest.raises(EnvironmentProblem, match=f"inside a SLURM step but {name} is not set"):
        resolve(without(SLURM, name), expand)


@pytest.mark.parametrize(
    "environ",
    [
        without(SLURM, "SLURM_STEP_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NODELIST"),  # salloc
        without(SLURM, "SLURM_STEP_ID"),  # the body of a batch script has a PROCID
    ],
)
def test_an_allocation_without_a_step_is_a_single_process(environ: dict[str, str]) -> None:
    found = resolve(environ, never)
    assert (found.rank, found.world, found.source) == (0, 1, "single")


def test_without_scontrol_the_node_list_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EnvironmentProblem, match="node-") as caught:
        resolve(SLURM)
    assert "MASTER_ADDR" in str(caught.value)


# ------------------------------------------------------------------------------------------------------- single


def test_nothing_set_is_a_single_process_at_a_free_local_port() -> None:
    found = resolve({}, never)
    assert (found.rank, found.world, found.local_rank, found.local_size) == (0, 1, 0, 1)
    assert (found.master_addr, found.source) == ("127.0.0.1", "single")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", found.master_port))  # free


# ------------------------------------------------------------------------------------------------------ devices


def test_a_rank_takes_its_own_gpu_whether_it_sees_those_of_the_others_or_not() -> None:
    place = LaunchEnvironment(5, 8, 1, 4, "node-a", 29501, "slurm")
    assert device_index(place, 4) == 1
    assert device_index(place, 1) == 0  # srun --gpus-per-task
    beyond = LaunchEnvironment(7, 8, 3, 4, "node-a", 29501, "slurm")
    with pytest.raises(EnvironmentProblem, match="local rank 3 has no GPU, 2 are visible"):
        device_index(beyond, 2)


def test_an_accelerator_that_is_not_here_is_one_line() -> None:
    for environ in ({}, {"DS_ACCELERATOR": ""}, {"DS_ACCELERATOR": "cpu"}):
        coordinates.check_accelerator(environ)
    with pytest.raises(EnvironmentProblem, match=r"DS_ACCELERATOR: 'xpu' is no accelerator of this trainer; use cuda"):
        coordinates.check_accelerator({"DS_ACCELERATOR": "xpu"})
    if not torch.cuda.is_available():
        with pytest.raises(EnvironmentProblem, match=r"DS_ACCELERATOR: cuda, but torch sees no GPU on this machine"):
            coordinates.check_accelerator({"DS_ACCELERATOR": "cuda"})
