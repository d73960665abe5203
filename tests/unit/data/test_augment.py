"""Augmentation: nothing at zero strength, reproducible, background untouched, masks follow their image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from m4oe_ds.config import AugmentConfig
from m4oe_ds.data import augment as augmentation
from m4oe_ds.data.augment import AugmentOptions
from m4oe_ds.data.schema import ModalitySpec

FULL = AugmentOptions(10.0, 0.04, 0.08, 0.15, 0.1, 0.01, True)


INPUTS = (
    ModalitySpec("ffdm_cc"),
    ModalitySpec("syn_cc"),
    ModalitySpec("fundus", channels=3),
    ModalitySpec("oct", "volume", slices=4),
    ModalitySpec("ct", "volume"),
    ModalitySpec("clinic", "table"),
)


def augment(
    views: dict[str, Tensor], masks: dict[str, Tensor], options: AugmentOptions, state: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return augmentation.augment(views, masks, INPUTS, {"cup": "fundus", "lesion": "ct"}, options, state)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def breast(channels: int = 1) -> Tensor:
    """Smooth tissue on the left half, background on the right."""
    rows, columns = torch.meshgrid(torch.linspace(0, 1, 32), torch.linspace(0, 1, 24), indexing="ij")
    image = 0.2 + 0.3 * rows + 0.3 * columns
    return torch.where(columns < 0.5, image, 0.0).expand(channels, -1, -1).clone()


def test_zero_strength_is_the_identity() -> None:
    views = {"ffdm_cc": breast(), "fundus": breast(3)}
    masks = {"cup": (breast() > 0.5).float()}
    found, moved = augment(views, masks, AugmentOptions(), generator(0))
    for name, view in views.items():
        torch.testing.assert_close(found[name], view, rtol=0, atol=1e-5)
    torch.testing.assert_close(moved["cup"], masks["cup"], rtol=0, atol=0)


def test_the_configuration_offers_exactly_these_strengths() -> None:
    """Every strength of the configuration reaches the augmentation."""
    import dataclasses

    options = {field.name for field in dataclasses.fields(AugmentOptions)}
    assert {field.name for field in dataclasses.fields(AugmentConfig)} == options | {"enabled"}


def test_equal_generators_give_equal_images_and_others_different_ones() -> None:
    views = {"ffdm_cc": breast(), "syn_cc": breast()}
    first, _ = augment(views, {}, FULL, generator(1))
    again, _ = augment(views, {}, FULL, generator(1))
    other, _ = augment(views, {}, FULL, generator(2))
    assert all(torch.equal(first[name], again[name]) for name in views)
    assert not torch.equal(first["ffdm_cc"], other["ffdm_cc"])
    assert not torch.equal(first["ffdm_cc"], first["syn_cc"])  # each view is drawn on its own


def test_the_global_generator_and_the_input_are_left_alone() -> None:
    view = breast()
    before, state = view.clone(), torch.get_rng_state()
    augment({"ffdm_cc": view}, {}, FULL, generator(0))
    assert torch.equal(view, before)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("seed", range(5))
def test_grey_scale_changes_and_noise_leave_the_background_zero(seed: int) -> None:
    view = breast()
    options = AugmentOptions(gamma=0.3, contrast=0.3, noise=0.1)
    found = augment({"ffdm_cc": view}, {}, options, generator(seed))[0]["ffdm_cc"]
    background = torch.arange(24) >= 13  # one column from the edge: interpolation rounds there
    assert found[:, :, background].abs().max() < 1e-6
    assert (found - view)[:, :, :10].abs().max() > 0.01


@pytest.mark.parametrize("seed", range(5))
def test_an_empty_image_stays_empty(seed: int) -> None:
    found = augment({"ffdm_cc": torch.zeros(1, 16, 16)}, {}, FULL, generator(seed))[0]["ffdm_cc"]
    assert torch.equal(found, torch.zeros(1, 16, 16))


def test_vertical_flip_mirrors_top_to_bottom_half_of_the_time() -> None:
    view = torch.rand(1, 12, 10, generator=generator(0))
    flipped = 0
    for seed in range(60):
        found = augment({"ffdm_cc": view}, {}, AugmentOptions(vertical_flip=True), generator(seed))[0]["ffdm_cc"]
        mirrored, same = (torch.allclose(found, other, atol=1e-5) for other in (view.flip(1), view))
        assert mirrored != same
        flipped += mirrored
    assert 15 <= flipped <= 45


@pytest.mark.parametrize("seed", range(20))
def test_the_strength_bounds_the_shift(seed: int) -> None:
    """A bright square moves by at most the given share of the side, and its size changes by at most the scale."""
    view = torch.zeros(1, 100, 100)
    view[:, 40:60, 40:60] = 1.0
    moved = augment({"ffdm_cc": view}, {}, AugmentOptions(translation=0.1), generator(seed))[0]["ffdm_cc"][0]
    weights = moved / moved.sum()
    centre = torch.stack([(weights.sum(1) * torch.arange(100)).sum(), (weights.sum(0) * torch.arange(100)).sum()])
    assert (centre - 49.5).abs().max() <= 10.0 + 0.05
    scaled = augment({"ffdm_cc": view}, {}, AugmentOptions(scale=0.2), generator(seed))[0]["ffdm_cc"][0]
    assert 20 * 0.8 - 0.5 <= float(scaled.sum()) ** 0.5 <= 20 * 1.2 + 0.5


def test_rotation_turns_about_the_centre_within_its_limit() -> None:
    view = torch.zeros(1, 101, 101)
    view[:, 20, 50] = 1.0  # 30 pixels above the centre
    angles = []
    for seed in range(30):
        turned = augment({"ffdm_cc": view}, {}, AugmentOptions(rotation_degrees=20.0), generator(seed))[0]["ffdm_cc"][0]
        weights = turned / turned.sum()
        row = float((weights.sum(1) * torch.arange(101)).sum()) - 50
        column = float((weights.sum(0) * torch.arange(101)).sum()) - 50
        assert (row**2 + column**2) ** 0.5 == pytest.approx(30.0, abs=1.0)
        angles.append(float(torch.rad2deg(torch.atan2(torch.tensor(column), torch.tensor(-row)))))
    assert max(map(abs, angles)) <= 21.5  # 20 degrees and one pixel
    assert min(angles) < -5 < 5 < max(angles)


def test_a_mask_follows_its_fundus_image() -> None:
    disc = torch.zeros(1, 64, 64)
    disc[:, 10:30, 20:50] = 1.0
    views = {"fundus": disc.expand(3, -1, -1).clone() * 0.9, "oct": torch.rand(4, 64, 64, generator=generator(0))}
    options = AugmentOptions(rotation_degrees=30.0, translation=0.1, scale=0.2, vertical_flip=True)
    for seed in range(10):
        found, moved = augment(views, {"cup": disc}, options, generator(seed))
        assert set(moved["cup"].unique().tolist()) == {0.0, 1.0}
        overlap = ((found["fundus"][0] > 0.45) == (moved["cup"][0] > 0.5)).float().mean()
        assert overlap > 0.98
        assert not torch.equal(moved["cup"], disc)
