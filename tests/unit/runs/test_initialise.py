"""A model started from another one: what belongs to a modality or task goes by its name, the rest stays fresh, said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from m4oe_ds import config_loader
from m4oe_ds.config import Config, to_dict
from m4oe_ds.errors import CheckpointError, ConfigError
from m4oe_ds.models import build, spec_for
from m4oe_ds.models.adaptation import resample_positions
from m4oe_ds.runs.folder import RunFolder, write_yaml
from m4oe_ds.runs.initial_source import open_source
from m4oe_ds.runs.initialise import Taken, initialise
from tests.distributed.problem import TINY

EMBED = ("data.modalities=[]", "data.image_size=[16, 32]", "run.seed=1")
RSNA = (*EMBED, "data.dataset=rsna", "run.seed=2")
GAMMA = (*RSNA, "data.dataset=gamma", "data.tasks=[glaucoma]")
PHI, EMBEDDED = "mtoe.mtoe.router.phi", "mtoe.mtoe.task_embed"


def config(*overrides: str) -> Config:
    """A tiny model; the positions of its 8 x 8 patches form a grid of 2 x 4."""
    return config_loader.load(None, (*TINY, "model.mtoe.task_embed_std=0.5", *overrides))


def trained(folder: Path, *overrides: str) -> tuple[Path, dict[str, Tensor]]:
    """A run folder with weights, none of which is what a fresh model would have; and the weights."""
    made = config(*overrides)
    state = {
        name: value + 0.25 * torch.randn_like(value) if value.is_floating_point() else value + 1
        for name, value in build(made).state_dict().items()
    }
    folder.mkdir()
    write_yaml(RunFolder(folder).config, to_dict(made))
    RunFolder(folder).weights.parent.mkdir()
    save_file(state, str(RunFolder(folder).weights))
    return folder, state


@pytest.fixture(scope="module")
def embed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    torch.manual_seed(0)
    return trained(tmp_path_factory.mktemp("runs") / "embed", *EMBED)


def started(source: Path, *overrides: str, **init_map: str) -> tuple[Taken, dict[str, Tensor], dict[str, Tensor]]:
    """What was taken, the values of the model that starts, and what it would have started with from scratch."""
    made = config(*overrides)
    model = build(made)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    taken = initialise(model, spec_for(made), open_source(source), init_map)
    return taken, model.state_dict(), fresh


def equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a == b).all())


def test_fewer_modalities_and_tasks_in_another_order(embed: tuple[Path, dict[str, Tensor]]) -> None:
    """EMBED has birads, risk1 to risk5, density; RSNA has density, birads."""
    taken, state, fresh = started(embed[0], *RSNA)
    source = embed[1]
    assert taken.new == {}
    assert set(taken.adapted) == {PHI, EMBEDDED}
    assert set(taken.taken) == set(state) - {PHI, EMBEDDED}
    for name in taken.taken:
        assert equal(state[name], source[name]), name
    assert state[PHI].shape == (16, 8, 2)
    assert equal(state[PHI], source[PHI][:, :, [6, 0]])
    assert equal(state[EMBEDDED], source[EMBEDDED][[6, 0]])
    assert {taken.parts_left_out[name] for name in taken.left_out} == {
        f"{part}.{name}"
        for part, names in (
            ("embedders.by_modality", ("syn_cc", "syn_mlo")),
            ("msoe", ("syn_cc", "syn_mlo")),
            ("heads", [f"risk{k}" for k in range(1, 6)]),
        )
        for name in names
    }
    assert taken.values == taken.total == sum(value.numel() for value in fresh.values())
    assert "100.0 % of the values" in taken.table()
    assert "heads.risk5 (6)" in taken.table()


def test_what_is_new_keeps_its_fresh_values(tmp_path: Path) -> None:
    folder, source = trained(tmp_path / "rsna", *RSNA)
    taken, state, fresh = started(folder, *EMBED)
    assert equal(state[PHI][:, :, [6, 0]], source[PHI])
    assert equal(state[PHI][:, :, 1:6], fresh[PHI][:, :, 1:6])
    assert taken.adapted[PHI] == "task slots birads, density; 5 fresh"
    for name in taken.new:
        assert equal(state[name], fresh[name]), name
    assert {taken.parts[name] for name in taken.new} >= {"heads.risk3", "msoe.syn_cc", "embedders.by_modality.syn_mlo"}
    assert taken.left_out == {}
    assert taken.counts()["new"] == len(taken.new)
    assert taken.values < taken.total


def test_positions_follow_the_image(tmp_path: Path) -> None:
    """Also to a grid of as many patches, where the values would fit as they are and stand in the wrong places."""
    folder, source = trained(tmp_path / "wide", *EMBED)
    name = "embedders.by_modality.ffdm_cc.backbone.pos_embed"
    rows = torch.arange(2.0).repeat_interleave(4)[None, :, None].expand(1, 8, 16)  # 2 x 4 patches: the row of each
    source[name] = torch.cat([torch.full((1, 1, 16), -7.0), rows], dim=1)
    save_file(source, str(RunFolder(folder).weights))
    taken, state, _ = started(folder, *RSNA, "data.image_size=[32, 16]")
    assert taken.adapted[name] == "positions 2x4 -> 4x2"
    assert equal(state[name][:, 0], source[name][:, 0])  # the class token has no place
    grid = state[name][0, 1:].view(4, 2, 16)
    torch.testing.assert_close(grid[:, 0], grid[:, 1])  # as it was: the same along a row
    assert bool((grid.diff(dim=0) > 0.1).all())
    taken, state, _ = started(folder, *RSNA, "data.image_size=[48, 40]")
    assert taken.adapted[name] == "positions 2x4 -> 6x5"
    assert state[name].shape == (1, 31, 16)


def test_positions_of_a_volume() -> None:
    """A ramp along each axis stays one; the class token, which has no place, stays as it is."""
    axes = torch.meshgrid(torch.arange(2.0), torch.arange(3.0), torch.arange(4.0), indexing="ij")
    positions = torch.cat([torch.full((1, 1, 3), -7.0), torch.stack(axes, -1).view(1, 24, 3)], dim=1)
    found = resample_positions(positions, (2, 3, 4), (4, 3, 8), 1)
    assert equal(found[:, :1], positions[:, :1])
    ramps = found[0, 1:].view(4, 3, 8, 3)
    for axis in range(3):
        steps = ramps[..., axis].diff(dim=axis)
        assert bool((steps >= 0).all())
        assert float(steps.max()) > 0.4
        others = [i for i in range(3) if i != axis]
        assert all(float(ramps[..., axis].diff(dim=i).abs().max()) < 1e-6 for i in others)
    assert equal(resample_positions(positions, (2, 3, 4), (2, 3, 4), 1), positions)


def test_positions_behind_another_stem_are_taken_for_the_same_image(tmp_path: Path) -> None:
    """A hybrid's patches are made by convolutions before: the grid does not follow from the last kernel."""
    hybrid = (
        "model.embedder.backbone=vit_tiny_r_s16_p8_224",
        "model.embedder.options={embed_dim: 16, depth: 1, num_heads: 2}",
    )
    folder, source = trained(tmp_path / "hybrid", *EMBED, *hybrid, "data.image_size=[256, 128]")
    name = "embedders.by_modality.ffdm_cc.backbone.pos_embed"
    taken, state, _ = started(folder, *RSNA, *hybrid, "data.image_size=[256, 128]")
    assert equal(state[name], source[name])
    taken, state, fresh = started(folder, *RSNA, *hybrid, "data.image_size=[128, 256]")
    assert "its grid is not known" in taken.new[name]
    assert equal(state[name], fresh[name])


