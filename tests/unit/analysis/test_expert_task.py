"""Gradient times activation against finite differences and loops, for MToE and plain Soft-MoE."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from m4oe_ds.analysis.expert_task import ExpertTaskSums, expert_outputs, mixture_of
from m4oe_ds.errors import DataError
from m4oe_ds.models import build, spec_for
from tests.distributed import problem

CASES = [((), "mtoe"), (("model.name=soft_moe",), "tower.1"), (("model.use_mtoe=false",), "fusion.0")]


@pytest.mark.parametrize(("overrides", "layer"), CASES)
def test_sums_over_batches_equal_a_loop_over_samples(overrides: tuple[str, ...], layer: str) -> None:
    config = problem.config(*overrides)
    model, spec = build(config).eval(), spec_for(config)
    mixture = mixture_of(model, layer)
    batch = problem.samples(spec, 4, seed=0)
    batch.valid[3] = False
    sums = ExpertTaskSums(spec)
    for start in (0, 2):
        part = problem.part(batch, start, start + 2)
        with expert_outputs(mixture) as outputs:
            output = model(part)
        sums.add(part, output, outputs)
    found = sums.result()
    expected = np.zeros_like(found["dependency_jk"])
    count = np.zeros(len(spec.tasks))
    for b in range(3):
        one = problem.part(batch, b, b + 1)
        for k, task in enumerate(spec.tasks):
            if not batch.label_mask[b, k]:
                continue
            with expert_outputs(mixture) as outputs:
                loss = functional.cross_entropy(model(one).logits[task.name], one.labels[task.name])
            (gradient,) = torch.autograd.grad(loss, outputs)
            for j in range(len(expected)):
                for row in range(gradient.shape[0]):
                    for s in range(gradient.shape[2]):
                        expected[j, k] += abs(float((gradient[row, j, s] * outputs[0][row, j, s].detach()).sum()))
            count[k] += 1
    assert (count > 0).sum() >= 3
    np.testing.assert_allclose(found["labels_k"], count)
    np.testing.assert_allclose(found["dependency_jk"], expected / np.maximum(count, 1), rtol=1e-4, atol=1e-8)
    labelled = count > 0
    np.testing.assert_allclose(found["p_expert_given_task_jk"].sum(0)[labelled], 1.0)
    assert (found["dependency_jk"][:, labelled] > 0).any(0).all()


def test_it_is_the_first_order_effect_of_taking_a_slot_away() -> None:
    config = problem.config()
    model, spec = build(config).double().eval(), spec_for(config)
    batch = problem.samples(spec, 4, seed=0).to("cpu", torch.float64)
    k = int(batch.label_mask[1].nonzero()[0])
    one, task = problem.part(batch, 1, 2), spec.tasks[int(batch.label_mask[1].nonzero()[0])].name
    mixture = mixture_of(model, "mtoe")
    with expert_outputs(mixture) as outputs:
        output = model(one)
    loss = functional.cross_entropy(output.logits[task], one.labels[task])
    (gradient,) = torch.autograd.grad(loss, outputs)
    product = float((gradient[0, 3, k] * outputs[0][0, 3, k].detach()).sum())
    step = 1e-5
    scale = torch.ones(1, 8, 7, 1, dtype=torch.float64)
    scale[0, 3, k] = 1 - step
    handle = mixture.experts.register_forward_hook(lambda _m, _a, out: out * scale)
    try:
        reduced = functional.cross_entropy(model(one).logits[task], one.labels[task])
    finally:
        handle.remove()
    assert float((loss - reduced).detach()) / step == pytest.approx(product, rel=1e-3, abs=1e-12)
    assert product != 0


def test_another_tasks_slots_do_not_matter_in_mtoe() -> None:
    config = problem.config()
    model, spec = build(config).eval(), spec_for(config)
    batch = problem.samples(spec, 4, seed=0)
    with expert_outputs(mixture_of(model, "mtoe")) as outputs:
        output = model(batch)
    (gradient,) = torch.autograd.grad(output.logits[spec.tasks[2].name].sum(), outputs)
    others = [k for k in range(len(spec.tasks)) if k != 2]
    assert float(gradient[:, :, others].abs().max()) == 0
    assert float(gradient[:, :, 2].abs().max()) > 0


def test_what_is_missing_is_said() -> None:
    config = problem.config()
    with pytest.raises(DataError, match=r"no mixture layer 'tower\.0'"):
        mixture_of(build(config), "tower.0")
    with pytest.raises(DataError, match="no labelled sample"):
        ExpertTaskSums(spec_for(config)).result()
