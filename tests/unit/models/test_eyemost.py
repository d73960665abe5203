"""EyeMoSt as a network: sizes, what an absent modality and an attached MToE do, uncertainty, the 3-D encoder."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from m4oe_ds.config import Config
from m4oe_ds.data.batch import Batch
from m4oe_ds.errors import ConfigError
from m4oe_ds.layers.evidence import NIG
from m4oe_ds.models import build, spec_for
from m4oe_ds.models.baselines.eyemost import EvidentialHeads, Options
from m4oe_ds.models.baselines.volumes import VolumeResNet10
from m4oe_ds.runs.objective import model_loss
from tests.distributed import problem

GAMMA = ("data.dataset=gamma", "data.modalities=[fundus, oct]", "data.image_size=[32, 32]")
FOUR = ("data.modalities=[ffdm_cc, ffdm_mlo, syn_cc, syn_mlo]",)


def config_of(*overrides: str) -> Config:
    return problem.config("model.name=eyemost", *overrides)


def samples(config: Config, count: int = 6) -> Batch:
    """Random samples, with a mask in place of class codes for a segmentation."""
    spec = spec_for(config)
    batch = problem.samples(spec, count, seed=0)
    masks = {task.name: (torch.rand(count, 1, *spec.image_size) < 0.3).float() for task in spec.tasks if task.dense}
    return dataclasses.replace(batch, labels={**batch.labels, **masks})


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def loss(config: Config, model: nn.Module, batch: Batch) -> Tensor:
    goal = problem.objective(model.spec)
    goal.model_loss = model_loss(config, model.spec)
    for task in model.spec.tasks:
        if task.dense:
            goal.losses[task.name] = dataclasses.replace(goal.losses[task.name], kind="bce_dice")
    output = model(batch)
    parts = goal.task_parts(output, batch).values()
    return sum(part.sum / part.count.clamp_min(1) for part in parts) + sum(output.aux.values())


def test_the_volume_network_has_the_published_size() -> None:
    # stem, then per stage the two convolutions of the block with their norms, and the projected shortcuts
    stem = 343 * 64 + 128
    blocks = [2 * 27 * 64 * 64 + 256]
    for inputs, outputs in ((64, 128), (128, 256), (256, 512)):
        blocks.append(27 * inputs * outputs + 27 * outputs * outputs + 4 * outputs + inputs * outputs + 2 * outputs)
    assert parameters(VolumeResNet10()) == stem + sum(blocks) == 14_355_520


def test_the_volume_network_keeps_a_map_of_8192_numbers_for_any_depth() -> None:
    network = VolumeResNet10().eval()
    with torch.no_grad():
        for depth in (16, 24):
            assert network(torch.randn(1, depth, 32, 32)).shape == (1, 512, 8, 2)
        image = torch.randn(1, 16, 32, 32)
        assert not torch.allclose(network(image), network(image.flip(1)), atol=1e-4)  # depth is an axis, not a set
        network.stages = nn.ModuleList()  # what is left is of stride 4: 128 x 256 x 128 of the release as 64 x 128 x 64
        network.conv, network.norm = nn.Conv3d(1, 2, 7, 2, 3), nn.Identity()
        nn.init.ones_(network.conv.weight)
        image = torch.zeros(1, 64, 128, 64)
        image[:, 40:, 40:60, :20] = 1e3  # back, second quarter of the height, left
        maps = network(image)[0].amax(0).unflatten(0, (2, 4))  # depth, height, width
        assert divmod(int(maps.argmax()), 8)[0] == 1
        assert int(maps[1].argmax()) == 2


def test_the_native_network_has_its_size() -> None:
    config = config_of(*GAMMA, "model.regime=native", "data.tasks=[glaucoma]", "data.image_size=[64, 64]")
    model = build(config)
    heads = 4 * (2048 * 64 + 64 + 64 * 3 + 3) + 4 * (8192 * 64 + 64 + 64 * 3 + 3)
    assert parameters(model.heads) == heads == 2_623_512
    assert parameters(model.encoders.by_modality["oct"]) == 14_355_520
    # 25.72 million are published for Res2Net-50-v1b 26w x 4s with its 1000 classes, which are not built here
    assert parameters(model.encoders.by_modality["fundus"]) + 2048 * 1000 + 1000 == pytest.approx(25.72e6, abs=5e3)
    assert parameters(model) == parameters(model.heads) + parameters(model.encoders)


@pytest.mark.parametrize("mode", ["none", "replace", "append"])
def test_the_native_network_answers_and_learns(mode: str) -> None:
    config = config_of(*GAMMA, "model.regime=native", f"model.attach_mtoe={mode}", "data.image_size=[64, 64]")
    model = build(config).train()
    spec = model.spec
    batch = problem.samples(dataclasses.replace(spec, channels=(3, 16)), 2, seed=0)  # a shallow volume is faster
    batch = dataclasses.replace(
        batch,
        labels={"glaucoma": torch.tensor([0, 2]), "cup": torch.zeros(2, 1, 64, 64)},
        label_mask=torch.ones(2, 2, dtype=torch.bool),
        present=torch.ones(2, 2, dtype=torch.bool),
    )
    loss(config, model, batch).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    found = {name: tuple(value.shape) for name, value in model(batch).logits.items()}
    assert found == {"glaucoma": (2, 3), "cup": (2, 1, 64, 64)}


OPTIONS = ("{}", "{plus: true}", "{fusion: dirichlet}", "{fusion: dirichlet, plus: true}")


@pytest.mark.parametrize("mode", ["none", "replace", "append"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("problem_", [GAMMA, FOUR, ("data.tasks=[density]",)])
def test_every_parameter_learns_for_any_modalities_and_tasks(
    mode: str, options: str, problem_: tuple[str, ...]
) -> None:
    config = config_of(*problem_, f"model.attach_mtoe={mode}", f"model.options={options}")
    model, batch = build(config), samples(config, 8)
    loss(config, model, batch).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert without == []
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_answer_is_the_nu_weighted_mean_of_the_locations() -> None:
    config = config_of()
    model, batch = build(config).eval(), samples(config)
    output = model(batch)
    nig = NIG(*output.extras["evidence.density"].unbind(2))
    for row in range(len(batch)):
        here = batch.present[row]
        nu = 2 * nig.alpha[row][here]
        expected = (nu * nig.gamma[row][here]).sum(0) / nu.sum(0)
        torch.testing.assert_close(output.logits["density"][row], expected)
    uncertainty = output.extras["uncertainty.density"]
    assert uncertainty.shape == (6,)
    assert (uncertainty > 0).all()


@pytest.mark.parametrize("options", OPTIONS[::2])
def test_an_absent_modality_is_as_if_it_were_not_there(options: str) -> None:
    config = config_of(f"model.options={options}")
    model, batch = build(config), samples(config)
    present = torch.tensor([[True, False]]).expand(6, 2)
    views = {
        name: torch.full_like(view, float("nan")) if i else view for i, (name, view) in enumerate(batch.views.items())
    }
    spoiled = dataclasses.replace(batch, present=present, views=views)
    clean = dataclasses.replace(batch, present=present)
    for extra in ("uncertainty.birads", "evidence.birads"):
        torch.testing.assert_close(model(spoiled).extras[extra], model(clean).extras[extra])
    torch.testing.assert_close(loss(config, model, spoiled), loss(config, model, clean))
    loss(config, model, clean).backward()
    absent = [p.grad.abs().max() for name, p in model.named_parameters() if ".syn_mlo." in name]
    assert absent
    assert max(absent) == 0
    only = model.heads["density"](
        model._vectors(model.encode(clean)), present
    )  # its own single source, fused with nothing
    if options == "{}":
        torch.testing.assert_close(model(clean).logits["density"], only[:, 0, 0])


def test_an_absent_source_has_the_evidence_of_a_zero_output_and_no_part_in_a_mask() -> None:
    config = config_of(*GAMMA)
    model, batch = build(config).eval(), samples(config)
    batch = dataclasses.replace(
        batch,
        present=torch.tensor([[True, False]]).expand(6, 2),
        views={**batch.views, "oct": torch.full_like(batch.views["oct"], float("nan"))},
    )
    output = model(batch)
    nig = NIG(*output.extras["evidence.glaucoma"][:, 1].unbind(1))
    log2 = torch.log(torch.tensor(2.0))
    for part, expected in zip(nig, (torch.tensor(0.0), log2, 1 + log2, 0.2 + log2), strict=True):
        torch.testing.assert_close(part, expected.expand(6, 3))
    assert torch.isfinite(output.logits["cup"]).all()
    other = dataclasses.replace(batch, views={**batch.views, "oct": torch.randn_like(batch.views["oct"])})
    torch.testing.assert_close(model(other).logits["cup"], output.logits["cup"])


def test_replace_builds_no_source_but_the_mtoe_and_append_one_more() -> None:
    def sources(mode: str) -> list[str]:
        model = build(config_of(*GAMMA, f"model.attach_mtoe={mode}"))
        assert (model.project is None) is (mode == "replace")
        return list(model.heads["glaucoma"].sources)

    assert sources("none") == ["fundus", "oct"]
    assert sources("replace") == ["mtoe"]
    assert sources("append") == ["fundus", "oct", "mtoe"]


def test_without_any_modality_everything_is_finite() -> None:
    config = config_of(*GAMMA, "model.attach_mtoe=append")
    model, batch = build(config), samples(config)
    batch = dataclasses.replace(batch, present=torch.zeros_like(batch.present))
    output = model(batch)
    assert all(
        torch.isfinite(value).all() for value in (*output.logits.values(), output.extras["uncertainty.glaucoma"])
    )
    assert not output.extras["sources"].any()


def test_extras_name_what_enters_the_fusion() -> None:
    config = config_of()
    output = build(config)(samples(config))
    for name in ("ffdm_cc", "syn_mlo"):
        assert output.extras[f"features.{name}"].shape == (6, 16, 2, 2)
        assert output.extras[f"features.{name}"].requires_grad


@pytest.mark.parametrize("mode", ["none", "append"])
def test_the_shared_layer_is_reached_by_every_task(mode: str) -> None:
    config = config_of(f"model.attach_mtoe={mode}")
    model, batch = build(config), samples(config)
    weights = list(model.shared_layer().parameters())
    for value in model(batch).logits.values():
        found = torch.autograd.grad(value.square().sum(), weights, retain_graph=True)
        assert any(gradient.abs().max() > 0 for gradient in found)


def test_dirichlet_answers_are_log_parameters() -> None:
    heads = EvidentialHeads({"a": 4}, 3, Options(fusion="dirichlet", hidden=8))
    evidence = heads({"a": torch.randn(2, 4)}, torch.ones(2, 1, dtype=torch.bool))
    assert (evidence > 1).all()
    config = config_of("model.options={fusion: dirichlet}")
    output = build(config)(samples(config))
    alpha = output.logits["density"].exp()
    torch.testing.assert_close(output.extras["uncertainty.density"], 4 / alpha.sum(1))


@pytest.mark.parametrize("options", ["{fusion: sum}", "{plus: 1.5}", "{width: 3}"])
def test_wrong_options_are_refused(options: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.options|fusion|plus|width"):
        build(config_of(f"model.options={options}"))
