"""The whole model learns eight samples by heart on all seven tasks: loss falls below 1 % of its start."""

from __future__ import annotations

import pytest
import torch

from m4oe_ds.models import build, spec_for
from tests.distributed import problem

pytestmark = pytest.mark.integration


def test_eight_samples_are_learnt_by_heart() -> None:
    cfg = problem.config(
        "model.dim=32", "model.embedder.options={patch_size: 8, embed_dim: 32, depth: 1, num_heads: 2}"
    )
    spec = spec_for(cfg)
    model = build(cfg)
    batch = problem.samples(spec, 8, seed=3)
    generator = torch.Generator().manual_seed(0)
    for k, task in enumerate(spec.tasks):  # every sample has every label
        batch.labels[task.name][:] = torch.randint(task.num_classes, (8,), generator=generator)
        batch.label_mask[:, k] = True
    objective = problem.objective(spec, alpha=0.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss() -> torch.Tensor:
        return torch.stack([part.sum / part.count for part in objective.task_parts(model(batch), batch).values()]).sum()

    first = float(loss().detach())
    assert first > 4.0  # seven tasks at chance: 5 ln 2 + ln 3 + ln 4 = 5.95
    for _ in range(300):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
    assert float(loss().detach()) < 0.01 * first
