"""Models over an image, a volume in 3-D and a table: shapes, absence, precision, what is refused, what it costs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from m4oe_ds.config import Config
from m4oe_ds.data.batch import Batch
from m4oe_ds.errors import ConfigError
from m4oe_ds.models import build, spec_for
from m4oe_ds.models.heads import SegmentationHead
from m4oe_ds.planning.model_cost import micro_step
from tests.distributed import kinds

SOFT_MOE = ("model.name=soft_moe", "data.tasks=[grade, event]")


def batch_of(config: Config, count: int = 4) -> Batch:
    batch = kinds.samples(spec_for(config), count, seed=0)
    return dataclasses.replace(batch, present=torch.ones_like(batch.present))


@pytest.mark.parametrize(
    "overrides",
    [(), ("model.missing_modality=bank",), ("model.embedder.modality_embed=true",), ("model.use_mtoe=false",), SOFT_MOE]
    + [(*SOFT_MOE, "model.attach_mtoe=append")],
    ids=str,
)
def test_answers_have_their_shape_and_every_parameter_learns(overrides: tuple[str, ...], tmp_path: Path) -> None:
    config = kinds.config(tmp_path, *overrides)
    model = build(config)
    batch = kinds.samples(spec_for(config), 8, seed=0)
    output = model(batch)
    shapes = {"grade": (8, 3), "event": (8, 2), "lesion": (8, 1, 8, 16, 8)}
    assert {name: tuple(value.shape) for name, value in output.logits.items()} == {
        name: shapes[name] for name in model.spec.task_names
    }
    sum(value.square().mean() for value in output.logits.values()).backward()
    silent = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert silent in ([], ["missing_bank.rows.photo.weight"])  # no photo is missing


@pytest.mark.parametrize("overrides", [(), SOFT_MOE], ids=str)
@pytest.mark.parametrize("name", ["scan", "clinic"])
def test_an_absent_modality_leaves_no_trace(name: str, overrides: tuple[str, ...], tmp_path: Path) -> None:
    config = kinds.config(tmp_path, *overrides)
    model, batch = build(config).eval(), batch_of(config)
    batch.present[:, batch.modalities.index(name)] = False
    other = torch.ones_like(batch.views[name])
    with torch.no_grad():
        found, expected = model(batch).logits, model(kinds.with_view(batch, name, other)).logits
        batch.present[:, batch.modalities.index(name)] = True
        with_it = model(batch).logits
    for task in model.spec.task_names:
        assert torch.equal(found[task], expected[task]), task
        assert not torch.equal(found[task], with_it[task]), task


def test_an_unknown_value_leaves_no_trace_in_the_answers(tmp_path: Path) -> None:
    config = kinds.config(tmp_path)
    model, batch = build(config).eval(), batch_of(config)
    table = batch.views["clinic"].clone()
    hidden = table[..., 1] == 0
    assert hidden.any()
    table[..., 0][hidden] = 1.0
    with torch.no_grad():
        found, expected = model(kinds.with_view(batch, "clinic", table)).logits, model(batch).logits
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_bfloat16_is_finite_and_keeps_tables_exact(tmp_path: Path) -> None:
    config = kinds.config(tmp_path)
    batch = batch_of(config, count=1)
    batch.views["clinic"][0, 0, 0] = 257.0
    moved = batch.to("cpu", torch.bfloat16)
    assert {name: view.dtype for name, view in moved.views.items()} == {
        "photo": torch.bfloat16,
        "scan": torch.bfloat16,
        "clinic": torch.float32,
    }
    assert moved.views["clinic"][0, 0, 0] == 257.0
    model = build(config).to(torch.bfloat16)
    output = model(moved)
    assert all(torch.isfinite(value).all() for value in output.logits.values())


def test_it_is_built_without_memory_and_costed(tmp_path: Path) -> None:
    config = kinds.config(tmp_path)
    with torch.device("meta"):
        empty = build(config)
    model = build(config)
    assert {n: p.shape for n, p in empty.named_parameters()} == {n: p.shape for n, p in model.named_parameters()}
    assert micro_step(config, "bf16", 1).total == sum(value.numel() for value in model.parameters())
    alone = kinds.config(tmp_path, "data.modalities=[scan]", "data.tasks=[grade]")
    convolution = [op for op in micro_step(alone).operations if op.name.startswith("convolution")]
    # 8 patches of 4 x 8 x 4 voxels to 16 numbers; backward for the weights alone
    assert [op.flops for op in convolution] == [2 * 8 * 16 * 4 * 8 * 4] * 2


def test_a_mask_over_an_image_beside_a_volume_keeps_the_flat_head(tmp_path: Path) -> None:
    card = tmp_path / "card.yaml"
    card.write_text(kinds.CARD.replace("of: scan", "of: photo"), encoding="utf-8")
    config = kinds.config(tmp_path)
    output = build(config)(batch_of(config))
    assert output.logits["lesion"].shape == (4, 1, 16, 16)


def test_a_head_for_volumes_gives_the_size_of_the_mask() -> None:
    head = SegmentationHead(12, (2, 2, 3), (5, 32, 40), channels=64, classes=2)
    assert head(torch.randn(2, 12, 12)).shape == (2, 2, 5, 32, 40)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (("model.name=mirai",), "mirai does not fit"),
        (
            ("model.name=mmodn", "data.modalities=[photo, clinic]", "data.tasks=[grade]"),
            "clinic is a table",
        ),
        ((*SOFT_MOE, "model.regime=native"), "soft_moe does not fit"),
        (("model.name=soft_moe",), "lesion lies over scan"),
        (("model.embedder.share=true",), "model.embedder.share needs equal kinds"),
        (("model.embedder.volume_patch=[3, 8, 4]",), "volume_patch=[3, 8, 4] does not divide data.volume_size=[8, 16"),
        (("data.volume_size=[8, 12, 8]",), "volume_patch=[4, 8, 4] does not divide data.volume_size=[8, 12, 8]"),
        (("model.embedder.volume_patch=[4, 8]",), "model.embedder.volume_patch must be [depth, height, width]"),
        (("data.modalities=[photo]",), "data.modalities leaves out scan, over which the mask lesion lies"),
        (("model.embedder.backbone=resnet18", "model.embedder.options={}"), "resnet18 takes no volumes"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(overrides: tuple[str, ...], text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        build(kinds.config(tmp_path, *overrides))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_sizes_of_volumes_do_not_matter_to_runs_without_any(tmp_path: Path) -> None:
    settings = ("data.volume_size=[9, 9, 9]", "data.modalities=[photo, clinic]", "data.tasks=[grade]")
    assert kinds.config(tmp_path, *settings).data.volume_size == (9, 9, 9)  # which the patches do not divide
