"""MToE: a worked example computed by hand, a triple loop written from the equations, and its invariances."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from m4oe_ds.errors import ShapeError
from m4oe_ds.layers import MToE, RouterOptions, Routing

SHAPES = [(2, 5, 3, 4, 2), (1, 7, 4, 2, 3), (3, 2, 5, 3, 1), (2, 3, 2, 1, 4)]  # B, M, d, n, p
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


class WorkedExperts(IdentityExperts):
    """The element-wise experts of the worked example: f_1(x) = 2x, f_2(x) = 1 - x."""

    def forward(self, slots: Tensor) -> Tensor:
        return torch.stack([2 * slots[:, 0], 1 - slots[:, 1]], dim=1)


# ---------------------------------------------------------------------------------------------- worked example

TOKENS = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [1.0, 1.0], [-1.0, 1.0]]], dtype=torch.float64)
PHI = torch.tensor([[[0.5, -0.5], [1.0, 0.0]], [[0.0, 1.0], [-0.5, 0.5]]], dtype=torch.float64)  # [d, n, p]
TASK_EMBED = torch.tensor([[0.1, 0.0], [0.0, -0.2]], dtype=torch.float64)
# index order of the tables: token, expert, task
LOGITS = [[[0.5, -0.5], [1, 0]], [[0, 2], [-1, 1]], [[0.5, 0.5], [0.5, 0.5]], [[-0.5, 1.5], [-1.5, 0.5]]]
DISPATCH = [
    [[0.336201, 0.042937], [0.548260, 0.142537]],
    [[0.203916, 0.523082], [0.074199, 0.387456]],
    [[0.336201, 0.116715], [0.332537, 0.235004]],
    [[0.123681, 0.317265], [0.045004, 0.235004]],
]
COMBINE = [
    [[0.276004, 0.101536], [0.455054, 0.167405]],
    [[0.087144, 0.643914], [0.032059, 0.236883]],
    [[0.25, 0.25], [0.25, 0.25]],
    [[0.087144, 0.643914], [0.032059, 0.236883]],
]
SLOTS = [[[0.548721, 0.867715], [-0.157613, 1.480145]], [[0.835793, 0.525939], [0.142537, 1.244919]]]  # expert, task, d
WORKED = {
    "unnormalised": (
        {"norm": False},
        [[0.387317, 0.694710], [0.115123, 0.166431], [0.340412, 0.552373], [0.115123, 0.166431]],
        [[0.111537, 0.252443], [0.000140, 1.637967], [0.135559, 0.628843], [0.000140, 1.637967]],
    ),
    "normalised, raw dispatch": (
        {"norm": True, "scale_init": 2.0},
        [[0.976813, 0.766461], [0.132627, 0.085786], [0.672175, 0.446014], [0.042577, 0.030580]],
        [[0.047378, 0.052410], [0.232682, 0.857349], [0.230416, 0.304965], [-0.003692, 1.332054]],
    ),
    "normalised, unit dispatch": (
        {"norm": True, "scale_init": 2.0, "dispatch_normalized": True},
        [[0.912270, 0.636166], [0.122259, 0.064920], [0.620613, 0.342215], [0.039515, 0.024410]],
        [[0.052568, 0.060886], [0.308629, 0.692354], [0.259869, 0.328939], [0.108276, 0.871235]],
    ),
    "unnormalised, per-task combine": (
        {"norm": False, "combine": "per_task"},
        [[0.529803, 0.950279], [0.965774, 1.396196], [0.680824, 1.104746], [0.965774, 1.396196]],
        [[0.414725, 0.938653], [0.000159, 1.859641], [0.271119, 1.257686], [0.000159, 1.859641]],
    ),
}
PRINTED = {"rtol": 0, "atol": 5.1e-7}  # six decimals, rounded


def worked_layer(**options: Any) -> MToE:
    layer = MToE(2, 2, 2, experts_factory=WorkedExperts, router=RouterOptions(**options)).double()
    with torch.no_grad():
        layer.router.phi.copy_(PHI)
        layer.task_embed.copy_(TASK_EMBED)
    return layer


@pytest.mark.parametrize("variant", WORKED)
def test_worked_example(variant: str) -> None:
    options, first, second = WORKED[variant]
    out, _ = worked_layer(**options)(TOKENS)
    torch.testing.assert_close(out, torch.tensor([[first, second]], dtype=torch.float64), **PRINTED)


def test_worked_example_routing_and_slots() -> None:
    layer = worked_layer(norm=False)
    seen = []
    layer.experts.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    _, routing = layer(TOKENS)
    torch.testing.assert_close(routing.logits[0], torch.tensor(LOGITS, dtype=torch.float64), rtol=0, atol=0)
    torch.testing.assert_close(routing.dispatch[0], torch.tensor(DISPATCH, dtype=torch.float64), **PRINTED)
    torch.testing.assert_close(routing.combine[0], torch.tensor(COMBINE, dtype=torch.float64), **PRINTED)
    expected = torch.tensor(SLOTS, dtype=torch.float64) + TASK_EMBED  # what the experts see
    torch.testing.assert_close(seen[0][0], expected, **PRINTED)


# ------------------------------------------------------------------------------------- independent slow version


def gelu(x: float) -> float:
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def naive_mtoe(layer: MToE, tokens: Tensor, mask: Tensor | None, options: dict) -> np.ndarray:
    """Equations (1) and (2) one scalar at a time; the slot of (expert j, task k) also sees the embedding of task k."""
    x, phi, embed = (v.detach().numpy() for v in (tokens, layer.router.phi, layer.task_embed))
    scale = layer.router.scale.item() if options["norm"] else 1.0
    w1, w2, w3 = (
        w.detach().numpy() for w in (layer.experts.experts.w1, layer.experts.experts.w2, layer.experts.experts.w3)
    )
    hidden = w1.shape[2]
    batch, count, dim = x.shape
    _, experts, tasks = phi.shape
    out = np.zeros((batch, tasks, count, dim))
    for b in range(batch):
        alive = [t for t in range(count) if mask is None or mask[b, t]]
        weight = np.zeros((count, experts, tasks))  # exp S
        source = x[b].copy()
        for t in alive:
            length = math.sqrt(sum(x[b, t, c] ** 2 for c in range(dim)))
            if options.get("dispatch_normalized"):
                source[t] = x[b, t] / length
            for j, k in itertools.product(range(experts), range(tasks)):
                dot = sum(x[b, t, c] * phi[c, j, k] for c in range(dim))
                if options["norm"]:
                    dot *= scale / (length * math.sqrt(sum(phi[c, j, k] ** 2 for c in range(dim))))
                weight[t, j, k] = math.exp(dot)
        for j, k in itertools.product(range(experts), range(tasks)):
            column = sum(weight[t, j, k] for t in alive)
            slot = sum(weight[t, j, k] / column * source[t] for t in alive) + embed[k]
            inner = [gelu(sum(slot[c] * w1[j, c, h] for c in range(dim)) + w3[j, 0, h]) for h in range(hidden)]
            answer = [sum(inner[h] * w2[j, h, c] for h in range(hidden)) + w3[j, 0, hidden + c] for c in range(dim)]
            for t in alive:
                if options.get("combine") == "per_task":
                    row = sum(weight[t, i, k] for i in range(experts))
                else:
                    row = sum(weight[t, i, q] for i in range(experts) for q in range(tasks))
                out[b, k, t] += weight[t, j, k] / row * np.array(answer)
    return out


@pytest.mark.parametrize("masked", [False, True], ids=["all tokens", "some tokens"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_triple_loop(shape: tuple[int, ...], options: dict, masked: bool) -> None:
    batch, count, dim, experts, tasks = shape
    layer = randomise(MToE(dim, experts, tasks, hidden=dim + 1, router=RouterOptions(**options)))
    tokens = 1.5 * torch.randn(batch, count, dim, dtype=torch.float64)
    mask = None
    if masked:
        mask = torch.rand(batch, count) < 0.6
        mask[:, -1] = True
    out, routing = layer(tokens, mask)
    assert out.shape == (batch, tasks, count, dim)
    assert routing.logits.shape == (batch, count, experts, tasks)
    np.testing.assert_allclose(out.detach().numpy(), naive_mtoe(layer, tokens, mask, options), rtol=1e-11, atol=1e-12)


# --------------------------------------------------------------------------------------------------- closed forms


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("combine", ["joint", "per_task"])
def test_zero_phi_and_identity_experts(norm: bool, combine: str) -> None:
    """All weights equal: Y_k = mean of the tokens, times 1/p where the weights are shared with the other tasks."""
    tasks = 3
    layer = MToE(
        5, 4, tasks, experts_factory=IdentityExperts, router=RouterOptions(norm=norm, combine=combine)
    ).double()
    nn.init.zeros_(layer.router.phi)
    tokens = torch.randn(2, 7, 5, dtype=torch.float64)
    out, routing = layer(tokens)
    share = 1 / tasks if combine == "joint" else 1.0
    expected = share * tokens.mean(1)[:, None, None].expand(2, tasks, 7, 5)
    torch.testing.assert_close(out, expected, **EXACT)
    torch.testing.assert_close(routing.dispatch, torch.full_like(routing.dispatch, 1 / 7))


def test_zero_phi_with_identity_experts_adds_the_task_embedding() -> None:
    layer = MToE(5, 4, 3, experts_factory=IdentityExperts, router=RouterOptions(combine="per_task")).double()
    nn.init.zeros_(layer.router.phi)
    nn.init.normal_(layer.task_embed)
    tokens = torch.randn(2, 7, 5, dtype=torch.float64)
    expected = tokens.mean(1)[:, None] + layer.task_embed  # [B, p, d]
    torch.testing.assert_close(layer(tokens)[0], expected[:, :, None].expand(2, 3, 7, 5), **EXACT)


def test_weights_of_one_task_are_below_one_and_sum_to_one_over_tasks() -> None:
    layer = randomise(MToE(5, 4, 3, hidden=6, router=RouterOptions(norm=False)))
    _, routing = layer(torch.randn(2, 7, 5, dtype=torch.float64))
    row = routing.combine.sum(2)  # [B, M, p]
    assert (row > 0).all()
    assert (row < 1).all()
    torch.testing.assert_close(row.sum(-1), torch.ones(2, 7, dtype=torch.float64))


def test_weights_of_one_task_start_near_one_over_p() -> None:
    torch.manual_seed(0)
    _, routing = MToE(768, 16, 7, hidden=2)(torch.randn(1, 50, 768))
    assert (routing.combine.sum(2) * 7 - 1).abs().max() < 0.1
    assert (routing.dispatch * 50 - 1).abs().max() < 0.2  # unit vectors at d = 768 have cosines of 0.036


def test_task_embedding_starts_at_zero_and_still_learns() -> None:
    layer = MToE(6, 3, 2, hidden=5)
    for parameter in layer.experts.parameters():
        nn.init.normal_(parameter)
    assert (layer.task_embed == 0).all()
    layer(torch.randn(2, 4, 6))[0].square().sum().backward()
    assert (layer.task_embed.grad != 0).all()
    assert MToE(600, 2, 7, hidden=2, task_embed_std=0.02).task_embed.std().item() == pytest.approx(0.02, rel=0.1)


# ------------------------------------------------------------------------------------------------------ invariances


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("task", [0, 1, 2])
def test_task_embedding_reaches_its_own_output_only(options: dict, task: int) -> None:
    layer = randomise(MToE(5, 4, 3, hidden=6, router=RouterOptions(**options)))
    tokens = torch.randn(2, 7, 5, dtype=torch.float64)
    before, _ = layer(tokens)
    with torch.no_grad():
        layer.task_embed[task] += 0.5
    after, _ = layer(tokens)
    others = [k for k in range(3) if k != task]
    torch.testing.assert_close(after[:, others], before[:, others], rtol=0, atol=0)
    assert ((after[:, task] - before[:, task]).abs().amax(-1) > 1e-4).all()
    gradient = torch.autograd.grad(after[:, task].square().sum(), layer.task_embed)[0]
    assert (gradient[others] == 0).all()
    assert (gradient[task] != 0).all()


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_permuting_tokens_permutes_outputs(options: dict) -> None:
    layer = randomise(MToE(5, 4, 3, hidden=6, router=RouterOptions(**options)))
    tokens, order = torch.randn(2, 9, 5, dtype=torch.float64), torch.randperm(9)
    mask = torch.rand(2, 9) < 0.7
    torch.testing.assert_close(layer(tokens[:, order], mask[:, order])[0], layer(tokens, mask)[0][:, :, order], **EXACT)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_permuting_experts_changes_nothing(options: dict) -> None:
    layer = randomise(MToE(5, 4, 3, hidden=6, router=RouterOptions(**options)))
    tokens = torch.randn(2, 9, 5, dtype=torch.float64)
    before, _ = layer(tokens)
    order = torch.tensor([2, 0, 3, 1])
    with torch.no_grad():
        layer.router.phi.copy_(layer.router.phi[:, order])
        assert (layer(tokens)[0] - before).abs().max() > 1e-3  # the experts must move along
        for parameter in layer.experts.parameters():
            parameter.copy_(parameter[order])
    torch.testing.assert_close(layer(tokens)[0], before, **EXACT)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_permuting_tasks_permutes_outputs(options: dict) -> None:
    layer = randomise(MToE(5, 4, 3, hidden=6, router=RouterOptions(**options)))
    tokens = torch.randn(2, 9, 5, dtype=torch.float64)
    before, _ = layer(tokens)
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        layer.router.phi.copy_(layer.router.phi[:, :, order])
        layer.task_embed.copy_(layer.task_embed[order])
    torch.testing.assert_close(layer(tokens)[0], before[:, order], **EXACT)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_masking_tokens_equals_removing_them(options: dict) -> None:
    layer = randomise(MToE(5, 4, 3, hidden=6, router=RouterOptions(**options)))
    tokens = torch.randn(3, 8, 5, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[1, 0, 1, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0, 1, 0], [1] * 8], dtype=torch.bool)
    out, _ = layer(tokens, mask)
    per_token = out.transpose(1, 2)  # [B, M, p, d]
    assert (per_token[~mask] == 0).all()
    weight = torch.randn_like(per_token)
    masked_gradient = torch.autograd.grad((per_token * weight).sum(), [tokens, *layer.parameters()])
    assert (masked_gradient[0][~mask] == 0).all()
    loss = 0.0
    for b in range(3):
        short = layer(tokens[b : b + 1, mask[b]])[0].transpose(1, 2)
        torch.testing.assert_close(per_token[b, mask[b]], short[0], **EXACT)
        loss = loss + (short[0] * weight[b, mask[b]]).sum()
    for ours, removed in zip(masked_gradient, torch.autograd.grad(loss, [tokens, *layer.parameters()]), strict=True):
        torch.testing.assert_close(ours, removed, **EXACT)


@pytest.mark.parametrize("combine", ["joint", "per_task"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sample_without_any_token_gives_zeros_and_finite_gradients(dtype: torch.dtype, combine: str) -> None:
    layer = randomise(MToE(5, 4, 2, hidden=6, router=RouterOptions(combine=combine))).to(dtype)
    tokens = torch.randn(2, 6, 5, dtype=dtype, requires_grad=True)
    out, _ = layer(tokens, torch.tensor([[False] * 6, [True] * 6]))
    out.square().sum().backward()
    assert out.dtype == dtype
    assert (out[0] == 0).all()
    assert (out[1] != 0).any()
    assert (tokens.grad[0] == 0).all()
    assert tokens.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_experts_are_interchangeable_parts() -> None:
    """Whatever the factory returns gets slots [B, n, p, d] with the task embedding added, and nothing else."""
    calls = []

    class Recorder(IdentityExperts):
        def __init__(self, num_experts: int, dim: int, hidden: int) -> None:
            super().__init__(num_experts, dim, hidden)
            calls.append((num_experts, dim, hidden))

        def forward(self, slots: Tensor) -> Tensor:
            calls.append(tuple(slots.shape))
            return slots

    out, routing = MToE(6, 4, 3, experts_factory=Recorder)(torch.randn(2, 5, 6))
    assert calls == [(4, 6, 24), (2, 4, 3, 6)]
    assert out.shape == (2, 3, 5, 6)
    assert isinstance(routing, Routing)


def test_bfloat16_tokens_keep_float32_routing_and_bfloat16_output() -> None:
    layer = randomise(MToE(8, 4, 2, hidden=6)).float()
    tokens = torch.randn(2, 6, 8).bfloat16()
    exact, reference = layer(tokens.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, routing = layer(tokens)
    assert routing.logits.dtype == torch.float32
    torch.testing.assert_close(routing.logits, reference.logits, rtol=0, atol=0)
    # 8 bits of mantissa in the weights, the slots and the experts: a few roundings of 0.4 %
    assert out.dtype == torch.bfloat16
    assert (out.float() - exact).norm() / exact.norm() < 0.02


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_gradcheck(options: dict) -> None:
    layer = randomise(MToE(2, 2, 2, hidden=3, router=RouterOptions(**options)))
    names = [name for name, _ in layer.named_parameters()]
    mask = torch.tensor([[True, False, True]])

    def run(tokens: Tensor, *values: Tensor) -> Tensor:
        return functional_call(layer, dict(zip(names, values, strict=True)), (tokens, mask))[0]

    tokens = torch.randn(1, 3, 2, dtype=torch.float64, requires_grad=True)
    values = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    assert torch.autograd.gradcheck(run, (tokens, *values), atol=1e-7)


def test_wrong_width_and_mask_are_refused() -> None:
    layer = MToE(4, 2, 2, hidden=3)
    with pytest.raises(ShapeError):
        layer(torch.zeros(1, 3, 5))
    with pytest.raises(ShapeError, match="token_mask"):
        layer(torch.zeros(2, 3, 4), torch.ones(3, dtype=torch.bool))
