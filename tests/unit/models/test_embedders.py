"""Image embedders: any timm backbone, where its weights come from, what is shared and what is frozen."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from m4oe_ds.config import EmbedderConfig
from m4oe_ds.data.schema import ModalitySpec
from m4oe_ds.errors import ConfigError
from m4oe_ds.models import backbones
from m4oe_ds.models.embedders import Embedder, Embedders

SIZE = (32, 24)
VIT = EmbedderConfig(
    backbone="vit_tiny_patch16_224", options={"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
)
CONVOLUTIONAL = EmbedderConfig(backbone="resnet18")


def images(channels: int = 1, count: int = 2) -> Tensor:
    return torch.randn(count, channels, *SIZE, generator=torch.Generator().manual_seed(0))


def grey(*names: str) -> list[ModalitySpec]:
    return [ModalitySpec(name) for name in names]


def changed(config: EmbedderConfig, **values: Any) -> EmbedderConfig:
    return dataclasses.replace(config, **values)


# ------------------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("channels", [1, 3, 256])
def test_a_transformer_gives_its_tokens_class_token_first(channels: int) -> None:
    embedder = Embedder(VIT, channels, SIZE, 16)
    tokens = embedder(images(channels))
    assert tokens.shape == (2, 1 + 4 * 3, 16)
    assert embedder.num_prefix_tokens == 1
    assert embedder.is_transformer
    assert embedder.backbone.patch_embed.grid_size == (4, 3)
    assert torch.equal(tokens, embedder.backbone.forward_features(images(channels)))


def test_a_convolutional_network_gives_its_last_map_row_by_row() -> None:
    embedder = Embedder(CONVOLUTIONAL, 1, (64, 96), 512).eval()
    image = torch.randn(2, 1, 64, 96)
    tokens = embedder(image)
    assert tokens.shape == (2, 2 * 3, 512)
    assert not embedder.is_transformer
    features = embedder.backbone.forward_features(image)  # [B, C, h, w]
    for row in range(2):
        for column in range(3):
            torch.testing.assert_close(tokens[:, row * 3 + column], features[:, :, row, column])


def test_another_width_is_projected() -> None:
    assert isinstance(Embedder(VIT, 1, SIZE, 16).project, torch.nn.Identity)
    embedder = Embedder(VIT, 1, SIZE, 20)
    assert embedder(images()).shape == (2, 13, 20)
    assert embedder.project.weight.shape == (20, 16)


def test_replicated_grey_is_the_three_channel_network_on_three_copies() -> None:
    embedder = Embedder(changed(VIT, replicate_grey=True), 1, SIZE, 16)
    assert embedder.backbone.patch_embed.proj.weight.shape[1] == 3
    torch.testing.assert_close(embedder(images()), embedder.backbone(torch.cat([images()] * 3, 1)))
    colour = Embedder(changed(VIT, replicate_grey=True), 3, SIZE, 16)
    assert not colour.replicate


# ------------------------------------------------------------------------------------------------- sharing, freezing


def test_one_embedder_each() -> None:
    each = Embedders(VIT, grey("a", "b"), SIZE, 16)
    found = each({"a": images(), "b": images()})
    assert list(found) == ["a", "b"]
    assert not torch.equal(found["a"], found["b"])
    assert each.modality_embed is None


def test_a_shared_embedder_tells_modalities_apart_by_a_learned_vector_alone() -> None:
    shared = Embedders(changed(VIT, share=True), grey("a", "b"), SIZE, 16)
    assert len(shared.by_modality) == 1
    found = shared({"a": images(), "b": images()})
    difference = shared.modality_embed["a"] - shared.modality_embed["b"]
    torch.testing.assert_close(found["a"] - found["b"], difference.expand(2, 13, -1), rtol=1e-4, atol=1e-5)
    assert difference.abs().max() > 0


def test_sharing_needs_equal_channels() -> None:
    fundus, oct_volume = ModalitySpec("fundus", channels=3), ModalitySpec("oct", "volume", slices=256)
    with pytest.raises(ConfigError, match=r"model\.embedder\.share needs equal channels.*'oct': 256"):
        Embedders(changed(VIT, share=True), [fundus, oct_volume], SIZE, 16)


def test_a_modality_vector_can_be_added_without_sharing() -> None:
    each = Embedders(changed(VIT, modality_embed=True), grey("a", "b"), SIZE, 16)
    tokens = each({"a": images()})["a"]
    torch.testing.assert_close(tokens, each.by_modality["a"](images()) + each.modality_embed["a"])


def test_frozen_embedders_get_no_gradient_and_the_projection_does() -> None:
    frozen = Embedders(changed(VIT, freeze=True), grey("a"), SIZE, 20)
    frozen({"a": images()})["a"].square().sum().backward()
    for name, parameter in frozen.named_parameters():
        assert (parameter.grad is None) is (".backbone." in name), name


# ------------------------------------------------------------------------------------------------------ weights


def test_local_weights_by_path(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = Embedder(VIT, 1, SIZE, 16)
    path = tmp_path / "weights.safetensors"
    save_file({name: value.contiguous() for name, value in source.backbone.state_dict().items()}, str(path))
    torch.manual_seed(2)
    assert not torch.equal(Embedder(VIT, 1, SIZE, 16)(images()), source(images()))
    loaded = Embedder(changed(VIT, weights=str(path)), 1, SIZE, 16)
    torch.testing.assert_close(loaded(images()), source(images()), rtol=0, atol=0)


def test_weights_that_do_not_exist(tmp_path: Path) -> None:
    path = tmp_path / "absent.safetensors"
    with pytest.raises(ConfigError, match="no such weights file") as caught:
        Embedder(changed(VIT, weights=str(path)), 1, SIZE, 16)
    assert str(path) in str(caught.value)


def test_weights_of_another_shape(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    other = Embedder(changed(VIT, options={**VIT.options, "embed_dim": 32}), 1, SIZE, 32)
    save_file({name: value.contiguous() for name, value in other.backbone.state_dict().items()}, str(path))
    with pytest.raises(ConfigError, match="cannot load") as caught:
        Embedder(changed(VIT, weights=str(path)), 1, SIZE, 16)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x80\x02}q\x00."])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_file_that_holds_no_weights(tmp_path: Path, content: bytes, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"model\.embedder\.weights"):
        Embedder(changed(VIT, weights=str(path)), 1, SIZE, 16)


def test_a_pickled_object_is_not_executed(tmp_path: Path) -> None:
    """A .pth file is code unless it is loaded as weights only."""
    marker, path = tmp_path / "executed", tmp_path / "weights.pth"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (marker,))

    torch.save({"state_dict": Payload()}, path)
    with pytest.raises(ConfigError):
        Embedder(changed(VIT, weights=str(path)), 1, SIZE, 16)
    assert not marker.exists()


def test_without_a_network_the_hub_is_a_configuration_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("cannot reach the hub\nand a second line")

    monkeypatch.setattr(backbones.timm, "create_model", offline)
    with pytest.raises(ConfigError, match="give their path") as caught:
        Embedder(changed(VIT, weights="hub"), 1, SIZE, 16)
    assert "cannot reach the hub" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_backbone_names_near_ones() -> None:
    with pytest.raises(ConfigError, match="'vit_huge_patch3'") as caught:
        Embedder(changed(VIT, backbone="vit_huge_patch3"), 1, SIZE, 16)
    assert "model.embedder.backbone" in str(caught.value)
    assert "near: " in str(caught.value)


@pytest.mark.parametrize("options", [{"patchsize": 8}, {"patch_size": 8, "embed_dim": 10, "num_heads": 3}])
def test_options_that_timm_refuses(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"model\.embedder\.options"):
        Embedder(changed(VIT, options=options), 1, SIZE, 16)
