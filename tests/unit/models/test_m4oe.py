"""The model as a whole: shapes, switches, dense tasks, what the registry refuses."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from m4oe_ds.config import Config
from m4oe_ds.errors import ConfigError
from m4oe_ds.layers.routing import modality_contribution
from m4oe_ds.models import available, build, spec_for
from m4oe_ds.models.interface import ModelOutput
from tests.distributed import problem

GAMMA = ("data.dataset=gamma", "data.modalities=[]", "data.image_size=[32, 24]")
CONVOLUTIONAL = ("model.embedder.backbone=resnet18", "model.embedder.options={}", "data.image_size=[64, 64]")


def run(config: Config, count: int = 3, seed: int = 0) -> tuple[nn.Module, ModelOutput]:
    model = build(config).eval()
    with torch.no_grad():
        return model, model(problem.samples(spec_for(config), count, seed))


def gamma_samples(config: Config, count: int = 3):
    """Like ``problem.samples`` with a mask in place of class codes for the segmentation."""
    spec = spec_for(config)
    batch = problem.samples(spec, count, seed=0)
    index = spec.task_names.index("cup")
    mask = (torch.rand(count, 1, *spec.image_size) < 0.3).float() * batch.label_mask[:, index, None, None, None]
    return dataclasses.replace(batch, labels={**batch.labels, "cup": mask})


def test_logits_of_every_task_and_routing_of_every_layer() -> None:
    config = problem.config()
    _, output = run(config)
    assert {name: tuple(logits.shape) for name, logits in output.logits.items()} == {
        "birads": (3, 3),
        **{f"risk{k}": (3, 2) for k in range(1, 6)},
        "density": (3, 4),
    }
    assert all(torch.isfinite(logits).all() for logits in output.logits.values())
    tokens = 2 * (1 + 4)  # two modalities, class token and 2 x 2 patches
    assert {name: tuple(routing.logits.shape) for name, routing in output.routing.items()} == {
        "msoe.ffdm_cc.0": (3, 5, 4, 1),
        "msoe.syn_mlo.0": (3, 5, 4, 1),
        "mtoe": (3, tokens, 8, 7),
        "fusion.0": (3 * 7, 3, 4, 1),
    }
    assert output.modality_of_token.tolist() == [0] * 5 + [1] * 5


def test_an_absent_modality_has_no_share_in_the_answer() -> None:
    config = problem.config()
    batch = problem.samples(spec_for(config), 3, 0)
    batch = dataclasses.replace(batch, present=torch.tensor([[True, True], [True, False], [False, True]]))
    model = build(config).eval()
    with torch.no_grad():
        output = model(batch)
    share = modality_contribution(output.routing["mtoe"], output.modality_of_token, 2)  # [B, p, m]
    torch.testing.assert_close(share.sum(2), torch.ones(3, 7))
    assert share[1, :, 1].abs().max() == 0
    assert share[2, :, 0].abs().max() == 0
    assert share[0].min() > 0


@pytest.mark.parametrize("mtoe", [True, False])
@pytest.mark.parametrize("msoe", [True, False])
def test_ablation_switches(mtoe: bool, msoe: bool) -> None:
    config = problem.config(f"model.use_mtoe={str(mtoe).lower()}", f"model.use_msoe={str(msoe).lower()}")
    model, output = run(config)
    assert ("mtoe" in output.routing) is mtoe
    assert any(name.startswith("msoe.") for name in output.routing) is msoe
    assert any(name.startswith("mtoe.") for name, _ in model.named_parameters()) is mtoe
    assert any(name.startswith("msoe.") for name, _ in model.named_parameters()) is msoe
    assert set(output.logits) == set(spec_for(config).task_names)


def test_the_switches_change_the_answer_and_every_task_has_its_own() -> None:
    outputs = [
        run(problem.config(*options))[1].logits["density"]
        for options in ((), ("model.use_mtoe=false",), ("model.use_msoe=false",))
    ]
    assert not torch.allclose(outputs[0], outputs[1], atol=1e-4)
    assert not torch.allclose(outputs[0], outputs[2], atol=1e-4)
    model, output = run(problem.config("model.mtoe={task_embed_std: 1.0}"))
    features = model.fuse(model.encode(problem.samples(model.spec, 2, 0)), problem.samples(model.spec, 2, 0)).features
    assert not torch.allclose(features["risk1"][:, 0], features["risk2"][:, 0], atol=1e-4)
    assert set(output.logits) == set(features)


def test_volumes_and_masks() -> None:
    config = problem.config(*GAMMA)
    spec = spec_for(config)
    assert (spec.modalities, spec.channels) == (("fundus", "oct"), (3, 256))
    model = build(config).eval()
    with torch.no_grad():
        output = model(gamma_samples(config))
    assert output.logits["glaucoma"].shape == (3, 3)
    assert output.logits["cup"].shape == (3, 1, 32, 24)
    assert torch.isfinite(output.logits["cup"]).all()
    assert output.routing["mtoe"].logits.shape == (3, 2 * (1 + 4 * 3), 8, 2)


@pytest.mark.parametrize("switch", ["model.use_mtoe=false", "model.use_msoe=false"])
def test_masks_without_a_part_of_the_model(switch: str) -> None:
    config = problem.config(*GAMMA, switch)
    model = build(config).eval()
    with torch.no_grad():
        assert model(gamma_samples(config)).logits["cup"].shape == (3, 1, 32, 24)


def test_a_mask_depends_on_where_things_are_in_the_fundus_image() -> None:
    """Change one corner of the image: the mask logits change most there."""
    config = problem.config(*GAMMA, "data.image_size=[64, 64]")
    model = build(config).eval()
    batch = gamma_samples(config, 1)
    batch = dataclasses.replace(batch, present=torch.ones(1, 2, dtype=torch.bool))
    moved = dict(batch.views)
    moved["fundus"] = moved["fundus"].clone()
    moved["fundus"][:, :, :16, :16] += 5.0
    with torch.no_grad():
        difference = (model(dataclasses.replace(batch, views=moved)).logits["cup"] - model(batch).logits["cup"]).abs()[
            0, 0
        ]
    assert difference[:16, :16].mean() > 1.5 * difference[32:, 32:].mean()


def test_an_absent_fundus_image_still_gives_a_finite_mask() -> None:
    config = problem.config(*GAMMA)
    batch = dataclasses.replace(gamma_samples(config), present=torch.tensor([[False, True]] * 3))
    model = build(config).eval()
    with torch.no_grad():
        first = model(batch).logits["cup"]
        noise = {**batch.views, "fundus": torch.randn_like(batch.views["fundus"])}
        second = model(dataclasses.replace(batch, views=noise)).logits["cup"]
    assert torch.isfinite(first).all()
    torch.testing.assert_close(first, second, rtol=0, atol=1e-6)


def test_the_mask_is_made_of_the_patch_tokens_of_the_fundus_image_of_the_mixture() -> None:
    """Without the class token, in order; an absent image's patches are not attended to."""
    config = problem.config(*GAMMA)
    model, seen = build(config).eval(), {}
    model.mtoe.register_forward_hook(lambda _module, _inputs, output: seen.update(g=output[0]))
    model.dense_projection["cup"]["shared"].register_forward_pre_hook(
        lambda _module, inputs: seen.update(projected=inputs[0])
    )
    model.fusion.register_forward_pre_hook(lambda _module, inputs: seen.update(mask=inputs[1]))  # the last call
    batch = dataclasses.replace(
        gamma_samples(config), present=torch.tensor([[True, True], [False, True], [True, False]])
    )
    with torch.no_grad():
        model(batch)
    patches = 4 * 3
    assert torch.equal(seen["projected"], seen["g"][:, 1, 1 : 1 + patches])
    assert seen["mask"].tolist() == [
        [True] * patches + [True, True],
        [False] * patches + [True, True],
        [True] * patches + [True, False],
    ]


