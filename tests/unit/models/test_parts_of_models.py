"""Parts of every model by name, kinds of parameters, and what freezing a part holds still."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from m4oe_ds import config_loader
from m4oe_ds.config import PARTS
from m4oe_ds.errors import ConfigError
from m4oe_ds.layers.routing import Router
from m4oe_ds.models import available, build, spec_for
from m4oe_ds.models.parts import frozen_modules, kind_of, layer_name, part_of
from tests.distributed import problem


@pytest.mark.parametrize("name", available())
def test_every_parameter_of_every_model_has_a_part(name: str) -> None:
    model = build(problem.config(f"model.name={name}"))
    parts = part_of(model)
    assert list(parts) == [path for path, _ in model.named_parameters()]
    assert set(parts.values()) <= set(PARTS)
    assert {"backbone", "heads"} <= set(parts.values())  # every system reads images and answers tasks
    embedders = build(problem.config(f"model.name={name}", "model.embedder.freeze=true"))
    frozen = {path for path, parameter in embedders.named_parameters() if not parameter.requires_grad}
    shared = {path for path, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen - shared == {path for path, part in parts.items() if part == "backbone"} - shared


def test_the_parts_of_our_model() -> None:
    parts = part_of(build(problem.config()))
    expected = {
        "embedders.by_modality.ffdm_cc.backbone.pos_embed": "backbone",
        "msoe.ffdm_cc.blocks.0.mlp.router.phi": "router",
        "mtoe.mtoe.router.scale": "router",
        "mtoe.mtoe.experts.experts.w1": "experts",
        "fusion.blocks.0.mlp.experts.experts.w3": "experts",
        "heads.density.classify.bias": "heads",
        "fusion.blocks.0.attention.proj.weight": "other",
        "mtoe.mtoe.task_embed": "other",
    }
    assert {name: parts.get(name) for name in expected} == expected


@pytest.mark.parametrize("name", ["m4oe", "soft_moe", "soft_moe+slots", "mirai+append"])
def test_a_mixture_layer_has_one_name(name: str) -> None:
    """That of its routing, for what is logged of its parameters, too."""
    base, _, more = name.partition("+")
    options = {"slots": ["model.options={task_slots: true}"], "append": ["model.attach_mtoe=append"]}.get(more, [])
    model = build(problem.config(f"model.name={base}", *options))
    paths = [path.removesuffix(".router") for path, module in model.named_modules() if isinstance(module, Router)]
    with torch.no_grad():
        routing = model(problem.samples(model.spec, 4, seed=0)).routing
    assert sorted(map(layer_name, paths)) == sorted(routing)


def test_kinds_of_parameters() -> None:
    kinds = kind_of(build(problem.config("model.embedder.share=true", "model.missing_modality=bank")))
    found = {kind: sorted(name for name in kinds if kinds[name] == kind) for kind in set(kinds.values())}
    assert set(found) == {"norms", "biases", "scales", "embeddings"}
    assert all("norm" in name for name in found["norms"])
    assert {name.rsplit(".", 1)[-1] for name in found["biases"]} == {"bias", "w3"}
    assert {name.rsplit(".", 1)[-1] for name in found["scales"]} == {"scale"}
    assert "mtoe.mtoe.task_embed" in found["embeddings"]
    assert "embedders.by_modality.shared.backbone.cls_token" in found["embeddings"]
    assert "embedders.modality_embed.syn_mlo" in found["embeddings"]
    assert "missing_bank.rows.ffdm_cc.weight" in found["embeddings"]
    weights = {"mtoe.mtoe.router.phi", "heads.birads.project.weight", "fusion.blocks.0.attention.qkv.weight"}
    assert not weights & set(kinds)
    assert not [name for name in kinds if name.endswith((".w1", ".w2"))]


@pytest.mark.parametrize("part", PARTS)
def test_a_frozen_part_gets_no_gradient_and_all_others_do(part: str) -> None:
    config = problem.config(f"model.freeze=[{part}]")
    model = build(config)
    parts, batch = part_of(model), problem.samples(spec_for(config), 8, seed=0)
    goal = problem.objective(model.spec)
    output = model(batch)
    (sum(one.sum for one in goal.task_parts(output, batch).values())).backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is (parts[name] != part), name
        assert (parameter.grad is None) is (parts[name] == part), name


def test_batch_norm_and_dropout_of_a_frozen_part_stay_as_in_evaluation() -> None:
    convolutional = ("model.name=mirai", "model.regime=native", "data.image_size=[32, 32]")
    config = problem.config(*convolutional, "model.freeze=[backbone]")
    model = build(config).train()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    before = {name: value.clone() for name, value in model.named_buffers()}
    batch = problem.samples(spec_for(config), 4, seed=0)
    model(batch)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert not any(norm.training for norm in norms)
    assert model.training
    assert model.heads.training
    model.eval().train()  # as around a validation
    assert not any(norm.training for norm in norms)
    free = build(problem.config(*convolutional)).train()
    before = {name: value.clone() for name, value in free.named_buffers()}
    free(batch)
    assert any(not torch.equal(value, before[name]) for name, value in free.named_buffers())


def test_the_older_switch_holds_batch_norms_too() -> None:
    options = ("model.name=mirai", "model.regime=native", "data.image_size=[32, 32]")
    model = build(problem.config(*options, "model.embedder.freeze=true")).train()
    assert not any(module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def test_the_largest_frozen_modules() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Dropout()), nn.Dropout(), nn.Linear(2, 2))
    assert frozen_modules(model) == ()
    model[0].requires_grad_(False)
    assert frozen_modules(model) == (model[0],)  # with the dropout in it, without the one beside it
    model.requires_grad_(False)
    assert frozen_modules(model) == (model,)


def test_a_part_that_a_model_lacks() -> None:
    with pytest.raises(ConfigError, match=r"model\.freeze: this model has no router; it has backbone, heads, other"):
        build(problem.config("model.name=aide", "model.freeze=[router]"))
    with pytest.raises(ConfigError, match=r"model\.freeze: nothing is left to train"):
        build(problem.config("model.name=aide", "model.freeze=[backbone, heads, other]"))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("model.freeze=[backbon]", r"unknown name 'backbon' in model\.freeze; did you mean backbone\?"),
        ("optim.parts={routers: {lr_factor: 2}}", r"'routers' in optim\.parts; did you mean router\?"),
        ("optim.no_decay=[norm]", r"'norm' in optim\.no_decay; did you mean norms\?"),
        ("optim.parts={router: {lr: 2}}", r"unknown key optim\.parts\.router\.lr"),
        ("optim.parts={router: {lr_factor: -1}}", r"optim\.parts\.router\.lr_factor=-1.* must be at least 0"),
        ("model.freeze=[backbone, router, experts, heads, other]", "leaves nothing to train"),
    ],
)
def test_names_are_checked_before_anything_starts(settings: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        config_loader.load(None, [settings])


def test_contradictions_with_frozen_parts() -> None:
    with pytest.raises(ConfigError, match=r"optim\.parts\.heads does nothing: model\.freeze freezes it"):
        config_loader.load(None, ["model.freeze=[heads]", "optim.parts={heads: {lr_factor: 0.5}}"])
    with pytest.raises(ConfigError, match=r"optim\.parts\.backbone does nothing: model\.embedder\.freeze"):
        config_loader.load(None, ["model.embedder.freeze=true", "optim.parts={backbone: {lr_factor: 0.5}}"])
    with pytest.raises(ConfigError, match=r"set run\.conflict_every_steps=0"):
        config_loader.load(None, ["model.freeze=[experts]", "run.conflict_every_steps=5"])
    with pytest.raises(ConfigError, match=r"set loss\.gradient_policy=sum"):
        config_loader.load(None, ["model.freeze=[experts]", "loss.gradient_policy=calibrated"])
