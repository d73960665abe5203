"""Transformer blocks: residual structure, masks, and parameter counts of the reference configuration."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from m4oe_ds.layers import Block, MToE, MToEBlock, SoftMoE
from m4oe_ds.layers.block import run_in_step

KINDS = ["soft_moe", "mtoe"]
EXACT = {"rtol": 1e-10, "atol": 1e-11}  # float64


def make(kind: str, dim: int = 8, heads: int = 2) -> nn.Module:
    if kind == "soft_moe":
        block: nn.Module = Block(dim, heads, SoftMoE(dim, 3, 2, hidden=11))
    else:
        block = MToEBlock(dim, heads, MToE(dim, 3, 2, hidden=11, task_embed_std=0.5))
    for name, parameter in block.named_parameters():
        if not name.endswith("scale"):
            nn.init.normal_(parameter, std=0.5)
    return block.double()


def by_token(kind: str, out: Tensor) -> Tensor:
    """Output with the tokens on axis 1."""
    return out.transpose(1, 2) if kind == "mtoe" else out


def naive_attention(block: nn.Module, x: Tensor, heads: int) -> Tensor:
    """softmax(q k' / sqrt(d/heads)) v of one sample [M, d], head by head."""
    dim = x.shape[1]
    qkv = x @ block.attention.qkv.weight.T + block.attention.qkv.bias
    width = dim // heads
    outs = []
    for h in range(heads):
        q, k, v = (qkv[:, part * dim + h * width : part * dim + (h + 1) * width] for part in range(3))
        outs.append((q @ k.T / math.sqrt(width)).softmax(1) @ v)
    return torch.cat(outs, 1) @ block.attention.proj.weight.T + block.attention.proj.bias


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight + norm.bias


@pytest.mark.parametrize("kind", KINDS)
def test_pre_norm_residual_structure(kind: str) -> None:
    block, x = make(kind), torch.randn(1, 6, 8, dtype=torch.float64)
    u = x[0] + naive_attention(block, layer_norm(block.norm1, x[0]), heads=2)
    mlp = block.mtoe if kind == "mtoe" else block.mlp
    update, expected_routing = mlp(layer_norm(block.norm2, u)[None])
    out, routing = block(x)
    torch.testing.assert_close(out, u + update, **EXACT)  # MToE: one stream per task, u broadcast over tasks
    assert out.shape == ((1, 2, 6, 8) if kind == "mtoe" else (1, 6, 8))
    torch.testing.assert_close(routing.logits, expected_routing.logits, **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_masking_tokens_equals_removing_them(kind: str) -> None:
    block, x = make(kind), torch.randn(2, 6, 8, dtype=torch.float64)
    mask = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 0, 1, 1, 1, 1]], dtype=torch.bool)
    out = by_token(kind, block(x, mask)[0])
    for b in range(2):
        short = by_token(kind, block(x[b : b + 1, mask[b]])[0])
        torch.testing.assert_close(out[b, mask[b]], short[0], **EXACT)


@pytest.mark.parametrize("kind", KINDS)
def test_content_of_masked_tokens_does_not_reach_the_others(kind: str) -> None:
    block, x = make(kind), torch.randn(2, 6, 8, dtype=torch.float64)
    mask = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 0, 1, 1, 1, 1]], dtype=torch.bool)
    before = by_token(kind, block(x, mask)[0])[mask]
    x[~mask] = 100 * torch.randn(4, 8, dtype=torch.float64)
    torch.testing.assert_close(by_token(kind, block(x, mask)[0])[mask], before, rtol=0, atol=0)


@pytest.mark.parametrize("fused", [True, False], ids=["fused attention", "plain attention"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_sample_without_any_token_is_finite(kind: str, dtype: torch.dtype, fused: bool) -> None:
    block = make(kind).to(dtype)
    if not fused and not hasattr(block.attention, "fused_attn"):
        pytest.skip("this timm has one attention implementation only")
    block.attention.fused_attn = fused
    x = torch.randn(2, 6, 8, dtype=dtype, requires_grad=True)
    mask = torch.tensor([[False] * 6, [True] * 6])
    out = by_token(kind, block(x, mask)[0])
    assert out.isfinite().all()
    (out * mask[:, :, None, None] if kind == "mtoe" else out * mask[:, :, None]).square().sum().backward()
    assert x.grad.isfinite().all()
    assert (x.grad[0] == 0).all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in block.parameters())


def test_blocks_in_step_are_the_blocks_one_by_one() -> None:
    """Sharing an exchange changes neither outputs, routing nor gradients; lengths may differ."""
    blocks = [make("soft_moe") for _ in range(3)]
    tokens = [torch.randn(2, length, 8, dtype=torch.float64, requires_grad=True) for length in (5, 3, 7)]
    together = run_in_step(blocks, *tokens)  # type: ignore[arg-type]
    alone = [block(x) for block, x in zip(blocks, tokens, strict=True)]
    for (y, routing), (wanted, expected) in zip(together, alone, strict=True):
        torch.testing.assert_close(y, wanted, **EXACT)
        torch.testing.assert_close(routing.dispatch, expected.dispatch, **EXACT)
    found = torch.autograd.grad(sum((y**2).sum() for y, _ in together), tokens)
    reference = torch.autograd.grad(sum((y**2).sum() for y, _ in alone), tokens)
    torch.testing.assert_close(found, reference, **EXACT)


def test_parameter_counts_of_the_reference_configuration() -> None:
    """d = 768, 12 or 8 heads (no influence), qkv bias, experts 768 -> 3072 -> 768."""
    with torch.device("meta"):
        soft = Block(768, 8, SoftMoE(768, 32))
        tasks = {p: MToEBlock(768, 8, MToE(768, 128, p)) for p in (7, 3, 2)}
        fusion = [Block(768, 8, SoftMoE(768, 16)) for _ in range(2)]

    def count(module: nn.Module) -> int:
        return sum(p.numel() for p in module.parameters())

    assert count(soft) == 153_507_841
    assert {p: count(block) for p, block in tasks.items()} == {7: 607_530_241, 3: 607_133_953, 2: 607_034_881}
    assert sum(map(count, fusion)) == 155_873_282
