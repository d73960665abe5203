"""Points beyond this machine by the plan's model: roofline per kernel, alpha-beta per collective, slowest rank's pace."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from m4oe_ds import config_loader
from m4oe_ds.errors import ConfigError
from m4oe_ds.planning.hardware import Cluster, Pool, accelerator
from m4oe_ds.planning.memory import Layout
from m4oe_ds.planning.recommend import Costs, evaluate, expert_counts
from m4oe_ds.scaling.rows import DOES_NOT_FIT, Row

SOURCE = "simulated: data-sheet peaks and links with the efficiencies assumed in `m4oe plan`, nothing overlapped"


def cluster_of(kinds: Sequence[str], world: int) -> Cluster:
    """``world`` devices, shared equally by the kinds.

    Raises:
        ConfigError: they cannot be shared equally.
    """
    if world % len(kinds):
        raise ConfigError(f"{world} devices cannot be shared by {len(kinds)} kinds", "--worlds")
    return Cluster(tuple(Pool(world // len(kinds), accelerator(kind)) for kind in kinds))


def simulate(
    config_path: str,
    overrides: Sequence[str],
    experts: Sequence[int],
    clusters: Sequence[Sequence[str]],
    worlds: Sequence[int],
    modes: Sequence[str],
    micro: int,
    batch: int,
    stage: int,
    precision: str,
) -> list[Row]:
    """Rows for every combination; ep is what a node and the expert counts allow.

    Args:
        clusters: kinds of devices of each cluster, e.g. ``[["A100-80"], ["A100-80", "L40S"]]``; a mixed one has equal
            numbers of each. worlds: devices in all. micro: samples per rank, weak. batch: samples per step, strong;
            worlds that cannot share it are left out.

    Raises:
        ConfigError: unknown device, or numbers that do not fit.
    """
    rows = []
    for count in experts:
        config = config_loader.load(config_path, [*overrides, f"model.mtoe.num_experts={count}"])
        costs = Costs(config)
        for kinds in clusters:
            for world in worlds:
                cluster = cluster_of(kinds, world)
                node = min(pool.device.per_node for pool in cluster.pools)
                ep = math.gcd(world, node, *expert_counts(config))
                for mode in modes:
                    if mode == "strong" and (batch % world or batch < world):
                        continue
                    samples = micro if mode == "weak" else batch // world
                    layout = Layout(world, ep, stage, samples, precision=precision)
                    rows.append(_row(count, mode, layout, evaluate(costs, cluster, layout)))
    return rows


def _row(experts: int, mode: str, layout: Layout, found: Any) -> Row:
    time = found.time
    fits = "" if found.fits else f" {DOES_NOT_FIT};"
    return Row(
        experts=experts, ep=layout.ep, world=layout.world, mode=mode, batch=layout.batch, micro=layout.micro, stage=layout.stage,
        precision=layout.precision, device="+".join(pool.device.name for pool in found.cluster.pools),
        parameters=found.cost.total, step_ms=1e3 * time.total, step_ms_low=None, step_ms_high=None,
        samples_per_s=found.samples_per_second, memory_bytes=found.memory.peak, compute_ms=1e3 * time.compute,
        all_to_all_ms=1e3 * time.exchange, reduction_ms=1e3 * (time.reduction + time.gather), optimizer_ms=1e3 * time.optimizer,
        data_ms=None, all_to_all_bytes=time.bytes_exchanged, measured=False, source=f"{SOURCE};{fits} pace of {time.slowest}",
    )  # fmt: skip
