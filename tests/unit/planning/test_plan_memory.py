"""Bytes per rank: exact for states, by hand for the rest."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from m4oe_ds.planning.hardware import ACCELERATORS
from m4oe_ds.planning.memory import EXPERT_GROUP_ELEMENTS, Layout, owned, rank_memory
from m4oe_ds.planning.model_cost import MicroStep, Precision

DENSE, EXPERT = 1000, 4000


def record(precision: str = "bf16", ep: int = 2, **changes: object) -> MicroStep:
    held = EXPERT // ep
    step = MicroStep(
        micro=1,
        ep=ep,
        precision=precision,
        parameters={"all": DENSE + EXPERT},
        expert_total=EXPERT,
        dense=DENSE,
        expert=held,
        frozen=0,
        tensors=(400, 600, held // 2, held // 2),
        expert_tensors=(held // 2, held // 2),
        saved=5000,
        peak=7000,
        peak_with_gradients=9000,
        exchanges=(),
        operations=(),
    )
    return dataclasses.replace(step, **changes)  # type: ignore[arg-type]


def layout(stage: int, precision: Precision = "bf16", world: int = 4, ep: int = 2, **more: Any) -> Layout:
    return Layout(world=world, ep=ep, stage=stage, micro=1, precision=precision, bucket=100, **more)


def test_optimizer_states_equal_those_of_torch_adam_and_a_master_copy() -> None:
    parameter = torch.nn.Parameter(torch.zeros(DENSE))
    optimizer = torch.optim.Adam([parameter])
    parameter.grad = torch.ones(DENSE)
    optimizer.step()
    state = optimizer.state[parameter]
    moments = state["exp_avg"].nbytes + state["exp_avg_sq"].nbytes
    one_rank = rank_memory(record("fp32", 1, expert=0, expert_tensors=()), layout(2, "fp32", 1, 1))
    assert one_rank.optimizer == moments + parameter.nbytes
    assert one_rank.weights == parameter.nbytes
    assert one_rank.gradients == parameter.grad.nbytes


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize(("precision", "width"), [("fp32", 4), ("bf16", 2), ("fp16", 2)])
def test_states_are_partitioned_as_the_stage_says(stage: int, precision: Precision, width: int) -> None:
    memory = rank_memory(record(precision), layout(stage, precision))
    # dense over 4 ranks; the 2000 experts held over the 2 ranks that hold the same ones
    own, held = 1000 / 4 + 2000 / 2, 1000 + 2000
    assert memory.optimizer == 12 * own
    sums = 4 * held if precision == "bf16" else 0  # DeepSpeed's BF16_Optimizer keeps fp32 sums of all gradients
    assert memory.gradients == {1: width * held + sums, 2: 4 * own, 3: 4 * own}[stage]
    assert memory.weights == {1: width * held, 2: width * held, 3: width * (own + held)}[stage]
    assert memory.peak >= memory.weights + memory.optimizer + memory.activations
    assert memory.host == 0


def test_ownership_adds_up_to_the_model() -> None:
    for world, ep in ((1, 1), (4, 1), (4, 2), (4, 4), (8, 4)):
        assert world * owned(record(ep=ep), layout(2, world=world, ep=ep)) == DENSE + EXPERT


def test_offload_moves_states_to_the_host() -> None:
    here, there = rank_memory(record(), layout(2)), rank_memory(record(), layout(2, offload=True))
    assert there.optimizer == 0
    assert there.peak < here.peak
    assert there.host == (12 + 4 + 2) * owned(record(), layout(2))


def test_more_ranks_never_need_more_memory() -> None:
    peaks = [rank_memory(record(), layout(2, world=world)).peak for world in (2, 4, 8, 64)]
    assert peaks == sorted(peaks, reverse=True)
    assert peaks[0] > peaks[-1]


def test_step_needs_the_largest_group_and_its_temporaries() -> None:
    memory = rank_memory(record(peak=0, peak_with_gradients=0), layout(2, adam_temporaries=2))
    dense, experts = 1000 / 4, 2000 / 2
    assert memory.step == max(4 * (experts + dense * 3), 4 * experts * 3)
    # cut into two groups: only one of them is stepped at a time
    big = EXPERT_GROUP_ELEMENTS
    cut = record(dense=0, expert=2 * big, tensors=(big, big), expert_tensors=(big, big))
    assert rank_memory(cut, layout(2, adam_temporaries=2)).step == max(4 * (big / 2 + 3 * big / 2), 4 * 3 * big / 2)


def test_a_record_of_another_layout_is_refused() -> None:
    with pytest.raises(ValueError, match="recorded for"):
        rank_memory(record("fp32"), layout(2, "bf16"))


def test_fitting_is_against_what_the_device_leaves() -> None:
    device = ACCELERATORS["L40S"]
    memory = rank_memory(record(), layout(2))
    assert memory.fits(device)
    assert not dataclasses.replace(memory, peak=device.usable + 1).fits(device)
    assert device.usable < device.memory
