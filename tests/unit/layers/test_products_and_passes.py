"""Pieces and the other library change rounding only: against whole batches, PyTorch's own products and float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from m4oe_ds.layers import MToE, RouterOptions, SoftMoE, passes, products

needs_onednn = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),
    reason="this build of torch has no oneDNN product",
)


@pytest.fixture
def onednn_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN whatever the processor and the size."""
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(products, "MIN_FLOPS", 0.0)


def strided(rows: int, columns: int) -> dict[str, Tensor]:
    """The same kind of matrix in every layout that layers make: dense, transposed, a slice of a wider one, a row of
    one.
    """
    return {
        "dense": torch.randn(1, rows, columns),
        "transposed": torch.randn(1, columns, rows).transpose(1, 2),
        "columns of a wider one": torch.randn(1, rows, 3 * columns)[..., columns : 2 * columns],
        "transposed rows of a taller one": torch.randn(1, columns, 3 * rows)[..., :rows].transpose(1, 2),
    }


@needs_onednn
@pytest.mark.parametrize("shape", [(5, 7, 3), (1, 4, 6), (8, 1, 2), (3, 9, 1)], ids=str)
def test_products_of_every_layout(shape: tuple[int, int, int], onednn_everywhere: None) -> None:
    m, k, n = shape
    for left, a in strided(m, k).items():
        for right, b in strided(k, n).items():
            expected = a.double() @ b.double()
            out = torch.full((1, n, m), torch.nan).transpose(1, 2)
            products.product_into(out, a, b)
            for found in (products.product(a, b), out):
                torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5, msg=f"{left}, {right}")


@needs_onednn
def test_it_is_onednn_that_multiplies(onednn_everywhere: None) -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        products.product(torch.randn(1, 4, 5), torch.randn(1, 5, 6))
    assert "mkldnn::_linear_pointwise" in {event.key for event in profile.key_averages()}


def test_the_choice_depends_on_processor_type_and_size_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "onednn_is_faster", lambda: True)
    like = torch.zeros(1)
    assert products.one_by_one(like, 1000, 100, 1000)
    assert not products.one_by_one(like, 10, 100, 1000)
    assert not products.one_by_one(like.double(), 1000, 100, 1000)
    assert not products.one_by_one(like.bfloat16(), 1000, 100, 1000)
    assert not products.one_by_one(torch.zeros(1, device="meta"), 1000, 100, 1000)
    with products.only_mkl():
        assert not products.one_by_one(like, 1000, 100, 1000)
    monkeypatch.setattr(products, "onednn_is_faster", lambda: False)
    assert not products.one_by_one(like, 1000, 100, 1000)


