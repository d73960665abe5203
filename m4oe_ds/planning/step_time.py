"""Seconds per optimizer step: a roofline per kernel, an alpha-beta model per collective, the slowest rank's pace.

Simulated, not measured: a kernel takes the longer of its arithmetic at the achievable peak, its traffic at the
achievable bandwidth, and its launch; a collective takes its latency times the rounds plus its bytes over the slowest
link of its group. Communication is not overlapped with computation, as in the DeepSpeed configurations shipped here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from m4oe_ds.planning.hardware import Accelerator, Cluster
from m4oe_ds.planning.memory import Layout, owned
from m4oe_ds.planning.model_cost import MicroStep

# Bytes per owned element of torch's Adam, counted over its element-wise passes on fp32: lerp 3, mul 2, addcmul 4,
# sqrt 2, div 2, add 2, addcdiv 4 accesses; plus flattening, norm and overflow check of the gradient, and the copy to
# the model.
ADAM_BYTES = 19 * 4 + 6 * 4
# accesses per held element and reduction: into the bucket, division, out of the bucket
BUCKET_ACCESSES = 6
# host memory bandwidth that one rank of a full node gets
HOST_BANDWIDTH = 20e9
# small all-reduces per micro-step: label counts, modality masses
SMALL_REDUCTIONS = 2


@dataclass(frozen=True)
class RankDevice:
    """A rank's device and node."""

    device: Accelerator
    node: int


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step of the slowest rank.

    Attributes:
        compute: forward and backward, all micro-steps.
        exchange: the expert all-to-alls.
        reduction: reducing the gradients.
        gather: weights after the step (ZeRO-3: before use).
        optimizer: the update.
        other: input copies, small reductions.
        by_device: compute and optimizer seconds of each kind of device.
        slowest: the kind that sets the pace.
        arithmetic_share: part of compute bound by arithmetic, not memory.
        bytes_exchanged: bytes that the expert all-to-alls move off a rank per step.
        bytes_reduced: bytes of gradients that leave a rank per step.
    """

    compute: float
    exchange: float
    reduction: float
    gather: float
    optimizer: float
    other: float
    by_device: dict[str, float]
    slowest: str
    arithmetic_share: float
    bytes_exchanged: float
    bytes_reduced: float

    @property
    def total(self) -> float:
        """Seconds per optimizer step."""
        return self.compute + self.exchange + self.reduction + self.gather + self.optimizer + self.other


def places(cluster: Cluster) -> list[RankDevice]:
    """Rank to device and node, pool by pool."""
    result: list[RankDevice] = []
    node = 0
    for pool in cluster.pools:
        for index in range(pool.count):
            result.append(RankDevice(pool.device, node + index // pool.device.per_node))
        node += pool.nodes
    return result


def kernel_seconds(cost: MicroStep, device: Accelerator) -> tuple[float, float]:
    """Seconds of forward and backward of one micro-step, and the share of them bound by arithmetic."""
    total = arithmetic = 0.0
    bandwidth = device.bandwidth * device.streaming
    for op in cost.operations:
        work = op.flops + (op.products * device.half_work if op.flops else 0.0)
        compute = work / device.peak(op.width) / (device.attention if op.attention else 1.0)
        memory = op.traffic / bandwidth
        # a GPU hides the launch behind a long kernel, a CPU works it off first
        seconds = max(compute, memory, device.overhead) if device.queued else max(compute, memory) + device.overhead
        total += seconds
        if compute >= max(memory, device.overhead):
            arithmetic += seconds
    return total, arithmetic / total if total else 0.0


def collective(members: Sequence[RankDevice], rounds: float, share: float, volume: float) -> float:
    """Seconds of a ring or tree collective in which ``share * volume`` bytes pass every rank's link."""
    if len(members) < 2:
        return 0.0
    latency = max(member.device.link.latency for member in members)
    bandwidth = min(member.device.link.bandwidth for member in members)
    nodes: dict[int, list[RankDevice]] = {}
    for member in members:
        nodes.setdefault(member.node, []).append(member)
    if len(nodes) > 1:
        latency = max(latency, *(member.device.port.latency for member in members))
        # the ranks of a node share its ports in one collective
        ports = min(sum(m.device.port.bandwidth for m in inside) for inside in nodes.values())
        bandwidth = min(bandwidth, ports)
    return rounds * latency + share * volume / bandwidth


def all_to_all(members: Sequence[RankDevice], volume: float) -> float:
    """Seconds of an equal-split all-to-all in which every rank sends ``volume`` bytes in all, its own part included."""
    size = len(members)
    if size < 2:
        return 0.0
    worst = 0.0
    for member in members:
        inside = sum(other.node == member.node for other in members)
        device = member.device
        near = (inside - 1) / size * volume / device.link.bandwidth
        far = (size - inside) / size * volume / device.port.bandwidth
        latency = device.port.latency if inside < size else device.link.latency
        worst = max(worst, math.ceil(math.log2(size)) * latency + max(near, far))
    return worst