def test_patches_of_another_size_do_not_fit_and_neither_do_their_places(embed: tuple[Path, dict[str, Tensor]]) -> None:
    options = "model.embedder.options={patch_size: 4, embed_dim: 16, depth: 1, num_heads: 2}"
    taken, state, fresh = started(embed[0], *RSNA, options)
    backbone = "embedders.by_modality.ffdm_cc.backbone"
    assert taken.new[f"{backbone}.patch_embed.proj.weight"] == "shape [16, 1, 8, 8] in the source, [16, 1, 4, 4] here"
    assert equal(state[f"{backbone}.patch_embed.proj.weight"], fresh[f"{backbone}.patch_embed.proj.weight"])
    assert taken.adapted[f"{backbone}.pos_embed"] == "positions 2x4 -> 4x8"
    assert f"{backbone}.blocks.0.attn.qkv.weight" in taken.taken


@pytest.mark.parametrize("count", [4, 16])
def test_a_router_goes_with_its_experts(count: int, embed: tuple[Path, dict[str, Tensor]]) -> None:
    """The first four of eight experts would fit, and so would the scale of their router."""
    taken, state, fresh = started(embed[0], *RSNA, f"model.mtoe.num_experts={count}")
    left = {name for name in state if name.startswith("mtoe.mtoe.")}
    assert set(taken.new) == left
    assert {taken.new[name] for name in left} == {f"8 experts in the source, {count} here"}
    for name in left:
        assert equal(state[name], fresh[name]), name
    assert "mtoe.attention.qkv.weight" in taken.taken
    assert f"new       mtoe.mtoe (6): 8 experts in the source, {count} here" in taken.table()