def test_a_convolutional_backbone() -> None:
    config = problem.config(*CONVOLUTIONAL)
    _, output = run(config)
    assert output.logits["density"].shape == (3, 4)
    assert output.routing["mtoe"].logits.shape == (3, 2 * 2 * 2, 8, 7)


def test_a_mask_needs_a_transformer() -> None:
    with pytest.raises(ConfigError, match="task cup needs a vision-transformer embedder"):
        build(problem.config(*GAMMA, *CONVOLUTIONAL))


def test_an_unknown_model_names_the_nearest() -> None:
    assert "m4oe" in available()
    with pytest.raises(ConfigError, match=r"unknown model.name 'm4eo'; did you mean m4oe\?"):
        build(problem.config("model.name=m4eo"))


def test_the_specification_follows_the_schema_not_the_configuration() -> None:
    spec = spec_for(problem.config("data.modalities=[syn_mlo, ffdm_cc]", "data.tasks=[density, birads]"))
    assert spec.modalities == ("ffdm_cc", "syn_mlo")
    assert spec.task_names == ("birads", "density")


def test_the_shared_layer_is_used_by_every_task() -> None:
    config = problem.config()
    model = build(config)
    shared = list(model.shared_layer().parameters())
    output = model(problem.samples(spec_for(config), 2, 0))
    for logits in output.logits.values():
        gradients = torch.autograd.grad(logits.sum(), shared, retain_graph=True, allow_unused=True)
        assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
