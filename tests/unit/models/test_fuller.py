"""FULLER as a network, and under its gradient policy: levels of the tasks and of the branches."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from m4oe_ds.config import Config
from m4oe_ds.data.batch import Batch
from m4oe_ds.errors import ConfigError
from m4oe_ds.models import build, spec_for
from m4oe_ds.models.interface import ModelOutput
from m4oe_ds.training.gradient_policy import SCALE_RANGE, policy
from m4oe_ds.training.shared_gradients import shared_gradients
from tests.distributed import problem

GAMMA = ("data.dataset=gamma", "data.modalities=[fundus, oct]", "data.image_size=[32, 32]")
FOUR = ("data.modalities=[ffdm_cc, ffdm_mlo, syn_cc, syn_mlo]",)


def config_of(*overrides: str) -> Config:
    return problem.config("model.name=fuller", *overrides)


def case(*overrides: str, count: int = 8) -> tuple[nn.Module, Batch]:
    config = config_of(*overrides)
    spec = spec_for(config)
    batch = problem.samples(spec, count, seed=0)
    masks = {task.name: torch.zeros(count, 1, *spec.image_size) for task in spec.tasks if task.dense}
    return build(config), dataclasses.replace(batch, labels={**batch.labels, **masks})


def task_losses(model: nn.Module, output: ModelOutput, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
    goal = problem.objective(model.spec)
    for task in model.spec.tasks:
        if task.dense:
            goal.losses[task.name] = dataclasses.replace(goal.losses[task.name], kind="bce_dice")
    parts = goal.task_parts(output, batch)
    losses = {name: part.sum / part.count.clamp_min(1) for name, part in parts.items()}
    return losses, torch.stack([part.count for part in parts.values()])


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_native_network_has_its_size() -> None:
    model, _ = case("model.regime=native", "data.image_size=[64, 64]")
    d, m = 16, 2
    trunk = m * (512 * d + d) + m * d + 3 * 2 * d + (4 * d * d + 4 * d) + (8 * d * d + 5 * d) + (d * d + d)
    assert parameters(model.trunk) == trunk
    heads = 5 * (d * 2 + 2) + d * 3 + 3 + d * 4 + 4  # one linear layer per task: light
    assert parameters(model) == m * 11_176_512 + trunk + heads


@pytest.mark.parametrize("mode", ["none", "replace", "append"])
@pytest.mark.parametrize("problem_", [GAMMA, FOUR, ("data.tasks=[density]",)])
def test_every_parameter_learns_for_any_modalities_and_tasks(mode: str, problem_: tuple[str, ...]) -> None:
    model, batch = case(*problem_, f"model.attach_mtoe={mode}")
    sum(task_losses(model, model(batch), batch)[0].values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []
    assert (model.trunk is None) is (mode == "replace")


def test_an_absent_modality_is_as_if_it_were_not_there() -> None:
    model, _ = case(*FOUR)
    present = torch.tensor([[True, False, True, False]]).expand(8, 4)
    maps = {name: torch.randn(8, 16, 2, 2) for name in model.spec.modalities}
    spoiled = {
        name: value if present[0, i] else torch.full_like(value, float("nan"))
        for i, (name, value) in enumerate(maps.items())
    }
    torch.testing.assert_close(model.trunk(spoiled, present), model.trunk(maps, present))
    # a trunk over the present modalities alone
    smaller, kept = build(config_of("data.modalities=[ffdm_cc, syn_cc]")), [0, 2]
    state = {
        name: value[kept] if name == "modality_embed" else value
        for name, value in model.trunk.state_dict().items()
        if not name.startswith(("project.ffdm_mlo", "project.syn_mlo"))
    }
    smaller.trunk.load_state_dict(state, strict=True)
    alone = {name: maps[name] for name in ("ffdm_cc", "syn_cc")}
    expected = smaller.trunk(alone, torch.ones(8, 2, dtype=torch.bool))
    torch.testing.assert_close(model.trunk(maps, present), expected)


def test_an_absent_branch_has_no_gradient() -> None:
    model, batch = case()
    batch = dataclasses.replace(batch, present=torch.tensor([[True, False]]).expand(8, 2))
    sum(task_losses(model, model(batch), batch)[0].values()).backward()
    absent = [p.grad.abs().max() for name, p in model.named_parameters() if ".syn_mlo." in name]
    assert absent
    assert max(absent) == 0


def test_without_any_modality_everything_is_finite() -> None:
    model, batch = case(*GAMMA)
    output = model(dataclasses.replace(batch, present=torch.zeros_like(batch.present)))
    assert all(torch.isfinite(value).all() for value in output.logits.values())


def test_the_tasks_come_to_one_level_at_the_shared_layer() -> None:
    model, batch = case()
    output = model(batch)
    losses, counts = task_losses(model, output, batch)
    weights = policy("calibrated", rule="norm").weights(losses, model, output, counts)
    assert model.shared_layer() is model.trunk.last
    names, gradients = shared_gradients(losses, model, counts)
    levels = torch.stack([weights[name] * gradients[k].norm() for k, name in enumerate(names)])
    torch.testing.assert_close(levels, levels.mean().expand_as(levels), rtol=1e-4, atol=0)
    assert sum(weights[name] for name in names) == pytest.approx(len(names))
    weights = policy("calibrated", rule="imtl_g").weights(losses, model, output, counts)
    whole = sum(weights[name] * gradients[k].double() for k, name in enumerate(names))
    unit = gradients.double() / gradients.double().norm(dim=1, keepdim=True)
    projections = unit @ whole
    torch.testing.assert_close(projections, projections.mean().expand_as(projections), rtol=1e-3, atol=1e-6)


def test_weights_act_from_the_shared_layer_down_and_leave_the_heads_alone() -> None:
    model, batch = case()
    rule = policy("calibrated", rule="norm")

    def gradients(weigh: bool, *only: str) -> dict[str, Tensor]:
        model.zero_grad()
        output = model(batch)
        losses, counts = task_losses(model, output, batch)
        weights = rule.weights(losses, model, output, counts)
        left = rule.spread(weights, output) if weigh else dict.fromkeys(losses, 1.0)
        assert set(left.values()) == {1.0}
        sum(loss for name, loss in losses.items() if not only or name in only).backward()
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return found | {name: torch.tensor(value) for name, value in weights.items()}

    plain, weighted = gradients(False), gradients(True)
    for name, _ in model.named_parameters():
        if name.startswith("heads."):
            torch.testing.assert_close(weighted[name], plain[name])
    single = {task: gradients(False, task) for task in model.spec.task_names}
    for name in ("trunk.last.weight", "trunk.expand.weight", "trunk.project.syn_mlo.weight"):
        expected = sum(weighted[task] * single[task][name] for task in model.spec.task_names)
        torch.testing.assert_close(weighted[name], expected, rtol=1e-4, atol=1e-7)
        assert not torch.allclose(weighted[name], plain[name], rtol=1e-2)


@pytest.mark.parametrize("mode", ["append", "replace"])
def test_beside_an_mtoe_the_losses_are_weighted(mode: str) -> None:
    model, batch = case(f"model.attach_mtoe={mode}")
    weights = {name: float(k) for k, name in enumerate(model.spec.task_names)}
    assert policy("calibrated").spread(weights, model(batch)) == weights
    model, batch = case()
    assert policy("calibrated", weighted_heads=True).spread(weights, model(batch)) == weights


@pytest.mark.parametrize("mode", ["none", "append", "replace"])
def test_the_branches_come_to_one_level_in_the_real_backward(mode: str) -> None:
    model, batch = case(f"model.attach_mtoe={mode}")

    def norms(calibrated: bool) -> tuple[Tensor, list[float]]:
        model.zero_grad()
        output = model(batch)
        loss = sum(task_losses(model, output, batch)[0].values())
        features = [output.extras[f"features.{name}"] for name in model.spec.modalities]
        scales = list(policy("calibrated").calibrate(loss, output).values()) if calibrated else [1.0, 1.0]
        loss.backward()
        names = [f"encoders.embedders.by_modality.{name}.backbone.blocks.0" for name in model.spec.modalities]
        assert all(feature.grad_fn is not None for feature in features)
        return torch.stack(
            [torch.cat([p.grad.flatten() for p in model.get_submodule(name).parameters()]).norm() for name in names]
        ), scales

    plain, _ = norms(calibrated=False)
    found, scales = norms(calibrated=True)
    assert all(SCALE_RANGE[0] <= scale <= SCALE_RANGE[1] for scale in scales)
    assert scales[0] != pytest.approx(scales[1], rel=1e-3)
    torch.testing.assert_close(found, plain * torch.tensor(scales), rtol=1e-3, atol=1e-9)


def test_one_task_and_one_modality_are_plain_training() -> None:
    model, batch = case("data.tasks=[density]", "data.modalities=[ffdm_cc]")
    output = model(batch)
    losses, counts = task_losses(model, output, batch)
    rule = policy("calibrated")
    assert rule.weights(losses, model, output, counts) == {"density": pytest.approx(1.0)}
    assert rule.calibrate(losses["density"], output) == {"ffdm_cc": pytest.approx(1.0)}


def test_replace_measures_conflict_at_the_experts() -> None:
    model, _ = case("model.attach_mtoe=replace")
    assert model.shared_layer() is model.mtoe.block.mtoe.experts


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="heads"):
        build(config_of("model.options={heads: 5}"))
