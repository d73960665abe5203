"""Accelerators and the links between them: data-sheet figures, or measured ones for this machine.

Peak rates are *dense* (the sheets advertise twice as much with structured sparsity). Efficiencies and latencies are not
on any sheet; they are assumptions of this module, named as such in :data:`ASSUMPTIONS` and printed with every plan.
"""

from __future__ import annotations

import difflib
import itertools
import re
from dataclasses import dataclass

from m4oe_ds.errors import ConfigError

ASSUMPTIONS = (
    "large matrix products reach the `arithmetic` share of the data-sheet peak, element-wise kernels the `streaming` "
    "share of the memory bandwidth",
    "links reach 80 % of their one-way data-sheet rate; start-up latencies are typical NCCL figures, not measured",
    "one network port of the stated rate per accelerator, shared by nobody else",
    "2 GB per accelerator for the driver context, NCCL and cuDNN, and 6 % of the rest for allocator fragmentation",
)

MOST_DEVICES = 65536  # of one kind in a cluster


@dataclass(frozen=True)
class Link:
    """What connects devices: ``rate`` in bytes per second one way, of which ``efficiency`` is achievable; ``latency``
    in seconds per round.
    """

    name: str
    rate: float
    latency: float
    efficiency: float = 0.8

    @property
    def bandwidth(self) -> float:
        """Achievable bytes per second one way."""
        return self.rate * self.efficiency


@dataclass(frozen=True)
class Accelerator:
    """One kind of device and the node it usually sits in.

    Attributes:
        name: name as written in a cluster description.
        memory: bytes of device memory.
        half_peak: dense bf16/fp16 operations per second.
        single_peak: fp32 operations per second (without TF32, which PyTorch leaves off for matrix products).
        bandwidth: memory bytes per second.
        link: between two devices of a node.
        port: link to other nodes, per device.
        source: where the figures come from.
        host_link: bytes per second one way to host memory.
        arithmetic: achievable share of peak.
        streaming: achievable share of bandwidth.
        attention: rate of fused attention relative to matrix products.
        half_work: operations at which one matrix product runs at half its rate.
        overhead: seconds per launched kernel.
        reserved: bytes not available to tensors.
        fragmentation: share of the rest lost by the allocator.
        per_node: devices per node.
        queued: kernels are launched ahead of their execution, as on GPUs.
    """

    name: str
    memory: float
    half_peak: float
    single_peak: float
    bandwidth: float
    link: Link
    port: Link
    source: str
    host_link: float = 25e9
    arithmetic: float = 0.6
    attention: float = 0.6
    half_work: float = 0.0
    streaming: float = 0.8
    overhead: float = 6e-6
    reserved: float = 2e9
    fragmentation: float = 0.06
    per_node: int = 8
    queued: bool = True

    @property
    def usable(self) -> float:
        """Bytes that tensors can take."""
        return (self.memory - self.reserved) * (1.0 - self.fragmentation)

    def peak(self, width: int) -> float:
        """Achievable operations per second of matrix products on elements of ``width`` bytes (2 or 4)."""
        return (self.half_peak if width == 2 else self.single_peak) * self.arithmetic


_PCIE4 = Link("PCIe 4.0 x16", 32e9, 20e-6)  # 64 GB/s both ways together
_NVLINK3 = Link("NVLink 3", 300e9, 8e-6)  # 600 GB/s both ways together
_NVLINK4 = Link("NVLink 4", 450e9, 8e-6)  # 900 GB/s both ways together
_HDR = Link("InfiniBand HDR, one port per device", 25e9, 20e-6)  # 200 Gbit/s, as in DGX A100
_NDR = Link("InfiniBand NDR, one port per device", 50e9, 15e-6)  # 400 Gbit/s, as in DGX H100
_HALF_HDR = Link("InfiniBand HDR, one port per two devices", 12.5e9, 25e-6)  # assumed for PCIe nodes

