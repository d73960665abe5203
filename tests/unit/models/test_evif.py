"""EVIF: sizes, the two levels and their disjoint parameters, what absent modalities and padding do to the bounds."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from m4oe_ds.config import Config
from m4oe_ds.data.batch import Batch
from m4oe_ds.errors import ConfigError
from m4oe_ds.layers.contrastive import info_nce, negative_log_likelihood, vclub
from m4oe_ds.models import build, spec_for
from m4oe_ds.models.baselines.evif import Collaboration, CrossTask, Estimator, Options
from tests.distributed import problem

GAMMA = ("data.dataset=gamma", "data.modalities=[fundus, oct]", "data.image_size=[32, 32]")
FOUR = ("data.modalities=[ffdm_cc, ffdm_mlo, syn_cc, syn_mlo]",)


def config_of(*overrides: str) -> Config:
    return problem.config("model.name=evif", *overrides)


def case(*overrides: str, count: int = 8) -> tuple[nn.Module, Batch]:
    config = config_of(*overrides)
    spec = spec_for(config)
    batch = problem.samples(spec, count, seed=0)
    masks = {task.name: torch.zeros(count, 1, *spec.image_size) for task in spec.tasks if task.kind == "segmentation"}
    return build(config), dataclasses.replace(batch, labels={**batch.labels, **masks})


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def task_loss(model: nn.Module, output: object, batch: Batch) -> Tensor:
    goal = problem.objective(model.spec)
    for task in model.spec.tasks:
        if task.kind == "segmentation":
            goal.losses[task.name] = dataclasses.replace(goal.losses[task.name], kind="bce_dice")
    return sum(part.sum / part.count.clamp_min(1) for part in goal.task_parts(output, batch).values())


def reached(model: nn.Module, value: Tensor) -> set[str]:
    names, values = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(value, values, retain_graph=True, allow_unused=True)
    return {name for name, g in zip(names, found, strict=True) if g is not None and g.abs().max() > 0}


def test_the_native_network_has_its_size() -> None:
    model, _ = case("model.regime=native", "data.image_size=[64, 64]")
    d, m, p = 16, 2, 7
    codes = (m + 1) * (512 * (d // 2) + d // 2)
    attention = d * d + 2 * d * (d // 2) + 3 * d + d * d + d
    exchange = p * (p - 1) * 2 * d + d * d
    half = d // 2
    estimators = m * (m - 1) * (half * half + half + half * 2 * half + 2 * half)
    assert parameters(model.collaboration) == codes + p * d + attention + exchange + estimators + d * half + half
    heads = 5 * (d * 2 + 2) + d * 3 + 3 + d * 4 + 4
    assert parameters(model) == m * 11_176_512 + parameters(model.collaboration) + heads


@pytest.mark.parametrize("mode", ["none", "replace", "append"])
@pytest.mark.parametrize("problem_", [GAMMA, FOUR, ("data.tasks=[density]",)])
def test_every_parameter_learns_for_any_modalities_and_tasks(mode: str, problem_: tuple[str, ...]) -> None:
    model, batch = case(*problem_, f"model.attach_mtoe={mode}")
    output = model(batch)
    (task_loss(model, output, batch) + sum(output.aux.values())).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []
    bounds = {"shared_information", "private_information", "estimator_fit"}
    assert set(output.aux) == (set() if mode == "replace" else bounds)
    assert (model.collaboration is None) is (mode == "replace")


def test_the_two_levels_move_disjoint_parameters() -> None:
    model, batch = case()
    output = model(batch)
    theta = {name for name, _ in model.named_parameters() if ".estimators." in name}
    assert theta
    assert reached(model, output.aux["estimator_fit"]) == theta
    outer = task_loss(model, output, batch) + output.aux["private_information"] + output.aux["shared_information"]
    assert not reached(model, outer) & theta
    assert any("private" in name for name in reached(model, output.aux["private_information"]))
    assert reached(model, outer) | theta == {name for name, _ in model.named_parameters()}


def test_one_backward_gives_each_level_its_own_gradient() -> None:
    """The gradients of the sum are those of the two levels taken one after the other, as in alternating steps."""
    model, batch = case()
    output = model(batch)
    outer = task_loss(model, output, batch) + output.aux["private_information"] + output.aux["shared_information"]
    inner = output.aux["estimator_fit"]
    names, values = zip(*model.named_parameters(), strict=True)

    def gradients(value: Tensor) -> dict[str, Tensor | None]:
        return dict(zip(names, torch.autograd.grad(value, values, retain_graph=True, allow_unused=True), strict=True))

    both, of_inner, of_outer = gradients(outer + inner), gradients(inner), gradients(outer)
    for name in names:
        expected = of_inner[name] if ".estimators." in name else of_outer[name]
        torch.testing.assert_close(both[name], expected, msg=name)


def test_the_aux_losses_are_the_weighted_bounds() -> None:
    """From the codes that the model shows, with the estimators called on their own."""
    model, batch = case("model.options={private: 0.3, fused: 0.2, estimator: 0.5, temperature: 0.1}")
    output = model(batch)
    private, shared = output.extras["codes"].split(2, 1)
    fused = torch.stack([model.fuse(model.encode(batch), batch).features[name] for name in model.spec.task_names])
    code = model.collaboration.fused_code(fused.mean(0))
    rows = [batch.valid & batch.present[:, i] for i in range(2)]
    lower = sum(info_nce(code, shared[:, i], rows[i], 0.1) for i in range(2)) / 2
    torch.testing.assert_close(output.aux["shared_information"], -0.2 * lower)
    upper, fit = 0.0, 0.0
    for i, j in ((0, 1), (1, 0)):
        q = model.collaboration.estimators[f"{i}_{j}"](private[:, i])[0]
        upper += vclub(private[:, j], q.mean, q.log_variance, rows[0] & rows[1]) / 2
        fit += negative_log_likelihood(private[:, j], q.mean, q.log_variance, rows[0] & rows[1]) / 2
    torch.testing.assert_close(output.aux["private_information"], 0.3 * upper)
    torch.testing.assert_close(output.aux["estimator_fit"], 0.5 * fit)
    assert lower.item() <= math.log(len(batch))


def fitted_bound(correlation: float) -> float:
    """Upper bound between two correlated standard normal numbers after fitting q_theta to them, in nats."""
    torch.manual_seed(0)
    estimator = Estimator(1, 16)
    optimizer = torch.optim.Adam(estimator.parameters(), lr=1e-2)
    valid = torch.ones(512, dtype=torch.bool)
    for step in range(401):
        x = torch.randn(512, 1)
        y = correlation * x + math.sqrt(1 - correlation**2) * torch.randn(512, 1)
        outer, inner = estimator(x)
        if step == 400:
            return vclub(y, outer.mean, outer.log_variance, valid).item()
        optimizer.zero_grad()
        negative_log_likelihood(y, inner.mean, inner.log_variance, valid).backward()
        optimizer.step()
    raise AssertionError


def test_the_upper_bound_is_near_zero_for_independent_codes_and_above_the_information_of_others() -> None:
    assert abs(fitted_bound(0.0)) < 0.05
    assert fitted_bound(0.9) > 0.830  # -1/2 log(1 - 0.81)


def test_absent_modalities_and_padding_leave_no_trace() -> None:
    model, batch = case()
    present = batch.present.clone()
    present[:, 1] = torch.tensor([True, False, True, False, True, True, False, True])
    valid = torch.tensor([True] * 6 + [False] * 2)
    clean = dataclasses.replace(batch, present=present, valid=valid)
    noisy = {
        name: torch.where(present[:, i, None, None, None], view, float("nan"))
        for i, (name, view) in enumerate(batch.views.items())
    }
    noisy = {name: torch.cat([view[:6], torch.randn_like(view[6:])]) for name, view in noisy.items()}
    expected, found = model(clean), model(dataclasses.replace(clean, views=noisy))
    for name, value in expected.aux.items():
        torch.testing.assert_close(found.aux[name], value)
    for name, logits in expected.logits.items():
        torch.testing.assert_close(found.logits[name][:6], logits[:6])
    torch.testing.assert_close(found.extras["codes"][:6], expected.extras["codes"][:6])
    assert expected.extras["codes"][1, [1, 3]].abs().max() == 0


def test_an_absent_modality_is_as_if_its_codes_were_not_there() -> None:
    torch.manual_seed(0)
    options = Options(heads=2)
    whole, smaller = Collaboration((6, 6, 6), 2, 8, options), Collaboration((6, 6), 2, 8, options)
    renamed = {"private.2": "private.1", "estimators.0_2": "estimators.0_1", "estimators.2_0": "estimators.1_0"}
    state = {}
    for name, value in whole.state_dict().items():
        if name.startswith(("private.1", "estimators.0_1", "estimators.1_", "estimators.2_1")):
            continue
        old = next((key for key in renamed if name.startswith(key)), "")
        state[name.replace(old, renamed[old]) if old else name] = value
    smaller.load_state_dict(state, strict=True)
    x, valid = [torch.randn(5, 6) for _ in range(3)], torch.ones(5, dtype=torch.bool)
    h, _, _ = whole(x, torch.tensor([[True, False, True]]).expand(5, 3), valid)
    expected, _, _ = smaller([x[0], x[2]], torch.ones(5, 2, dtype=torch.bool), valid)
    torch.testing.assert_close(h, expected)


def test_without_any_modality_everything_is_finite() -> None:
    model, batch = case()
    output = model(dataclasses.replace(batch, present=torch.zeros_like(batch.present)))
    assert all(torch.isfinite(value).all() for value in (*output.logits.values(), *output.aux.values()))
    assert all(value.item() == 0 for value in output.aux.values())
    one = output.logits["density"]
    torch.testing.assert_close(one, one[:1].expand_as(one))


def test_exchange_between_tasks_by_hand() -> None:
    exchange = CrossTask(3, 4)
    h = torch.randn(2, 3, 4)
    found = exchange(h)
    for b in range(2):
        for k in range(3):
            expected = h[b, k].clone()
            for slot, j in enumerate([j for j in range(3) if j != k]):
                gate = torch.sigmoid(exchange.gate[k, slot] @ torch.cat([h[b, k], h[b, j]]))
                expected = expected + gate * (exchange.value.weight @ h[b, j])
            torch.testing.assert_close(found[b, k], expected)


def test_one_task_has_no_exchange_and_one_modality_no_upper_bound() -> None:
    model, _ = case("data.tasks=[density]")
    assert model.collaboration.exchange is None
    alone = Collaboration((6,), 2, 8, Options(heads=2))
    everything = torch.ones(3, dtype=torch.bool)
    h, aux, _ = alone([torch.randn(3, 6)], everything[:, None], everything)
    assert h.shape == (3, 2, 8)
    assert set(aux) == {"shared_information"}


@pytest.mark.parametrize("mode", ["none", "replace"])
def test_the_shared_layer_is_reached_by_every_task(mode: str) -> None:
    model, batch = case(f"model.attach_mtoe={mode}")
    weights = list(model.shared_layer().parameters())
    for value in model(batch).logits.values():
        found = torch.autograd.grad(value.square().sum(), weights, retain_graph=True)
        assert any(gradient.abs().max() > 0 for gradient in found)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="heads"):
        build(config_of("model.options={heads: 5}"))
