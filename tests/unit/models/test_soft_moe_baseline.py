"""The multi-modal Soft-MoE: size, no coupling between samples, masked modalities leave no trace, routing is kept."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from m4oe_ds.errors import ConfigError
from m4oe_ds.layers import RouterOptions, SoftMoE
from m4oe_ds.layers.routing import modality_contribution
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


class IdentityExperts(nn.Module):
    """f_j(x) = x."""

    def __init__(self, num_experts: int, dim: int, hidden: int) -> None:
        super().__init__()
        self.num_experts = num_experts

    def forward(self, slots: Tensor) -> Tensor:
        return slots


def test_one_expert_one_slot_gives_every_token_the_dispatched_mean() -> None:
    torch.manual_seed(0)
    layer = SoftMoE(6, 1, experts_factory=IdentityExperts, router=RouterOptions(scale_init=5.0))
    tokens = torch.randn(3, 7, 6)
    found, routing = layer(tokens)
    mean = torch.einsum("btd,bt->bd", tokens, routing.dispatch[..., 0, 0])
    assert not torch.allclose(mean, tokens.mean(1), atol=1e-2)  # the weights are not uniform
    torch.testing.assert_close(found, mean[:, None].expand(-1, 7, -1))


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
        name: value[:1] if name == "modality.weight" else value
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


SLOTS = ("model.name=soft_moe", "model.options={task_slots: true}")


def test_with_task_slots_a_task_reads_the_slots_of_its_own_number() -> None:
    config = problem.config(*SLOTS)
    model = build(config).eval()
    batch = problem.samples(spec_for(config), 4, 0)
    with torch.no_grad():
        before = model(batch)
        assert sorted(before.routing) == ["mtoe", "tower.0"]
        assert before.routing["mtoe"].dispatch.shape == (4, 8, 8, 7)  # tokens, experts, tasks
        share = modality_contribution(before.routing["mtoe"], before.modality_of_token, 2)  # type: ignore[arg-type]
        torch.testing.assert_close(share.sum(2), torch.ones(4, 7))
        assert (share[:, :, 1][~batch.present[:, 1]] == 0).all()
        handle = model.last.mtoe.experts.register_forward_hook(  # type: ignore[attr-defined]
            lambda _module, _inputs, out: out + 3 * torch.nn.functional.one_hot(torch.tensor(2), 7)[:, None]
        )
        after = model(batch)
        handle.remove()
    moved = [name for name in before.logits if not torch.allclose(after.logits[name], before.logits[name], atol=1e-4)]
    assert moved == [model.spec.task_names[2]]


@pytest.mark.parametrize("depth", [1, 2])
def test_task_slots_know_no_task_and_everything_else_learns(depth: int) -> None:
    config = problem.config("model.name=soft_moe", f"model.options={{task_slots: true, depth: {depth}}}")
    model = build(config).train()
    output = model(problem.samples(spec_for(config), 4, 0))
    torch.stack([value.square().sum() for value in output.logits.values()]).sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert without == ["last.mtoe.task_embed"]
    assert (model.last.mtoe.task_embed == 0).all()  # type: ignore[attr-defined]
    assert model.shared_layer() is model.last.mtoe.experts  # type: ignore[attr-defined]
    assert len(model.tower.blocks) == depth - 1  # type: ignore[attr-defined]


def test_task_slots_and_an_attached_mtoe_are_refused() -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        build(problem.config(*SLOTS, "model.attach_mtoe=append"))


def test_depth_must_be_positive() -> None:
    with pytest.raises(ConfigError, match="depth"):
        build(problem.config("model.name=soft_moe", "model.options={depth: 0}"))
