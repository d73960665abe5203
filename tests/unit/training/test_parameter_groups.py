"""Rates and decay by part: which group a parameter comes into, and what the optimizer is told."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from m4oe_ds.config import OptimConfig, PartConfig
from m4oe_ds.errors import ConfigError
from m4oe_ds.models import build
from m4oe_ds.models.parts import kind_of, part_of
from m4oe_ds.training.parameter_groups import for_optimizer, parameter_groups, table
from tests.distributed import problem

ADAM = {"type": "AdamW", "params": {"lr": 1e-3, "weight_decay": 0.05}}
PLAIN = {"type": "Adam", "params": {"lr": 1e-3}}
BY_PART = OptimConfig(
    parts={"backbone": PartConfig(lr_factor=0.1), "router": PartConfig(lr_factor=2.0, decay_factor=0.5)},
    no_decay=("norms", "biases", "scales", "embeddings"),
)


def by_name(model: Any, groups: Any) -> dict[str, Any]:
    """``{parameter: its group}``."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(parameter)]: group for group in groups for parameter in group.parameters}


@pytest.mark.parametrize("optimizer", [ADAM, PLAIN])
def test_without_options_there_is_the_one_group_that_always_was(optimizer: dict[str, Any]) -> None:
    model = build(problem.config())
    groups = parameter_groups(model, OptimConfig(), optimizer)
    (made,) = for_optimizer(groups)
    assert list(made) == ["params", "name"]  # no rate, no decay: the optimizer's own
    assert made["name"] == "dense"
    assert [id(p) for p in made["params"]] == [id(p) for p in model.parameters()]


def test_where_nothing_decays_nothing_is_split_for_it() -> None:
    model = build(problem.config())
    optim = OptimConfig(parts={"heads": PartConfig(decay_factor=0.0)}, no_decay=BY_PART.no_decay)
    assert len(parameter_groups(model, optim, PLAIN)) == 1
    assert len(parameter_groups(model, optim, ADAM)) == 2


def test_every_parameter_has_the_rate_and_decay_of_its_part_and_kind() -> None:
    model = build(problem.config())
    found, parts, kinds = by_name(model, parameter_groups(model, BY_PART, ADAM)), part_of(model), kind_of(model)
    assert sorted(found) == sorted(parts)
    for name, group in found.items():
        rate = {"backbone": 1e-4, "router": 2e-3}.get(parts[name], 1e-3)
        decay = 0.0 if name in kinds else {"router": 0.025}.get(parts[name], 0.05)
        assert (group.lr, group.weight_decay) == pytest.approx((rate, decay)), name
        assert group.trained
    made = for_optimizer(parameter_groups(model, BY_PART, ADAM))
    assert len({one["name"] for one in made}) == len(made) == 6
    told = {(one.get("lr", 1e-3), one.get("weight_decay", 0.05)) for one in made}
    wanted = {(1e-4, 0.05), (1e-4, 0.0), (2e-3, 0.025), (2e-3, 0.0), (1e-3, 0.05), (1e-3, 0.0)}
    assert {tuple(round(v, 9) for v in pair) for pair in told} == wanted


def test_what_is_frozen_is_counted_and_not_given_to_the_optimizer() -> None:
    model = build(problem.config("model.freeze=[experts]"))
    groups = parameter_groups(model, OptimConfig(), PLAIN)
    assert [(group.trained, group.name) for group in groups][-1] == (False, "experts")
    assert sum(group.count for group in groups) == sum(p.numel() for p in model.parameters())
    given = {id(p) for one in for_optimizer(groups) for p in one["params"]}
    assert given == {id(p) for p in model.parameters() if p.requires_grad}


def test_the_table_names_what_is_where() -> None:
    model = build(problem.config("model.freeze=[backbone]"))
    optim = OptimConfig(parts={"heads": PartConfig(lr_factor=3.0)}, no_decay=("norms",))
    lines = table(parameter_groups(model, optim, ADAM)).splitlines()
    assert len(lines) == 6
    assert any(line.endswith("at rate 0.003, weight decay 0: norms of heads") for line in lines)
    assert any(line.endswith("at rate 0.001, weight decay 0.05: router, experts, other") for line in lines)
    assert lines[-1].endswith("values frozen: backbone")


@pytest.mark.parametrize("given", [{"lr": 1e-3}, {"lr": 1e-3, "muon_lr": 0.02, "adam_lr": 1e-4}])
def test_the_two_halves_of_muon_keep_their_own_rates(given: dict[str, float]) -> None:
    model = build(problem.config())
    optim = OptimConfig(parts={"heads": PartConfig(lr_factor=0.5)})
    made = for_optimizer(parameter_groups(model, optim, {"type": "Muon", "params": given}))
    heads = {parameter.ndim >= 2: one["lr"] for one in made if "lr" in one for parameter in one["params"]}
    assert heads == {True: 0.5 * given.get("muon_lr", 1e-3), False: 0.5 * given.get("adam_lr", 1e-3)}
    assert [list(one) for one in made if "lr" not in one] == [["params", "name"]]  # DeepSpeed gives these their own


def test_a_part_that_the_model_lacks() -> None:
    model = build(problem.config("model.name=aide"))
    with pytest.raises(ConfigError, match=r"optim\.parts\.router: this model has no router; it has backbone, heads"):
        parameter_groups(model, BY_PART, ADAM)


def test_groups_are_ready_for_json() -> None:
    (group,) = parameter_groups(build(problem.config()), OptimConfig(), ADAM)
    assert dataclasses.is_dataclass(group)
    assert group.as_dict() == {
        "name": group.name,
        "parameters": group.count,
        "trained": True,
        "lr": 1e-3,
        "weight_decay": 0.05,
    }
