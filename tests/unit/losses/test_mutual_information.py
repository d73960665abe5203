"""I(M;E|T): worked example, closed forms, bounds, invariances, missing modalities, extreme logits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from m4oe_ds.errors import ShapeError
from m4oe_ds.layers.routing import Router, RouterOptions
from m4oe_ds.losses import conditional_mutual_information, official_token_task_information
from m4oe_ds.losses.mutual_information import information, modality_expert_probability

SOURCES = ["dispatch", "gate", "joint", "combine"]
AGGREGATES = ["batch", "sample"]
LABELS = torch.tensor([[1, 0, 1], [1, 1, 1], [0, 0, 1], [1, 1, 0]], dtype=torch.bool)  # used with B = 4, p = 3
MODALITY = torch.tensor([0, 0, 1, 1, 1, 2, 2])  # used with M = 7, m = 3


def tensor(values: object, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


# ------------------------------------------------------------------------------------------------ worked example

# tokens (1,0) (0,2) (1,1) (-1,1); phi of two experts and two tasks; modality 1 = tokens 1, 2; modality 2 = tokens 3, 4
TOKENS = tensor([[[1, 0], [0, 2], [1, 1], [-1, 1]]])
PHI = tensor([[[0.5, -0.5], [1.0, 0.0]], [[0.0, 1.0], [-0.5, 0.5]]])
WORKED = {
    "unnormalised": ({"norm": False}, 0.00207089, 0.00203411, 0.14857328),
    "normalised": ({"norm": True, "scale_init": 2.0}, 0.00456706, 0.00441457, 0.30727942),
}
EIGHT_DECIMALS = 5.1e-9


@pytest.mark.parametrize("variant", WORKED)
def test_worked_example(variant: str) -> None:
    options, dispatch, joint, official = WORKED[variant]
    router = Router(2, 2, 2, RouterOptions(**options)).double()
    with torch.no_grad():
        router.phi.copy_(PHI)
    logits = router(TOKENS)[0].logits
    modality = torch.tensor([0, 0, 1, 1])
    for aggregate in AGGREGATES:  # one sample: both levels agree
        value = conditional_mutual_information(logits, modality, source="dispatch", aggregate=aggregate)
        assert value.item() == pytest.approx(dispatch, abs=EIGHT_DECIMALS)
        value = conditional_mutual_information(logits, modality, source="joint", aggregate=aggregate)
        assert value.item() == pytest.approx(joint, abs=EIGHT_DECIMALS)
    assert official_token_task_information(logits).item() == pytest.approx(official, abs=EIGHT_DECIMALS)
    assert official_token_task_information(logits.float()).item() == pytest.approx(official, abs=1e-5)


def test_official_information_from_its_definition() -> None:
    logits = 2 * torch.randn(3, 5, 4, 2, dtype=torch.float64)
    total = 0.0
    for sample in logits:
        weight = sample.exp() / sample.exp().sum()
        joint = weight.sum(1)  # token, task
        for t in range(5):
            for k in range(2):
                total += joint[t, k] * (joint[t, k] / (joint[t].sum() * joint[:, k].sum())).log()
    assert official_token_task_information(logits).item() == pytest.approx(total.item(), rel=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-15), (torch.float32, 1e-12)], ids=["f64", "f32"])
def test_official_information_is_zero_at_equal_logits(dtype: torch.dtype, tolerance: float) -> None:
    assert abs(official_token_task_information(torch.zeros(2, 5, 4, 3, dtype=dtype)).item()) < tolerance


# -------------------------------------------------------------------------------------------- bounds, closed forms


def random_logits(std: float, batch: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    return (std * torch.randn(batch, 7, 5, 3, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("std", [0.01, 1.0, 5.0, 40.0])
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("source", SOURCES)
def test_bounds(source: str, aggregate: str, std: float) -> None:
    options = {"source": source, "aggregate": aggregate, "label_mask": LABELS}
    value = conditional_mutual_information(random_logits(std), MODALITY, **options).item()
    assert -1e-15 <= value <= math.log(3) + 1e-12
    summed = conditional_mutual_information(random_logits(std), MODALITY, task_weight="sum", **options).item()
    assert -1e-15 <= summed <= 3 * math.log(3) + 1e-12


@pytest.mark.parametrize("std", [0.1, 1.0, 3.0, 10.0])
def test_batch_information_is_at_most_sample_information_for_dispatch(std: float) -> None:
    """P(E|T) is uniform for dispatch, and mutual information is convex in P(M|E,T)."""
    for _ in range(5):
        logits = random_logits(std)
        batch = conditional_mutual_information(logits, MODALITY, label_mask=LABELS)
        sample = conditional_mutual_information(logits, MODALITY, label_mask=LABELS, aggregate="sample")
        assert 0 < batch < sample


@pytest.mark.parametrize("std", [1.0, 5.0])
def test_constant_marginals(std: float) -> None:
    logits = random_logits(std)
    dispatch = modality_expert_probability(logits, MODALITY, 3, source="dispatch")
    torch.testing.assert_close(dispatch.sum(1), torch.full((4, 5, 3), 1 / 5).double())  # P(E|T) = 1/n
    gate = modality_expert_probability(logits, MODALITY, 3, source="gate")
    share = tensor([2 / 7, 3 / 7, 2 / 7])[None, :, None].expand(4, 3, 3)
    torch.testing.assert_close(gate.sum(2), share)  # P(M|T) = token share


# float32: probabilities carry errors of 1e-7, and information is second order in them
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-15), (torch.float32, 1e-12)], ids=["f64", "f32"])
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("source", SOURCES)
def test_equal_logits_give_zero_and_a_zero_gradient(
    source: str, aggregate: str, dtype: torch.dtype, tolerance: float
) -> None:
    logits = torch.full((4, 7, 5, 3), 0.7, dtype=dtype, requires_grad=True)
    value = conditional_mutual_information(logits, MODALITY, source=source, aggregate=aggregate)
    assert abs(value.item()) < tolerance
    value.backward()
    assert logits.grad.abs().max() < (1e-16 if dtype == torch.float64 else 1e-8)


@pytest.mark.parametrize(
    ("modalities", "experts", "expected"), [(4, 8, math.log(4)), (2, 2, math.log(2)), (4, 6, 1.3296613)]
)
def test_every_expert_on_one_modality(modalities: int, experts: int, expected: float) -> None:
    """log m when the experts split evenly, the entropy of the split otherwise."""
    modality = torch.arange(modalities).repeat_interleave(3)
    logits = torch.zeros(2, 3 * modalities, experts, 2)
    for j in range(experts):
        logits[:, modality == j % modalities, j] = 60.0
    assert conditional_mutual_information(logits, modality).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("source", SOURCES)
def test_invariances(source: str, aggregate: str) -> None:
    logits = random_logits(2.0)

    def value(logits: Tensor, modality: Tensor = MODALITY, labels: Tensor = LABELS) -> float:
        return conditional_mutual_information(
            logits, modality, label_mask=labels, source=source, aggregate=aggregate
        ).item()

    base = value(logits)
    tokens, samples = torch.randperm(7), torch.tensor([2, 0, 3, 1])
    experts, tasks = torch.tensor([4, 1, 0, 3, 2]), torch.tensor([2, 0, 1])
    assert value(logits[:, tokens], MODALITY[tokens]) == pytest.approx(base, abs=1e-13)
    assert value(logits[:, :, experts]) == pytest.approx(base, abs=1e-13)
    assert value(logits[..., tasks], labels=LABELS[:, tasks]) == pytest.approx(base, abs=1e-13)
    assert value(logits[samples], labels=LABELS[samples]) == pytest.approx(base, abs=1e-13)
    assert value(logits, torch.tensor([2, 0, 1])[MODALITY]) == pytest.approx(base, abs=1e-13)  # names of modalities
    assert value(logits + 3.0) == pytest.approx(base, abs=1e-13)
    inside = torch.tensor([1, 0, 4, 2, 3, 6, 5])  # moves tokens within their modality only
    assert value(logits[:, inside]) == pytest.approx(base, abs=1e-13)
    across = torch.tensor([6, 1, 2, 3, 4, 5, 0])
    assert abs(value(logits[:, across]) - base) > 1e-6


def test_dispatch_ignores_a_constant_per_slot() -> None:
    logits = random_logits(2.0)
    shifted = logits + 5 * torch.randn(4, 1, 5, 3, dtype=torch.float64)
    for aggregate in AGGREGATES:
        base = conditional_mutual_information(logits, MODALITY, aggregate=aggregate)
        torch.testing.assert_close(conditional_mutual_information(shifted, MODALITY, aggregate=aggregate), base)


def test_official_information_ignores_the_order_of_tokens_experts_and_slots() -> None:
    logits = random_logits(2.0)
    base = official_token_task_information(logits)
    for moved in (logits[:, torch.randperm(7)], logits[:, :, torch.randperm(5)], logits[..., torch.randperm(3)]):
        torch.testing.assert_close(official_token_task_information(moved), base)


# ------------------------------------------------------------------------------------------- labels and task weights


def test_unlabelled_samples_have_no_influence() -> None:
    logits = random_logits(2.0).requires_grad_()
    for aggregate in AGGREGATES:
        value = conditional_mutual_information(logits, MODALITY, label_mask=LABELS, aggregate=aggregate)
        gradient = torch.autograd.grad(value, logits)[0].abs().amax((1, 2))  # [B, p]
        assert (gradient[~LABELS] == 0).all()
        assert (gradient[LABELS] > 0).all()


def test_default_weights_are_label_shares() -> None:
    logits = random_logits(2.0)
    shares = tensor([3, 2, 3]) / 8
    for aggregate in AGGREGATES:
        options = {"label_mask": LABELS, "aggregate": aggregate}
        implied = conditional_mutual_information(logits, MODALITY, **options)
        given = conditional_mutual_information(logits, MODALITY, task_prior=shares, **options)
        torch.testing.assert_close(implied, given, rtol=0, atol=1e-15)
        uniform = conditional_mutual_information(logits, MODALITY, task_prior=tensor([1, 1, 1]) / 3, **options)
        assert abs(uniform - given) > 1e-6


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("task_weight", ["prior", "sum"])
def test_no_label_at_all_gives_zero_and_a_zero_gradient(aggregate: str, task_weight: str) -> None:
    logits = random_logits(2.0).requires_grad_()
    value = conditional_mutual_information(
        logits, MODALITY, label_mask=torch.zeros(4, 3, dtype=torch.bool), aggregate=aggregate, task_weight=task_weight
    )
    value.backward()
    assert value.item() == 0.0
    assert (logits.grad == 0).all()


def test_wrong_arguments_are_refused() -> None:
    logits = random_logits(1.0)
    with pytest.raises(ShapeError, match="modality_of_token"):
        conditional_mutual_information(logits, MODALITY[:-1])
    with pytest.raises(ShapeError, match="label_mask"):
        conditional_mutual_information(logits, MODALITY, label_mask=LABELS.T)
    for options in ({"source": "gates"}, {"aggregate": "mean"}, {"task_weight": "none"}):
        with pytest.raises(ValueError, match="must be"):
            conditional_mutual_information(logits, MODALITY, **options)


# ------------------------------------------------------------------------------------------------ missing modalities


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("source", SOURCES)
def test_masked_tokens_equal_removed_tokens(source: str, aggregate: str) -> None:
    """Another modality is missing in each sample; the reference drops those tokens sample by sample."""
    logits = random_logits(2.0).requires_grad_()
    mask = torch.ones(4, 7, dtype=torch.bool)
    mask[0, MODALITY == 1] = False
    mask[1, MODALITY == 2] = False
    mask[2, 3] = False  # one token of a modality
    value = conditional_mutual_information(
        logits, MODALITY, label_mask=LABELS, token_mask=mask, source=source, aggregate=aggregate
    )
    gradient = torch.autograd.grad(value, logits)[0]
    assert (gradient[~mask] == 0).all()
    probability = torch.cat(
        [modality_expert_probability(logits[b : b + 1, mask[b]], MODALITY[mask[b]], 3, source=source) for b in range(4)]
    )
    assert (probability[0, 1] == 0).all()
    assert (probability[1, 2] == 0).all()
    labels = LABELS.double()
    if aggregate == "batch":
        per_task = information(torch.einsum("bk,bijk->ijk", labels, probability) / labels.sum(0)[None, None])
    else:
        per_task = (labels * information(probability)).sum(0) / labels.sum(0)
    expected = (labels.sum(0) / labels.sum() * per_task).sum()
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits)[0], rtol=0, atol=1e-13)


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("source", SOURCES)
def test_modality_missing_everywhere_equals_a_smaller_problem(source: str, aggregate: str) -> None:
    logits = random_logits(2.0)
    mask = (MODALITY != 1).expand(4, 7)
    options = {"source": source, "aggregate": aggregate, "label_mask": LABELS}
    full = conditional_mutual_information(logits, MODALITY, token_mask=mask, **options)
    renamed = torch.tensor([0, 0, 1, 1])
    small = conditional_mutual_information(logits[:, MODALITY != 1], renamed, **options)
    torch.testing.assert_close(full, small, rtol=0, atol=1e-13)


def test_num_modalities_beyond_the_present_ones_changes_nothing() -> None:
    logits = random_logits(2.0)
    base = conditional_mutual_information(logits, MODALITY)
    wider = conditional_mutual_information(logits, MODALITY, num_modalities=5)
    torch.testing.assert_close(wider, base, rtol=0, atol=1e-15)


# ----------------------------------------------------------------------------------------------------------- numerics


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("source", SOURCES)
def test_logits_of_magnitude_100_stay_finite(source: str, aggregate: str, masked: bool, dtype: torch.dtype) -> None:
    signs = torch.where(torch.rand(4, 7, 5, 3) < 0.5, -100.0, 100.0).to(dtype)
    mask = torch.rand(4, 7) < 0.7 if masked else None
    if mask is not None:
        mask[0] = False  # a padding sample without any token, still counted as labelled
        mask[1] = MODALITY == 2  # a sample with one modality
    for logits in (signs, 100 * torch.randn(4, 7, 5, 3, dtype=dtype)):
        logits = logits.clone().requires_grad_()
        value = conditional_mutual_information(
            logits, MODALITY, source=source, aggregate=aggregate, token_mask=mask, label_mask=LABELS
        )
        value.backward()
        assert value.isfinite()
        assert -1e-6 <= value.item() <= math.log(3) + 1e-6
        assert logits.grad.isfinite().all()
        if mask is not None:
            assert (logits.grad[~mask] == 0).all()


@pytest.mark.parametrize("source", SOURCES)
def test_padding_sample_leaves_no_trace(source: str) -> None:
    """No token, no label: value and gradient are those of the batch without it."""
    logits = random_logits(2.0).requires_grad_()
    mask, labels = torch.ones(4, 7, dtype=torch.bool), LABELS.clone()
    mask[2], labels[2] = False, False
    kept = [0, 1, 3]
    for aggregate in AGGREGATES:
        options = {"source": source, "aggregate": aggregate}
        value = conditional_mutual_information(logits, MODALITY, token_mask=mask, label_mask=labels, **options)
        expected = conditional_mutual_information(logits[kept], MODALITY, label_mask=labels[kept], **options)
        torch.testing.assert_close(value, expected, rtol=0, atol=1e-15)
        gradient, reference = (torch.autograd.grad(v, logits)[0] for v in (value, expected))
        torch.testing.assert_close(gradient, reference, rtol=0, atol=1e-15)


@pytest.mark.parametrize("offset", [0.0, 5.0])
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("source", SOURCES)
def test_small_signals_survive_float32(source: str, aggregate: str, offset: float) -> None:
    """Routing starts near uniform.

    Same rounded logits in both precisions, std 0.01 around an offset: I is near 1e-7.
    """
    modality = torch.arange(4).repeat_interleave(32)
    logits = 0.01 * torch.randn(8, 128, 16, 3, dtype=torch.float64) + offset
    rounded = logits.float()
    exact = conditional_mutual_information(rounded.double(), modality, source=source, aggregate=aggregate)
    single = conditional_mutual_information(rounded, modality, source=source, aggregate=aggregate)
    assert 0 < exact < 1e-4
    assert single.item() == pytest.approx(exact.item(), rel=0.02)


def test_small_signals_keep_the_direction_of_the_gradient() -> None:
    modality = torch.arange(4).repeat_interleave(32)
    single = (0.01 * torch.randn(8, 128, 16, 3)).requires_grad_()
    exact = single.detach().double().requires_grad_()
    for logits in (single, exact):
        conditional_mutual_information(logits, modality).backward()
    assert torch.nn.functional.cosine_similarity(single.grad.double().flatten(), exact.grad.flatten(), dim=0) > 0.9999


def test_bfloat16_logits_are_raised_to_float32() -> None:
    logits = random_logits(1.0, dtype=torch.bfloat16)
    value = conditional_mutual_information(logits, MODALITY)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, conditional_mutual_information(logits.float(), MODALITY), rtol=0, atol=0)


def test_cells_without_mass_add_nothing_and_have_a_finite_gradient() -> None:
    probability = tensor([[0.5, 0.0, 0.0], [0.25, 0.25, 0.0]])[..., None].requires_grad_()
    value = information(probability)
    by_hand = (
        0.5 * math.log(0.5 / (0.5 * 0.75)) + 0.25 * math.log(0.25 / (0.5 * 0.75)) + 0.25 * math.log(0.25 / (0.5 * 0.25))
    )
    assert value.item() == pytest.approx(by_hand, abs=1e-14)
    value.sum().backward()
    assert probability.grad.isfinite().all()


@pytest.mark.parametrize("source", SOURCES)
def test_underflowed_tokens_have_a_zero_gradient(source: str) -> None:
    """Tokens of modality 1 are so unlikely that their weights are exactly 0 in float32."""
    logits = random_logits(1.0, dtype=torch.float32)
    logits[:, MODALITY == 1] -= 500.0
    logits.requires_grad_()
    conditional_mutual_information(logits, MODALITY, source=source).backward()
    assert logits.grad.isfinite().all()
    if source in ("dispatch", "joint"):  # the others compare experts within a token
        assert (logits.grad[:, MODALITY == 1] == 0).all()
    assert (logits.grad[:, MODALITY != 1] != 0).any()


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("source", SOURCES)
def test_gradcheck(source: str, aggregate: str) -> None:
    modality, labels = torch.tensor([0, 1, 1]), torch.tensor([[True, False], [True, True]])
    mask = torch.tensor([[True, True, True], [True, False, True]])
    logits = torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True)

    def run(values: Tensor) -> Tensor:
        return conditional_mutual_information(
            values, modality, label_mask=labels, token_mask=mask, source=source, aggregate=aggregate
        )

    assert torch.autograd.gradcheck(run, (logits,), atol=1e-8)


# -------------------------------------------------------------------------------------------------------------- sign


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("source", SOURCES)
def test_a_step_against_minus_alpha_information_on_phi_does_not_lower_it(
    source: str, aggregate: str, norm: bool
) -> None:
    router = Router(6, 5, 3, RouterOptions(norm=norm, scale_init=3.0)).double()
    tokens = torch.randn(4, 7, 6, dtype=torch.float64) + torch.randn(3, 6, dtype=torch.float64)[MODALITY]
    values = []
    for _ in range(4):
        value = conditional_mutual_information(
            router(tokens)[0].logits, MODALITY, label_mask=LABELS, source=source, aggregate=aggregate
        )
        values.append(value.item())
        gradient = torch.autograd.grad(-0.05 * value, router.phi)[0]
        with torch.no_grad():
            router.phi -= 2.0 * gradient
    assert values == sorted(values)
    assert values[-1] > values[0]
