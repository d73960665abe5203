"""SoftMoE against the public package soft-moe-pytorch (outputs, input gradients, router gradients).

Conventions of that package, read in its source (0.1.9):

* tokens are normalised first, x' = norm(x), and x' is both compared with the slots and dispatched;
* slot embeddings [n, s, d] are normalised the same way; logits are plain dot products, without a learned scale;
* norm is RMSNorm, unit(x) * sqrt(d) * gamma, or LayerNorm with a gain;
* experts are d -> 4d -> d with GELU, or gated (geglu);
* with a mask, the combine weights of masked tokens are uniform.

Two of our settings coincide with it exactly:

A. ``norm=False`` fed with norm(x), phi = norm(slot embeddings): any norm, any gains;
B. ``norm=True, dispatch_normalized=True`` fed with x itself: RMSNorm whose gains are 1/sqrt(d) for the tokens and
   c/sqrt(d) for the slots, our scale = c. (Unit vectors there have epsilon 1e-12, here 1e-6: equal for these tokens.)

One thing cannot be matched: rows of masked tokens. There they receive the mean of the slots, here exact zeros; the test
compares the rows of the other tokens. Nothing there corresponds to ``combine="per_task"`` or to MToE.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from m4oe_ds.layers import RouterOptions, SoftMoE

package = pytest.importorskip("soft_moe_pytorch", reason="soft-moe-pytorch is not installed (extra: test)")

DIM, EXPERTS, SLOTS = 6, 4, 3
CLOSE = {"rtol": 1e-5, "atol": 1e-5}  # float32
EXACT = {"rtol": 1e-11, "atol": 1e-12}  # float64


def copy_experts(theirs: nn.Module, ours: SoftMoE) -> None:
    """Same MLPs in both: torch.nn.Linear there, stacked tensors here."""
    stacked = ours.experts.experts
    with torch.no_grad():
        for row, expert in enumerate(theirs.experts.experts):
            first, _, _, second = expert
            stacked.w1[row] = first.weight.T
            stacked.w2[row] = second.weight.T
            stacked.w3[row, 0] = torch.cat([first.bias, second.bias])


def public_layer(dtype: torch.dtype, **options: object) -> nn.Module:
    layer = package.SoftMoE(DIM, num_experts=EXPERTS, num_slots=SLOTS, is_distributed=False, **options)
    with torch.no_grad():  # gains of one would hide an exchange of the two norms
        layer.norm.gamma.uniform_(0.5, 1.5)
        layer.slot_norm.gamma.uniform_(0.2, 0.6)
    return layer.to(dtype)


def slots_as_phi(theirs: nn.Module) -> Tensor:
    """[d, n, s] from slot embeddings [n, s, d], differentiable."""
    return theirs.slot_norm(theirs.slot_embeds).permute(2, 0, 1)


def compare(theirs: nn.Module, ours: SoftMoE, norm: nn.Module, mask: Tensor | None, tolerance: dict) -> None:
    """Outputs, input gradients, slot gradients."""
    dtype = theirs.slot_embeds.dtype
    x = torch.randn(2, 9, DIM, dtype=dtype)
    x_theirs, x_ours = x.clone().requires_grad_(), x.clone().requires_grad_()
    out_theirs = theirs(x_theirs, mask=mask)
    out_ours, _ = ours(norm(x_ours), mask)
    kept = torch.ones(2, 9, dtype=torch.bool) if mask is None else mask
    torch.testing.assert_close(out_ours[kept], out_theirs[kept], **tolerance)
    assert out_ours[kept].std() > 0.01  # the comparison is not about zeros
    weight = torch.randn_like(out_ours) * kept[:, :, None]
    (out_theirs * weight).sum().backward()
    (out_ours * weight).sum().backward()
    torch.testing.assert_close(x_ours.grad, x_theirs.grad, **tolerance)
    assert x_ours.grad.abs().max() > 0.01


MASKS = {
    "no mask": None,
    "mask": torch.tensor([[1, 1, 0, 1, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 1, 1, 1, 1]], dtype=torch.bool),
}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, CLOSE), (torch.float64, EXACT)], ids=["f32", "f64"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("layernorm", [False, True], ids=["RMSNorm", "LayerNorm"])
def test_setting_a_unnormalised_router_behind_their_norm(layernorm: bool, mask: str, dtype, tolerance) -> None:
    theirs = public_layer(dtype, use_layernorm=layernorm)
    ours = SoftMoE(DIM, EXPERTS, SLOTS, router=RouterOptions(norm=False)).to(dtype)
    copy_experts(theirs, ours)
    phi = slots_as_phi(theirs)
    with torch.no_grad():
        ours.router.phi.copy_(phi)
    compare(theirs, ours, theirs.norm, MASKS[mask], tolerance)
    # norm is used by both passes, so compare the slots' gradient, which only their pass filled
    pulled_back = torch.autograd.grad(phi, theirs.slot_embeds, ours.router.phi.grad)[0]
    torch.testing.assert_close(pulled_back, theirs.slot_embeds.grad, **tolerance)
    for row, (first, _, _, second) in enumerate(theirs.experts.experts):
        torch.testing.assert_close(ours.experts.experts.w1.grad[row], first.weight.grad.T, **tolerance)
        torch.testing.assert_close(ours.experts.experts.w2.grad[row], second.weight.grad.T, **tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, CLOSE), (torch.float64, EXACT)], ids=["f32", "f64"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_setting_b_our_normalised_router(scale: float, mask: str, dtype, tolerance) -> None:
    theirs = public_layer(dtype)
    with torch.no_grad():
        theirs.norm.gamma.fill_(1 / math.sqrt(DIM))
        theirs.slot_norm.gamma.fill_(scale / math.sqrt(DIM))
    ours = SoftMoE(DIM, EXPERTS, SLOTS, router=RouterOptions(norm=True, scale_init=scale, dispatch_normalized=True)).to(
        dtype
    )
    copy_experts(theirs, ours)
    with torch.no_grad():  # lengths do not matter to us: the raw embeddings are phi
        ours.router.phi.copy_(theirs.slot_embeds.permute(2, 0, 1))
    compare(theirs, ours, nn.Identity(), MASKS[mask], tolerance)
    torch.testing.assert_close(ours.router.phi.grad.permute(1, 2, 0), theirs.slot_embeds.grad, **tolerance)


def test_gated_experts_plug_in_through_the_factory() -> None:
    theirs = public_layer(torch.float64, geglu=True)

    def factory(num_experts: int, dim: int, hidden: int) -> nn.Module:
        return theirs.experts  # [B, n, s, d] -> [B, n, s, d], the contract of our executors

    ours = SoftMoE(DIM, EXPERTS, SLOTS, experts_factory=factory, router=RouterOptions(norm=False)).double()
    with torch.no_grad():
        ours.router.phi.copy_(slots_as_phi(theirs))
    compare(theirs, ours, theirs.norm, None, EXACT)


def test_the_comparison_notices_a_wrong_setting() -> None:
    """Raw dispatch, our default, is a different function."""
    theirs = public_layer(torch.float64)
    with torch.no_grad():
        theirs.norm.gamma.fill_(1 / math.sqrt(DIM))
        theirs.slot_norm.gamma.fill_(1 / math.sqrt(DIM))
    ours = SoftMoE(DIM, EXPERTS, SLOTS, router=RouterOptions(norm=True, dispatch_normalized=False)).double()
    copy_experts(theirs, ours)
    with torch.no_grad():
        ours.router.phi.copy_(theirs.slot_embeds.permute(2, 0, 1))
    with pytest.raises(AssertionError):
        compare(theirs, ours, nn.Identity(), None, CLOSE)
