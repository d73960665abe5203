"""Pretrained weights are judged by what of them fits: counted, recognised under wrappers, or refused with names."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from m4oe_ds.config import EmbedderConfig
from m4oe_ds.errors import ConfigError
from m4oe_ds.models import backbones, build
from m4oe_ds.models.backbones import create_backbone
from m4oe_ds.models.pretrained import lines, match, read_state, records
from tests.distributed import problem

SIZE = (32, 24)
OPTIONS = {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
VIT = EmbedderConfig(backbone="vit_tiny_patch16_224", options=OPTIONS)


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Tensors of a backbone with other values than a fresh one."""
    torch.manual_seed(5)
    return {name: value.clone() + 1 for name, value in create_backbone(VIT, 1, SIZE).state_dict().items()}


def loaded(path: Path) -> Any:
    return create_backbone(dataclasses.replace(VIT, weights=str(path)), 1, SIZE)


def assert_taken(path: Path, state: dict[str, Tensor], line: str) -> None:
    network = loaded(path)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert network.loaded.line() == line


def test_a_plain_file(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, tmp_path / "vit.safetensors")
    assert_taken(tmp_path / "vit.safetensors", state, f"{len(state)} of {len(state)} tensors from vit.safetensors")


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "teacher.backbone.", "encoder.model.", "a.b.c."])
def test_what_wrappers_put_in_front_is_recognised(prefix: str, tmp_path: Path, state: dict[str, Tensor]) -> None:
    more = {"head.mlp.0.bias": torch.zeros(3), f"{prefix}decoder.weight": torch.zeros(2)}
    torch.save({f"{prefix}{name}": value for name, value in state.items()} | more, tmp_path / "ssl.pth")
    line = f"{len(state)} of {len(state)} tensors from ssl.pth (names began with {prefix!r}), 2 left out: "
    assert_taken(tmp_path / "ssl.pth", state, line + ", ".join(sorted(more)))


@pytest.mark.parametrize("wrappers", [("state_dict",), ("teacher",), ("model", "state_dict"), ("model_ema",)])
def test_checkpoints_that_wrap_their_weights(wrappers: Any, tmp_path: Path, state: dict[str, Tensor]) -> None:
    content: dict[str, Any] = {f"backbone.{name}": value for name, value in state.items()}
    for name in reversed(wrappers):
        content = {"epoch": 7, "optimizer": {"lr": 0.1}, name: content}
    torch.save(content, tmp_path / "run.ckpt")
    assert loaded(tmp_path / "run.ckpt").loaded.prefix == "backbone."


