"""What all compared systems share: any number of modalities and tasks, and what an attached MToE leaves of them."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from m4oe_ds.config import Config
from m4oe_ds.data.batch import Batch
from m4oe_ds.data.cards import find_card
from m4oe_ds.models import available, build, spec_for
from m4oe_ds.models.fit import Question
from m4oe_ds.models.interface import MultiModalModel
from m4oe_ds.models.systems import unfit
from m4oe_ds.runs.objective import model_loss
from tests.distributed import problem

SIZES = {  # modalities and tasks
    (2, 1): ("data.modalities=[ffdm_cc, syn_mlo]", "data.tasks=[density]"),
    (2, 7): ("data.modalities=[ffdm_cc, syn_mlo]",),
    (4, 2): ("data.modalities=[ffdm_cc, ffdm_mlo, syn_cc, syn_mlo]", "data.tasks=[density, risk1]"),
    (4, 7): ("data.modalities=[ffdm_cc, ffdm_mlo, syn_cc, syn_mlo]",),
}
GAMMA = ("data.dataset=gamma", "data.modalities=[fundus, oct]", "data.image_size=[32, 32]")
EYES = {(2, 1): (*GAMMA, "data.tasks=[glaucoma]"), (2, 2): GAMMA}
COMPARED = [name for name in available() if name != "m4oe"]
MODES = ("none", "replace", "append")
CASES = [
    (name, size, overrides)
    for name in COMPARED
    for size, overrides in [
        *(SIZES.items() if not unfit(name, Question.of(find_card("embed"))) else ()),
        *(EYES.items() if not unfit(name, Question.of(find_card("gamma"))) else ()),
    ]
]
# what may stay besides encoders, MToE, heads and decoders: none of it brings modalities together
KEPT = {
    "mirai": ("hazard.",),  # the special layer, on g of the risk tasks
    "asymmirai": ("channels.",),  # makes the difference map of one modality, as its encoder
    "eyestar": ("places.",),  # carries G_k to the places of the fundus
}


def case(name: str, *overrides: str) -> tuple[Config, MultiModalModel, Batch]:
    config = problem.config(f"model.name={name}", *overrides)
    return config, build(config), problem.samples(spec_for(config), 8, seed=0)


def loss_of(config: Config, model: MultiModalModel, batch: Batch) -> Any:
    goal = problem.objective(model.spec)
    goal.model_loss = model_loss(config, model.spec)
    output = model(batch)
    parts = goal.task_parts(output, batch).values()
    return output, sum(part.sum / part.count.clamp_min(1) for part in parts) + sum(output.aux.values())


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "size", "overrides"), CASES)
def test_answers_have_their_shape_and_every_encoder_learns(
    name: str, size: tuple[int, int], overrides: tuple[str, ...], mode: str
) -> None:
    config, model, batch = case(name, *overrides, f"model.attach_mtoe={mode}")
    assert (len(model.spec.modalities), len(model.spec.tasks)) == size
    batch = dataclasses.replace(batch, present=torch.ones_like(batch.present))
    output, loss = loss_of(config, model, batch)
    for task in model.spec.tasks:
        shape = (task.num_classes,) if task.coded else (1, *model.spec.image_size)
        assert output.logits[task.name].shape == (8, *shape)
    if mode != "none":
        assert output.routing["mtoe"].dispatch.shape[3] == size[1]
        assert output.modality_of_token.unique().tolist() == list(range(size[0]))
    loss.backward()
    reached = [p.grad is not None and p.grad.abs().max() > 0 for p in model.encoders.parameters()]
    assert len(reached) >= size[0]
    assert all(reached)


@pytest.mark.parametrize(("name", "size", "overrides"), CASES)
def test_replace_leaves_no_parameter_of_the_removed_fusion(
    name: str, size: tuple[int, int], overrides: tuple[str, ...]
) -> None:
    kept = ("encoders.", "mtoe.", "heads.", "decoders.", *KEPT.get(name, ()))
    _, model, _ = case(name, *overrides, "model.attach_mtoe=replace")
    assert [key for key, _ in model.named_parameters() if not key.startswith(kept)] == []
    assert [key for key, _ in model.named_buffers() if not key.startswith(kept)] == []
    # heads read g_k and nothing wider: no source, state or concatenation of the original is left in them
    width = model.config.dim  # type: ignore[union-attr]
    heads = [module for part in (model.heads, model.decoders) for module in part.modules()]
    first = [module.in_features for module in heads if isinstance(module, torch.nn.Linear)]
    hidden = {"mmodn": {32}, "eyemost": {64}}.get(name, set())  # within a decoder, and an evidential head
    assert width in first
    assert set(first) <= {width} | hidden
    if name == "eyemost":
        assert not any(".sources." in key and ".sources.mtoe." not in key for key, _ in model.named_parameters())


@pytest.mark.parametrize("name", COMPARED)
def test_append_keeps_the_whole_system_and_adds_to_it(name: str) -> None:
    overrides = EYES[2, 2] if name == "eyestar" else SIZES[2, 7]
    shapes = {}
    for mode in ("none", "append"):
        model = case(name, *overrides, f"model.attach_mtoe={mode}")[1]
        shapes[mode] = {key: value.shape for key, value in model.named_parameters()}
    # AsymMirai's risk is its score alone without an MToE, a score and a head with one: its heads may only grow
    assert shapes["none"].items() <= shapes["append"].items()
    added = {key.split(".")[0] for key in shapes["append"].keys() - shapes["none"].keys()}
    assert "mtoe" in added
    assert added <= {"mtoe", "merge", "heads", "places", "content"}
