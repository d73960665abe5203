"""Volumes in patches of voxels: order of the tokens, the backbone's blocks, weights for images, what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from m4oe_ds.config import EmbedderConfig
from m4oe_ds.errors import ConfigError
from m4oe_ds.models.embedders import Embedder
from m4oe_ds.models.missing_bank import count_tokens
from m4oe_ds.models.volume_embedder import VolumeEmbedder

SIZE = (8, 16, 24)
OPTIONS = {"patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
VIT = EmbedderConfig(backbone="vit_tiny_patch16_224", options=OPTIONS, volume_patch=(4, 8, 8))


def changed(**values: Any) -> EmbedderConfig:
    return dataclasses.replace(VIT, **values)


def volumes(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 1, *SIZE, generator=torch.Generator().manual_seed(0))


def test_tokens_go_depth_first_after_the_class_token_and_every_parameter_learns() -> None:
    embedder = VolumeEmbedder(VIT, 1, SIZE, 20)
    assert (embedder.grid, embedder.num_prefix_tokens, embedder.is_transformer) == ((2, 2, 3), 1, True)
    assert len(embedder.blocks) == 2
    tokens = embedder(volumes())
    assert tokens.shape == (2, 1 + 12, 20)
    assert count_tokens(embedder, (1, *SIZE)) == 13
    tokens.square().sum().backward()
    assert not [name for name, value in embedder.named_parameters() if value.grad is None or not value.grad.any()]


def test_a_token_is_its_patch() -> None:
    """Without blocks, a changed voxel changes the token of its place alone."""
    embedder = VolumeEmbedder(VIT, 1, SIZE, 16)
    embedder.blocks = torch.nn.Sequential()
    before, other = volumes(1), volumes(1)
    other[0, 0, 5, 3, 17] += 1.0  # layer 1, row 0, column 2
    moved = (embedder(before) - embedder(other)).abs().sum(2)[0] > 0
    assert moved.nonzero().flatten().tolist() == [1 + (1 * 2 + 0) * 3 + 2]


def test_a_volume_of_equal_slices_is_its_slice_where_weights_are_loaded(tmp_path: Path) -> None:
    torch.manual_seed(1)
    image = Embedder(VIT, 1, (16, 24), 16).eval()
    path = tmp_path / "weights.safetensors"
    save_file({name: value.contiguous() for name, value in image.backbone.state_dict().items()}, str(path))
    flat = (1, 8, 16, 24), (8, 8, 8)  # one layer of patches
    embedder = VolumeEmbedder(changed(weights=str(path), volume_patch=flat[1]), 1, flat[0][1:], 16).eval()
    picture = torch.randn(2, 1, 16, 24)
    found = embedder(picture[:, :, None].expand(-1, -1, 8, -1, -1))
    torch.testing.assert_close(found, image(picture))
    fresh = VolumeEmbedder(changed(volume_patch=flat[1]), 1, flat[0][1:], 16).eval()
    assert (fresh(picture[:, :, None].expand(-1, -1, 8, -1, -1)) - image(picture)).abs().max() > 0.5


def test_frozen_blocks_get_no_gradient_and_the_patches_do() -> None:
    embedder = VolumeEmbedder(VIT, 1, SIZE, 16)
    embedder.freeze()
    embedder(volumes()).square().sum().backward()
    frozen = {name.split(".")[0] for name, value in embedder.named_parameters() if value.grad is None}
    assert frozen == {"blocks", "norm"}


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_prefix_tokens_are_those_of_the_backbone(name: str) -> None:
    config = changed(backbone=name, options={**OPTIONS, "reg_tokens": 3} if "dino" not in name else OPTIONS)
    if "dino" in name:
        with pytest.raises(ConfigError, match="not a plain vision transformer"):
            VolumeEmbedder(config, 1, SIZE, 16)
        return
    embedder = VolumeEmbedder(config, 1, SIZE, 16)
    assert embedder.num_prefix_tokens == 4
    assert embedder(volumes()).shape == (2, 4 + 12, 16)


@pytest.mark.parametrize("patch", [(3, 8, 8), (4, 8, 16), (8, 16), (16, 16, 24)])
def test_patches_that_do_not_divide_the_volume(patch: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        VolumeEmbedder(changed(volume_patch=patch), 1, SIZE, 16)
    text = str(caught.value)
    assert "model.embedder.volume_patch" in text
    assert "data.volume_size" in text
    assert "\n" not in text


def test_a_convolutional_backbone_takes_no_volumes() -> None:
    with pytest.raises(ConfigError, match="resnet18 takes no volumes: it is a ResNet") as caught:
        VolumeEmbedder(changed(backbone="resnet18", options={}), 1, SIZE, 16)
    assert "\n" not in str(caught.value)
