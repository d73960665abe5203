"""Runs a function in several real processes (gloo on the CPU) and brings back results or the first traceback.

Every rank is forked from a server that has imported torch and DeepSpeed, once per test process: importing them again in
every rank took longer than most tests. The ranks meet through a file, so there are no port clashes. The parent waits
for all of them, kills the rest at the first failure or at the timeout, and fails with the earliest traceback, rank in
front. A hang is a failure that shows where every rank stands.
"""

from __future__ import annotations

import faulthandler
import functools
import json
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest


def run_ranks(
    function: Callable[..., Any], world: int, *args: Any, folder: Path, timeout_s: float = 900.0
) -> list[Any]:
    """Results of ``function(rank, world, *args)`` on every rank, JSON round-tripped.

    Args:
        function: module-level function, called inside an initialised process group.
        folder: an empty folder for the rendezvous, results and traces.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = _server()
    processes = [
        context.Process(target=_entry, args=(function, rank, world, str(folder), timeout_s, args))
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    deadline = time.monotonic() + timeout_s
    failed = False
    while any(process.is_alive() for process in processes):
        failed = bool(list(folder.glob("error-*.txt")))
        if failed or time.monotonic() > deadline:
            break
        time.sleep(0.05)
    if failed:
        time.sleep(0.5)  # the other ranks' own errors, if any, are written by now
    for process in processes:
        if process.is_alive():
            process.kill()
        process.join()
    errors = sorted(folder.glob("error-*.txt"), key=lambda path: path.stat().st_mtime)
    if errors:
        pytest.fail("\n".join(path.read_text() for path in errors[:2]), pytrace=False)
    results = []
    for rank in range(world):
        path = folder / f"result-{rank}.json"
        if not path.is_file():  # judged by the result file: gloo can abort at exit after all work is done
            stacks = "\n".join(p.read_text()[-3000:] for p in sorted(folder.glob("stack-*.txt")))
            pytest.fail(f"rank {rank} of {world} gave no result within {timeout_s:.0f} s\n{stacks}", pytrace=False)
        results.append(json.loads(path.read_text()))
    return results


@functools.cache
def _server() -> Any:
    """The context that ranks are forked from, with what they all import already there."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["deepspeed", "m4oe_ds.training.loop"])
    before = os.environ.get("DS_ACCELERATOR")
    os.environ["DS_ACCELERATOR"] = "cpu"  # read when deepspeed is imported; of no concern to the tests' own process
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("DS_ACCELERATOR") if before is None else os.environ.update(DS_ACCELERATOR=before)
    return context


def _entry(
    function: Callable[..., Any], rank: int, world: int, folder: str, timeout_s: float, args: tuple[Any, ...]
) -> None:
    stack = open(f"{folder}/stack-{rank}.txt", "w")  # noqa: SIM115  (must stay open for faulthandler)
    faulthandler.dump_traceback_later(max(timeout_s - 2.0, 1.0), file=stack)
    os.environ.update(
        OMP_NUM_THREADS="1",
        DS_ACCELERATOR="cpu",
        RANK=str(rank),
        WORLD_SIZE=str(world),
        LOCAL_RANK=str(rank),
        LOCAL_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT="1",
    )
    try:
        import logging

        import torch
        import torch.distributed

        torch.set_num_threads(1)
        torch.distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=world)
        import deepspeed
        from deepspeed.utils import logger

        logger.setLevel(logging.ERROR)
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
        result = function(rank, world, *args)
        partial = Path(folder) / f".result-{rank}"
        partial.write_text(json.dumps(result))
        partial.replace(Path(folder) / f"result-{rank}.json")
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
    except BaseException:
        (Path(folder) / f"error-{rank}.txt").write_text(f"rank {rank} of {world}:\n{traceback.format_exc()}")
        raise
