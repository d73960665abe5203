"""Figures of a mixture layer's spread: uniform and one-hot routing have known values, padding leaves no trace."""

from __future__ import annotations

import math

import pytest
import torch

from m4oe_ds.layers.routing import Routing
from m4oe_ds.layers.statistics import routing_figures, routing_sums

B, M, N, P = 3, 5, 4, 2


@pytest.mark.parametrize("mode", ["joint", "per_task"])
def test_uniform_routing(mode: str) -> None:
    routing = Routing(torch.zeros(B, M, N, P), combine_mode=mode)  # type: ignore[arg-type]
    figures = routing_figures({"layer": routing_sums(routing, torch.ones(B, dtype=torch.bool))})["layer"]
    assert figures == pytest.approx(
        {"dispatch_entropy": 1.0, "combine_entropy": 1.0, "effective_experts": N, "largest_share": 1 / N}, rel=1e-6
    )


def test_every_token_to_one_expert() -> None:
    logits = torch.full((B, M, N, P), -200.0)
    logits[:, :, 1, 0] = 200.0
    logits[:, 0] += 300.0  # and every slot reads token 0
    figures = routing_figures({"x": routing_sums(Routing(logits), torch.ones(B, dtype=torch.bool))})["x"]
    assert figures["effective_experts"] == pytest.approx(1.0)
    assert figures["largest_share"] == pytest.approx(1.0)
    assert figures["combine_entropy"] == pytest.approx(0.0, abs=1e-6)
    assert figures["dispatch_entropy"] == pytest.approx(0.0, abs=1e-6)


def test_masked_tokens_and_padding_leave_no_trace() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(B, M, N, P, generator=generator)
    mask = torch.ones(B, M, dtype=torch.bool)
    mask[:, 3:] = False
    valid = torch.tensor([True, True, False])
    changed = logits.clone()
    changed[:, 3:] = 7.0
    changed[2] = -5.0
    expected = routing_sums(Routing(logits[:2, :3]), valid[:2])
    for values in (logits, changed):
        torch.testing.assert_close(routing_sums(Routing(values, mask), valid), expected)


def test_figures_agree_with_the_definition() -> None:
    generator = torch.Generator().manual_seed(1)
    routing = Routing(2 * torch.randn(B, M, N, P, generator=generator))
    figures = routing_figures({"x": routing_sums(routing, torch.ones(B, dtype=torch.bool))})["x"]
    dispatch, combine = routing.dispatch.double(), routing.combine.double()
    entropies = [
        -sum(float(w) * math.log(float(w)) for w in dispatch[b, :, j, k]) / math.log(M)
        for b in range(B)
        for j in range(N)
        for k in range(P)
    ]
    assert figures["dispatch_entropy"] == pytest.approx(sum(entropies) / len(entropies), rel=1e-5)
    share = [float(combine[:, :, j].sum()) / (B * M) for j in range(N)]
    assert figures["largest_share"] == pytest.approx(max(share), rel=1e-5)
    assert figures["effective_experts"] == pytest.approx(math.exp(-sum(s * math.log(s) for s in share)), rel=1e-5)


def test_a_layer_that_sees_every_sample_twice() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(2 * B, M, N, P, generator=generator)
    valid = torch.tensor([True, False, True])
    expected = routing_sums(Routing(logits[[0, 1, 4, 5]]), torch.ones(4, dtype=torch.bool))
    torch.testing.assert_close(routing_sums(Routing(logits), valid), expected)


def test_no_valid_sample_gives_no_figures() -> None:
    sums = routing_sums(Routing(torch.zeros(B, M, N, P)), torch.zeros(B, dtype=torch.bool))
    assert routing_figures({"x": sums}) == {}
