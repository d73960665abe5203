"""Loss over all steps of a sequence, against a loop over samples."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from m4oe_ds.data.schema import TaskSpec
from m4oe_ds.losses.sequential import SequentialLoss
from m4oe_ds.losses.tasks import LossParts, cross_entropy

TASKS = (TaskSpec("grade", "classes", 3), TaskSpec("cup", "mask", 1))
WEIGHT = torch.tensor([1.0, 2.0, 3.0])


def generic(task: str, logits: Tensor, labels: Tensor, mask: Tensor) -> LossParts:
    return cross_entropy(logits, labels, mask, WEIGHT)


def case() -> tuple[SimpleNamespace, SimpleNamespace, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, 3, generator=generator).requires_grad_()
    steps = torch.tensor([[1, 1, 1, 1, 1], [1, 0, 1, 0, 1], [1, 1, 0, 0, 0], [1, 1, 0, 0, 1]], dtype=torch.bool)
    labels = {"grade": torch.tensor([0, 1, 2, 1, -1]), "cup": torch.zeros(5, 1, 2, 2)}
    mask = torch.tensor([[1, 1], [1, 1], [1, 1], [1, 1], [0, 1]], dtype=torch.bool)
    output = SimpleNamespace(logits={}, extras={"step_logits.grade": logits, "steps": steps})
    return output, SimpleNamespace(labels=labels, label_mask=mask, valid=torch.ones(5, dtype=torch.bool)), mask


def test_a_sample_is_averaged_over_the_steps_it_took() -> None:
    output, batch, mask = case()
    parts = SequentialLoss(TASKS, {}).parts(output, batch, mask, generic)
    assert set(parts) == {"grade"}
    logits, steps, labels = output.extras["step_logits.grade"], output.extras["steps"], batch.labels["grade"]
    expected = 0.0
    for row in range(4):
        taken = [
            -(WEIGHT[labels[row]] * logits[step, row].log_softmax(0)[labels[row]]).item()
            for step in range(4)
            if steps[step, row]
        ]
        expected += sum(taken) / len(taken)
    assert parts["grade"].sum.item() == pytest.approx(expected, rel=1e-5)
    assert parts["grade"].count.item() == 4.0


def test_steps_not_taken_and_labels_not_known_have_no_gradient() -> None:
    output, batch, mask = case()
    SequentialLoss(TASKS, {}).parts(output, batch, mask, generic)["grade"].sum.backward()
    reached = output.extras["step_logits.grade"].grad.abs().amax(2) > 0
    assert torch.equal(reached, output.extras["steps"] & mask[:, 0])


def test_without_labels_the_loss_is_zero_with_a_zero_gradient() -> None:
    output, batch, mask = case()
    part = SequentialLoss(TASKS, {}).parts(output, batch, torch.zeros_like(mask), generic)["grade"]
    assert part.sum.item() == 0.0
    assert part.count.item() == 0.0
    part.sum.backward()
    assert output.extras["step_logits.grade"].grad.abs().max() == 0


def test_a_model_without_steps_keeps_the_configured_loss() -> None:
    _, batch, mask = case()
    assert SequentialLoss(TASKS, {}).parts(SimpleNamespace(logits={}, extras={}), batch, mask, generic) == {}
