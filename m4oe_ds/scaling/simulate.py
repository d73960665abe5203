"""Points beyond this machine by the plan's model: kernels by roofline, collectives by alpha-beta, slowest rank."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from m4oe_ds import config_loader
from m4oe_ds.models.registry import expert_counts
from m4oe_ds.planning.candidates import Candidate, Costs, evaluate, most_sharers
from m4oe_ds.planning.hardware import ASSUMPTIONS, Cluster, Pool, accelerator
from m4oe_ds.planning.memory import Layout
from m4oe_ds.planning.model_cost import Precision
from m4oe_ds.progress import track
from m4oe_ds.scaling.rows import DOES_NOT_FIT, StudyRow

SOURCE = "simulated: data-sheet peaks and links with the efficiencies assumed in `m4oe plan`, nothing overlapped"

ASSUMED = (SOURCE.removeprefix("simulated: "), *ASSUMPTIONS)


def cluster_of(kinds: Sequence[str], world: int) -> Cluster | None:
    """``world`` devices, shared equally by the kinds; None if they cannot be.

    Raises:
        ConfigError: an unknown kind.
    """
    if world % len(kinds):
        return None
    return Cluster(tuple(Pool(world // len(kinds), accelerator(kind)) for kind in kinds))


def largest_ep(cluster: Cluster, counts: Sequence[int]) -> int:
    """Most ranks that can share the experts, a node's worth at most.

    Half-filled nodes of a mixed cluster are spanned rather than ep halved: slots are little, and replicas in different
    nodes would have to reduce the gradients of their experts between them.
    """
    return most_sharers(counts, cluster.world, *(pool.device.per_node for pool in cluster.pools))


@dataclass(frozen=True)
class Simulation:
    """The points to simulate and what all of them share.

    Attributes:
        config: path of the configuration.
        overrides: ``--set`` options of it.
        experts: number of experts of the MToE.
        clusters: kinds of devices of each cluster, e.g. ``[["A100-80"], ["A100-80", "L40S"]]``; a mixed one has equal
            numbers of each.
        worlds: devices in all.
        modes: ``weak``, ``strong``.
        micro: samples per rank, weak.
        batch: samples per step, strong.
        stage: ZeRO stage.
        precision: fp32, bf16 or fp16.
    """

    config: str
    overrides: Sequence[str]
    experts: Sequence[int]
    clusters: Sequence[Sequence[str]]
    worlds: Sequence[int]
    modes: Sequence[str]
    micro: int
    batch: int
    stage: int
    precision: Precision

    def points(self) -> Iterator[SimulatedPoint]:
        """Every combination, those of one model and cluster after one another."""
        for experts, kinds, world, mode in itertools.product(self.experts, self.clusters, self.worlds, self.modes):
            yield SimulatedPoint(experts, tuple(kinds), world, mode)


@dataclass(frozen=True)
class SimulatedPoint:
    """Experts of the MToE, kinds of the devices, their number and the scaling mode."""

    experts: int
    kinds: tuple[str, ...]
    world: int
    mode: str

    def __str__(self) -> str:
        return f"{self.experts} experts, {self.world} x {'+'.join(self.kinds)}, {self.mode}"


def impossible(point: SimulatedPoint, batch: int) -> str:
    """Why a point cannot be, with ``batch`` samples per step of strong scaling; empty where it can."""
    if point.world % len(point.kinds):
        return f"{point.world} devices cannot be shared equally by {len(point.kinds)} kinds"
    if point.mode == "strong" and batch % point.world:
        return f"a batch of {batch} cannot be shared by {point.world} ranks"
    return ""


def simulate(options: Simulation) -> tuple[list[StudyRow], list[tuple[str, str]]]:
    """A row for every combination, and those that cannot be with the reason; ep is that of :func:`largest_ep`.

    Args:
        options: the points, and what they share.

    Raises:
        ConfigError: unknown device, or numbers that do not fit.
    """
    rows: list[StudyRow] = []
    left_out: list[tuple[str, str]] = []
    costs: dict[int, Costs] = {}
    for point in track(list(options.points()), "simulated", "points"):
        cluster, reason = cluster_of(point.kinds, point.world), impossible(point, options.batch)
        if reason or cluster is None:
            left_out.append((str(point), reason))
        else:
            if point.experts not in costs:
                more = [*options.overrides, f"model.mtoe.num_experts={point.experts}"]
                costs[point.experts] = Costs(config_loader.load(options.config, more))
            rows.append(_simulated(point, cluster, costs[point.experts], options))
    return rows, left_out


def _simulated(point: SimulatedPoint, cluster: Cluster, costs: Costs, options: Simulation) -> StudyRow:
    config = costs.config
    samples = options.micro if point.mode == "weak" else options.batch // point.world
    ep = largest_ep(cluster, expert_counts(config))
    layout = Layout(point.world, ep, options.stage, samples, precision=options.precision)
    found = evaluate(costs, cluster, layout, config.model.activation_checkpointing)
    return _row(point.experts, point.mode, layout, found, " ".join([options.config, *options.overrides]))


def _row(experts: int, mode: str, layout: Layout, found: Candidate, setting: str) -> StudyRow:
    time = found.time
    fits = "" if found.fits else f" {DOES_NOT_FIT};"
    return StudyRow(
        experts=experts,
        ep=layout.ep,
        world=layout.world,
        mode=mode,
        batch=layout.batch,
        micro=layout.micro,
        stage=layout.stage,
        precision=layout.precision,
        device="+".join(pool.device.name for pool in found.cluster.pools),
        parameters=found.cost.total,
        step_ms=1e3 * time.total,
        step_ms_low=None,
        step_ms_high=None,
        samples_per_s=found.samples_per_second,
        memory_bytes=found.memory.peak,
        compute_ms=1e3 * time.compute,
        all_to_all_ms=1e3 * time.exchange,
        reduction_ms=1e3 * (time.reduction + time.gather),
        optimizer_ms=1e3 * time.optimizer,
        data_ms=None,
        all_to_all_bytes=time.bytes_exchanged,
        measured=False,
        source=f"{SOURCE};{fits} pace of {time.slowest}",
        setting=setting,
        digest="",
        data="none",
    )
