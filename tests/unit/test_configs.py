"""The shipped recipes: every YAML loads and builds, every DeepSpeed JSON passes, and the two agree."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from m4oe_ds import config_loader, deepspeed_json
from m4oe_ds.config import Config
from m4oe_ds.data.cards import read_card
from m4oe_ds.errors import ConfigError
from m4oe_ds.models import build
from m4oe_ds.parallel.topology import choose_ep_size

ROOT = Path(__file__).parents[2]
CARDS = ROOT / "configs" / "cards"
SMALL = ROOT / "configs" / "small.yaml"  # for any data, and so for any batch size: it names neither
RECIPES = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if CARDS not in path.parents and path != SMALL)
DEEPSPEED = sorted((ROOT / "ds_configs").glob("*.json"))
OFFICIAL = "official"  # the authors' release has its own batch size, optimizer and rate


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def accepted_by(config: Config, path: Path) -> dict[str, str]:
    """Why each shipped JSON is refused for a recipe; an empty reason = it is accepted."""
    reasons = {}
    for candidate in DEEPSPEED:
        try:
            deepspeed_json.check(deepspeed_json.read(candidate), candidate.name, config.run.expects, name(path))
            reasons[candidate.stem] = ""
        except ConfigError as error:
            reasons[candidate.stem] = str(error)
    return reasons


@pytest.mark.parametrize("path", sorted(CARDS.rglob("*.yaml")), ids=name)
def test_an_example_card_is_short_and_read_without_a_mistake(path: Path) -> None:
    assert read_card(path).name == path.stem
    assert len(path.read_text().splitlines()) < 40


def test_the_small_recipe_builds_for_a_card_of_ones_own_and_fits_every_json() -> None:
    card = CARDS / "examples" / "drishti-gs1.yaml"
    config = config_loader.load(SMALL, [f"data.dataset={card}"])
    assert not any(accepted_by(config, SMALL).values())
    with torch.device("meta"):
        model = build(config)
    assert set(model.heads) == {"glaucoma", "notching", "cup_to_disc", "rim"}


def test_there_are_recipes_and_deepspeed_configurations() -> None:
    assert ROOT / "configs" / "demo.yaml" in RECIPES
    assert {path.stem for path in DEEPSPEED} >= {"zero1", "zero2", "zero3", "bf16", "fp16"}


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_agrees_with_the_jsons_meant_for_it_and_no_others(path: Path) -> None:
    reasons = accepted_by(config_loader.load(path), path)
    accepted = {stem for stem, reason in reasons.items() if not reason}
    official = OFFICIAL in path.parts
    assert accepted == {path.stem for path in DEEPSPEED if (path.stem == OFFICIAL) is official}, reasons


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_is_named_and_says_where_its_data_are(path: Path) -> None:
    config = config_loader.load(path)
    assert config.run.name != Config().run.name
    assert config.data.root


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_a_recipe_builds_and_can_share_its_experts_between_two_ranks(path: Path) -> None:
    from m4oe_ds.layers.experts import LocalExperts
    from m4oe_ds.models import build

    config = config_loader.load(path, ["model.embedder.weights="])  # no network here
    with torch.device("meta"):
        model = build(config)
    counts = [layer.num_experts for layer in model.modules() if isinstance(layer, LocalExperts)]
    assert choose_ep_size(0, 2, counts) == (2 if counts else 1)  # compared systems may have none
    assert counts or config.model.name != "m4oe"


@pytest.mark.parametrize("path", DEEPSPEED, ids=name)
def test_a_deepspeed_configuration_is_sound(path: Path) -> None:
    content = deepspeed_json.read(path)
    deepspeed_json.check(content, str(path), {}, "none")
    for world in (1, 2, 4, 8):
        sizes = deepspeed_json.batch_sizes(content, world, str(path))
        assert sizes.train == sizes.micro * sizes.accumulation * world
        assert sizes.train == content.get("train_batch_size", sizes.train)


@pytest.mark.parametrize("path", [path for path in DEEPSPEED if re.match(r"zero\d", path.stem)], ids=name)
def test_the_stage_in_the_name_is_the_stage_in_the_file(path: Path) -> None:
    assert deepspeed_json.read(path)["zero_optimization"]["stage"] == int(path.stem[4])


def test_the_jsons_differ_in_precision_and_partitioning_only() -> None:
    """Changing the stage or the precision must not change batch size, optimizer or clipping unseen."""
    kept = ("train_batch_size", "gradient_accumulation_steps", "gradient_clipping", "optimizer")
    found = {
        path.stem: {key: deepspeed_json.read(path)[key] for key in kept} for path in DEEPSPEED if path.stem != OFFICIAL
    }
    assert all(values == found["zero2"] for values in found.values()), found


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_precision_is_enabled_in_its_own_file_alone(precision: str) -> None:
    enabled = {path.stem for path in DEEPSPEED if deepspeed_json.read(path).get(precision, {}).get("enabled")}
    assert enabled == {precision}
