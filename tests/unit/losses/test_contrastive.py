"""vCLUB and InfoNCE against Gaussians whose mutual information is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from m4oe_ds.layers.contrastive import gaussian_log_likelihood, info_nce, negative_log_likelihood, vclub


def pair(rho: float, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, generator=generator)
    return x, rho * x + math.sqrt(1 - rho**2) * torch.randn(count, 1, generator=generator)


def everything(tensor: Tensor) -> Tensor:
    return torch.ones(len(tensor), dtype=torch.bool)


def test_log_likelihood_is_that_of_torch_up_to_its_constant() -> None:
    generator = torch.Generator().manual_seed(1)
    target, mean, log_variance = torch.randn(3, 5, 4, generator=generator)
    normal = torch.distributions.Normal(mean, (log_variance / 2).exp())
    expected = normal.log_prob(target).sum(-1) + 4 / 2 * math.log(2 * math.pi)
    torch.testing.assert_close(gaussian_log_likelihood(target, mean, log_variance), expected)


def fitted(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance of q(y|x): a linear Gaussian fitted by its likelihood, as the model fits its own."""
    weight = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=60)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = negative_log_likelihood(y, weight[0] * x + weight[1], weight[2].expand_as(x), everything(x))
        loss.backward()
        return loss

    optimizer.step(closure)
    weight = weight.detach()
    return weight[0] * x + weight[1], weight[2].expand_as(x)


def test_vclub_is_zero_for_independent_gaussians() -> None:
    x, y = pair(0.0, 2000)
    assert vclub(y, *fitted(x, y), everything(x)).abs() < 0.01


def test_vclub_of_correlated_gaussians_is_its_closed_form_and_above_the_information() -> None:
    x, y = pair(0.9, 4000)
    information = -0.5 * math.log(1 - 0.9**2)
    assert information == pytest.approx(0.830, abs=1e-3)
    # with q = p: E_p(x)p(y)[(y - rho x)^2] = 1 + rho^2, so the bound is rho^2 / (1 - rho^2)
    found = float(vclub(y, *fitted(x, y), everything(x)))
    assert found == pytest.approx(0.81 / 0.19, rel=0.08)
    assert found > information


def test_info_nce_stays_below_log_n_and_reaches_it_for_identical_distinct_codes() -> None:
    for count in (2, 8):
        codes = torch.eye(count)
        found = float(info_nce(codes, codes, everything(codes)))
        assert found <= math.log(count) + 1e-6
        assert found == pytest.approx(math.log(count), abs=1e-3)


def test_info_nce_of_unrelated_codes_is_not_positive_in_the_mean() -> None:
    generator = torch.Generator().manual_seed(2)
    found = [
        float(info_nce(*torch.randn(2, 16, 8, generator=generator), torch.ones(16, dtype=torch.bool), 1.0))
        for _ in range(50)
    ]
    assert abs(sum(found) / len(found)) < 0.05
    assert max(found) <= math.log(16)


@pytest.mark.parametrize("bound", ["vclub", "info_nce", "fit"])
def test_invalid_rows_leave_no_trace(bound: str) -> None:
    generator = torch.Generator().manual_seed(3)
    first, second, third = torch.randn(3, 6, 4, generator=generator)
    valid = torch.tensor([True, False, True, True, False, True])

    def value(a: Tensor, b: Tensor, c: Tensor, mask: Tensor) -> Tensor:
        return {
            "vclub": lambda: vclub(a, b, c, mask),
            "info_nce": lambda: info_nce(a, b, mask),
            "fit": lambda: negative_log_likelihood(a, b, c, mask),
        }[bound]()

    expected = value(first[valid], second[valid], third[valid], everything(first[valid]))
    first[1], second[4] = math.inf, -1e30
    inputs = [tensor.clone().requires_grad_() for tensor in (first, second, third)]
    found = value(*inputs, valid)
    if bound != "info_nce":  # normalising inf gives NaN in rows that are not used
        torch.testing.assert_close(found, expected)
    inputs = [t.nan_to_num(0, 9.0, -9.0).clone().requires_grad_() for t in (first, second, third)]
    found = value(*inputs, valid)
    torch.testing.assert_close(found, expected)
    found.backward()
    assert inputs[0].grad is not None
    assert inputs[0].grad[~valid].abs().max() == 0
    assert inputs[0].grad[valid].abs().max() > 0


def test_no_valid_row_gives_zero_with_a_zero_gradient() -> None:
    codes = torch.randn(3, 2, generator=torch.Generator().manual_seed(4)).requires_grad_()
    none = torch.zeros(3, dtype=torch.bool)
    total = vclub(codes, codes, codes, none) + info_nce(codes, codes, none)
    total = total + negative_log_likelihood(codes, codes, codes, none)
    total.backward()
    assert float(total.detach()) == 0
    assert codes.grad is not None
    assert codes.grad.abs().max() == 0