def step_time(cost: MicroStep, layout: Layout, cluster: Cluster, image_bytes: float = 0.0) -> StepTime:
    """Time of one optimizer step; ``cost`` must have been recorded with the layout's micro-batch, ep and precision.

    Args:
        image_bytes: input bytes of a micro-batch copied to the device.
    """
    ranks = places(cluster)
    devices = {place.device.name: place.device for place in ranks}
    own = owned(cost, layout)
    compute, optimizer = {}, {}
    shares = {}
    for name, device in devices.items():
        seconds, shares[name] = kernel_seconds(cost, device)
        compute[name] = layout.accumulation * seconds
        optimizer[name] = _optimizer_seconds(cost, layout, device, own)
    slowest = max(devices, key=lambda name: compute[name] + optimizer[name])
    exchange, sent = _exchange_seconds(cost, layout, ranks)
    reduction, gather, reduced = _reduction_seconds(cost, layout, ranks)
    log = math.ceil(math.log2(layout.world)) if layout.world > 1 else 0
    small = 2 * log * max(place.device.port.latency for place in ranks) if layout.world > 1 else 0.0
    copies = image_bytes / min(device.host_link for device in devices.values())
    return StepTime(
        compute=compute[slowest],
        exchange=exchange,
        reduction=reduction,
        gather=gather,
        optimizer=optimizer[slowest],
        other=layout.accumulation * (SMALL_REDUCTIONS * small + copies),
        by_device={name: compute[name] + optimizer[name] for name in devices},
        slowest=slowest,
        arithmetic_share=shares[slowest],
        bytes_exchanged=sent,
        bytes_reduced=reduced,
    )


def _optimizer_seconds(cost: MicroStep, layout: Layout, device: Accelerator, own: float) -> float:
    bandwidth = device.bandwidth * device.streaming
    passes = layout.accumulation if layout.stage > 1 else 1
    buckets = passes * BUCKET_ACCESSES * cost.width * (cost.dense + cost.expert) / bandwidth
    if layout.offload:
        moved = 2 * cost.width * own / device.host_link
        return buckets + moved + ADAM_BYTES * own / HOST_BANDWIDTH
    return buckets + ADAM_BYTES * own / bandwidth


def _groups(ranks: Sequence[RankDevice], ep: int) -> tuple[list[Sequence[RankDevice]], list[Sequence[RankDevice]]]:
    """Expert-parallel groups (neighbours) and groups of replicas (strided), as DeepSpeed makes them."""
    sharing = [ranks[start : start + ep] for start in range(0, len(ranks), ep)]
    replicas = [ranks[first::ep] for first in range(ep)]
    return sharing, replicas


def _distinct(groups: list[Sequence[RankDevice]]) -> list[Sequence[RankDevice]]:
    """One group of each shape; thousands of equal groups take equal time."""
    shapes = {}
    for group in groups:
        first = group[0].node
        shapes[tuple((place.device.name, place.node - first) for place in group)] = group
    return list(shapes.values())


def _exchange_seconds(cost: MicroStep, layout: Layout, ranks: Sequence[RankDevice]) -> tuple[float, float]:
    """Seconds and bytes leaving a rank of all all-to-alls of a step; every exchange runs forward and backward."""
    if layout.ep == 1:
        return 0.0, 0.0
    groups = _distinct(_groups(ranks, layout.ep)[0])
    volumes: dict[float, int] = {}
    for elements in cost.exchanges:
        volume = float(elements * cost.width)
        volumes[volume] = volumes.get(volume, 0) + 2
    seconds = sum(count * max(all_to_all(group, volume) for group in groups) for volume, count in volumes.items())
    sent = sum(count * volume for volume, count in volumes.items()) * (layout.ep - 1) / layout.ep
    return layout.accumulation * seconds, layout.accumulation * sent


def _reduction_seconds(cost: MicroStep, layout: Layout, ranks: Sequence[RankDevice]) -> tuple[float, float, float]:
    """Seconds of gradient reduction, of weight gathering, and bytes leaving a rank.

    ZeRO-1 and 2 reduce buckets by all-reduce and keep their part (``allreduce_and_scatter``), 2 after every
    micro-step and 1 at the end; ZeRO-3 scatters. Experts are reduced among replicas only.
    """
    reduction = gather = sent = 0.0
    micro_steps = layout.accumulation if layout.stage > 1 else 1
    # stage 3 keeps what it gathered in forward for backward if it may
    gathers = layout.accumulation * (1 if cost.dense + cost.expert <= 1e9 else 2) if layout.stage == 3 else 1
    replicas = _distinct(_groups(ranks, layout.ep)[1])
    for groups, elements in (([ranks], cost.dense), (replicas, cost.expert)):
        size = len(groups[0])
        if size < 2 or not elements:
            continue
        volume, share = float(elements * cost.width), (size - 1) / size
        calls = math.ceil(elements / layout.bucket)
        log = math.ceil(math.log2(size))
        factor = 1 if layout.stage == 3 else 2
        reduction += micro_steps * max(collective(g, factor * log * calls, factor * share, volume) for g in groups)
        gather += gathers * max(collective(g, log * calls, share, volume) for g in groups)
        sent += micro_steps * factor * share * volume + gathers * share * volume
    return reduction, gather, sent
