"""Router and Routing: the two softmaxes, masks, precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch.func import functional_call

from m4oe_ds.errors import ShapeError
from m4oe_ds.layers.routing import Router, RouterOptions, Routing

OPTIONS = [
    pytest.param({"norm": norm, "combine": combine}, id=f"norm={norm}-{combine}")
    for norm in (True, False)
    for combine in ("joint", "per_task")
]


def make(dim: int, experts: int, slots: int, **options: object) -> Router:
    return Router(dim, experts, slots, RouterOptions(**options)).double()  # type: ignore[arg-type]


@pytest.mark.parametrize("options", OPTIONS)
def test_weights_sum_to_one(options: dict) -> None:
    routing, _ = make(6, 4, 3, scale_init=5.0, **options)(torch.randn(2, 7, 6, dtype=torch.float64))
    assert routing.logits.shape == routing.dispatch.shape == routing.combine.shape == (2, 7, 4, 3)
    torch.testing.assert_close(routing.dispatch.sum(1), torch.ones(2, 4, 3, dtype=torch.float64), rtol=0, atol=1e-14)
    if options["combine"] == "joint":
        torch.testing.assert_close(
            routing.combine.sum((2, 3)), torch.ones(2, 7, dtype=torch.float64), rtol=0, atol=1e-14
        )
    else:
        torch.testing.assert_close(routing.combine.sum(2), torch.ones(2, 7, 3, dtype=torch.float64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("options", OPTIONS)
def test_zero_phi_gives_uniform_weights(options: dict) -> None:
    router = make(6, 4, 3, **options)
    torch.nn.init.zeros_(router.phi)
    routing, _ = router(torch.randn(2, 7, 6, dtype=torch.float64))
    slots = 4 * 3 if options["combine"] == "joint" else 4
    torch.testing.assert_close(routing.dispatch, torch.full((2, 7, 4, 3), 1 / 7, dtype=torch.float64))
    torch.testing.assert_close(routing.combine, torch.full((2, 7, 4, 3), 1 / slots, dtype=torch.float64))


@pytest.mark.parametrize("options", OPTIONS)
def test_masked_tokens_have_no_weight_and_the_rest_still_sum_to_one(options: dict) -> None:
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 1, 0]], dtype=torch.bool)
    routing, _ = make(6, 4, 3, **options)(torch.randn(2, 5, 6, dtype=torch.float64), mask)
    assert (routing.dispatch[~mask] == 0).all()
    assert (routing.combine[~mask] == 0).all()
    torch.testing.assert_close(routing.dispatch.sum(1), torch.ones(2, 4, 3, dtype=torch.float64))
    assert (routing.dispatch[1, 3] == 1).all()  # the only token of the sample


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_sample_without_any_token_is_finite(options: dict, dtype: torch.dtype) -> None:
    router = Router(6, 4, 3, RouterOptions(**options)).to(dtype)
    tokens = torch.randn(2, 5, 6, dtype=dtype, requires_grad=True)
    mask = torch.tensor([[False] * 5, [True] * 5])
    routing, _ = router(tokens, mask)
    assert routing.dispatch.isfinite().all()
    assert routing.combine.isfinite().all()
    assert (routing.combine[0] == 0).all()
    (routing.dispatch.square().sum() + routing.combine.square().sum()).backward()
    assert all(g.isfinite().all() for g in (tokens.grad, router.phi.grad))
    assert (tokens.grad[0] == 0).all()


def test_logits_are_scaled_cosines() -> None:
    router = make(3, 2, 2, scale_init=2.5)
    tokens = torch.randn(1, 4, 3, dtype=torch.float64)
    routing, dispatched = router(tokens)
    for t in range(4):
        for j in range(2):
            for k in range(2):
                x, phi = tokens[0, t].tolist(), router.phi[:, j, k].tolist()
                cosine = sum(a * b for a, b in zip(x, phi, strict=True)) / (math.hypot(*x) * math.hypot(*phi))
                assert routing.logits[0, t, j, k].item() == pytest.approx(2.5 * cosine, abs=1e-14)
    assert dispatched is tokens  # raw tokens are dispatched by default


def test_unnormalised_logits_have_no_scale() -> None:
    router = make(3, 2, 2, norm=False)
    assert router.scale is None
    assert [name for name, _ in router.named_parameters()] == ["phi"]
    tokens = torch.randn(1, 4, 3, dtype=torch.float64)
    routing, _ = router(tokens)
    torch.testing.assert_close(routing.logits[0, 1, 1, 0], (tokens[0, 1] * router.phi[:, 1, 0]).sum())


def test_normalised_logits_ignore_the_length_of_tokens_and_of_phi() -> None:
    router = make(5, 3, 2)
    tokens = torch.randn(1, 6, 5, dtype=torch.float64)
    before, _ = router(tokens)
    with torch.no_grad():
        router.phi.mul_(torch.rand(1, 3, 2, dtype=torch.float64) + 0.5)
    after, _ = router(tokens * (torch.rand(1, 6, 1, dtype=torch.float64) + 0.5))
    torch.testing.assert_close(after.logits, before.logits, rtol=1e-12, atol=1e-13)


def test_zero_token_has_zero_logits_and_finite_gradient() -> None:
    router = make(5, 3, 2, dispatch_normalized=True)
    tokens = torch.zeros(1, 2, 5, dtype=torch.float64, requires_grad=True)
    routing, dispatched = router(tokens)
    assert (routing.logits == 0).all()
    assert (dispatched == 0).all()
    (routing.dispatch.square().sum() + dispatched.sum()).backward()
    assert tokens.grad.isfinite().all()


def test_dispatch_normalized_gives_unit_tokens_only_with_router_norm() -> None:
    tokens = 3 * torch.randn(2, 4, 5, dtype=torch.float64)
    _, unit = make(5, 3, 2, dispatch_normalized=True)(tokens)
    torch.testing.assert_close(unit, tokens / tokens.norm(dim=-1, keepdim=True))
    _, raw = make(5, 3, 2, dispatch_normalized=True, norm=False)(tokens)
    torch.testing.assert_close(raw, tokens)


def test_adding_a_constant_per_slot_leaves_dispatch_and_per_token_leaves_combine() -> None:
    logits = torch.randn(2, 5, 3, 2, dtype=torch.float64)
    base = Routing(logits)
    torch.testing.assert_close(Routing(logits + torch.randn(2, 1, 3, 2).double()).dispatch, base.dispatch)
    torch.testing.assert_close(Routing(logits + torch.randn(2, 5, 1, 1).double()).combine, base.combine)
    per_task = Routing(logits + torch.randn(2, 5, 1, 2).double(), None, "per_task").combine
    torch.testing.assert_close(per_task, Routing(logits, None, "per_task").combine)


def test_per_task_combine_is_joint_combine_renormalised_over_experts() -> None:
    logits = 3 * torch.randn(2, 5, 3, 4, dtype=torch.float64)
    joint = Routing(logits).combine
    torch.testing.assert_close(Routing(logits, None, "per_task").combine, joint / joint.sum(2, keepdim=True))


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([1e4, -1e4, 3e38, -3e38]).view(1, 2, 2, 1)
    routing = Routing(logits, torch.tensor([[True, False]]))
    assert routing.dispatch.isfinite().all()
    assert routing.combine.isfinite().all()
    assert (routing.dispatch[0, 1] == 0).all()


def test_detach_cuts_the_graph_and_keeps_mask_and_mode() -> None:
    mask = torch.tensor([[True, True, False]])
    routing, _ = make(4, 2, 2, combine="per_task")(torch.randn(1, 3, 4, dtype=torch.float64), mask)
    cut = routing.detach()
    assert routing.logits.requires_grad
    assert not cut.combine.requires_grad
    torch.testing.assert_close(cut.dispatch, routing.dispatch.detach(), rtol=0, atol=0)
    torch.testing.assert_close(cut.combine, routing.combine.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("norm", [True, False])
def test_bfloat16_tokens_give_float32_logits(norm: bool) -> None:
    router = Router(16, 4, 3, RouterOptions(norm=norm))
    tokens = torch.randn(2, 9, 16).bfloat16()
    routing, dispatched = router(tokens)
    assert routing.logits.dtype == routing.dispatch.dtype == routing.combine.dtype == torch.float32
    assert dispatched.dtype == torch.bfloat16
    # the only loss allowed is the rounding of the tokens themselves
    exact, _ = router(tokens.float())
    torch.testing.assert_close(routing.logits, exact.logits, rtol=0, atol=0)


def test_autocast_does_not_lower_the_precision_of_the_logits() -> None:
    router = Router(16, 4, 3)
    tokens = torch.randn(2, 9, 16)
    plain, _ = router(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing, _ = router(tokens)
        assert routing.dispatch.dtype == routing.combine.dtype == torch.float32
    torch.testing.assert_close(routing.logits, plain.logits, rtol=0, atol=0)


def test_bfloat16_parameters_are_raised_before_the_product() -> None:
    router = Router(16, 4, 3, RouterOptions(scale_init=1.25)).bfloat16()
    tokens = torch.randn(2, 9, 16).bfloat16()
    routing, _ = router(tokens)
    raised = Router(16, 4, 3)
    raised.load_state_dict({name: value.float() for name, value in router.state_dict().items()})
    torch.testing.assert_close(routing.logits, raised(tokens.float())[0].logits, rtol=0, atol=0)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("normalized", [False, True])
def test_gradcheck(options: dict, normalized: bool) -> None:
    router = make(3, 2, 2, scale_init=1.7, dispatch_normalized=normalized, **options)
    mask = torch.tensor([[True, True, False]])
    names = [name for name, _ in router.named_parameters()]

    def run(tokens: torch.Tensor, *values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        routing, dispatched = functional_call(router, dict(zip(names, values, strict=True)), (tokens, mask))
        return routing.logits, routing.dispatch, routing.combine, dispatched * 1.0

    tokens = torch.randn(1, 3, 3, dtype=torch.float64, requires_grad=True)
    values = [p.detach().clone().requires_grad_() for p in router.parameters()]
    assert torch.autograd.gradcheck(run, (tokens, *values), atol=1e-7)


def test_initial_scale_of_phi() -> None:
    router = Router(400, 20, 10, RouterOptions(scale_init=3.0))
    assert router.phi.std().item() == pytest.approx(1 / 20, rel=0.02)  # N(0, 1/d), 80 000 draws
    assert router.scale.item() == 3.0


def test_wrong_shapes_and_options_are_refused() -> None:
    router = Router(4, 2, 2)
    with pytest.raises(ShapeError, match="width 4"):
        router(torch.zeros(1, 3, 5))
    with pytest.raises(ShapeError):
        router(torch.zeros(3, 4))
    with pytest.raises(ShapeError, match="token_mask"):
        router(torch.zeros(1, 3, 4), torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="per_task"):
        Router(4, 2, 2, RouterOptions(combine="both"))  # type: ignore[arg-type]
