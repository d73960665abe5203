"""What the table of models says of one, against the model that it builds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from m4oe_ds import config_loader
from m4oe_ds.config import Config, ModelConfig
from m4oe_ds.errors import ConfigError
from m4oe_ds.layers.experts import LocalExperts
from m4oe_ds.models import build
from m4oe_ds.models.registry import expert_counts

ROOT = Path(__file__).parents[3]
BASELINES = sorted((ROOT / "configs" / "baselines").glob("*.yaml"))


def built(config: Config) -> set[int]:
    """Expert counts of the mixture layers that the model really has."""
    with torch.device("meta"):
        model = build(config)
    return {layer.num_experts for layer in model.modules() if isinstance(layer, LocalExperts)}


def test_there_are_baselines() -> None:
    assert len(BASELINES) >= 11


@pytest.mark.parametrize("path", BASELINES, ids=lambda path: path.stem)
def test_expert_counts_are_those_of_the_built_model(path: Path) -> None:
    config = config_loader.load(path, ["model.embedder.weights="])
    assert set(expert_counts(config)) == built(config)


@pytest.mark.parametrize("attach", ["append", "replace"])
@pytest.mark.parametrize("name", ["mirai", "eyemost", "eyestar"])
def test_expert_counts_of_a_baseline_with_an_attached_mtoe(name: str, attach: str) -> None:
    path = ROOT / "configs" / "baselines" / f"{name}.yaml"
    config = config_loader.load(path, ["model.embedder.weights=", f"model.attach_mtoe={attach}"])
    assert set(expert_counts(config)) == built(config) == {config.model.mtoe.num_experts}


@pytest.mark.parametrize(
    "overrides",
    [[], ["model.use_msoe=false", "model.msoe.num_experts=4"], ["model.use_mtoe=false", "model.mtoe.num_experts=4"]],
    ids=["all", "no msoe", "no mtoe"],
)
def test_expert_counts_of_our_model(overrides: list[str]) -> None:
    config = config_loader.load(ROOT / "configs" / "demo.yaml", ["model.embedder.weights=", *overrides])
    assert set(expert_counts(config)) == built(config)


def test_an_unknown_model_has_no_expert_counts() -> None:
    with pytest.raises(ConfigError, match="did you mean mirai"):
        expert_counts(Config(model=ModelConfig(name="mirrai")))