@pytest.mark.parametrize(
    ("vendor", "capability", "expected"),
    [
        ("AuthenticAMD", "AVX512", True),
        ("GenuineIntel", "AVX512", False),
        ("AuthenticAMD", "AVX2", False),
    ],
)
@needs_onednn
def test_processors(vendor: str, capability: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(Path, "read_text", lambda *_: f"processor\t: 0\nvendor_id\t: {vendor}\nmodel\t: 1\n")
    assert products.onednn_is_faster.__wrapped__() is expected


@pytest.mark.parametrize("count", [1, 2, 5, 7, 64])
@pytest.mark.parametrize("fit", [1, 2, 3, 100])
def test_passes_cover_all_rows_once_and_fit(count: int, fit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "PASS_BYTES", fit * 40)
    plan = passes.passes(torch.zeros(1), count, 10)
    assert [row for part in plan for row in range(part.start, part.stop)] == list(range(count))
    assert max(part.size for part in plan) == plan[0].size <= fit
    assert plan[0].size - plan[-1].size <= 1
    assert len(passes.passes(torch.zeros(1), count, 10, single=True)) == count
    with passes.whole():
        assert passes.passes(torch.zeros(1), count, 10) == (passes.Pass(0, count),)
    assert passes.passes(torch.zeros(1, device="meta"), count, 10) == (passes.Pass(0, count),)


def results(layer: nn.Module, tokens: Tensor, mask: Tensor) -> list[Tensor]:
    """Output, modality mass and all gradients of a layer."""
    layer.zero_grad()
    tokens = tokens.clone().requires_grad_()
    out, routing = layer(tokens, mask, (10, 9, 6)) if isinstance(layer, MToE) else layer(tokens, mask)
    generator = torch.Generator().manual_seed(3)
    loss = (out * torch.randn(out.shape, generator=generator).to(out.dtype)).sum()
    mass = routing.modality_mass
    loss = loss + (mass * torch.randn(mass.shape, generator=generator).to(mass.dtype)).sum()
    loss.backward()
    return [out.detach(), mass.detach(), tokens.grad, *(parameter.grad for parameter in layer.parameters())]


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "Soft-MoE": lambda: SoftMoE(12, 5, 3),
    "Soft-MoE per task": lambda: SoftMoE(12, 5, 3, router=RouterOptions(combine="per_task")),
    "MToE": lambda: MToE(12, 5, 3),
    "MToE per task, raw tokens": lambda: MToE(12, 5, 3, router=RouterOptions(combine="per_task", norm=False)),
    "MToE, unit tokens": lambda: MToE(12, 5, 3, router=RouterOptions(dispatch_normalized=True)),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_pieces_equal_the_whole(
    make: Callable[[], nn.Module], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = make().to(dtype)
    tokens, mask = torch.randn(7, 25, 12, dtype=dtype), torch.rand(7, 25) > 0.3
    mask[2] = False  # a sample without tokens, in the middle of a piece
    monkeypatch.setattr(passes, "PASS_BYTES", 2 * 25 * 15 * torch.promote_types(dtype, torch.float32).itemsize)
    pieces = results(layer, tokens, mask)
    with passes.whole():
        whole = results(layer, tokens, mask)
    close = 1e-12 if dtype == torch.float64 else 2e-2  # a few roundings of bf16, whose sums are made in another order
    for a, b in zip(pieces, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=close, atol=close * float(b.abs().max()))


@needs_onednn
@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_onednn_equals_mkl(make: Callable[[], nn.Module], onednn_everywhere: None) -> None:
    layer = make()
    tokens, mask = torch.randn(7, 25, 12), torch.rand(7, 25) > 0.3
    mask[2] = False
    ours = results(layer, tokens, mask)
    with products.only_mkl():
        torchs = results(layer, tokens, mask)
    assert any(not torch.equal(a, b) for a, b in zip(ours, torchs, strict=True))  # they are different products
    exact = results(copy.deepcopy(layer).double(), tokens.double(), mask)
    for a, b, c in zip(ours, torchs, exact, strict=True):
        scale = float(c.abs().max())
        torch.testing.assert_close(a, b, rtol=0, atol=3e-6 * scale)
        torch.testing.assert_close(a.double(), c, rtol=0, atol=3e-6 * scale)


def test_gradients_do_not_leak_from_one_backward_into_the_next() -> None:
    """dy and the expert outputs travel back through the graph, not through a store next to it."""
    layer = MToE(6, 3, 2).double()
    tokens = torch.randn(2, 5, 6, dtype=torch.float64, requires_grad=True)
    out, _ = layer(tokens)
    torch.autograd.grad(out.sum(), layer.experts.experts.w2, retain_graph=True)  # stops short of the dispatch
    first = torch.autograd.grad(out.square().sum(), tokens, retain_graph=True)[0]
    second = torch.autograd.grad(out.square().sum(), tokens)[0]
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    alone = tokens.detach().clone().requires_grad_()
    torch.testing.assert_close(
        first, torch.autograd.grad(layer(alone)[0].square().sum(), alone)[0], rtol=1e-13, atol=1e-13
    )