def test_experts_of_another_width_go_with_their_router(embed: tuple[Path, dict[str, Tensor]]) -> None:
    taken, _, _ = started(embed[0], *RSNA, "model.mlp_ratio=2")
    assert all("experts of another size" in taken.new[name] for name in (PHI, "fusion.blocks.0.mlp.router.scale"))


def test_names_that_differ_are_given(embed: tuple[Path, dict[str, Tensor]]) -> None:
    source = embed[1]
    alone = started(embed[0], *GAMMA)[0]
    assert "the source has no modality or task of that name" in alone.table()
    taken, state, fresh = started(embed[0], *GAMMA, fundus="ffdm_mlo", glaucoma="density")
    name = "embedders.by_modality.{}.backbone.patch_embed.proj.weight"
    assert taken.adapted[name.format("fundus")] == "channels 1 -> 3"
    torch.testing.assert_close(  # a grey image gets the answer that it got
        state[name.format("fundus")].sum(1, keepdim=True), source[name.format("ffdm_mlo")]
    )
    expert = "msoe.{}.blocks.0.mlp.experts.experts.w1"
    assert equal(state[expert.format("fundus")], source[expert.format("ffdm_mlo")])
    assert equal(state[expert.format("oct")], fresh[expert.format("oct")])
    assert equal(state[PHI][:, :, 0], source[PHI][:, :, 6])
    assert taken.adapted[PHI] == "task slots glaucoma from density"
    # four classes there and three here: all but the last layer
    assert equal(state["heads.glaucoma.project.weight"], source["heads.density.project.weight"])
    assert taken.new["heads.glaucoma.classify.weight"] == "shape [4, 16] in the source, [3, 16] here"
    assert equal(state["heads.glaucoma.classify.weight"], fresh["heads.glaucoma.classify.weight"])


def test_a_name_can_be_told_to_start_fresh(embed: tuple[Path, dict[str, Tensor]]) -> None:
    taken, state, fresh = started(embed[0], *RSNA, birads="", ffdm_cc="syn_cc")
    assert {name for name in taken.new if taken.new[name] == "fresh, as model.init_map says"} == {
        name for name in state if name.startswith("heads.birads.")
    }
    assert equal(state[PHI][:, :, 1], fresh[PHI][:, :, 1])
    name = "msoe.{}.blocks.0.mlp.router.phi"
    assert equal(state[name.format("ffdm_cc")], embed[1][name.format("syn_cc")])


@pytest.mark.parametrize(
    ("init_map", "says"),
    [
        ({"fundos": "ffdm_cc"}, "'fundos' is no modality or task of this run; did you mean fundus?"),
        ({"fundus": "ffdm_c"}, "fundus: 'ffdm_c' is no modality of embed; did you mean ffdm_cc?"),
        ({"fundus": "density"}, "fundus: 'density' is no modality of embed"),
        ({"glaucoma": "risk9"}, "glaucoma: 'risk9' is no task of embed; did you mean risk"),
        ({"shared": "ffdm_cc"}, "'shared' is no modality or task of this run"),
    ],
)
def test_unknown_names_are_refused(init_map: dict[str, str], says: str, embed: tuple[Path, dict[str, Tensor]]) -> None:
    with pytest.raises(ConfigError, match=r"^model\.init_map: ") as caught:
        started(embed[0], *GAMMA, **init_map)
    assert says in str(caught.value)


