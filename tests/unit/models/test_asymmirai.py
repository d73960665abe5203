"""AsymMirai's facts: what the difference map is, its sizes, and what its score does and does not depend on."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from m4oe_ds.data.batch import Batch
from m4oe_ds.errors import ConfigError
from m4oe_ds.models import build, spec_for
from m4oe_ds.models.baselines.asymmirai import AsymMirai, difference_map, window_of
from tests.distributed import problem

BASE = ("model.name=asymmirai",)


def model_and_batch(*overrides: str, count: int = 4) -> tuple[AsymMirai, Batch]:
    config = problem.config(*BASE, *overrides)
    model = build(config).eval()
    assert isinstance(model, AsymMirai)
    batch = problem.samples(spec_for(config), count, 0)
    full = torch.ones_like(batch.present)
    return model, dataclasses.replace(
        batch, present=full, extras={**batch.extras, "contralateral_present": full.clone()}
    )


def mirrored(batch: Batch) -> Batch:
    """The other breast looks the same."""
    same = {f"contralateral.{name}": view.clone() for name, view in batch.views.items()}
    return dataclasses.replace(batch, extras={**batch.extras, **same})


def swapped(batch: Batch) -> Batch:
    views = {name: batch.extras[f"contralateral.{name}"] for name in batch.views}
    others = {f"contralateral.{name}": view for name, view in batch.views.items()}
    return dataclasses.replace(batch, views=views, extras={**batch.extras, **others})


def test_equal_breasts_have_no_asymmetry() -> None:
    model, batch = model_and_batch()
    with torch.no_grad():
        output = model(mirrored(batch))
    assert (output.extras["asymmetry"] <= 1e-6 + 1e-12).all()
    assert model.score is not None
    expected = -model.score.threshold / model.score.temperature
    for k in range(5):
        found = output.logits[f"risk{k + 1}"]
        torch.testing.assert_close(found[:, 1] - found[:, 0], expected[k].detach().expand(4), rtol=1e-4, atol=1e-5)


def test_left_and_right_may_be_swapped() -> None:
    model, batch = model_and_batch()
    with torch.no_grad():
        one, other = model(batch), model(swapped(batch))
    torch.testing.assert_close(one.extras["asymmetry"], other.extras["asymmetry"])
    for name in one.logits:
        torch.testing.assert_close(one.logits[name], other.logits[name])


def test_scaling_both_maps_scales_the_score() -> None:
    a, b = torch.randn(2, 5, 9, 8), torch.randn(2, 5, 9, 8)
    _, heat = difference_map(a, b)
    _, scaled = difference_map(-3 * a, -3 * b)
    torch.testing.assert_close(scaled, 3 * heat)


def test_a_difference_at_one_place_raises_only_the_windows_over_it() -> None:
    a = torch.zeros(1, 4, 20, 15)
    b = a.clone()
    b[0, 2, 11, 6] = 7.0
    _, heat = difference_map(a, b)
    high, wide = window_of(20, 15)
    assert (high, wide) == (4, 3)
    rows, columns = (heat[0] > 1e-3).nonzero().T
    assert heat.max() == pytest.approx(7.0)
    top, left = divmod(int(heat[0].argmax()), heat.shape[2])
    assert top <= 11 < top + high
    assert left <= 6 < left + wide
    assert (int(rows.min()), int(rows.max())) == (11 - high + 1, 11)
    assert (int(columns.min()), int(columns.max())) == (6 - wide + 1, 6)


def test_map_sizes_of_the_release() -> None:
    a = torch.zeros(1, 512, 52, 64)
    assert window_of(52, 64) == (10, 12)
    assert difference_map(a, a)[1].shape == (1, 43, 53)
    assert difference_map(a, a, flexible=False)[1].shape == (1, 5, 5)
    assert window_of(7, 7) == (3, 3)
    assert window_of(2, 2) == (2, 2)


def test_native_maps_of_full_resolution_have_the_published_size() -> None:
    size = (1664, 2048)
    with torch.device("meta"):
        model: Any = build(problem.config(*BASE, "model.regime=native", f"data.image_size={list(size)}"))
        maps = model.encoders({name: torch.empty(1, 1, *size) for name in model.spec.modalities})
    assert {tuple(stages[-1].shape) for stages in maps.values()} == {(1, 512, 52, 64)}


def test_flexible_windows_find_at_least_as_much_as_the_grid() -> None:
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        a, b = torch.randn(3, 4, 16, 17, generator=generator), torch.randn(3, 4, 16, 17, generator=generator)
        flexible, grid = difference_map(a, b)[1], difference_map(a, b, flexible=False)[1]
        assert (flexible.flatten(1).amax(1) >= grid.flatten(1).amax(1)).all()


def test_channel_matrices_start_near_the_identity_and_have_the_published_size() -> None:
    model = build(problem.config(*BASE, "model.regime=native", "data.image_size=[64, 64]"))
    assert isinstance(model, AsymMirai)
    assert sum(p.numel() for p in model.channels.parameters()) == 2 * 512**2 == 524_288
    for matrix in model.channels.parameters():
        assert float((matrix - torch.eye(512)).std().detach()) == pytest.approx(0.01, rel=0.02)


def test_the_window_reported_is_that_of_the_largest_value() -> None:
    model, batch = model_and_batch()
    with torch.no_grad():
        extras = model(batch).extras
    for i, name in enumerate(("ffdm_cc", "syn_mlo")):
        heat, place = extras[f"heatmap.{name}"], extras[f"window.{name}"]
        values = heat[torch.arange(4), place[:, 0], place[:, 1]]
        torch.testing.assert_close(values, heat.flatten(1).amax(1))
        torch.testing.assert_close(values, extras["asymmetry"][:, i])


@pytest.mark.parametrize("flexible", [True, False])
def test_the_box_is_the_window_as_a_share_of_the_view(flexible: bool) -> None:
    options = f"model.options={{flexible: {str(flexible).lower()}}}"
    model, batch = model_and_batch("data.image_size=[64, 56]", options)  # maps of 8 x 7, windows of 3 x 3
    with torch.no_grad():
        extras = model(batch).extras
    for name in ("ffdm_cc", "syn_mlo"):
        row, column = extras[f"window.{name}"].T
        step = 1 if flexible else 3
        expected = torch.stack([row * step / 8, column * step / 7, torch.full((4,), 3 / 8), torch.full((4,), 3 / 7)], 1)
        torch.testing.assert_close(extras[f"box.{name}"], expected)
        top, left, height, width = extras[f"box.{name}"].T
        assert ((top + height <= 1) & (left + width <= 1)).all()


def test_without_the_other_breast_there_is_no_score_but_content() -> None:
    model, batch = model_and_batch()
    nobody = torch.zeros_like(batch.present)
    alone = dataclasses.replace(batch, extras={**batch.extras, "contralateral_present": nobody})
    noise = {k: torch.randn_like(v) if k.startswith("contralateral.") else v for k, v in alone.extras.items()}
    with torch.no_grad():
        one, other = model(alone), model(dataclasses.replace(alone, extras=noise))
    for name, value in one.logits.items():
        torch.testing.assert_close(value, other.logits[name])  # what is absent changes nothing
        assert (value == 0).all() == name.startswith("risk")  # even odds


def test_it_says_what_it_needs() -> None:
    model, batch = model_and_batch()
    with pytest.raises(ConfigError, match=r"data\.contralateral"):
        model(dataclasses.replace(batch, extras={}))
    with pytest.raises(ConfigError, match="predicts no masks, and cup is one"):
        build(problem.config(*BASE, "data.dataset=gamma", "data.modalities=[fundus, oct]"))


FOUR = ("data.modalities=[ffdm_cc, ffdm_mlo, syn_cc, syn_mlo]",)
CROSS = (*FOUR, "model.options={pairs: cross_type}")


def test_cross_type_compares_the_two_images_of_a_view_and_not_the_breasts() -> None:
    model, batch = model_and_batch(*CROSS)
    with torch.no_grad():
        alone = model(dataclasses.replace(batch, extras={}))  # needs no other breast, and does not look at it
        torch.testing.assert_close(model(batch).extras["asymmetry"], alone.extras["asymmetry"])
        for i, view in enumerate(("cc", "mlo", "cc", "mlo")):
            a, b = (f"{kind}_{view}" for kind in ("ffdm", "syn"))
            own, other = (a, b) if i < 2 else (b, a)
            maps = model.encoders(batch.views)
            matrix = model.channels[own]
            _, heat = difference_map(matrix(maps[own][-1]), matrix(maps[other][-1]))
            torch.testing.assert_close(alone.extras["asymmetry"][:, i], heat.flatten(1).amax(1))


def test_cross_type_without_the_partner_has_no_pair() -> None:
    model, batch = model_and_batch(*CROSS)
    batch = dataclasses.replace(batch, present=torch.tensor([[True, True, False, False]]).expand(4, 4), extras={})
    with torch.no_grad():
        output = model(batch)
    assert all((output.logits[f"risk{k}"] == 0).all() for k in range(1, 6))  # even odds


def test_pairs_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ConfigError, match="has no partner"):
        build(problem.config(*BASE, "model.options={pairs: cross_type}"))  # ffdm_cc and syn_mlo
    with pytest.raises(ConfigError, match=r"pairs \(of asymmirai\) must be one of bilateral, cross_type"):
        build(problem.config(*BASE, "model.options={pairs: left}"))
