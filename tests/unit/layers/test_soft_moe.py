"""SoftMoE against a triple loop written from the equations, and its invariances."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from m4oe_ds.errors import ShapeError
from m4oe_ds.layers import MToE, RouterOptions, SoftMoE

SHAPES = [(2, 5, 3, 4, 2), (1, 7, 4, 2, 3), (3, 2, 5, 3, 1), (2, 1, 2, 5, 4)]  # B, M, d, n, slots
OPTIONS = [
    {"norm": True},
    {"norm": True, "scale_init": 6.0},
    {"norm": True, "scale_init": 3.0, "dispatch_normalized": True},
    {"norm": False},
    {"norm": False, "combine": "per_task"},
    {"norm": True, "scale_init": 4.0, "dispatch_normalized": True, "combine": "per_task"},
]
EXACT = {"rtol": 1e-11, "atol": 1e-12}  # float64: some hundred roundings of 1e-16


def randomise(layer: nn.Module) -> nn.Module:
    """Random parameters of order one in float64; the learned scale keeps its value."""
    layer = layer.double()
    for name, parameter in layer.named_parameters():
        if not name.endswith("scale"):
            nn.init.normal_(parameter, std=0.8)
    return layer


class IdentityExperts(nn.Module):
    """f_j(x) = x."""

    def __init__(self, num_experts: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.num_experts = num_experts

    def forward(self, slots: Tensor) -> Tensor:
        return slots


def gelu(x: float) -> float:
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def naive_soft_moe(layer: SoftMoE, tokens: Tensor, mask: Tensor | None, options: dict) -> np.ndarray:
    """y[b,t] = sum over slots (j,s) of C[b,t,j,s] f_j( sum_t D[b,t,j,s] x[b,t] ), one scalar at a time."""
    x, phi = tokens.detach().numpy(), layer.router.phi.detach().numpy()
    scale = layer.router.scale.item() if options["norm"] else 1.0
    w1, w2, w3 = (
        w.detach().numpy() for w in (layer.experts.experts.w1, layer.experts.experts.w2, layer.experts.experts.w3)
    )
    hidden = w1.shape[2]
    batch, count, dim = x.shape
    _, experts, slots = phi.shape
    out = np.zeros_like(x)
    for b in range(batch):
        alive = [t for t in range(count) if mask is None or mask[b, t]]
        score, source = {}, {}
        for t in alive:
            length = math.sqrt(sum(x[b, t, c] ** 2 for c in range(dim)))
            source[t] = x[b, t] / length if options.get("dispatch_normalized") else x[b, t]
            for j, s in itertools.product(range(experts), range(slots)):
                dot = sum(x[b, t, c] * phi[c, j, s] for c in range(dim))
                if options["norm"]:
                    dot *= scale / (length * math.sqrt(sum(phi[c, j, s] ** 2 for c in range(dim))))
                score[t, j, s] = dot
        answer = {}
        for j, s in itertools.product(range(experts), range(slots)):
            total = sum(math.exp(score[t, j, s]) for t in alive)
            slot = sum(math.exp(score[t, j, s]) / total * source[t] for t in alive)
            inner = [gelu(sum(slot[c] * w1[j, c, h] for c in range(dim)) + w3[j, 0, h]) for h in range(hidden)]
            answer[j, s] = np.array(
                [sum(inner[h] * w2[j, h, c] for h in range(hidden)) + w3[j, 0, hidden + c] for c in range(dim)]
            )
        for t in alive:
            for j, s in itertools.product(range(experts), range(slots)):
                if options.get("combine") == "per_task":
                    total = sum(math.exp(score[t, i, s]) for i in range(experts))
                else:
                    total = sum(math.exp(score[t, i, r]) for i in range(experts) for r in range(slots))
                out[b, t] += math.exp(score[t, j, s]) / total * answer[j, s]
    return out


@pytest.mark.parametrize("masked", [False, True], ids=["all tokens", "some tokens"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_triple_loop(shape: tuple[int, ...], options: dict, masked: bool) -> None:
    batch, count, dim, experts, slots = shape
    layer = randomise(SoftMoE(dim, experts, slots, hidden=dim + 1, router=RouterOptions(**options)))
    tokens = 1.5 * torch.randn(batch, count, dim, dtype=torch.float64)
    mask = None
    if masked:
        mask = torch.rand(batch, count) < 0.6
        mask[:, 0] = True
    out, routing = layer(tokens, mask)
    assert out.shape == (batch, count, dim)
    assert routing.logits.shape == (batch, count, experts, slots)
    np.testing.assert_allclose(
        out.detach().numpy(), naive_soft_moe(layer, tokens, mask, options), rtol=1e-11, atol=1e-12
    )


@pytest.mark.parametrize("norm", [True, False])
def test_zero_phi_and_identity_experts_give_the_mean_token(norm: bool) -> None:
    layer = SoftMoE(5, 3, 2, experts_factory=IdentityExperts, router=RouterOptions(norm=norm)).double()
    nn.init.zeros_(layer.router.phi)
    tokens = torch.randn(2, 7, 5, dtype=torch.float64)
    out, _ = layer(tokens)
    torch.testing.assert_close(out, tokens.mean(1, keepdim=True).expand_as(tokens), **EXACT)


def test_zero_phi_gives_the_average_expert_of_the_mean_token() -> None:
    layer = SoftMoE(5, 3, 2).double()
    nn.init.zeros_(layer.router.phi)
    tokens = torch.randn(2, 7, 5, dtype=torch.float64)
    weights = layer.experts.experts
    mean = tokens.mean(1)
    each = []
    for j in range(3):
        inner, outer = weights.w3[j, 0].split([20, 5])
        each.append(nn.functional.gelu(mean @ weights.w1[j] + inner) @ weights.w2[j] + outer)
    expected = torch.stack(each).mean(0)[:, None]
    torch.testing.assert_close(layer(tokens)[0], expected.expand_as(tokens), **EXACT)


def test_identity_experts_keep_outputs_in_the_convex_hull_of_the_tokens() -> None:
    layer = SoftMoE(1, 3, 2, experts_factory=IdentityExperts, router=RouterOptions(norm=False)).double()
    nn.init.normal_(layer.router.phi, std=4.0)
    tokens = torch.randn(3, 8, 1, dtype=torch.float64)
    out, _ = layer(tokens)
    assert (out <= tokens.amax(1, keepdim=True) + 1e-12).all()
    assert (out >= tokens.amin(1, keepdim=True) - 1e-12).all()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_mtoe_with_one_task_equals_soft_moe_with_one_slot(options: dict) -> None:
    soft = randomise(SoftMoE(5, 4, 1, hidden=6, router=RouterOptions(**options)))
    tasks = MToE(5, 4, 1, hidden=6, router=RouterOptions(**options)).double()
    missing, unexpected = tasks.load_state_dict(soft.state_dict(), strict=False)
    assert missing == ["task_embed"]
    assert unexpected == []
    assert (tasks.task_embed == 0).all()
    tokens = torch.randn(2, 6, 5, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0, 1, 1, 1], [1, 1, 1, 1, 0, 0]], dtype=torch.bool)
    torch.testing.assert_close(tasks(tokens, mask)[0].squeeze(1), soft(tokens, mask)[0], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_permuting_tokens_permutes_outputs(options: dict) -> None:
    layer = randomise(SoftMoE(5, 4, 2, hidden=6, router=RouterOptions(**options)))
    tokens, order = torch.randn(2, 9, 5, dtype=torch.float64), torch.randperm(9)
    mask = torch.rand(2, 9) < 0.7
    torch.testing.assert_close(layer(tokens[:, order], mask[:, order])[0], layer(tokens, mask)[0][:, order], **EXACT)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_permuting_experts_or_slots_changes_nothing(options: dict) -> None:
    layer = randomise(SoftMoE(5, 4, 3, hidden=6, router=RouterOptions(**options)))
    tokens = torch.randn(2, 9, 5, dtype=torch.float64)
    before, _ = layer(tokens)
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        layer.router.phi.copy_(layer.router.phi[:, order])
    moved_alone, _ = layer(tokens)
    assert (moved_alone - before).abs().max() > 1e-3  # the experts must move along
    with torch.no_grad():
        for parameter in layer.experts.parameters():
            parameter.copy_(parameter[order])
    torch.testing.assert_close(layer(tokens)[0], before, **EXACT)
    with torch.no_grad():
        layer.router.phi.copy_(layer.router.phi[:, :, torch.tensor([1, 2, 0])])
    torch.testing.assert_close(layer(tokens)[0], before, **EXACT)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_masking_tokens_equals_removing_them(options: dict) -> None:
    layer = randomise(SoftMoE(5, 4, 2, hidden=6, router=RouterOptions(**options)))
    tokens = torch.randn(3, 8, 5, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 0, 1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0, 1, 0], [1] * 8], dtype=torch.bool)
    out, _ = layer(tokens, mask)
    assert (out[~mask] == 0).all()
    weight = torch.randn_like(out)
    masked_gradient = torch.autograd.grad((out * weight).sum(), [tokens, *layer.parameters()])
    assert (masked_gradient[0][~mask] == 0).all()
    loss = 0.0
    for b in range(3):
        short, _ = layer(tokens[b : b + 1, mask[b]])
        torch.testing.assert_close(out[b, mask[b]], short[0], **EXACT)
        loss = loss + (short[0] * weight[b, mask[b]]).sum()
    for ours, removed in zip(masked_gradient, torch.autograd.grad(loss, [tokens, *layer.parameters()]), strict=True):
        torch.testing.assert_close(ours, removed, **EXACT)


def test_content_of_masked_tokens_is_irrelevant() -> None:
    layer = randomise(SoftMoE(5, 4, 2, hidden=6, router=RouterOptions(norm=False)))
    tokens = torch.randn(2, 6, 5, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0, 1, 0, 1], [0, 1, 1, 1, 1, 1]], dtype=torch.bool)
    before, _ = layer(tokens, mask)
    tokens[~mask] = 1e6
    torch.testing.assert_close(layer(tokens, mask)[0], before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sample_without_any_token_gives_zeros_and_finite_gradients(dtype: torch.dtype) -> None:
    layer = randomise(SoftMoE(5, 4, 2, hidden=6)).to(dtype)
    tokens = torch.randn(2, 6, 5, dtype=dtype, requires_grad=True)
    out, _ = layer(tokens, torch.tensor([[False] * 6, [True] * 6]))
    out.square().sum().backward()
    assert out.dtype == dtype
    assert (out[0] == 0).all()
    assert (out[1] != 0).any()
    assert (tokens.grad[0] == 0).all()
    assert tokens.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_a_sample_does_not_depend_on_the_rest_of_the_batch() -> None:
    layer = randomise(SoftMoE(5, 4, 2, hidden=6))
    tokens = torch.randn(4, 6, 5, dtype=torch.float64)
    whole, _ = layer(tokens)
    torch.testing.assert_close(torch.cat([layer(tokens[b : b + 1])[0] for b in range(4)]), whole, **EXACT)


def test_bfloat16_output_stays_close_to_float32() -> None:
    layer = randomise(SoftMoE(8, 4, 2, hidden=6)).float()
    tokens = torch.randn(2, 6, 8).bfloat16()
    exact, _ = layer(tokens.float())
    out, routing = layer.bfloat16()(tokens)
    assert out.dtype == torch.bfloat16
    assert routing.logits.dtype == torch.float32
    # 8 bits of mantissa in the parameters, the slots and the experts: a few roundings of 0.4 %
    assert (out.float() - exact).norm() / exact.norm() < 0.02


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradcheck(options: dict) -> None:
    layer = randomise(SoftMoE(2, 2, 2, hidden=3, router=RouterOptions(**options)))
    names = [name for name, _ in layer.named_parameters()]
    mask = torch.tensor([[True, False, True]])

    def run(tokens: Tensor, *values: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(names, values, strict=True)), (tokens, mask))[0]

    tokens = torch.randn(1, 3, 2, dtype=torch.float64, requires_grad=True)
    values = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    assert torch.autograd.gradcheck(run, (tokens, *values), atol=1e-7)


def test_default_hidden_width_is_four_times_the_token_width() -> None:
    assert SoftMoE(6, 2).experts.experts.hidden == 24


def test_wrong_width_is_refused() -> None:
    with pytest.raises(ShapeError):
        SoftMoE(4, 2, hidden=3)(torch.zeros(1, 3, 5))
