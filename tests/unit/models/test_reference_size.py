"""Size of the paper's configuration, counted by hand and compared with the model built without memory."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from m4oe_ds import config_loader
from m4oe_ds.models import build

DIM, HIDDEN = 768, 3072
EXPERT = DIM * HIDDEN + HIDDEN + HIDDEN * DIM + DIM
ATTENTION = 3 * DIM * DIM + 3 * DIM + DIM * DIM + DIM
NORMS = 2 * 2 * DIM  # two layer norms of a block


def vit_base(channels: int, tokens: int = 197) -> int:
    """ViT-B/16 without classifier: patches, class token, positions, 12 blocks, last norm."""
    block = ATTENTION + NORMS + EXPERT
    return channels * 16 * 16 * DIM + DIM + DIM + tokens * DIM + 12 * block + 2 * DIM


def soft_moe_block(experts: int, slots: int = 1) -> int:
    """Block with attention, experts, one vector per slot and the router's scale."""
    return ATTENTION + NORMS + experts * EXPERT + DIM * experts * slots + 1


def by_hand(modalities: int, tasks: int, channels: int) -> int:
    """Everything but the task heads."""
    embedders = modalities * vit_base(channels)
    towers = modalities * 2 * soft_moe_block(32)
    mtoe = soft_moe_block(128, tasks) + tasks * DIM  # and the task embeddings
    return embedders + towers + mtoe + 2 * soft_moe_block(16)


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def full(*overrides: str) -> nn.Module:
    with torch.device("meta"):
        return build(config_loader.load(None, overrides))


@pytest.mark.parametrize(
    ("overrides", "modalities", "tasks", "reference"),
    [
        (["model.embedder.replicate_grey=true"], 4, 7, 2_334_660_875),
        (["model.embedder.replicate_grey=true", "data.dataset=rsna"], 2, 2, 1_548_536_839),
    ],
)
def test_the_reference_size_without_heads(overrides: list[str], modalities: int, tasks: int, reference: int) -> None:
    assert by_hand(modalities, tasks, 3) == reference
    model = full(*overrides)
    assert size(model) - size(model.heads) == reference


def test_grey_embedders_save_their_two_copied_channels() -> None:
    model = full()
    assert size(model) - size(model.heads) == by_hand(4, 7, 1) == 2_334_660_875 - 4 * 2 * 256 * DIM


def test_the_heads_are_norm_projection_and_classes() -> None:
    classes = [3, 2, 2, 2, 2, 2, 4]
    expected = sum(2 * DIM + DIM * DIM + DIM + DIM * count + count for count in classes)
    assert size(full("data.dataset=embed").heads) == expected


def test_switching_a_part_off_removes_exactly_its_parameters() -> None:
    whole = size(full())
    mtoe = soft_moe_block(128, 7) + 7 * DIM
    assert size(full("model.use_msoe=false")) == whole - 4 * 2 * soft_moe_block(32)
    assert size(full("model.use_mtoe=false")) == whole - mtoe + 7 * DIM  # a query per task takes its place


def test_one_embedder_for_all_modalities() -> None:
    saved = 3 * vit_base(1) - 4 * DIM  # three embedders less, a vector per modality more
    assert size(full("model.embedder.share=true")) == size(full()) - saved


def test_the_phi_tensors_have_one_column_per_slot() -> None:
    model = full("data.dataset=rsna")
    shapes = {tuple(p.shape) for name, p in model.named_parameters() if name.endswith("phi")}
    assert shapes == {(DIM, 128, 2), (DIM, 32, 1), (DIM, 16, 1)}
    assert math.prod((DIM, 128, 2)) == 196_608
