"""A collective of a profiled step counts once; what cannot be measured is refused before any process group."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

from m4oe_ds.errors import ConfigError
from m4oe_ds.scaling import point

REQUEST = point.PointRequest("c.yaml", "d.json", (), 16, 1, "weak", 4, 16, 10, 3)


def event(name: str, start_ms: float, end_ms: float) -> SimpleNamespace:
    return SimpleNamespace(name=name, time_range=SimpleNamespace(start=1e3 * start_ms, end=1e3 * end_ms))


def test_collectives_leave_the_phase_they_ran_in_and_no_other() -> None:
    events = [
        event("gloo:all_reduce", 0, 3),  # label counts, before any phase
        event("m4oe.forward", 3, 43),
        event("gloo:all_to_all", 10, 14),
        event("m4oe.backward", 43, 103),
        event("gloo:all_to_all", 50, 56),
        event("gloo:all_reduce", 90, 100),
        event("m4oe.optimizer", 103, 123),
        event("gloo:all_gather", 104, 109),
        event("aten::mm", 3, 40),
    ]
    phases = {"forward": 20.0, "backward": 30.0, "optimizer": 10.0}  # per step, of two
    parts = point.attribute(events, phases, 2)
    assert parts == pytest.approx(
        {
            "compute_ms": (40 - 4 + 60 - 16) / 2,
            "all_to_all_ms": 10 / 2,
            "reduction_ms": (3 + 10 + 5) / 2,
            "optimizer_ms": 15 / 2,
        }
    )
    inside = sum(phases.values())
    assert sum(parts.values()) == pytest.approx(
        inside + 3 / 2
    )  # nothing twice: the phases and what ran outside of them


def test_kernels_of_nccl_count_and_their_launches_do_not() -> None:
    events = [
        event("m4oe.forward", 0, 10),
        event("nccl:all_to_all", 1, 2),
        event("ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)", 2, 5),
        event("ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)", 6, 8),
    ]
    parts = point.attribute(events, {"forward": 10.0}, 1)
    assert (parts["all_to_all_ms"], parts["reduction_ms"], parts["compute_ms"]) == pytest.approx((3.0, 2.0, 5.0))


@pytest.mark.parametrize("name", ["experts", "ep", "micro", "batch", "steps", "warm_up", "profiled"])
def test_numbers_too_small_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="too small"):
        dataclasses.replace(REQUEST, **{name: -1})  # type: ignore[arg-type]
    if name in {"micro", "batch", "steps"}:
        with pytest.raises(ConfigError, match=f"--{name}"):
            dataclasses.replace(REQUEST, **{name: 0})  # type: ignore[arg-type]


def test_no_profiled_steps_no_split() -> None:
    def step(_: object) -> None:
        raise AssertionError("no step was asked for")

    parts = point._split(iter(()), step, 0)
    assert set(parts.values()) == {None}
    assert len(parts) == 5