def test_half_of_the_names_is_refused_with_those_that_are_missing(tmp_path: Path, state: dict[str, Tensor]) -> None:
    kept = dict(list(state.items())[: len(state) // 2])
    save_file(kept, tmp_path / "half.safetensors")
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path / "half.safetensors")
    text = str(caught.value)
    assert f"half.safetensors has {len(kept)} of the {len(state)} tensors of vit_tiny_patch16_224" in text
    assert "not in it: " in text
    assert next(name for name in state if name not in kept) in text
    assert "\n" not in text


def test_names_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file({"layer1.0.conv1.weight": torch.zeros(4, 3, 3, 3)}, tmp_path / "resnet.safetensors")
    with pytest.raises(ConfigError, match=r"has 0 of the \d+ tensors .* it has layer1\.0\.conv1\.weight"):
        loaded(tmp_path / "resnet.safetensors")


def test_a_whole_model_of_this_trainer_is_sent_to_its_own_option(tmp_path: Path) -> None:
    own = build(problem.config("model.embedder.options={patch_size: 8, embed_dim: 16, depth: 1, num_heads: 2}"))
    save_file({name: value.contiguous() for name, value in own.state_dict().items()}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=r"model\.safetensors is a whole model of this trainer.*model\.init_from"):
        loaded(tmp_path / "model.safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_truncated_file_is_one_line(suffix: str, tmp_path: Path, state: dict[str, Tensor]) -> None:
    path = tmp_path / f"cut{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ConfigError, match=r"model\.embedder\.weights: cannot read .*cut") as caught:
        read_state(path)
    assert "\n" not in str(caught.value)


def test_running_statistics_are_taken_with_the_weights() -> None:
    """Integers, such as a count of batches, may be missing; statistics may not."""
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    full = {name: value + 1 for name, value in network.state_dict().items()}
    named, found = match({k: v for k, v in full.items() if v.is_floating_point()}, network, "a.pth", "net")
    assert (found.loaded, found.of) == (6, 6)
    assert torch.equal(named["1.running_mean"], full["1.running_mean"])
    with pytest.raises(ConfigError, match=r"not in it: 1\.running_var"):
        match({k: v for k, v in full.items() if "running_var" not in k}, network, "a.pth", "net")


def test_lines_and_records_of_a_model(tmp_path: Path, state: dict[str, Tensor]) -> None:
    save_file(state, tmp_path / "vit.safetensors")
    weights = f"model.embedder.weights={tmp_path / 'vit.safetensors'}"
    model = build(problem.config(weights, "data.image_size=[32, 24]"))
    count = len(state)
    assert lines(model) == [f"ffdm_cc, syn_mlo: {count} of {count} tensors from vit.safetensors"]
    assert records(model) == [
        {
            "modalities": ["ffdm_cc", "syn_mlo"],
            "source": "vit.safetensors",
            "loaded": count,
            "of": count,
            "prefix": "",
            "left_out": 0,
        }
    ]
    assert str(tmp_path) not in str(records(model))
    shared = build(problem.config(weights, "data.image_size=[32, 24]", "model.embedder.share=true"))
    assert records(shared)[0]["modalities"] == ["shared"]
    assert (lines(build(problem.config())), records(build(problem.config()))) == ([], [])


def test_without_a_network_the_file_that_is_wanted_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("cannot reach the hub")

    monkeypatch.setattr(backbones.timm, "create_model", offline)
    config = EmbedderConfig(backbone="vit_base_patch16_224.augreg_in21k", weights="hub")
    address = "model.safetensors of https://huggingface.co/timm/vit_base_patch16_224.augreg_in21k"
    with pytest.raises(ConfigError) as caught:
        create_backbone(config, 1, (224, 224))
    assert address in str(caught.value)


def from_hub(state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any = None) -> Any:
    """A backbone from the hub, of which only the download is replaced: by a file that is there already."""
    save_file(state, tmp_path / "model.safetensors")
    monkeypatch.setattr(
        backbones.timm.models._builder,
        "load_state_dict_from_hf",
        lambda *_, **__: read_state(tmp_path / "model.safetensors"),
    )
    config = dataclasses.replace(VIT, weights="hub", options=options or OPTIONS)
    return create_backbone(config, 1, SIZE)


def published() -> dict[str, Tensor]:
    """What a hub holds of the backbone: three colours, another image size, and a classifier."""
    torch.manual_seed(7)
    network = create_backbone(VIT, 3, (48, 48))
    state = {name: torch.randn_like(value) for name, value in network.state_dict().items()}
    return state | {"head.weight": torch.randn(1000, 16), "head.bias": torch.randn(1000)}


def test_weights_of_the_hub_are_judged_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = published()
    network = from_hub(state, tmp_path, monkeypatch)
    assert torch.equal(network.blocks[0].attn.qkv.weight, state["blocks.0.attn.qkv.weight"])
    count = len(network.state_dict())
    assert network.loaded.line() == f"{count} of {count} tensors from hub"
    assert "load_state_dict" not in vars(type(network))
    state["wholly.other"] = torch.zeros(1)
    assert from_hub(state, tmp_path, monkeypatch).loaded.left_out == ("wholly.other",)


def test_half_of_the_hub_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm itself leaves what is missing as it was drawn, without a word."""
    state = {name: value for name, value in published().items() if not name.startswith("blocks.")}
    with pytest.raises(ConfigError, match=r"the hub has 6 of the 18 tensors of vit_tiny_patch16_224.*blocks\.0\."):
        from_hub(state, tmp_path, monkeypatch)
    with pytest.raises(ConfigError, match=r"blocks\.1\."):
        from_hub(published(), tmp_path, monkeypatch, OPTIONS | {"depth": 2})
