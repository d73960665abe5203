"""The multi-modal Soft-MoE: size, no coupling between samples, masked modalities leave no trace, routing is recorded."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from m4oe_ds.errors import ConfigError
from m4oe_ds.layers import SoftMoE
from m4oe_ds.models import build, spec_for
from tests.distributed import problem


def test_layer_size_of_the_reference_width() -> None:
    with torch.device("meta"):
        layer = SoftMoE(768, 32)
    assert (
        sum(p.numel() for p in layer.parameters())
        == 32 * (8 * 768**2 + 5 * 768) + 768 * 32 + 1
        == 151_117_824 + 24_576 + 1
    )


def test_routing_of_every_block_is_there() -> None:
    config = problem.config("model.name=soft_moe", "model.options={depth: 3}")
    output = build(config).eval()(problem.samples(spec_for(config), 4, 0))
    assert sorted(output.routing) == ["tower.0", "tower.1", "tower.2"]
    assert output.routing["tower.0"].dispatch.shape == (4, 8, 8, 1)  # 2 modalities of 4 patches, 8 experts, one slot
    assert output.modality_of_token is None  # no slot belongs to a task: no mutual information with tasks


def test_a_masked_modality_equals_a_model_without_it() -> None:
    config = problem.config("model.name=soft_moe")
    model = build(config).eval()
    batch = problem.samples(spec_for(config), 4, 0)
    absent = dataclasses.replace(batch, present=torch.tensor([[True, False]] * 4))
    single = problem.config("model.name=soft_moe", "data.modalities=[ffdm_cc]")
    other = build(single).eval()
    state = {
        name: value[:1] if name == "modality" else value
        for name, value in model.state_dict().items()
        if "syn_mlo" not in name
    }
    other.load_state_dict(state, strict=True)
    alone = dataclasses.replace(
        absent, views={"ffdm_cc": absent.views["ffdm_cc"]}, present=absent.present[:, :1], modalities=("ffdm_cc",)
    )
    with torch.no_grad():
        expected, found = other(alone).logits, model(absent).logits
    for task, value in expected.items():
        torch.testing.assert_close(found[task], value, rtol=1e-4, atol=1e-5)


def test_replace_leaves_nothing_of_the_tower() -> None:
    names = [
        name for name, _ in build(problem.config("model.name=soft_moe", "model.attach_mtoe=replace")).named_parameters()
    ]
    assert not any(name.startswith(("tower", "project", "modality")) for name in names)
    assert any(name.startswith("mtoe") for name in names)


def test_depth_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="depth"):
        build(problem.config("model.name=soft_moe", "model.options={depth: 0}"))
