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
from m4oe_ds.models.baselines.evif import Collaboration, CrossTask, Estimators, Evif, Options
from tests.distributed import problem

GAMMA = ("data.dataset=gamma", "data.modalities=[fundus, oct]", "data.image_size=[32, 32]")
FOUR = ("data.modalities=[ffdm_cc, ffdm_mlo, syn_cc, syn_mlo]",)


def config_of(*overrides: str) -> Config:
    return problem.config("model.name=evif", *overrides)


def case(*overrides: str, count: int = 8) -> tuple[Evif, Batch]:
    config = config_of(*overrides)
    spec = spec_for(config)
    batch = problem.samples(spec, count, seed=0)
    masks = {task.name: torch.zeros(count, 1, *spec.image_size) for task in spec.tasks if task.dense}
    model = build(config)
    assert isinstance(model, Evif)
    return model, dataclasses.replace(batch, labels={**batch.labels, **masks})


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def task_loss(model: nn.Module, output: object, batch: Batch) -> Tensor:
    goal = problem.objective(model.spec)
    for task in model.spec.tasks:
        if task.dense:
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
    assert parameters(model.collaboration) == codes + p * d + attention + exchange + d * half + half
    # theta belongs to the inner level and is not a parameter of the model
    estimators = m * (m - 1) * (half * half + half + half * 2 * half + 2 * half)
    assert model.collaboration.estimators.theta.numel() == estimators
    heads = 5 * (d * 2 + 2) + d * 3 + 3 + d * 4 + 4
    assert parameters(model) == m * 11_176_512 + parameters(model.collaboration) + heads


@pytest.mark.parametrize("mode", ["none", "replace", "append"])
@pytest.mark.parametrize("problem_", [GAMMA, FOUR, ("data.tasks=[density]",)])
def test_every_parameter_learns_for_any_modalities_and_tasks(mode: str, problem_: tuple[str, ...]) -> None:
    model, batch = case(*problem_, f"model.attach_mtoe={mode}")
    output = model(batch)
    (task_loss(model, output, batch) + sum(output.aux.values())).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []
    bounds = {"shared_information", "private_information"}
    assert set(output.aux) == (set() if mode == "replace" else bounds)
    assert (model.collaboration is None) is (mode == "replace")


def alone(value: Tensor) -> Tensor:
    """A sum over one rank."""
    return value.clone()


def test_alternating_steps_touch_disjoint_parameters() -> None:
    """The inner step moves theta alone, the outer step everything but theta, and all of both moves."""
    model, batch = case()
    theta = {name for name, _ in model.named_buffers() if name.endswith("estimators.theta")}
    outer = {name for name, _ in model.named_parameters()}
    assert len(theta) == 1
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def moved(before: dict[str, Tensor]) -> set[str]:
        return {name for name in theta | outer if not torch.equal(model.state_dict()[name], before[name])}

    def state() -> dict[str, Tensor]:
        return {name: value.clone() for name, value in model.state_dict().items()}

    before = state()
    with model.inner_level(alone):
        output = model(batch)
    assert moved(before) == theta
    before = state()
    (task_loss(model, output, batch) + sum(output.aux.values())).backward()
    optimizer.step()
    assert moved(before) == outer


def test_the_inner_step_is_taken_before_the_bound_and_only_where_it_is_trained() -> None:
    model, batch = case()
    before = model.collaboration.estimators.theta.clone()
    model(batch)  # a forward that is only looked at
    model.eval()
    with model.inner_level(alone):
        model(batch)
    assert torch.equal(model.collaboration.estimators.theta, before)
    model.train()
    with model.inner_level(alone):
        trained = model(batch)
    assert model.collaboration.reduce is None
    assert not torch.equal(model.collaboration.estimators.theta, before)
    # the bound of the same forward already stands on the new theta
    torch.testing.assert_close(model(batch).aux["private_information"], trained.aux["private_information"])


def test_an_inner_step_leaves_the_graphs_of_earlier_forwards_alone() -> None:
    model, batch = case()
    with model.inner_level(alone):
        first = model(batch)
        before = torch.autograd.grad(
            first.aux["private_information"], model.collaboration.private[0].weight, retain_graph=True
        )
        model(batch)
    after = torch.autograd.grad(first.aux["private_information"], model.collaboration.private[0].weight)
    assert torch.equal(after[0], before[0])


