"""What every registered model must satisfy, whatever is inside."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from m4oe_ds.data.batch import Batch
from m4oe_ds.models import available, build, spec_for
from m4oe_ds.models.interface import MultiModalModel
from m4oe_ds.runs.objective import model_loss
from tests.distributed import problem

CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32 sums in another order


@pytest.fixture(params=available())
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def model_and_batch(name: str, *overrides: str, count: int = 4) -> tuple[MultiModalModel, Batch]:
    config = problem.config(f"model.name={name}", *overrides)
    return build(config), problem.samples(spec_for(config), count, seed=0)


def logits(model: MultiModalModel, batch: Batch) -> dict[str, Tensor]:
    with torch.no_grad():
        return model.eval()(batch).logits


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for task, value in expected.items():
        torch.testing.assert_close(found[task], value, **CLOSE)


def total(model: MultiModalModel, batch: Batch, aux: bool = True) -> Tensor:
    """Task losses, auxiliary losses and the information term, as the training step adds them up on one rank."""
    goal = problem.objective(model.spec)
    name = getattr(getattr(model, "config", None), "name", "m4oe")
    goal.model_loss = model_loss(problem.config(f"model.name={name}"), model.spec)
    output = model(batch)
    loss = sum(part.sum / part.count.clamp_min(1) for part in goal.task_parts(output, batch).values())
    if aux:
        loss = loss + sum(output.aux.values())
    information = goal.mutual_information(output, batch)
    return loss if information is None else loss - goal.information.alpha * information


def gradients(model: MultiModalModel, batch: Batch, aux: bool = True) -> dict[str, Tensor | None]:
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)  # dropout
    total(model.train(), batch, aux).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_logits_have_the_shape_of_their_task(name: str) -> None:
    model, batch = model_and_batch(name)
    found = logits(model, batch)
    assert {task.name: (4, task.num_classes) for task in model.spec.tasks} == {
        task: tuple(value.shape) for task, value in found.items()
    }
    assert all(torch.isfinite(value).all() for value in found.values())


def test_the_order_of_the_views_mapping_is_irrelevant(name: str) -> None:
    model, batch = model_and_batch(name)
    turned = dataclasses.replace(batch, views=dict(reversed(batch.views.items())))
    assert list(turned.views) != list(batch.views)
    assert_close(logits(model, turned), logits(model, batch))


def test_the_pixels_of_an_absent_modality_change_nothing(name: str) -> None:
    model, batch = model_and_batch(name)
    present = torch.tensor([[True, True], [True, False], [False, True], [True, True]])
    batch = dataclasses.replace(batch, present=present)
    noisy = {
        view: image + 100 * torch.randn_like(image) * ~present[:, i, None, None, None]
        for i, (view, image) in enumerate(batch.views.items())
    }
    assert_close(logits(model, dataclasses.replace(batch, views=noisy)), logits(model, batch))


def test_the_pixels_of_a_present_modality_change_every_answer(name: str) -> None:
    """Without this the test above would pass for a model that looks at nothing."""
    model, batch = model_and_batch(name)
    batch = dataclasses.replace(batch, present=torch.ones(4, 2, dtype=torch.bool))
    before = logits(model, batch)
    for view in batch.views:
        other = {**batch.views, view: torch.randn(batch.views[view].shape)}
        after = logits(model, dataclasses.replace(batch, views=other))
        assert all((after[task] - before[task]).abs().max() > 1e-4 for task in before)


def test_a_sample_does_not_depend_on_the_others(name: str) -> None:
    model, batch = model_and_batch(name)
    together = logits(model, batch)
    for row in range(len(batch)):
        alone = logits(model, problem.part(batch, row, row + 1))
        assert_close(alone, {task: value[row : row + 1] for task, value in together.items()})


def test_padding_does_not_disturb_the_others(name: str) -> None:
    model, batch = model_and_batch(name)
    padded = dataclasses.replace(
        batch,
        views={view: image * torch.tensor([1, 1, 1, 0])[:, None, None, None] for view, image in batch.views.items()},
        present=torch.cat([batch.present[:3], torch.ones(1, 2, dtype=torch.bool)]),
        valid=torch.tensor([True, True, True, False]),
        label_mask=batch.label_mask & torch.tensor([True, True, True, False])[:, None],
    )
    whole = logits(model, padded)
    assert_close({task: value[:3] for task, value in whole.items()}, logits(model, problem.part(batch, 0, 3)))
    found = gradients(model, padded)
    assert all(torch.isfinite(gradient).all() for gradient in found.values() if gradient is not None)


def test_a_task_without_labels_gives_a_finite_loss_and_no_gradient_in_its_head(name: str) -> None:
    model, batch = model_and_batch(name, count=8)
    column = model.spec.task_names.index("density")
    mask = torch.ones_like(batch.label_mask)
    mask[:, column] = False
    labels = {
        task: torch.where(mask[:, k], value.clamp_min(0), -1) for k, (task, value) in enumerate(batch.labels.items())
    }
    batch = dataclasses.replace(batch, label_mask=mask, labels=labels)
    loss = total(model, batch)
    assert torch.isfinite(loss)
    found = gradients(model, batch)
    of_head = {key: gradient for key, gradient in found.items() if key.startswith("heads.density.")}
    assert of_head
    for key, gradient in of_head.items():
        assert gradient is not None, key  # every rank reduces the same tensors
        assert gradient.abs().max() == 0, key
    assert all(
        found[key.replace("density", "birads")].abs().max() > 0
        for key in of_head
        if "classify" in key or key.endswith("bias")
    )


def test_no_label_at_all_gives_a_finite_loss_and_no_gradient_of_the_tasks(name: str) -> None:
    model, batch = model_and_batch(name)
    batch = dataclasses.replace(
        batch,
        label_mask=torch.zeros_like(batch.label_mask),
        labels={task: torch.full_like(value, -1) for task, value in batch.labels.items()},
    )
    assert torch.isfinite(total(model, batch))
    # auxiliary losses need no labels: with them every parameter takes part, without them none moves
    assert all(gradient is not None for gradient in gradients(model, batch).values())
    found = gradients(model, batch, aux=False)
    assert all(gradient is None or gradient.abs().max() == 0 for gradient in found.values())


OURS = ("", "model.use_mtoe=false", "model.use_msoe=false", "model.embedder.share=true", "model.router.norm=false")
COMPARED = ("", "model.attach_mtoe=replace", "model.attach_mtoe=append")
VARIANTS = [(name, variant) for name in available() for variant in (OURS if name == "m4oe" else COMPARED)]


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_every_parameter_gets_a_gradient(name: str, variant: str) -> None:
    overrides = (variant,) if variant else ()
    model, batch = model_and_batch(name, *overrides, count=8)
    found = gradients(model, batch)
    without = [key for key, gradient in found.items() if gradient is None or gradient.abs().max() == 0]
    assert without == []
    assert all(torch.isfinite(gradient).all() for gradient in found.values())


def test_the_state_round_trips_strictly(name: str) -> None:
    model, batch = model_and_batch(name)
    other = build(problem.config(f"model.name={name}", "run.seed=9"))
    expected = logits(model, batch)
    assert not all(torch.equal(value, expected[task]) for task, value in logits(other, batch).items())
    other.load_state_dict(model.state_dict(), strict=True)
    assert all(torch.equal(value, expected[task]) for task, value in logits(other, batch).items())


def test_equal_seeds_give_equal_parameters_whatever_was_drawn_before(name: str) -> None:
    first = model_and_batch(name)[0].state_dict()
    torch.rand(17)
    state = torch.get_rng_state()
    second = model_and_batch(name)[0].state_dict()
    assert torch.equal(torch.get_rng_state(), state)  # building draws nothing from the run's generator
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    third = build(problem.config(f"model.name={name}", "run.seed=1")).state_dict()
    drawn = [key for key in first if first[key].numel() > 1 and first[key].float().std() > 1e-3]
    assert len(drawn) > 10
    assert not any(torch.equal(first[key], third[key]) for key in drawn)


def test_experts_start_different_from_each_other(name: str) -> None:
    for key, value in model_and_batch(name)[0].state_dict().items():
        if key.endswith("experts.w1"):
            flat = value.flatten(1)
            distance = torch.cdist(flat, flat) + 1e9 * torch.eye(len(flat))
            assert distance.min() > 0.1, key


def test_bf16_is_finite_and_close(name: str) -> None:
    model, batch = model_and_batch(name)
    exact = logits(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = logits(model, batch)
    for task, value in exact.items():
        torch.testing.assert_close(mixed[task].float(), value, rtol=0.1, atol=0.05)
    halved = logits(model.bfloat16(), batch.to("cpu", torch.bfloat16))
    for task, value in exact.items():
        assert torch.isfinite(halved[task]).all()
        torch.testing.assert_close(halved[task].float(), value, rtol=0.1, atol=0.1)


def test_recomputing_activations_gives_the_same_gradients(name: str) -> None:
    stored, batch = model_and_batch(name)
    recomputed, _ = model_and_batch(name, "model.activation_checkpointing=true")
    recomputed.load_state_dict(stored.state_dict(), strict=True)
    expected, found = gradients(stored, batch), gradients(recomputed, batch)
    assert expected.keys() == found.keys()
    for key, gradient in expected.items():
        torch.testing.assert_close(found[key], gradient, rtol=1e-5, atol=1e-7, msg=key)


def test_evaluation_is_deterministic(name: str) -> None:
    model, batch = model_and_batch(name)
    first, second = logits(model, batch), logits(model, batch)
    assert all(torch.equal(first[task], second[task]) for task in first)
