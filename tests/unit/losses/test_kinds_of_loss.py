"""Losses of numbers, of times to an event, of ordered classes and of masks of several classes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from m4oe_ds.losses import (
    binary_cross_entropy_dice,
    cumulative_incidence,
    discrete_time_likelihood,
    huber,
    ranked_probability,
    squared_error,
)
from m4oe_ds.losses.discrete_time import survived_intervals

HORIZONS = (1.0, 2.0, 5.0)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some(count: int) -> Tensor:
    """All rows but every third."""
    return torch.arange(count) % 3 != 1


def test_number_losses_are_those_of_the_standardised_error() -> None:
    logits, values, mask = drawn(9, 1), 50 + 20 * drawn(9, seed=1), some(9)
    errors = [float(logits[b, 0]) - (float(values[b]) - 48.0) / 13.0 for b in range(9) if mask[b]]
    expected = sum(0.5 * e * e if abs(e) <= 1 else abs(e) - 0.5 for e in errors)
    found = huber(logits, values, mask, 48.0, 13.0)
    assert float(found.sum) == pytest.approx(expected, rel=1e-12)
    assert float(found.count) == len(errors) == 6
    squares = squared_error(logits, values, mask, 48.0, 13.0)
    assert float(squares.sum) == pytest.approx(sum(e * e for e in errors), rel=1e-12)


def test_a_number_far_from_zero_keeps_its_digits() -> None:
    values = torch.tensor([16000001.0, 16000003.0])
    found = squared_error(torch.zeros(2, 1), values, torch.ones(2, dtype=torch.bool), 16000001.5, 1.0)
    assert float(found.sum) == 0.5**2 + 1.5**2


@pytest.mark.parametrize(
    ("time", "event", "survived", "interval"),
    [
        (0.0, 1, 0, 1),  # at once: the first interval
        (0.7, 1, 0, 1),
        (1.0, 1, 0, 1),  # at a horizon: the interval that ends there
        (1.2, 1, 1, 2),
        (4.9, 1, 2, 3),
        (5.0, 1, 2, 3),
        (5.1, 1, 3, 0),  # after the last horizon: free of the event up to it
        (0.4, 0, 0, 0),  # before the middle of the first interval
        (0.5, 0, 1, 0),
        (1.4, 0, 1, 0),
        (1.5, 0, 2, 0),
        (2.0, 0, 2, 0),
        (3.4, 0, 2, 0),
        (3.5, 0, 3, 0),
        (90.0, 0, 3, 0),
    ],
)
def test_what_a_case_says_of_the_intervals(time: float, event: int, survived: int, interval: int) -> None:
    free, came = survived_intervals(torch.tensor([time]), torch.tensor([float(event)]), HORIZONS)
    assert free[0].tolist() == [j < survived for j in range(3)]
    assert came[0].tolist() == [j + 1 == interval for j in range(3)]


def test_horizons_are_compared_in_the_type_of_the_times() -> None:
    times, events = torch.tensor([0.1, 0.15, 0.2], dtype=torch.float32), torch.tensor([1.0, 0.0, 1.0])
    free, came = survived_intervals(times, events, (0.1, 0.2))
    assert came.tolist() == [[True, False], [False, False], [False, True]]
    assert free.tolist() == [[False, False], [True, True], [True, False]]


def test_survival_loss_is_the_likelihood_of_what_was_seen() -> None:
    """Against the product of hazards, case by case."""
    random = np.random.default_rng(3)
    logits, mask = drawn(40, 3, seed=4), some(40)
    times, events = random.uniform(0, 7, 40), random.integers(0, 2, 40)
    expected = 0.0
    for b in range(40):
        if not mask[b]:
            continue
        hazard = [1 / (1 + math.exp(-float(logits[b, j]))) for j in range(3)]
        likelihood, start = 1.0, 0.0
        for j, end in enumerate(HORIZONS):
            if events[b]:
                likelihood *= 1 - hazard[j] if times[b] > end else hazard[j] if times[b] > start else 1.0
            else:
                likelihood *= 1 - hazard[j] if times[b] >= (start + end) / 2 else 1.0
            start = end
        expected -= math.log(likelihood)
    labels = torch.from_numpy(np.stack([times, events], 1))
    found = discrete_time_likelihood(logits, labels, mask, HORIZONS)
    assert float(found.sum) == pytest.approx(expected, rel=1e-12)
    assert float(found.count) == int(mask.sum())


def test_best_hazards_without_censoring_are_the_shares_of_those_at_risk() -> None:
    times = torch.tensor([0.5] * 2 + [1.5] * 3 + [4.0] * 1 + [9.0] * 4)
    labels = torch.stack([times, torch.ones(10)], 1)
    logits = torch.zeros(1, 3, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = discrete_time_likelihood(logits.expand(10, 3), labels, torch.ones(10, dtype=torch.bool), HORIZONS).sum
        value.backward()
        return value

    optimizer.step(loss)
    np.testing.assert_allclose(logits.sigmoid().detach()[0], [2 / 10, 3 / 8, 1 / 5], atol=1e-4)
    np.testing.assert_allclose(cumulative_incidence(logits).detach()[0], [0.2, 0.5, 0.6], atol=1e-4)


def test_cumulative_incidence_is_one_minus_the_product_of_surviving() -> None:
    logits = drawn(6, 4, seed=5)
    expected = 1 - torch.cumprod(1 - logits.sigmoid(), 1)
    torch.testing.assert_close(cumulative_incidence(logits), expected)
    tiny = cumulative_incidence(torch.full((1, 3), -30.0))
    assert tiny[0].tolist() == pytest.approx([math.exp(-30) * k for k in (1, 2, 3)], rel=1e-4)  # no digits lost
    assert (cumulative_incidence(torch.tensor([[90.0, -90.0, 3.0]])).diff() >= 0).all()


def test_ranked_probability_score_by_its_definition() -> None:
    logits, labels, mask = drawn(12, 4, seed=6), torch.arange(12) % 4, some(12)
    weight = torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=torch.float64)
    plain = weighted = 0.0
    for b in range(12):
        if mask[b]:
            below, score = 0.0, 0.0
            for c in range(3):
                below += float(logits[b].softmax(0)[c])
                score += (below - float(labels[b] <= c)) ** 2 / 3
            plain, weighted = plain + score, weighted + score * float(weight[labels[b]])
    assert float(ranked_probability(logits, labels, mask).sum) == pytest.approx(plain, rel=1e-12)
    assert float(ranked_probability(logits, labels, mask, weight).sum) == pytest.approx(weighted, rel=1e-12)


def test_a_class_further_off_costs_more() -> None:
    """Which the cross-entropy does not know."""
    sure = torch.tensor([[9.0, 0.0, 0.0, 0.0]])
    costs = [float(ranked_probability(sure, torch.tensor([c]), torch.tensor([True])).sum) for c in range(4)]
    assert costs == sorted(costs)
    assert costs[3] == pytest.approx(1.0, abs=1e-2)


@pytest.mark.parametrize("size", [(5, 7), (3, 4, 5)])
def test_loss_of_several_masks_is_the_mean_of_the_single_ones(size: tuple[int, ...]) -> None:
    logits, target, mask = drawn(6, 3, *size, seed=7), (drawn(6, 3, *size, seed=8) > 0.3).double(), some(6)
    found = binary_cross_entropy_dice(logits, target, mask)
    single = [binary_cross_entropy_dice(logits[:, [c]], target[:, [c]], mask) for c in range(3)]
    assert float(found.sum) == pytest.approx(sum(float(one.sum) for one in single) / 3, rel=1e-12)
    assert float(found.count) == 4
    expected = 0.0
    for b in (0, 2, 3, 5):
        p, t = logits[b, 0].sigmoid().flatten(), target[b, 0].flatten()
        entropy = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
        expected += float(entropy + 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1))
    assert float(single[0].sum) == pytest.approx(expected, rel=1e-12)


CASES = {
    "huber": (lambda x, m: huber(x, 3 * drawn(6, seed=9), m, 0.3, 2.0), (6, 1)),
    "mse": (lambda x, m: squared_error(x, 3 * drawn(6, seed=9), m, 0.3, 2.0), (6, 1)),
    "hazard": (
        lambda x, m: discrete_time_likelihood(
            x, torch.stack([torch.linspace(0.6, 6, 6), torch.arange(6) % 2], 1).double(), m, HORIZONS
        ),
        (6, 3),
    ),
    "ranked_probability": (lambda x, m: ranked_probability(x, torch.arange(6) % 4, m), (6, 4)),
    "bce_dice": (lambda x, m: binary_cross_entropy_dice(x, (drawn(6, 2, 3, 3, seed=2) > 0).double(), m), (6, 2, 3, 3)),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_values(name: str) -> None:
    loss, shape = CASES[name]
    logits = drawn(*shape, seed=11).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, some(6)).sum, logits)


@pytest.mark.parametrize("name", CASES)
def test_a_sample_without_label_leaves_no_gradient_whatever_it_holds(name: str) -> None:
    loss, shape = CASES[name]
    mask = some(6)
    logits = drawn(*shape, seed=11)
    logits[~mask] = math.nan
    logits.requires_grad_()
    part = loss(logits, mask)
    part.sum.backward()
    assert math.isfinite(float(part.sum.detach()))
    assert logits.grad is not None
    assert not logits.grad[~mask].any()
    assert all(logits.grad[mask].flatten(1).abs().sum(1) > 0)
    nothing = drawn(*shape).requires_grad_()
    part = loss(nothing, torch.zeros(6, dtype=torch.bool))
    part.sum.backward()
    assert float(part.sum.detach()) == float(part.count) == 0.0
    assert nothing.grad is not None
    assert not nothing.grad.any()
