"""Ordinal regression: probabilities from cumulative logits, the loss by hand, and which labels count."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.losses.ordinal import OrdinalLoss, ordinal_loss
from m4oe_ds.models.baselines.eyestar import OrdinalHead, class_logits


def test_cumulative_logits_never_increase_and_share_one_slope() -> None:
    head = OrdinalHead(6, 4)
    torch.nn.init.normal_(head.gaps)
    f = torch.randn(50, 6) * 5
    logits = head(f)
    assert logits.shape == (50, 3)
    assert (logits.diff(dim=1) <= 0).all()
    torch.testing.assert_close(logits.diff(dim=1), logits.diff(dim=1)[:1].expand(50, -1))  # gaps do not depend on f
    assert OrdinalHead(6, 2)(f).shape == (50, 1)


def test_classes_get_the_differences_of_the_cumulative_probabilities() -> None:
    cumulative = torch.tensor([[2.0, -1.0]])
    upper, lower = 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(1))
    expected = torch.tensor([[1 - upper, upper - lower, lower]])
    torch.testing.assert_close(class_logits(cumulative).exp(), expected)
    torch.testing.assert_close(
        class_logits(torch.randn(9, 3).sort(1, descending=True).values).exp().sum(1), torch.ones(9)
    )


def test_loss_by_hand() -> None:
    cumulative = torch.tensor([[2.0, -1.0], [0.0, 0.0]])
    first = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2  # y = 1: yes to y >= 1, no to y >= 2
    found = ordinal_loss(cumulative, torch.tensor([1, 2]))
    assert found.tolist() == pytest.approx([first, math.log(2)])


def test_only_labelled_samples_count() -> None:
    tasks = (TaskSpec("glaucoma", "classes", 3), TaskSpec("cup", "mask", 1))
    cumulative = torch.randn(4, 2, requires_grad=True)

    output = SimpleNamespace(logits={}, extras={"ordinal.glaucoma": cumulative})
    batch = SimpleNamespace(
        labels={"glaucoma": torch.tensor([0, 2, -1, 1])},
        label_mask=torch.tensor([[True, True], [True, False], [False, False], [False, True]]),
        valid=torch.ones(4, dtype=torch.bool),
    )
    loss = OrdinalLoss(tasks, {})
    parts = loss.parts(output, batch, loss.mask(batch), lambda *_: pytest.fail("no generic loss"))
    assert set(parts) == {"glaucoma"}  # the mask keeps its configured loss
    assert float(parts["glaucoma"].count) == 2
    parts["glaucoma"].sum.backward()
    assert (cumulative.grad[2:] == 0).all()  # type: ignore[index]
    assert (cumulative.grad[:2] != 0).all()  # type: ignore[index]