ACCELERATORS: dict[str, Accelerator] = {
    device.name: device
    for device in (
        Accelerator(
            "A100-40", 40e9, 312e12, 19.5e12, 1555e9, _NVLINK3, _HDR,
            source="NVIDIA A100 Tensor Core GPU data sheet (SXM4 40 GB)",
        ),
        Accelerator(
            "A100-80", 80e9, 312e12, 19.5e12, 2039e9, _NVLINK3, _HDR,
            source="NVIDIA A100 Tensor Core GPU data sheet (SXM4 80 GB)",
        ),
        Accelerator(
            "L40", 48e9, 181.05e12, 90.5e12, 864e9, _PCIE4, _HALF_HDR,
            source="NVIDIA L40 data sheet",
        ),
        Accelerator(
            "L40S", 48e9, 362.05e12, 91.6e12, 864e9, _PCIE4, _HALF_HDR,
            source="NVIDIA L40S data sheet",
        ),
        Accelerator(
            "H100", 80e9, 989.4e12, 66.9e12, 3350e9, _NVLINK4, _NDR,
            source="NVIDIA H100 Tensor Core GPU data sheet (SXM5 80 GB; half of the rates with sparsity)",
            host_link=50e9,
        ),
        Accelerator(
            "H200", 141e9, 989.4e12, 66.9e12, 4800e9, _NVLINK4, _NDR,
            source="NVIDIA H200 Tensor Core GPU data sheet (SXM5 141 GB; half of the rates with sparsity)",
            host_link=50e9,
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Pool:
    """``count`` devices of one kind, ``count / per_node`` nodes of them."""

    count: int
    device: Accelerator

    @property
    def nodes(self) -> int:
        """Number of nodes that the devices fill."""
        return -(-self.count // self.device.per_node)


@dataclass(frozen=True)
class Cluster:
    """Pools of devices; ranks are numbered pool by pool, so that neighbours share a node."""

    pools: tuple[Pool, ...]

    @property
    def world(self) -> int:
        """Devices in all."""
        return sum(pool.count for pool in self.pools)

    @property
    def mixed(self) -> bool:
        """Whether there is more than one kind of device."""
        return len({pool.device.name for pool in self.pools}) > 1

    @property
    def nodes(self) -> int:
        """Nodes in all; pools do not share nodes."""
        return sum(pool.nodes for pool in self.pools)

    def __str__(self) -> str:
        return "+".join(f"{pool.count}x{pool.device.name}" for pool in self.pools)


def by_device_name(name: str, memory: float) -> Accelerator | None:
    """The data sheet of a device as its driver names it (``NVIDIA A100-SXM4-80GB``), with ``memory`` bytes; or None."""
    words = name.upper().replace("-", " ").split()
    near = [device for key, device in ACCELERATORS.items() if key.split("-")[0] in words]
    return min(near, key=lambda device: abs(device.memory - memory), default=None)


def accelerator(name: str, dim: int = 768, option: str = "--cluster") -> Accelerator:
    """The device called ``name`` in any case; ``local`` measures this machine on layers of width ``dim``.

    Args:
        name: of the device.
        dim: width of the layers that are measured.
        option: that names it, for the message.

    Raises:
        ConfigError: unknown name, with the nearest known one.
    """
    if name.lower() == "local":
        return measure_local(dim)
    known = {key.lower(): key for key in ACCELERATORS}
    if name.lower() not in known:
        near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.4)
        hint = f"did you mean {known[near[0]]}? " if near else ""
        known_ones = f"{', '.join(ACCELERATORS)}, local"
        raise ConfigError(f"unknown accelerator {name!r}", option, f"{hint}known: {known_ones}")
    return ACCELERATORS[known[name.lower()]]


def parse_cluster(text: str, dim: int = 768) -> Cluster:
    """``4xA100-80+4xL40S`` as a :class:`Cluster`; a term without count means one device.

    Raises:
        ConfigError: not of that form, or an unknown device.
    """
    pools = []
    for term in text.split("+"):
        match = re.fullmatch(r"\s*(?:(\d+)\s*[xX*])?\s*([A-Za-z][\w-]*)\s*", term)
        if match is None or match[1] == "0":
            raise ConfigError(f"cannot read the cluster {text!r}", "--cluster", "write it like 4xA100-80+4xL40S")
        if int(match[1] or 1) > MOST_DEVICES:
            raise ConfigError(f"{match[1]} devices", "--cluster", f"plan for at most {MOST_DEVICES}")
        pools.append(Pool(int(match[1] or 1), accelerator(match[2], dim)))
    return Cluster(tuple(pools))


def measure_local(dim: int = 768, seconds: float = 0.3) -> Accelerator:
    """This machine as a device: matrix products, attention, memory copy and overhead, each timed for ``seconds``.

    Uses the current device (GPU if torch sees one, else the CPU with torch's thread count). Communication figures are
    those of processes on one machine exchanging through memory: the copy rate divided by four passes.
    """
    import torch
    from torch.nn import functional

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    single, half = (_linear_rate(device, dtype, dim, seconds) for dtype in (torch.float32, torch.bfloat16))
    small = torch.randn(64, 64, 64, device=device)
    each = _time(lambda: small @ small, device, seconds) / 64  # seconds of one product of 64 x 64 matrices
    q = torch.randn(8, 4, 256, 32, device=device)
    attend = functional.scaled_dot_product_attention
    attention = 4.0 * q.numel() * 256 / _time(lambda: attend(q, q, q), device, seconds) / single
    source = torch.empty((1024 if device.type == "cuda" else 128) * 2**20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy = 2.0 * source.numel() / _time(lambda: target.copy_(source), device, seconds)
    wide = torch.randn(source.numel() // 128 // 768, 768, device=device)
    kernels = (
        2.0
        * 3
        * wide.nbytes
        / _time(lambda: functional.layer_norm(functional.gelu(wide) * wide, (768,)), device, seconds)
    )
    overhead = _overhead(device, seconds)
    memory = Link("memory of this machine", copy / 4, 2e-4 if device.type == "cpu" else 8e-6, efficiency=1.0)
    return Accelerator(
        name="local",
        memory=float(_local_memory(device)),
        half_peak=half,
        single_peak=single,
        bandwidth=copy,
        link=memory,
        port=memory,
        source=f"measured on this machine ({device.type}, {torch.get_num_threads()} threads)",
        host_link=copy / 2,
        attention=min(1.0, attention),
        half_work=max(0.0, each * single - 2.0 * 64**3),
        arithmetic=1.0,  # the measured rates are already achieved ones
        streaming=min(1.0, kernels / copy),
        overhead=overhead,
        reserved=1e9,
        queued=device.type == "cuda",
    )


def _linear_rate(device: object, dtype: object, dim: int, seconds: float) -> float:
    """Operations per second of a linear layer ``dim`` to ``4 dim``, forward and backward."""
    import torch
    from torch.nn import functional

    place = torch.device(str(device))
    rows, inner, outer = 16384 if place.type == "cuda" else 2048, dim, 4 * dim
    assert isinstance(dtype, torch.dtype)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=place).to(dtype)

    # a step touches every operand once: eight sets in turn, so that none is found in the cache
    sets = itertools.cycle(
        [
            (random(rows, inner).requires_grad_(), random(outer, inner).requires_grad_(), random(rows, outer))
            for _ in range(8)
        ]
    )

    def once() -> None:
        x, weight, gradient = next(sets)
        torch.autograd.grad(functional.linear(x, weight), (x, weight), gradient)

    return 6.0 * rows * inner * outer / _time(once, place, seconds)


def _overhead(device: object, seconds: float) -> float:
    """Seconds per kernel of tiny operations inside modules, forward and backward: what Python and autograd add."""
    import torch
    from torch import nn

    place = torch.device(str(device))
    blocks = nn.Sequential(*(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU()) for _ in range(10))).to(place)
    x = torch.randn(4, 8, device=place)
    kernels = 10 * (3 + 7)  # forward: norm, product, GELU; backward: GELU, two products, bias, norm, two accumulations
    return _time(lambda: blocks(x).sum().backward(), place, seconds) / kernels


def _time(work: object, device: object, seconds: float) -> float:
    """Median seconds of one call, over calls lasting ``seconds`` together after a warm-up."""
    import statistics
    import time

    import torch

    assert callable(work)
    on_gpu = torch.device(str(device)).type == "cuda"

    def once() -> float:
        start = time.perf_counter()
        work()
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for _ in range(3):
        once()
    samples = [once()]
    while sum(samples) < seconds:
        samples.append(once())
    return statistics.median(samples)


def _local_memory(device: object) -> int:
    import os

    import torch

    if torch.device(str(device)).type == "cuda":
        return int(torch.cuda.get_device_properties(0).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