def test_nothing_fits(embed: tuple[Path, dict[str, Tensor]]) -> None:
    small = "model.embedder.options={patch_size: 8, embed_dim: 8, depth: 1, num_heads: 2}"
    made = config(*GAMMA, "model.dim=8", small)
    model = build(made)
    fresh = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"model\.init_from: nothing of embed fits") as caught:
        initialise(model, spec_for(made), open_source(embed[0]))
    for words in ("dim 16", "ffdm_mlo", "risk4", "dim 8", "fundus, oct", "glaucoma", "model.init_map"):
        assert words in str(caught.value)
    assert all(equal(value, fresh[name]) for name, value in model.state_dict().items())


def test_one_embedder_for_all_modalities(tmp_path: Path, embed: tuple[Path, dict[str, Tensor]]) -> None:
    share = "model.embedder.share=true"
    folder, source = trained(tmp_path / "shared", *EMBED, share)
    name = "embedders.by_modality.{}.backbone.blocks.0.mlp.fc1.weight"
    taken, state, _ = started(folder, *RSNA)
    assert equal(state[name.format("ffdm_cc")], source[name.format("shared")])
    assert equal(state[name.format("ffdm_mlo")], source[name.format("shared")])
    assert not taken.new
    taken, state, _ = started(folder, *RSNA, share)
    assert equal(state[name.format("shared")], source[name.format("shared")])
    vector = "embedders.modality_embed.ffdm_mlo"
    assert equal(state[vector], source[vector])
    taken, _, _ = started(embed[0], *RSNA, share)
    assert "can name one for shared" in taken.new[name.format("shared")]
    taken, state, _ = started(embed[0], *RSNA, share, shared="ffdm_mlo")
    assert equal(state[name.format("shared")], embed[1][name.format("ffdm_mlo")])


def test_stand_in_tokens_are_of_combinations(tmp_path: Path) -> None:
    """Two of four views have three combinations; in another order of two, row 1 lacks the other one."""
    folder, source = trained(
        tmp_path / "bank", *EMBED, "model.missing_modality=bank", "data.modalities=[ffdm_cc, syn_cc]"
    )
    name = "missing_bank.rows.ffdm_cc.weight"
    taken, state, _ = started(folder, *EMBED, "model.missing_modality=bank", "data.modalities=[ffdm_cc, syn_cc]")
    assert equal(state[name], source[name])
    taken, state, fresh = started(folder, *RSNA, "model.missing_modality=bank")
    assert taken.new[name] == "its rows stand for combinations of other modalities"
    assert equal(state[name], fresh[name])


def test_tensors_in_the_order_of_tasks_are_not_taken_for_those_of_another_order(tmp_path: Path) -> None:
    """EvIF's task queries have no names: [birads, density] would become [density, birads] without a word."""
    system = ("model.name=evif", "model.options={}")
    folder, source = trained(
        tmp_path / "evif", *EMBED, *system, "data.tasks=[birads, density]", "data.modalities=[ffdm_cc, ffdm_mlo]"
    )
    names = [name for name in source if name.endswith("queries")]
    assert names
    taken, state, fresh = started(folder, *RSNA, *system)
    for name in names:
        assert taken.new[name] == "may depend on the order of modalities or tasks, which differ"
        assert equal(state[name], fresh[name])
    assert any("encoders" in name for name in taken.taken)
    same, state, _ = started(
        folder, *EMBED, *system, "data.tasks=[birads, density]", "data.modalities=[ffdm_cc, ffdm_mlo]"
    )
    assert same.new == {}
    assert all(equal(state[name], source[name]) for name in names)


def test_a_model_without_task_slots(tmp_path: Path) -> None:
    folder, source = trained(tmp_path / "query", *EMBED, "model.use_mtoe=false")
    taken, state, _ = started(folder, *RSNA, "model.use_mtoe=false")
    assert equal(state["task_query.weight"], source["task_query.weight"][[6, 0]])
    assert set(taken.adapted) == {"task_query.weight"}


def test_a_word_that_is_also_the_name_of_a_modality(embed: tuple[Path, dict[str, Tensor]]) -> None:
    """Only a key among modalities or tasks is one: not every part of a name that reads like it."""
    made = config(*RSNA)
    model: Any = build(made)
    model.ffdm_cc = nn.Linear(2, 2)  # a part of the model that happens to be called so
    taken = initialise(model, spec_for(made), open_source(embed[0]), {"ffdm_cc": ""})
    assert taken.new["msoe.ffdm_cc.blocks.0.norm1.weight"] == "fresh, as model.init_map says"
    assert {taken.new[f"ffdm_cc.{name}"] for name in ("weight", "bias")} == {"not in the source"}
