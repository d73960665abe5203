"""EyeStar's facts: sizes of the public grading baseline, monotone grades, the mask decoder and the MToE's places."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from m4oe_ds.evaluation.inference import _rows
from m4oe_ds.losses import binary_cross_entropy_dice
from m4oe_ds.models import build, spec_for
from m4oe_ds.models.interface import ModelOutput
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
    model = build(config)
    fundus, oct_branch = model.encoders.by_modality["fundus"], model.encoders.by_modality["oct"]  # type: ignore[attr-defined]
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
    rows = _rows(ModelOutput({"cup": logits}), batch, spec)
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
