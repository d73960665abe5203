"""Stacked experts against one torch.nn.Linear pair per expert, and initial values that do not depend on sharding."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from m4oe_ds.errors import ShapeError
from m4oe_ds.layers import ExpertWeights, LocalExperts, MToE, SoftMoE, initialise_experts


def linear_twins(weights: ExpertWeights) -> list[nn.Sequential]:
    """One MLP of torch.nn modules per expert with the same values."""
    twins = []
    for row in range(len(weights.expert_ids)):
        first = nn.Linear(weights.dim, weights.hidden, dtype=weights.w1.dtype)
        second = nn.Linear(weights.hidden, weights.dim, dtype=weights.w1.dtype)
        with torch.no_grad():
            first.weight.copy_(weights.w1[row].T)
            first.bias.copy_(weights.w3[row, 0, : weights.hidden])
            second.weight.copy_(weights.w2[row].T)
            second.bias.copy_(weights.w3[row, 0, weights.hidden :])
        twins.append(nn.Sequential(first, nn.GELU(), second))
    return twins


def random_weights(experts: int, dim: int, hidden: int) -> LocalExperts:
    executor = LocalExperts(experts, dim, hidden).double()
    for parameter in executor.parameters():
        nn.init.normal_(parameter, std=0.7)
    return executor


@pytest.mark.parametrize(
    ("batch", "experts", "slots", "dim", "hidden"), [(2, 3, 4, 5, 7), (1, 6, 1, 2, 3), (3, 1, 5, 4, 2)]
)
def test_stacked_experts_equal_a_loop_over_linear(batch: int, experts: int, slots: int, dim: int, hidden: int) -> None:
    executor = random_weights(experts, dim, hidden)
    twins = linear_twins(executor.experts)
    ours = torch.randn(batch, experts, slots, dim, dtype=torch.float64, requires_grad=True)
    theirs = ours.detach().clone().requires_grad_()
    out = executor(ours)
    loop = torch.stack([twin(theirs[:, j]) for j, twin in enumerate(twins)], dim=1)
    torch.testing.assert_close(out, loop, rtol=1e-12, atol=1e-12)
    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    (loop * weight).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-12, atol=1e-12)
    stacked = executor.experts
    for row, (first, _, second) in enumerate(twins):
        torch.testing.assert_close(stacked.w1.grad[row], first.weight.grad.T, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(stacked.w2.grad[row], second.weight.grad.T, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(stacked.w3.grad[row, 0, :hidden], first.bias.grad, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(stacked.w3.grad[row, 0, hidden:], second.bias.grad, rtol=1e-12, atol=1e-12)


def test_strided_slots_give_the_same_result() -> None:
    executor = random_weights(3, 4, 5)
    slots = torch.randn(2, 6, 3, 4, dtype=torch.float64).transpose(1, 2)  # [2, 3, 6, 4], not contiguous
    assert not slots.is_contiguous()
    torch.testing.assert_close(executor(slots), executor(slots.contiguous()), rtol=0, atol=0)


def test_slots_of_one_expert_do_not_reach_another() -> None:
    executor = random_weights(4, 3, 5)
    slots = torch.randn(2, 4, 2, 3, dtype=torch.float64)
    changed = slots.clone()
    changed[:, 2] += 1.0
    before, after = executor(slots), executor(changed)
    kept = [0, 1, 3]
    torch.testing.assert_close(after[:, kept], before[:, kept], rtol=0, atol=0)
    assert (after[:, 2] - before[:, 2]).abs().max() > 1e-3


def test_exactly_three_tensors() -> None:
    shapes = {name: tuple(value.shape) for name, value in ExpertWeights(range(4), 6, 10).named_parameters()}
    assert shapes == {"w1": (4, 6, 10), "w2": (4, 10, 6), "w3": (4, 1, 16)}


def test_parameter_count_of_a_reference_expert() -> None:
    with torch.device("meta"):
        weights = ExpertWeights(range(2), 768, 4 * 768)
    assert sum(p.numel() for p in weights.parameters()) == 2 * 4_722_432


def test_wrong_number_of_experts_is_refused() -> None:
    executor = random_weights(3, 4, 5)
    with pytest.raises(ShapeError, match="3 experts"):
        executor(torch.zeros(1, 4, 2, 4, dtype=torch.float64))
    with pytest.raises(ShapeError):
        executor(torch.zeros(3, 2, 4, dtype=torch.float64))


class Holder(nn.Module):
    """Gives ExpertWeights a path, ``layer.experts``, as a model would."""

    def __init__(self, expert_ids: range, dim: int = 6, hidden: int = 9) -> None:
        super().__init__()
        self.layer = nn.ModuleDict({"experts": ExpertWeights(expert_ids, dim, hidden)})

    @property
    def weights(self) -> ExpertWeights:
        return self.layer["experts"]


@pytest.mark.parametrize("held", [range(4, 8), range(0, 4), range(7, 8), range(2, 5)])
def test_initial_values_do_not_depend_on_the_experts_held_together(held: range) -> None:
    whole, part = Holder(range(8)), Holder(held)
    initialise_experts(whole, seed=5)
    torch.manual_seed(99)  # the global generator must play no part
    initialise_experts(part, seed=5)
    for name in ("w1", "w2", "w3"):
        expected = getattr(whole.weights, name)[held.start : held.stop]
        torch.testing.assert_close(getattr(part.weights, name), expected, rtol=0, atol=0)


def test_initial_values_depend_on_seed_path_and_expert() -> None:
    def first_weights(seed: int, name: str) -> torch.Tensor:
        weights = ExpertWeights(range(3), 6, 9)
        weights.reset_parameters(seed, name)
        return weights.w1.detach().clone()

    base = first_weights(1, "a")
    torch.testing.assert_close(first_weights(1, "a"), base, rtol=0, atol=0)
    for other in (first_weights(2, "a"), first_weights(1, "b"), first_weights(11, "a"), first_weights(1, "a/1")):
        assert (other != base).float().mean() > 0.99
    assert (base[0] != base[1]).float().mean() > 0.99


def test_initial_values_are_xavier_uniform_with_zero_bias() -> None:
    weights = ExpertWeights(range(4), 50, 70)
    weights.reset_parameters(3, "x")
    bound = math.sqrt(6 / 120)
    for tensor in (weights.w1, weights.w2):
        assert tensor.abs().max() <= bound
        assert tensor.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)  # 14 000 draws
        assert abs(tensor.mean().item()) < 0.01 * bound * 3
    assert (weights.w3 == 0).all()
    assert not torch.equal(weights.w1[0].flatten(), weights.w2[0].flatten())


def test_initialising_leaves_the_global_generator_alone() -> None:
    holder = Holder(range(4))
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    initialise_experts(holder, seed=5)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_initialising_fills_every_expert_of_a_model_and_skips_meta() -> None:
    model = nn.ModuleDict({"a": SoftMoE(4, 3, hidden=5), "b": MToE(4, 2, 2, hidden=5)})
    with torch.device("meta"):
        model["c"] = SoftMoE(4, 3, hidden=5)
    for name, parameter in model.named_parameters():
        if "experts" in name and not parameter.is_meta:
            nn.init.constant_(parameter, math.nan)
    initialise_experts(model, seed=0)
    values = [p for p in model.parameters() if not p.is_meta]
    assert values
    assert all(p.isfinite().all() for p in values)
    assert not torch.equal(model["a"].experts.experts.w1[0], model["b"].experts.experts.w1[0])


@pytest.fixture
def poisoned_empty():
    """Memory that torch.empty hands out is NaN, so reading an uninitialised value cannot go unnoticed."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]


@pytest.mark.parametrize(
    "make", [lambda: SoftMoE(4, 3, hidden=5), lambda: MToE(4, 3, 2, hidden=5)], ids=["SoftMoE", "MToE"]
)
def test_a_layer_is_usable_right_after_construction(make, poisoned_empty: None) -> None:
    """The layers are public: a user who builds one alone must not compute with uninitialised memory."""
    layer = make()
    uninitialised = [name for name, p in layer.named_parameters() if not p.isfinite().all()]
    assert uninitialised == []
