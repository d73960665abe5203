"""Masked task losses against plain torch or numpy on the labelled samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from m4oe_ds.losses import LossParts, binary_cross_entropy_dice, cross_entropy, focal

MASK = torch.tensor([True, False, True, True, False, True])
LABELS = torch.tensor([2, -1, 0, 1, -1, 2])  # -1 where missing, as in the data
WEIGHT = torch.tensor([0.5, 2.0, 1.25])


def classification(loss: Callable[..., LossParts], **options: object) -> Callable[[Tensor, Tensor], LossParts]:
    return lambda logits, mask: loss(logits, torch.where(mask, LABELS.clamp_min(0), -1), mask, **options)


TARGET = (torch.arange(6 * 20).view(6, 1, 4, 5) % 3 == 0).float()
LOSSES = {
    "cross_entropy": (classification(cross_entropy), (6, 3)),
    "cross_entropy, options": (classification(cross_entropy, class_weight=WEIGHT, label_smoothing=0.1), (6, 3)),
    "focal": (classification(focal), (6, 3)),
    "focal, class weights": (classification(focal, gamma=1.5, class_weight=WEIGHT), (6, 3)),
    "binary_cross_entropy_dice": (lambda logits, mask: binary_cross_entropy_dice(logits, TARGET, mask), (6, 1, 4, 5)),
}


def log_softmax(logits: Tensor) -> np.ndarray:
    values = logits.detach().double().numpy()
    return values - np.log(np.exp(values).sum(1, keepdims=True))


def total(sum_of_losses: float, count: int) -> tuple:
    return pytest.approx(sum_of_losses, rel=1e-5), count


# ---------------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", LOSSES)
def test_masked_samples_do_not_count(name: str) -> None:
    loss, shape = LOSSES[name]
    logits = torch.randn(shape, requires_grad=True)
    parts = loss(logits, MASK)
    assert parts.sum.shape == parts.count.shape == ()
    assert parts.sum.dtype == torch.float32
    assert parts.count.item() == 4
    each = [loss(logits, torch.arange(6) == b).sum for b in range(6) if MASK[b]]
    torch.testing.assert_close(parts.sum, torch.stack(each).sum())
    gradient = torch.autograd.grad(parts.sum, logits)[0]
    assert (gradient[~MASK] == 0).all()
    assert (gradient[MASK].flatten(1).abs().sum(1) > 0).all()
    assert not parts.count.requires_grad


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_labelled_gives_zero_over_zero_with_a_zero_gradient(name: str) -> None:
    loss, shape = LOSSES[name]
    logits = torch.randn(shape, requires_grad=True)
    parts = loss(logits, torch.zeros(6, dtype=torch.bool))
    assert parts.sum.item() == 0
    assert parts.count.item() == 0
    parts.sum.backward()
    assert logits.grad is not None
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("name", LOSSES)
def test_bad_logits_of_a_masked_sample_leave_the_others_alone(name: str, bad: float) -> None:
    loss, shape = LOSSES[name]
    logits = torch.randn(shape)
    parts, gradients = [], []
    for fill in (None, bad):
        leaf = logits.clone()
        if fill is not None:
            leaf[~MASK] = fill
        leaf.requires_grad_()
        parts.append(loss(leaf, MASK))
        gradients.append(torch.autograd.grad(parts[-1].sum, leaf)[0])
    torch.testing.assert_close(parts[1].sum, parts[0].sum, rtol=0, atol=0)
    assert parts[1].count == parts[0].count
    torch.testing.assert_close(gradients[1][MASK], gradients[0][MASK], rtol=0, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("name", LOSSES)
def test_bad_logits_of_a_masked_sample_get_a_zero_gradient(name: str, bad: float) -> None:
    """Weight gradients sum over samples: one NaN row would spoil every parameter behind it."""
    loss, shape = LOSSES[name]
    logits = torch.randn(shape)
    logits[~MASK] = bad
    logits.requires_grad_()
    loss(logits, MASK).sum.backward()
    assert (logits.grad[~MASK] == 0).all()


def test_bad_target_of_a_masked_image_does_not_leak() -> None:
    logits = torch.randn(6, 1, 4, 5, requires_grad=True)
    expected = binary_cross_entropy_dice(logits, TARGET, MASK).sum
    expected_gradient = torch.autograd.grad(expected, logits)[0]
    target = TARGET.clone()
    target[~MASK] = math.nan
    value = binary_cross_entropy_dice(logits, target, MASK).sum
    torch.testing.assert_close(value, expected, rtol=0, atol=0)
    torch.testing.assert_close(torch.autograd.grad(value, logits)[0], expected_gradient, rtol=0, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_logits_are_raised_to_float32(name: str) -> None:
    loss, shape = LOSSES[name]
    logits = (2 * torch.randn(shape)).bfloat16()
    parts = loss(logits, MASK)
    assert parts.sum.dtype == torch.float32
    torch.testing.assert_close(parts.sum, loss(logits.float(), MASK).sum, rtol=0, atol=0)


@pytest.mark.parametrize("name", LOSSES)
def test_confident_logits_stay_finite(name: str) -> None:
    loss, shape = LOSSES[name]
    for sign in (1.0, -1.0):
        logits = torch.full(shape, -100.0) * sign
        logits[:, 0] = 100.0 * sign
        logits.requires_grad_()
        parts = loss(logits, MASK)
        parts.sum.backward()
        assert parts.sum.isfinite()
        assert parts.sum >= 0
        assert logits.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_sums_add_up_over_micro_batches(name: str) -> None:
    """Numerator and denominator, not means: splitting the batch changes nothing."""
    loss, shape = LOSSES[name]
    logits = torch.randn(shape)
    whole = loss(logits, MASK)
    front, back = torch.arange(6) < 1, torch.arange(6) >= 1
    parts = [loss(logits, MASK & part) for part in (front, back)]
    torch.testing.assert_close(parts[0].sum + parts[1].sum, whole.sum)
    assert parts[0].count + parts[1].count == whole.count


# ---------------------------------------------------------------------------------------------------- cross-entropy


def test_cross_entropy_equals_numpy_on_the_labelled_samples() -> None:
    logits = 2 * torch.randn(6, 3)
    log_p = log_softmax(logits)
    expected = sum(-log_p[b, LABELS[b]] for b in range(6) if MASK[b])
    parts = cross_entropy(logits, LABELS, MASK)
    assert (parts.sum.item(), parts.count.item()) == total(expected, 4)


def test_cross_entropy_class_weights_multiply_and_do_not_change_the_count() -> None:
    logits = 2 * torch.randn(6, 3)
    log_p = log_softmax(logits)
    expected = sum(-WEIGHT[LABELS[b]].item() * log_p[b, LABELS[b]] for b in range(6) if MASK[b])
    parts = cross_entropy(logits, LABELS, MASK, class_weight=WEIGHT)
    assert (parts.sum.item(), parts.count.item()) == total(expected, 4)
    double = cross_entropy(logits, LABELS, MASK, class_weight=2 * WEIGHT)
    torch.testing.assert_close(double.sum, 2 * parts.sum)


def test_cross_entropy_label_smoothing() -> None:
    """Target (1 - s) one-hot + s / C."""
    logits, smoothing = 2 * torch.randn(6, 3), 0.2
    log_p = log_softmax(logits)
    expected = 0.0
    for b in range(6):
        if MASK[b]:
            target = np.full(3, smoothing / 3)
            target[LABELS[b]] += 1 - smoothing
            expected -= (target * log_p[b]).sum()
    parts = cross_entropy(logits, LABELS, MASK, label_smoothing=smoothing)
    assert (parts.sum.item(), parts.count.item()) == total(expected, 4)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"class_weight": WEIGHT}], ids=str)
def test_cross_entropy_gradient_equals_torch_on_the_subset(options: dict) -> None:
    logits = torch.randn(6, 3, requires_grad=True)
    renamed = {"weight": options["class_weight"]} if "class_weight" in options else options
    expected = functional.cross_entropy(logits[MASK], LABELS[MASK], reduction="sum", **renamed)
    value = cross_entropy(logits, LABELS, MASK, **options).sum
    torch.testing.assert_close(value, expected)
    gradient, reference = (torch.autograd.grad(v, logits)[0] for v in (value, expected))
    torch.testing.assert_close(gradient, reference)


# ------------------------------------------------------------------------------------------------------------ focal


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["no weights", "class weights"])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
def test_focal_equals_numpy_on_the_labelled_samples(gamma: float, weight: Tensor | None) -> None:
    logits = 2 * torch.randn(6, 3)
    log_p = log_softmax(logits)
    expected = 0.0
    for b in range(6):
        if MASK[b]:
            own = log_p[b, LABELS[b]]
            expected += -(1.0 if weight is None else weight[LABELS[b]].item()) * (1 - math.exp(own)) ** gamma * own
    parts = focal(logits, LABELS, MASK, gamma=gamma, class_weight=weight)
    assert (parts.sum.item(), parts.count.item()) == total(expected, 4)


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["no weights", "class weights"])
def test_focal_with_gamma_zero_is_cross_entropy(weight: Tensor | None) -> None:
    logits = torch.randn(6, 3, requires_grad=True)
    ours = focal(logits, LABELS, MASK, gamma=0.0, class_weight=weight)
    plain = cross_entropy(logits, LABELS, MASK, class_weight=weight)
    torch.testing.assert_close(ours.sum, plain.sum)
    assert ours.count == plain.count
    gradients = [torch.autograd.grad(parts.sum, logits)[0] for parts in (ours, plain)]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_focal_by_hand() -> None:
    """p = 3/4 for the true class: (1/4)^2 * log(4/3)."""
    logits = torch.tensor([[math.log(3.0), 0.0]])
    parts = focal(logits, torch.tensor([0]), torch.tensor([True]))
    assert parts.sum.item() == pytest.approx(math.log(4 / 3) / 16, rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_gradient_is_finite_at_full_confidence(gamma: float) -> None:
    """p_y = 1 in float32: the loss is 0 there and so is its slope."""
    logits = torch.tensor([[60.0, -60.0], [-60.0, 60.0]], requires_grad=True)
    parts = focal(logits, torch.tensor([0, 1]), torch.tensor([True, True]), gamma=gamma)
    parts.sum.backward()
    assert parts.sum.item() == pytest.approx(0, abs=1e-12)
    assert logits.grad.isfinite().all()


# ------------------------------------------------------------------------------------------------------ segmentation


def test_dice_by_hand() -> None:
    """2 x 2 image, p = 1/2 everywhere, two foreground pixels: Dice = (2*1 + 1) / (2 + 2 + 1) = 3/5, entropy log 2."""
    target = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])
    parts = binary_cross_entropy_dice(torch.zeros(1, 1, 2, 2), target, torch.tensor([True]))
    assert parts.sum.item() == pytest.approx(math.log(2) + 0.4, rel=1e-6)
    assert parts.count.item() == 1
    other = binary_cross_entropy_dice(torch.zeros(1, 1, 2, 2), target, torch.tensor([True]), smooth=2.0)
    assert other.sum.item() == pytest.approx(math.log(2) + 1 - 4 / 6, rel=1e-6)


def test_perfect_and_empty_masks() -> None:
    target = torch.zeros(2, 1, 3, 3)
    target[0, 0, 0] = 1.0
    confident = torch.where(target > 0, 60.0, -60.0)
    parts = binary_cross_entropy_dice(confident, target, torch.tensor([True, True]))  # second image: nothing to find
    assert parts.sum.item() == pytest.approx(0, abs=1e-6)
    wrong = binary_cross_entropy_dice(-confident[:1], target[:1], torch.tensor([True]))
    # no overlap: Dice = 1 / (6 + 3 + 1); every pixel costs 60 nats
    assert wrong.sum.item() == pytest.approx(60 + 0.9, rel=1e-6)


def test_segmentation_equals_numpy_image_by_image() -> None:
    logits = 2 * torch.randn(6, 1, 4, 5)
    expected = 0.0
    for b in range(6):
        if MASK[b]:
            z, y = logits[b, 0].double().numpy(), TARGET[b, 0].double().numpy()
            p = 1 / (1 + np.exp(-z))
            entropy = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
            expected += entropy + 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
    parts = binary_cross_entropy_dice(logits, TARGET, MASK)
    assert (parts.sum.item(), parts.count.item()) == total(expected, 4)


def test_segmentation_accepts_integer_masks() -> None:
    logits = torch.randn(6, 1, 4, 5)
    floating = binary_cross_entropy_dice(logits, TARGET, MASK)
    torch.testing.assert_close(binary_cross_entropy_dice(logits, TARGET.long(), MASK).sum, floating.sum)
