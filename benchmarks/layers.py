"""Soft-MoE and MToE layers, forward + backward, next to the alternatives, in one run.

    python benchmarks/layers.py [--device cpu|cuda] [--batches 1 4 16 32] [--experts 16 32 64 128] [--out FILE]

Everybody gets the same tokens, width, hidden width, number of experts and slots. Rows are timed in turn, round by
round, so that a machine that slows down slows all of them down; the figure is the median over the rounds. Peers:

    loop               the same mixture with one pair of matrix products per expert
    soft-moe-pytorch   the public package of that name, with the same experts and slots
    DeepSpeed MoE      top-1 gating, as many experts of the same size (it does less: one expert per token)
    dense MLP          one MLP of the expert's size on every token

Our layers come twice on CPUs where they use oneDNN (m4oe_ds/layers/products.py): "(MKL)" is the same layer with
PyTorch's default products, as the peers have them. On a machine that is busy use one thread and ``--clock cpu``.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

if "OMP_NUM_THREADS" not in os.environ:
    os.environ["OMP_NUM_THREADS"] = str(os.cpu_count())
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from torch import Tensor, nn
from torch.nn import functional

from m4oe_ds.layers import MToE, SoftMoE
from m4oe_ds.layers.products import one_by_one, only_mkl


class Loop(nn.Module):
    """The mixture as one would first write it: softmaxes kept, a Python loop over the experts."""

    def __init__(self, dim: int, experts: int, slots: int, hidden: int, per_slot_output: bool) -> None:
        super().__init__()
        self.phi = nn.Parameter(torch.randn(dim, experts, slots) / dim**0.5)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)) for _ in range(experts)
        )
        self.per_slot_output = per_slot_output

    def forward(self, x: Tensor) -> Tensor:
        """``[B, M, d]`` to ``[B, M, d]``, or ``[B, p, M, d]`` with an output per slot."""
        unit = functional.normalize(x.float(), dim=-1)
        logits = torch.einsum("bmd,dns->bmns", unit, functional.normalize(self.phi.float(), dim=0))
        dispatch = logits.softmax(1).to(x.dtype)
        combine = logits.flatten(2).softmax(2).view_as(logits).to(x.dtype)
        slots = torch.einsum("bmns,bmd->bnsd", dispatch, x)
        out = torch.stack([expert(slots[:, i]) for i, expert in enumerate(self.experts)], 1)
        return torch.einsum("bmns,bnsd->bsmd" if self.per_slot_output else "bmns,bnsd->bmd", combine, out)


def deepspeed_moe(dim: int, experts: int, hidden: int) -> nn.Module | None:
    """DeepSpeed's own layer on one rank; None where it cannot be built."""
    try:
        import deepspeed
        from deepspeed.moe.layer import MoE

        if not torch.distributed.is_initialized():
            os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
            backend = "nccl" if torch.cuda.is_available() else "gloo"
            store = torch.distributed.HashStore()
            torch.distributed.init_process_group(backend, store=store, rank=0, world_size=1)
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
            deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
        expert = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        layer = MoE(dim, expert, num_experts=experts, ep_size=1, k=1, use_residual=False)
        layer.set_deepspeed_parallelism()
        return layer
    except Exception as error:  # a peer that does not run here is left out, and said so
        print(f"DeepSpeed MoE left out: {error}", file=sys.stderr)
        return None


