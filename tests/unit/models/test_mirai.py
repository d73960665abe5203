"""Mirai's published numbers: hazard layer, aggregator sizes, symmetry of the views."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from m4oe_ds.errors import ConfigError
from m4oe_ds.models import build, spec_for
from m4oe_ds.models.baselines.mirai import HazardLayer, Options, ViewAggregator
from tests.distributed import problem


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_cumulative_logits_of_known_hazards() -> None:
    layer = HazardLayer(1, 5)
    with torch.no_grad():
        layer.hazard.weight.zero_()
        layer.hazard.bias.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
        layer.base.weight.zero_()
        layer.base.bias.fill_(0.5)
    assert layer(torch.zeros(1, 1)).tolist() == [[1.5, 3.5, 6.5, 10.5, 15.5]]
    with torch.no_grad():
        layer.hazard.bias.neg_()
    assert layer(torch.zeros(1, 1)).tolist() == [[0.5] * 5]  # no hazard: the same at every horizon


def test_logits_never_decrease() -> None:
    layer = HazardLayer(32, 5)
    assert (layer(torch.randn(200, 32) * 10).diff(dim=1) >= 0).all()


def test_published_sizes() -> None:
    assert parameters(HazardLayer(512, 5)) == 3_078
    aggregator = ViewAggregator(512, Options())
    assert parameters(aggregator.project) == 262_656
    assert parameters(aggregator.scale) == parameters(aggregator.shift) == 49_664
    layer = parameters(aggregator.attention) + parameters(aggregator.expand) + parameters(aggregator.contract)
    assert layer + parameters(aggregator.norm1) + parameters(aggregator.norm2) == 1_577_984
    # two tables of 3 rows of 48 instead of the original's 3, 11 and 3 rows of 32
    tables = parameters(aggregator.view_table) + parameters(aggregator.type_table)
    assert parameters(aggregator) + 3_078 - tables + 544 == 1_943_590


def test_native_encoder_has_the_size_of_a_resnet_18_without_classifier() -> None:
    model = build(problem.config("model.name=mirai", "model.regime=native", "data.image_size=[64, 64]"))
    assert parameters(model.encoders) == 11_176_512  # type: ignore[attr-defined]


@pytest.mark.parametrize(("size", "expected"), [((2048, 1664), (64, 52)), ((224, 224), (7, 7))])
def test_native_maps_have_the_published_size(size: tuple[int, int], expected: tuple[int, int]) -> None:
    config = problem.config("model.name=mirai", "model.regime=native", f"data.image_size={list(size)}")
    with torch.device("meta"):
        model: Any = build(config)
        maps = model.encoders({name: torch.empty(1, 1, *size) for name in model.spec.modalities})
    assert {tuple(stages[-1].shape) for stages in maps.values()} == {(1, 512, *expected)}


def test_views_and_their_ids_may_be_permuted_together() -> None:
    torch.manual_seed(0)
    aggregator = ViewAggregator(16, Options(hidden=32, heads=4)).eval()
    x, present = (
        torch.randn(3, 4, 16),
        torch.tensor([[True] * 4, [True, False, True, True], [True, True, False, False]]),
    )
    views, types = torch.tensor([0, 1, 0, 1]).expand(3, 4), torch.tensor([0, 0, 1, 1]).expand(3, 4)
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(
        aggregator(x[:, order], present[:, order], views[:, order], types[:, order]),
        aggregator(x, present, views, types),
    )
    assert not torch.allclose(aggregator(x, present, views.flip(1), types), aggregator(x, present, views, types))


def test_pad_ids_are_zero() -> None:
    aggregator = ViewAggregator(16, Options(hidden=32, heads=4))
    assert (aggregator.view_table(torch.tensor(2)) == 0).all()
    assert (aggregator.type_table(torch.tensor(2)) == 0).all()


@pytest.mark.parametrize("mode", ["none", "replace", "append"])
def test_risk_logits_of_the_model_never_decrease(mode: str) -> None:
    config = problem.config("model.name=mirai", f"model.attach_mtoe={mode}")
    spec = spec_for(config)
    output = build(config).eval()(problem.samples(spec, 8, 0))
    risk = torch.stack([output.logits[f"risk{k}"][:, 1] - output.logits[f"risk{k}"][:, 0] for k in range(1, 6)], 1)
    assert (risk.diff(dim=1) >= 0).all()


def test_only_known_views_and_pools() -> None:
    with pytest.raises(ConfigError, match="tells its inputs apart by their view"):
        build(problem.config("model.name=mirai", "data.dataset=gamma", "data.modalities=[fundus, oct]"))
    with pytest.raises(ConfigError, match=r"pool \(of mirai\) must be one of max, mean"):
        build(problem.config("model.name=mirai", "model.options={pool: sum}"))


def test_single_task_single_horizon() -> None:
    config = problem.config("model.name=mirai", "data.tasks=[risk1]")
    spec = spec_for(config)
    batch = problem.samples(spec, 4, 0)
    output = build(config)(dataclasses.replace(batch))
    assert output.extras["hazard_logits"].shape == (4, 1)
