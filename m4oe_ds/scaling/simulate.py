"""Points beyond this machine by the plan's model: roofline per kernel, alpha-beta per collective, slowest rank's pace."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from m4oe_ds import config_loader
from m4oe_ds.models.registry import expert_counts
from m4oe_ds.planning.hardware import ASSUMPTIONS, Cluster, Pool, accelerator
from m4oe_ds.planning.memory import Layout
from m4oe_ds.planning.recommend import Candidate, Costs, evaluate, most_sharers
from m4oe_ds.scaling.rows import DOES_NOT_FIT, Row

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
    say: Callable[[str], None] = lambda _: None,
) -> tuple[list[Row], list[tuple[str, str]]]:
    """A row for every combination, and those that cannot be with the reason; ep is that of :func:`largest_ep`.

    Args:
        clusters: kinds of devices of each cluster, e.g. ``[["A100-80"], ["A100-80", "L40S"]]``; a mixed one has equal
            numbers of each. worlds: devices in all. micro: samples per rank, weak. batch: samples per step, strong.
        say: prints a line of progress.

    Raises:
        ConfigError: unknown device, or numbers that do not fit.
    """
    rows: list[Row] = []
    left_out: list[tuple[str, str]] = []
    for count in experts:
        config = config_loader.load(config_path, [*overrides, f"model.mtoe.num_experts={count}"])
        costs = Costs(config)
        for kinds in clusters:
            say(f"simulating {count} experts on {'+'.join(kinds)}")
            for world, mode in itertools.product(worlds, modes):
                point = f"{count} experts, {world} x {'+'.join(kinds)}, {mode}"
                cluster = cluster_of(kinds, world)
                if cluster is None:
                    left_out.append((point, f"{world} devices cannot be shared equally by {len(kinds)} kinds"))
                elif mode == "strong" and batch % world:
                    left_out.append((point, f"a batch of {batch} cannot be shared by {world} ranks"))
                else:
                    samples = micro if mode == "weak" else batch // world
                    layout = Layout(
                        world, largest_ep(cluster, expert_counts(config)), stage, samples, precision=precision
                    )
                    found = evaluate(costs, cluster, layout, config.model.activation_checkpointing)
                    rows.append(_row(count, mode, layout, found, " ".join([config_path, *overrides])))
    return rows, left_out


def _row(experts: int, mode: str, layout: Layout, found: Candidate, setting: str) -> Row:
    time = found.time
    fits = "" if found.fits else f" {DOES_NOT_FIT};"
    return Row(
        experts=experts, ep=layout.ep, world=layout.world, mode=mode, batch=layout.batch, micro=layout.micro, stage=layout.stage,
        precision=layout.precision, device="+".join(pool.device.name for pool in found.cluster.pools),
        parameters=found.cost.total, step_ms=1e3 * time.total, step_ms_low=None, step_ms_high=None,
        samples_per_s=found.samples_per_second, memory_bytes=found.memory.peak, compute_ms=1e3 * time.compute,
        all_to_all_ms=1e3 * time.exchange, reduction_ms=1e3 * (time.reduction + time.gather), optimizer_ms=1e3 * time.optimizer,
        data_ms=None, all_to_all_bytes=time.bytes_exchanged, measured=False, source=f"{SOURCE};{fits} pace of {time.slowest}",
        setting=setting, digest="", data="none",
    )  # fmt: skip
