"""Mirai's censored loss: which horizons count, and that the others get no gradient."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from m4oe_ds.data.cards import find_card
from m4oe_ds.losses.hazard import HazardLoss, until_event
from m4oe_ds.losses.tasks import cross_entropy

EXAMPLES = [
    ([0, 0, 1, 1, 1], [1, 1, 1, 0, 0]),  # cancer in the third year
    ([0, 0, 0, -1, -1], [1, 1, 1, 0, 0]),  # three years of negative follow-up
    ([0, 0, 0, 0, 0], [1, 1, 1, 1, 1]),
    ([1, 1, 1, 1, 1], [1, 0, 0, 0, 0]),
    ([-1, -1, -1, -1, -1], [0, 0, 0, 0, 0]),
]


@pytest.mark.parametrize(("labels", "expected"), EXAMPLES)
def test_horizons_up_to_the_event_count(labels: list[int], expected: list[int]) -> None:
    row = torch.tensor([labels])
    assert until_event(row, row >= 0).int().tolist() == [expected]


def test_masked_horizons_get_no_gradient_and_other_tasks_stay() -> None:
    tasks = find_card("embed").tasks
    count = len(EXAMPLES)

    risks = {f"risk{k + 1}": torch.tensor([row[k] for row, _ in EXAMPLES]) for k in range(5)}
    always = torch.ones(count, dtype=torch.bool)
    known = torch.stack([risks[task.name] >= 0 if task.name in risks else always for task in tasks], 1)
    batch = SimpleNamespace(labels=risks, label_mask=known, valid=always)
    mask = HazardLoss(tasks, {}).mask(batch)
    for k, task in enumerate(tasks):
        if not task.name.startswith("risk"):
            assert mask[:, k].all()
            continue
        horizon = int(task.name[4:]) - 1
        assert mask[:, k].tolist() == [bool(expected[horizon]) for _, expected in EXAMPLES]
        logits = torch.randn(count, 2, requires_grad=True)
        cross_entropy(logits, risks[task.name], mask[:, k], None, 0.0).sum.backward()
        assert ((logits.grad != 0).all(1) == mask[:, k]).all()  # type: ignore[union-attr]
    assert (mask <= known).all()
