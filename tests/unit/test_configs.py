"""The shipped recipes: every YAML loads, every DeepSpeed JSON passes, and the two agree."""

from __future__ import annotations

from pathlib import Path

import pytest

from m4oe_ds import config_loader, deepspeed_json
from m4oe_ds.parallel.topology import choose_ep_size

ROOT = Path(__file__).parents[2]
RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))
DEEPSPEED = sorted((ROOT / "ds_configs").glob("*.json"))


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_there_are_recipes_and_deepspeed_configurations() -> None:
    assert ROOT / "configs" / "demo.yaml" in RECIPES
    assert {path.name for path in DEEPSPEED} >= {"zero1.json", "zero2.json", "zero3.json", "bf16.json"}


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_loads_and_its_expectations_are_met_by_a_shipped_json(path: Path) -> None:
    config = config_loader.load(path)
    refused = {}
    for candidate in DEEPSPEED:
        try:
            deepspeed_json.check(deepspeed_json.read(candidate), candidate.name, config.run.expects, path.name)
        except deepspeed_json.ConfigError as error:
            refused[candidate.name] = str(error)
    assert len(refused) < len(DEEPSPEED), refused
    if path.name == "demo.yaml":
        assert "zero2.json" not in refused, refused["zero2.json"]


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_can_share_its_experts_between_two_ranks(path: Path) -> None:
    model = config_loader.load(path).model
    counts = [model.msoe.num_experts, model.mtoe.num_experts, model.fusion.num_experts]
    assert choose_ep_size(0, 2, counts) == 2


@pytest.mark.parametrize("path", DEEPSPEED, ids=name)
def test_a_deepspeed_configuration_is_sound(path: Path) -> None:
    content = deepspeed_json.read(path)
    deepspeed_json.check(content, str(path), {}, "none")
    for world in (1, 2, 4, 8):
        sizes = deepspeed_json.batch_sizes(content, world, str(path))
        assert sizes.train == sizes.micro * sizes.accumulation * world
        assert sizes.train == content.get("train_batch_size", sizes.train)


@pytest.mark.parametrize(("file", "stage"), [("zero1.json", 1), ("zero2.json", 2), ("zero3.json", 3)])
def test_the_stage_in_the_name_is_the_stage_in_the_file(file: str, stage: int) -> None:
    assert deepspeed_json.read(ROOT / "ds_configs" / file)["zero_optimization"]["stage"] == stage


def test_the_shipped_optimizer_is_the_same_everywhere() -> None:
    optimizers = [deepspeed_json.read(path)["optimizer"] for path in DEEPSPEED if path.name != "zero2_offload.json"]
    assert all(optimizer == optimizers[0] for optimizer in optimizers)