def test_the_inner_step_is_adam_on_the_likelihood() -> None:
    torch.manual_seed(0)
    estimators = Estimators(2, 3, 5)
    reference = torch.nn.Parameter(estimators.theta.clone())
    optimizer = torch.optim.Adam([reference], lr=1e-3)
    for step in range(4):
        x, y, valid = torch.randn(2, 6, 3), torch.randn(2, 6, 3), torch.rand(2, 6) < 0.7
        valid[1] &= step != 2  # a pair without any sample
        q = estimators._gaussian(x, reference)
        losses = [negative_log_likelihood(y[k], q.mean[k], q.log_variance[k], valid[k]) for k in range(2)]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        estimators.fit(x, y, valid, 1e-3, alone)
        torch.testing.assert_close(estimators.theta, reference.detach())


def test_the_inner_step_is_that_of_the_samples_of_all_ranks() -> None:
    torch.manual_seed(0)
    whole, half = Estimators(1, 3, 5), Estimators(1, 3, 5)
    half.load_state_dict(whole.state_dict())
    x, y, valid = torch.randn(1, 8, 3), torch.randn(1, 8, 3), torch.tensor([[True] * 3 + [False] * 2 + [True] * 3])
    seen: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        seen.append(value)
        return value

    for part in (slice(0, 6), slice(6, 8)):  # ranks with unequally many samples
        rank = Estimators(1, 3, 5)
        rank.load_state_dict(whole.state_dict())
        rank.fit(x[:, part], y[:, part], valid[:, part], 1e-3, keep)
    half.fit(x[:, :6], y[:, :6], valid[:, :6], 1e-3, lambda _: seen[0] + seen[1])
    whole.fit(x, y, valid, 1e-3, alone)
    torch.testing.assert_close(half.theta, whole.theta)
    torch.testing.assert_close(half.square, whole.square)


def test_the_inner_level_stays_in_float32_and_survives_an_overflow() -> None:
    model = case()[0].bfloat16()
    estimators = model.collaboration.estimators
    assert {value.dtype for value in (estimators.theta, estimators.mean, estimators.square)} == {torch.float32}
    x = torch.full((2, 4, 8), math.inf)
    estimators.fit(x, x, torch.ones(2, 4, dtype=torch.bool), 1e-3, alone)
    assert estimators.theta.isfinite().all()


def test_the_bound_reaches_the_codes() -> None:
    model, batch = case()
    output = model(batch)
    assert any("private" in name for name in reached(model, output.aux["private_information"]))


def test_the_aux_losses_are_the_weighted_bounds() -> None:
    """From the codes that the model shows, with the estimators called on their own."""
    model, batch = case("model.options={private: 0.3, fused: 0.2, temperature: 0.1}")
    output = model(batch)
    private, shared = output.extras["codes"].split(2, 1)
    fused = torch.stack([model.fuse(model.encode(batch), batch).features[name] for name in model.spec.task_names])
    code = model.collaboration.fused_code(fused.mean(0))
    rows = [batch.valid & batch.present[:, i] for i in range(2)]
    lower = sum(info_nce(code, shared[:, i], rows[i], 0.1) for i in range(2)) / 2
    torch.testing.assert_close(output.aux["shared_information"], -0.2 * lower)
    upper = torch.zeros(())
    for place, (i, j) in enumerate(((0, 1), (1, 0))):
        q = model.collaboration.estimators(private[:, i].expand(2, -1, -1))
        upper += vclub(private[:, j], q.mean[place], q.log_variance[place], rows[0] & rows[1]) / 2
    torch.testing.assert_close(output.aux["private_information"], 0.3 * upper)
    assert lower.item() <= math.log(len(batch))


def fitted_bound(correlation: float) -> float:
    """Upper bound between two correlated standard normal numbers after fitting q_theta to them, in nats."""
    torch.manual_seed(0)
    estimators = Estimators(1, 1, 16)
    valid = torch.ones(1, 512, dtype=torch.bool)
    for step in range(401):
        x = torch.randn(1, 512, 1)
        y = correlation * x + math.sqrt(1 - correlation**2) * torch.randn(1, 512, 1)
        if step == 400:
            q = estimators(x)
            return vclub(y[0], q.mean[0], q.log_variance[0], valid[0]).item()
        estimators.fit(x, y, valid, 1e-2, alone)
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
    state = {
        name.replace("private.2", "private.1"): value
        for name, value in whole.state_dict().items()
        if not name.startswith(("private.1", "estimators."))  # answers do not depend on the estimators
    }
    state |= {name: value for name, value in smaller.state_dict().items() if name.startswith("estimators.")}
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
    single = Collaboration((6,), 2, 8, Options(heads=2))
    everything = torch.ones(3, dtype=torch.bool)
    h, aux, _ = single([torch.randn(3, 6)], everything[:, None], everything)
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
