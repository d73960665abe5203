"""Times against hand-worked rooflines and alpha-beta sums, and the laws they must obey."""

from __future__ import annotations

import dataclasses

import pytest

from m4oe_ds.errors import ConfigError
from m4oe_ds.planning.hardware import ACCELERATORS, Accelerator, Cluster, Link, Pool, accelerator, parse_cluster
from m4oe_ds.planning.memory import Layout
from m4oe_ds.planning.model_cost import MicroStep, Operation
from m4oe_ds.planning.step_time import RankDevice, all_to_all, collective, kernel_seconds, places, step_time

TOY = Accelerator(
    "toy",
    1e9,
    half_peak=1e12,
    single_peak=1e11,
    bandwidth=1e9,
    link=Link("wire", 1e8, 1e-3, 1.0),
    port=Link("port", 1e7, 2e-3, 1.0),
    source="made up",
    arithmetic=0.5,
    streaming=0.5,
    overhead=1e-6,
    attention=0.5,
    per_node=2,
)


def record(*operations: Operation, exchanges: tuple[int, ...] = (), ep: int = 1) -> MicroStep:
    return MicroStep(
        micro=1,
        ep=ep,
        precision="bf16",
        parameters={"all": 3000},
        expert_total=2000,
        dense=1000,
        expert=2000 // ep,
        frozen=0,
        tensors=(1000, 2000 // ep),
        expert_tensors=(2000 // ep,),
        saved=0,
        peak=0,
        peak_with_gradients=0,
        exchanges=exchanges,
        operations=operations,
    )


def test_a_kernel_takes_the_longest_of_arithmetic_traffic_and_launch() -> None:
    product = Operation("mm", "", "forward", 1e9, 1e3, 2)
    stream = Operation("add", "", "forward", 0, 1e6, 2)
    tiny = Operation("add", "", "forward", 0, 1, 2)
    attend = dataclasses.replace(product, attention=True)
    single = dataclasses.replace(product, width=4)
    seconds = [kernel_seconds(record(op), TOY)[0] for op in (product, stream, tiny, attend, single)]
    assert seconds == pytest.approx([1e9 / 0.5e12, 1e6 / 0.5e9, 1e-6, 1e9 / 0.25e12, 1e9 / 0.5e11])
    total, share = kernel_seconds(record(product, stream), TOY)
    assert (total, share) == pytest.approx((4e-3, 0.5))
    cpu = dataclasses.replace(TOY, queued=False)
    assert kernel_seconds(record(stream), cpu)[0] == pytest.approx(2e-3 + 1e-6)


def test_all_to_all_by_hand() -> None:
    near = [RankDevice(TOY, 0), RankDevice(TOY, 0)]
    assert all_to_all(near, 1e6) == pytest.approx(1e-3 + 0.5 * 1e6 / 1e8)
    far = [RankDevice(TOY, node) for node in (0, 0, 1, 1)]
    assert all_to_all(far, 1e6) == pytest.approx(2 * 2e-3 + max(0.25 * 1e6 / 1e8, 0.5 * 1e6 / 1e7))
    assert all_to_all(near[:1], 1e6) == 0


def test_collectives_share_the_ports_of_a_node() -> None:
    two_nodes = [RankDevice(TOY, node) for node in (0, 0, 1, 1)]
    assert collective(two_nodes, 4, 1.5, 1e6) == pytest.approx(4 * 2e-3 + 1.5e6 / 2e7)
    strided = [RankDevice(TOY, 0), RankDevice(TOY, 1)]
    assert collective(strided, 2, 1.0, 1e6) == pytest.approx(2 * 2e-3 + 1e6 / 1e7)
    assert collective(two_nodes[:2], 2, 1.0, 1e6) == pytest.approx(2 * 1e-3 + 1e6 / 1e8)


def test_the_slowest_rank_sets_the_pace() -> None:
    slow = dataclasses.replace(TOY, name="slow", half_peak=1e11)
    work = record(Operation("mm", "", "forward", 1e9, 1, 2))
    layout = Layout(world=2, ep=1, stage=2, micro=1)
    alone = step_time(work, layout, Cluster((Pool(2, TOY),)))
    mixed = step_time(work, layout, Cluster((Pool(1, TOY), Pool(1, slow))))
    assert mixed.slowest == "slow"
    assert alone.slowest == "toy"
    assert mixed.compute == pytest.approx(10 * alone.compute)
    assert mixed.by_device["toy"] < mixed.by_device["slow"]


def test_expert_parallelism_swaps_reduction_for_exchange() -> None:
    cluster = Cluster((Pool(2, TOY),))
    replicated = step_time(record(), Layout(2, 1, 2, 1), cluster)
    shared = step_time(record(exchanges=(500, 500), ep=2), Layout(2, 2, 2, 1), cluster)
    assert replicated.exchange == 0
    assert replicated.bytes_exchanged == 0
    # two exchanges forward and two backward of 500 two-byte elements, half of which leave the rank
    assert shared.bytes_exchanged == 4 * 500 * 2 / 2
    assert shared.exchange == pytest.approx(4 * (1e-3 + 0.5 * 1000 / 1e8))
    # all-reduce (2x) and gather (1x) of what both ranks hold, half of it each way
    assert replicated.bytes_reduced == 3 * 0.5 * 2 * 3000
    assert shared.bytes_reduced == 3 * 0.5 * 2 * 1000


def test_accumulation_reduces_once_under_stage_1_only() -> None:
    cluster, work = Cluster((Pool(2, TOY),)), record(Operation("mm", "", "forward", 1e9, 1, 2))
    times = {stage: step_time(work, Layout(2, 1, stage, 1, accumulation=4), cluster) for stage in (1, 2)}
    assert times[2].reduction == pytest.approx(4 * times[1].reduction)
    assert times[1].compute == times[2].compute == pytest.approx(4 * 2e-3)
    assert times[1].total == pytest.approx(
        sum(getattr(times[1], name) for name in ("compute", "exchange", "reduction", "gather", "optimizer", "other"))
    )


def test_pools_do_not_share_nodes() -> None:
    cluster = parse_cluster("12xA100-80 + 4xL40S")
    nodes = [place.node for place in places(cluster)]
    assert nodes == [0] * 8 + [1] * 4 + [2] * 4
    assert cluster.world == 16
    assert cluster.nodes == 3
    assert cluster.mixed
    assert str(cluster) == "12xA100-80+4xL40S"


@pytest.mark.parametrize("text", ["", "4x", "0xH200", "4xA100-80+", "fourxL40"])
def test_unreadable_clusters_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_cluster(text)


def test_unknown_devices_are_named_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean L40S"):
        accelerator("L4OS")
    assert accelerator("h200") is ACCELERATORS["H200"]


def test_device_figures_are_plausible_and_sourced() -> None:
    assert set(ACCELERATORS) == {"A100-40", "A100-80", "L40", "L40S", "H100", "H200"}
    for device in ACCELERATORS.values():
        assert "data sheet" in device.source
        assert device.half_peak > device.single_peak > 1e13
        assert device.bandwidth > device.link.rate > device.port.rate > 1e9
        assert 0.85 < device.usable / device.memory < 0.95
