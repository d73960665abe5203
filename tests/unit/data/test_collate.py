"""Samples to a batch: presence, labels and padding."""

from __future__ import annotations

import pytest
import torch

from m4oe_ds.data.cards import find_card
from m4oe_ds.data.collate import Sample, Sizes, collate

EMBED, GAMMA = find_card("embed"), find_card("gamma")
MODALITIES = ("ffdm_cc", "syn_cc")
TASKS = (EMBED.task("density"), EMBED.task("birads"))


INPUTS, SIZES = tuple(EMBED.modality(name) for name in MODALITIES), Sizes((4, 3))


def sample(number: int, modalities: tuple[str, ...] = MODALITIES, **labels: int) -> Sample:
    views = {name: torch.full((1, 4, 3), float(10 * number + i)) for i, name in enumerate(modalities)}
    return Sample(f"key{number}", f"group{number}", views, labels, {})


def test_complete_samples() -> None:
    batch = collate([sample(1, density=3, birads=0), sample(2, density=0, birads=2)], INPUTS, TASKS, SIZES)
    assert len(batch) == 2
    assert batch.views["syn_cc"][:, 0, 0, 0].tolist() == [11.0, 21.0]
    assert batch.views["ffdm_cc"].shape == (2, 1, 4, 3)
    assert batch.views["ffdm_cc"].dtype == torch.float32
    assert batch.present.all()
    assert batch.valid.all()
    assert batch.label_mask.all()
    assert batch.labels["density"].tolist() == [3, 0]
    assert batch.labels["birads"].tolist() == [0, 2]
    assert batch.labels["density"].dtype == torch.int64
    assert (batch.keys, batch.groups) == (("key1", "key2"), ("group1", "group2"))
    assert (batch.modalities, batch.tasks) == (MODALITIES, ("density", "birads"))


def test_an_absent_modality_is_zeros_and_not_present() -> None:
    batch = collate([sample(1, ("syn_cc",)), sample(2)], INPUTS, TASKS, SIZES)
    assert batch.present.tolist() == [[False, True], [True, True]]
    assert batch.views["ffdm_cc"][0].abs().sum() == 0
    assert batch.views["syn_cc"][0, 0, 0, 0] == 10.0


def test_a_missing_label_is_masked_whether_absent_or_minus_one() -> None:
    batch = collate([sample(1, density=-1), sample(2, birads=0)], INPUTS, TASKS, SIZES)
    assert batch.labels["density"].tolist() == [-1, -1]
    assert batch.label_mask.tolist() == [[False, False], [False, True]]


def test_padding_leaves_no_trace_but_a_row() -> None:
    batch = collate([None, sample(2, density=1, birads=1), None], INPUTS, TASKS, SIZES)
    assert batch.valid.tolist() == [False, True, False]
    assert batch.present.tolist() == [[True, True]] * 3  # no softmax over nothing
    assert batch.label_mask.tolist() == [[False, False], [True, True], [False, False]]
    assert batch.labels["density"].tolist() == [-1, 1, -1]
    assert batch.keys == ("", "key2", "")
    for view in batch.views.values():
        assert view[[0, 2]].abs().sum() == 0


@pytest.mark.parametrize("count", [1, 3])
def test_a_batch_of_padding_alone(count: int) -> None:
    batch = collate([None] * count, INPUTS, TASKS, SIZES)
    assert len(batch) == count
    assert not batch.valid.any()
    assert not batch.label_mask.any()


def test_masks_of_a_segmentation() -> None:
    mask = torch.zeros(1, 4, 3)
    mask[0, 1, 2] = 1.0
    with_mask = Sample("a", "g", {"fundus": torch.ones(3, 4, 3)}, {"glaucoma": 2}, {"cup": mask})
    without = Sample("b", "g", {"fundus": torch.ones(3, 4, 3), "oct": torch.ones(256, 4, 3)}, {}, {})
    batch = collate([with_mask, without, None], GAMMA.inputs, GAMMA.tasks, SIZES)
    assert batch.views["oct"].shape == (3, 256, 4, 3)
    assert batch.present.tolist() == [[True, False], [True, True], [True, True]]
    assert batch.labels["cup"].shape == (3, 1, 4, 3)
    assert torch.equal(batch.labels["cup"][0], mask)
    assert batch.label_mask.tolist() == [[True, True], [False, False], [False, False]]


def test_moving_a_batch_keeps_names_and_changes_the_type_of_views_only() -> None:
    batch = collate([sample(1, density=3), None], INPUTS, TASKS, SIZES).to("cpu", torch.bfloat16)
    assert batch.views["ffdm_cc"].dtype == torch.bfloat16
    assert batch.labels["density"].dtype == torch.int64
    assert batch.present.dtype == batch.valid.dtype == batch.label_mask.dtype == torch.bool
    assert (batch.keys, batch.tasks) == (("key1", ""), ("density", "birads"))
