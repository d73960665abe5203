"""EyeStar's facts: sizes of the public grading baseline, monotone grades, the mask decoder and the MToE's places."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

from m4oe_ds.errors import ConfigError
from m4oe_ds.evaluation.inference import _rows
from m4oe_ds.losses import binary_cross_entropy_dice
from m4oe_ds.models import build, spec_for
from m4oe_ds.models.baselines.eyestar import crop_around
from m4oe_ds.models.interface import ModelOutput
from m4oe_ds.runs.objective import objective
from tests.distributed import problem

GAMMA = ("model.name=eyestar", "data.dataset=gamma", "data.modalities=[fundus, oct]", "data.image_size=[32, 32]")


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def batch_of(config: object, count: int = 4) -> object:
    spec = spec_for(config)  # type: ignore[arg-type]
    batch = problem.samples(spec, count, 0)
    mask = (torch.rand(count, 1, *spec.image_size) < 0.3).float()
    return dataclasses.replace(batch, labels={**batch.labels, "cup": mask})


def test_sizes_of_the_public_grading_baseline() -> None:
    config = problem.config(*GAMMA, "model.regime=native", "data.tasks=[glaucoma]", "data.image_size=[64, 64]")
    model: Any = build(config)
    fundus, oct_branch = model.encoders.by_modality["fundus"], model.encoders.by_modality["oct"]
    assert parameters(fundus) == 21_284_672
    assert parameters(oct_branch) == 22_078_080
    assert oct_branch.backbone.conv1.weight.shape == (64, 256, 7, 7)
    assert oct_branch.backbone.conv1.bias is None
    # the baseline's Linear(1024, 3) has 3,075; one slope, its bias and one gap are 1,026
    assert parameters(fundus) + parameters(oct_branch) + 3_075 == 43_365_827
    assert parameters(model.heads) == 1_026  # type: ignore[attr-defined]


def test_grades_are_monotone_and_probabilities_add_up() -> None:
    config = problem.config(*GAMMA)
    output = build(config).eval()(batch_of(config))
    cumulative = output.extras["ordinal.glaucoma"]
    assert cumulative.shape == (4, 2)
    assert (cumulative[:, 0] >= cumulative[:, 1]).all()
    torch.testing.assert_close(output.logits["glaucoma"].exp().sum(1), torch.ones(4))
    assert output.logits["cup"].shape == (4, 1, 32, 32)


def test_an_absent_branch_is_zeros_and_changes_nothing() -> None:
    config = problem.config(*GAMMA)
    model, batch = build(config).eval(), batch_of(config)
    absent = dataclasses.replace(batch, present=torch.tensor([[True, False]] * 4))
    noisy = dataclasses.replace(absent, views={**absent.views, "oct": torch.randn_like(absent.views["oct"])})
    with torch.no_grad():
        torch.testing.assert_close(model(noisy).logits["glaucoma"], model(absent).logits["glaucoma"])


def test_the_decoder_reads_the_mtoe_at_the_places_of_the_fundus() -> None:
    """Changing what the MToE says at one fundus token moves the mask most near that token."""
    config = problem.config(*GAMMA, "model.attach_mtoe=replace")
    model, batch = build(config).eval(), batch_of(config)
    with torch.no_grad():
        before = model(batch).logits["cup"]
        handle = model.mtoe.block.register_forward_hook(  # type: ignore[attr-defined]
            lambda _m, _i, out: (_bump(out[0], k=1, token=0), out[1])
        )
        after = model(batch).logits["cup"]
        handle.remove()
    change = (after - before).abs().mean((0, 1))
    assert change[:8, :8].mean() > 2 * change[-8:, -8:].mean()


def test_a_crop_shows_what_lies_around_the_mask() -> None:
    image = torch.arange(32.0)[None, :, None] + 100 * torch.arange(32.0)[None, None]  # row + 100 column
    image = image.expand(4, 1, 32, 32).contiguous()
    mask = torch.zeros(4, 1, 32, 32, dtype=torch.bool)
    mask[0, 0, 8:16, 12:16] = True  # 8 high: a crop of 16 around row 12 and column 14
    mask[1, 0, 0:8, 30:32] = True  # in a corner: moved inside
    mask[2] = True  # all of it
    crop, place = crop_around(image, mask, 2.0)
    torch.testing.assert_close(place[:, 2], torch.tensor([0.5, 0.5, 1.0, 1.0]))
    torch.testing.assert_close(place[:2, :2], torch.tensor([[14 / 16 - 1, 12 / 16 - 1], [0.5, -0.5]]))
    torch.testing.assert_close(crop[2:], image[2:])  # an empty mask shows the whole image
    # two pixels of the crop per pixel of the image; the means of both are those of the region
    assert crop[0].mean() == pytest.approx(float(image[0, 0, 4:20, 6:22].mean()), rel=1e-4)
    assert crop[1].mean() == pytest.approx(float(image[1, 0, 0:16, 16:32].mean()), rel=1e-3)
    assert crop_around(image, mask & (image == 1212), 1.0)[1][0, 2] == 0.125


def test_grades_read_the_crop_and_masks_the_whole_fundus() -> None:
    config = problem.config(*GAMMA, "model.options={crop: 2.0}")
    model, batch = build(config).eval(), batch_of(config)
    batch = dataclasses.replace(batch, present=torch.ones(4, 2, dtype=torch.bool))
    quarter = torch.full((4, 1, 32, 32), -1.0)
    quarter[:, :, 4:12, 4:12] = 1.0  # a crop of rows and columns 0 to 16
    model.decoders["cup"].register_forward_hook(lambda _m, _i, out: out * 0 + quarter)  # type: ignore[attr-defined]
    outside = batch.views["fundus"].clone()
    outside[:, :, 18:] = 0
    inside = batch.views["fundus"].clone()
    inside[:, :, :14, :14] = 0
    with torch.no_grad():
        seen = [model(dataclasses.replace(batch, views={**batch.views, "fundus": f})) for f in (outside, inside)]
        whole = model(batch)
    torch.testing.assert_close(whole.extras["crop"], torch.tensor([-0.5, -0.5, 0.5]).expand(4, 3))
    torch.testing.assert_close(seen[0].logits["glaucoma"], whole.logits["glaucoma"])
    assert not torch.allclose(seen[1].logits["glaucoma"], whole.logits["glaucoma"], atol=1e-4)


@pytest.mark.parametrize("regime", ["vit", "native"])
def test_with_a_crop_everything_learns_from_both_losses(regime: str) -> None:
    size = () if regime == "vit" else ("data.image_size=[64, 64]",)
    config = problem.config(*GAMMA, *size, f"model.regime={regime}", "model.options={crop: 4.0}")
    model, batch = build(config).train(), batch_of(config)
    output = model(batch)
    names, values = zip(*model.named_parameters(), strict=True)
    reached = {}
    for task in ("glaucoma", "cup"):
        found = torch.autograd.grad(output.logits[task].square().sum(), values, retain_graph=True, allow_unused=True)
        # zero does not show that the path is missing: timm's residual branches start at zero
        reached[task] = {name for name, g in zip(names, found, strict=True) if g is not None}
    assert reached["glaucoma"] | reached["cup"] == set(names)
    assert not any(name.startswith("decoders") for name in reached["glaucoma"])


@pytest.mark.parametrize("extra", [("data.tasks=[glaucoma]",), ("model.attach_mtoe=replace",)])
def test_a_crop_without_mask_or_fusion_is_refused(extra: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="crop"):
        build(problem.config(*GAMMA, "model.options={crop: 4.0}", *extra))


def test_dice_of_equal_disjoint_and_empty_masks() -> None:
    """As evaluation reports it, and as the loss differs from it: 1 minus Dice, up to the smoothing by one pixel."""
    config = problem.config(*GAMMA, "data.tasks=[cup]")
    spec = spec_for(config)
    left = torch.zeros(1, 32, 32)
    left[:, :, :16] = 1.0
    empty = torch.zeros_like(left)
    truth = torch.stack([left, left, empty, left])
    predicted = torch.stack([left, 1 - left, empty, empty])
    batch = dataclasses.replace(
        problem.samples(spec, 4, 0), labels={"cup": truth}, label_mask=torch.ones(4, 1, dtype=torch.bool)
    )
    logits = torch.where(predicted > 0, 100.0, -100.0)
    rows = _rows(ModelOutput({"cup": logits}), batch, spec, objective(config, spec, None, torch.device("cpu")))
    assert rows["dice_cup"].tolist() == [1.0, 0.0, 1.0, 0.0]
    for row, dice in enumerate((1.0, 1 / 1025, 1.0, 1 / 513)):  # 512 pixels each, smoothing 1
        one = torch.zeros(4, dtype=torch.bool)
        one[row] = True
        loss = binary_cross_entropy_dice(logits, truth, one).sum
        entropy = 100.0 * (predicted[row] != truth[row]).float().mean()
        assert float(loss - entropy) == pytest.approx(1 - dice, abs=1e-4)


def _bump(g: torch.Tensor, k: int, token: int) -> torch.Tensor:
    g = g.clone()
    g[:, k, token] += 20.0
    return g