def soft_moe_pytorch(dim: int, experts: int, slots: int, hidden: int) -> nn.Module | None:
    """The public package, told to use an MLP of the same size."""
    try:
        from soft_moe_pytorch import SoftMoE as Public
    except ImportError:
        print("soft-moe-pytorch is not installed and left out", file=sys.stderr)
        return None
    return Public(dim=dim, num_experts=experts, num_slots=slots, expert_mult=hidden // dim)


def step_of(module: nn.Module, x: Tensor, *, first: bool = False, pair: bool = False) -> Callable[[], None]:
    """Forward and backward on fixed gradients; parameter gradients are dropped, as an optimizer would."""
    module = module.to(x.device, x.dtype) if x.dtype != torch.float32 else module.to(x.device)
    gradient: list[Tensor] = []

    def run() -> None:
        out = module(x)
        out = out[0] if first or pair else out
        if not gradient:
            gradient.append(torch.randn_like(out))
        out.backward(gradient[0])
        for parameter in module.parameters():
            parameter.grad = None
        x.grad = None

    return run


def synchronise(device: str) -> None:
    """Waits for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def with_mkl(call: Callable[[], None]) -> Callable[[], None]:
    """The call with PyTorch's own products."""

    def run() -> None:
        with only_mkl():
            call()

    return run


def measure(
    calls: dict[str, Callable[[], None]], rounds: int, device: str, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Median milliseconds of each call over the rounds, taken in turn after one warm-up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            synchronise(device)
            start = clock()
            call()
            synchronise(device)
            if number:
                times[name].append(clock() - start)
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def row(batch: int, experts: int, options: argparse.Namespace) -> dict[str, float]:
    """All variants at one batch size and number of experts."""
    dtype = torch.bfloat16 if options.dtype == "bf16" else torch.float32
    dim, hidden, slots = options.dim, 4 * options.dim, options.tasks
    x = torch.randn(batch, options.tokens, dim, device=options.device, dtype=dtype, requires_grad=True)
    calls: dict[str, Callable[[], None]] = {}
    calls["Soft-MoE"] = step_of(SoftMoE(dim, experts, slots, hidden=hidden), x, first=True)
    calls["MToE"] = step_of(MToE(dim, experts, slots, hidden=hidden), x, first=True)
    if options.device == "cpu" and one_by_one(x.detach(), 4096, 4096, 4096):
        calls["Soft-MoE (MKL)"] = with_mkl(calls["Soft-MoE"])
        calls["MToE (MKL)"] = with_mkl(calls["MToE"])
    calls["loop"] = step_of(Loop(dim, experts, slots, hidden, False), x)
    calls["loop, p outputs"] = step_of(Loop(dim, experts, slots, hidden, True), x)
    if (public := soft_moe_pytorch(dim, experts, slots, hidden)) is not None:
        calls["soft-moe-pytorch"] = step_of(public, x)
    if (other := deepspeed_moe(dim, experts, hidden)) is not None:
        calls["DeepSpeed MoE"] = step_of(other, x, pair=True)
    calls["dense MLP"] = step_of(nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)), x)
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    return measure(calls, options.rounds, options.device, clock)


def main() -> None:
    """Measures, prints and optionally writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="fp32", choices=("fp32", "bf16"))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 32])
    parser.add_argument("--experts", type=int, nargs="+", default=[16, 32, 64, 128])
    parser.add_argument("--tokens", type=int, default=784, help="per sample, e.g. 4 views of 14 x 14 patches")
    parser.add_argument("--tasks", type=int, default=7, help="slots per expert")
    parser.add_argument("--dim", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"), help="cpu: processor time of this process")
    parser.add_argument("--out", default="", help="also write the table to this file")
    options = parser.parse_args()
    torch.manual_seed(0)
    lines = [
        f"Measured {date.today().isoformat()} on {platform.machine()}, {torch.get_num_threads()} threads, device "
        f"{torch.cuda.get_device_name() if options.device == 'cuda' else 'cpu'}, torch {torch.__version__}, "
        f"{options.dtype}; {options.tokens} tokens, d = {options.dim}, hidden {4 * options.dim}, {options.tasks} slots "
        f"per expert; median milliseconds ({options.clock} clock) of forward + backward over {options.rounds} rounds. "
        f"Command: `python benchmarks/layers.py {' '.join(sys.argv[1:])}`",
        "",
    ]
    header: list[str] = []
    for experts in options.experts:
        for batch in options.batches:
            found = row(batch, experts, options)
            if not header:
                header = ["experts", "batch", *found]
                lines += ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
                print("\n".join(lines))
            lines.append(
                "| " + " | ".join([str(experts), str(batch), *(f"{value:.1f}" for value in found.values())]) + " |"
            )
            print(lines[-1], flush=True)
    if options.out:
        Path(options.out).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
