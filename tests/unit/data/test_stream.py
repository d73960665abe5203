"""Batches from shards: the same global step on any number of ranks, workers and micro-batches; resumable; exact-once
evaluation."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from m4oe_ds.data import codecs
from m4oe_ds.data.batch import Batch
from m4oe_ds.data.cards import find_card
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.schema import SCHEMA_VERSION
from m4oe_ds.data.shard_writer import ShardWriter
from m4oe_ds.errors import DataError
from tests.unit.data.stream_cases import (
    AUGMENT,
    COUNT,
    GLOBAL,
    SPEC,
    keys,
    labels_of,
    modalities_of,
    number_of,
    pixels,
    same,
    stream,
    write,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("shards"))


# -------------------------------------------------------------------------------------------- order over ranks


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_holds_the_same_samples_on_any_number_of_ranks(folder: Path, world: int, accumulation: int) -> None:
    alone = [sorted(keys(step)) for step in stream(folder).epoch(1)]
    ranks = [list(stream(folder, rank, world, accumulation=accumulation).epoch(1)) for rank in range(world)]
    assert len(alone) == COUNT // GLOBAL == 2
    for step, expected in enumerate(alone):
        assert all(len(steps[step]) == accumulation for steps in ranks)
        assert sorted(key for steps in ranks for key in keys(steps[step])) == expected
    assert {len(steps) for steps in ranks} == {len(alone)}


def test_no_sample_twice_in_an_epoch_and_every_sample_in_some_epoch(folder: Path) -> None:
    seen: set[str] = set()
    for epoch in range(8):
        found = [key for step in stream(folder).epoch(epoch) for key in keys(step)]
        assert max(Counter(found).values()) == 1
        seen |= set(found)
    assert len(seen) == COUNT


@pytest.mark.parametrize("start", [0, 1, 4, 8])
def test_resuming_gives_the_tail(folder: Path, start: int) -> None:
    options = {"micro_batch": 3, "accumulation": 2, "augment": AUGMENT}
    whole = list(stream(folder, **options).epoch(2))
    tail = list(stream(folder, **options).epoch(2, samples_done=start * 6))
    assert len(whole) == 8
    assert len(tail) == 8 - start
    for expected, found in zip(whole[start:], tail, strict=True):
        assert all(same(a, b) for a, b in zip(expected, found, strict=True))


def test_epochs_and_seeds_differ_and_equal_ones_agree(folder: Path) -> None:
    orders = {
        tuple(key for step in stream(folder, seed=seed).epoch(epoch) for key in keys(step))
        for seed, epoch in [(3, 0), (3, 1), (4, 0), (3, 0)]
    }
    assert len(orders) == 3


def test_worker_processes_change_nothing(folder: Path) -> None:
    options = {"micro_batch": 6, "accumulation": 2, "augment": AUGMENT}
    here = list(stream(folder, workers=0, **options).epoch(1))
    there = list(stream(folder, workers=2, **options).epoch(1))
    assert len(here) == len(there) == 4
    for expected, found in zip(here, there, strict=True):
        assert all(same(a, b) for a, b in zip(expected, found, strict=True))


def test_augmentation_of_a_sample_depends_on_the_epoch_not_on_the_rank(folder: Path) -> None:
    def by_key(batches: list[Batch]) -> dict[str, torch.Tensor]:
        return {key: batch.views["ffdm_cc"][row] for batch in batches for row, key in enumerate(batch.keys)}

    alone = by_key([batch for step in stream(folder, augment=AUGMENT).epoch(1) for batch in step])
    for rank in range(3):
        mine = by_key([batch for step in stream(folder, rank, 3, augment=AUGMENT).epoch(1) for batch in step])
        assert all(torch.equal(view, alone[key]) for key, view in mine.items())
    later = by_key([batch for step in stream(folder, augment=AUGMENT).epoch(2) for batch in step])
    common = later.keys() & alone.keys()
    assert common
    assert not any(torch.equal(later[key], alone[key]) for key in common)


@pytest.mark.parametrize("workers", [0, 2])
def test_iterating_leaves_the_global_generators_alone(folder: Path, workers: int) -> None:
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    numpy_state = np.random.get_state()[1].copy()  # noqa: NPY002
    reading = stream(folder, workers=workers, augment=AUGMENT)
    for _ in itertools.chain(reading.epoch(0), reading.evaluation()):
        pass
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


def test_too_few_samples_name_the_numbers(folder: Path) -> None:
    small = stream(folder, 0, 3, micro_batch=9, accumulation=2)
    with pytest.raises(DataError, match=rf"{COUNT} samples do not fill one global batch of 54"):
        _ = small.steps_per_epoch
    with pytest.raises(DataError, match="train_batch_size"):
        next(iter(small.epoch(0)))
    assert stream(folder, micro_batch=COUNT).steps_per_epoch == 1


# ------------------------------------------------------------------------------------------------------ content


def test_pixels_labels_and_presence_are_those_written(folder: Path) -> None:
    for step in stream(folder).epoch(0):
        for batch in step:
            for row, key in enumerate(batch.keys):
                number = number_of(key)
                assert batch.groups[row] == f"{number:016x}"
                for i, name in enumerate(SPEC.modalities):
                    exists = name in modalities_of(number)
                    assert bool(batch.present[row, i]) is exists
                    expected = pixels(number, i).astype(np.float64) / 65535 * exists
                    np.testing.assert_allclose(batch.views[name][row, 0].numpy(), expected, rtol=0, atol=1e-7)
                for k, task in enumerate(SPEC.tasks):
                    code = labels_of(number)[task.name]
                    assert int(batch.labels[task.name][row]) == code
                    assert bool(batch.label_mask[row, k]) is (code >= 0)
            assert batch.valid.all()


def test_the_order_asked_for_is_the_order_of_the_columns(folder: Path) -> None:
    reading = stream(folder, modalities=SPEC.modalities[::-1], tasks=SPEC.tasks[::-1])
    batch = next(reading.evaluation())
    assert batch.modalities == SPEC.modalities[::-1]
    assert batch.tasks == tuple(task.name for task in SPEC.tasks[::-1])
    numbers = [number_of(key) for key in batch.keys]
    assert batch.present[:, 0].tolist() == [number % 4 != 0 for number in numbers]
    assert batch.label_mask[:, 1].tolist() == [number % 3 != 0 for number in numbers]


def test_views_are_standardised_with_the_statistics_of_the_split_or_those_given(tmp_path: Path) -> None:
    statistics = {"ffdm_cc": {"mean": 0.25, "std": 0.5}, "ffdm_mlo": {"mean": 0.5, "std": 0.0}}
    folder = write(tmp_path, 5, statistics)
    raw = next(stream(folder, micro_batch=5, normalise={}).evaluation()).views["ffdm_cc"]
    own = next(stream(folder, micro_batch=5).evaluation()).views["ffdm_cc"]
    given = next(stream(folder, micro_batch=5, normalise={"ffdm_cc": (0.1, 2.0)}).evaluation()).views["ffdm_cc"]
    torch.testing.assert_close(own, (raw - 0.25) / 0.5)
    torch.testing.assert_close(given, (raw - 0.1) / 2.0)


def test_an_absent_view_is_zero_after_standardisation_too(tmp_path: Path) -> None:
    folder = write(tmp_path, 5, {name: {"mean": 0.5, "std": 0.25} for name in SPEC.modalities})
    batch = next(stream(folder, micro_batch=5).evaluation())
    assert not batch.present[0, 1]
    assert batch.views["ffdm_mlo"][0].abs().sum() == 0


def test_views_are_resized(folder: Path) -> None:
    batch = next(stream(folder, image_size=(16, 12), normalise={}).evaluation())
    assert batch.views["ffdm_cc"].shape == (GLOBAL, 1, 16, 12)
    small = next(stream(folder, image_size=(4, 3), normalise={}).evaluation()).views["ffdm_cc"]
    original = next(stream(folder, normalise={}).evaluation()).views["ffdm_cc"]
    assert small.mean() == pytest.approx(float(original.mean()), abs=0.02)  # shrinking averages


def test_only_complete_samples_if_asked(folder: Path) -> None:
    reading = stream(folder, micro_batch=4, complete_only=True)
    assert reading.num_samples == sum(number % 4 != 0 for number in range(COUNT))
    for batch in itertools.chain(reading.evaluation(), *reading.epoch(0)):
        assert batch.present.all()
        assert all(number_of(key) % 4 for key in batch.keys if key)


def test_samples_without_any_modality_asked_for_are_left_out(folder: Path) -> None:
    reading = stream(folder, micro_batch=4, modalities=["ffdm_mlo"])
    assert reading.num_samples == sum(number % 4 != 0 for number in range(COUNT))
    assert all(batch.present.all() for batch in reading.evaluation())


def test_what_the_split_does_not_have_is_named(folder: Path) -> None:
    with pytest.raises(DataError, match="syn_cc, risk1"):
        stream(folder, modalities=["ffdm_cc", "syn_cc"], tasks=[find_card("embed").task("risk1")])


# --------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("count", [1, 2, 11, 12])
@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_evaluation_visits_every_sample_once(tmp_path: Path, count: int, world: int, micro_batch: int) -> None:
    folder = write(tmp_path, count)
    ranks = [list(stream(folder, rank, world, micro_batch=micro_batch).evaluation()) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1  # every rank takes part in every collective
    assert all(len(batch) == micro_batch for batches in ranks for batch in batches)
    found = [
        key
        for batches in ranks
        for batch in batches
        for key, valid in zip(batch.keys, batch.valid, strict=True)
        if valid
    ]
    assert Counter(number_of(key) for key in found) == Counter(range(count))
    padding = [
        key
        for batches in ranks
        for batch in batches
        for key, valid in zip(batch.keys, batch.valid, strict=True)
        if not valid
    ]
    assert set(padding) <= {""}
    assert len(found) + len(padding) < count + micro_batch * world


def test_evaluation_is_in_manifest_order(folder: Path) -> None:
    found = [key for batch in stream(folder, micro_batch=10).evaluation() for key in batch.keys if key]
    assert [number_of(key) for key in found] == list(range(COUNT))


def test_evaluation_is_never_augmented(folder: Path) -> None:
    """The training split is evaluated with the stream that training reads augmented."""
    plain = list(stream(folder).evaluation())
    found = list(stream(folder, augment=AUGMENT).evaluation())
    assert [batch.keys for batch in found] == [batch.keys for batch in plain]
    for one, other in zip(found, plain, strict=True):
        assert all(torch.equal(view, other.views[name]) for name, view in one.views.items())


# ------------------------------------------------------------------------------------------- weights, both breasts


def test_balanced_sampling_brings_rare_classes_and_keeps_the_length(tmp_path: Path) -> None:
    from m4oe_ds.data.order import balanced_weights, weighted_order

    manifest = Manifest.load(write(tmp_path, 120))
    labels = np.where(np.arange(120) < 6, 1, 0)
    labels[100:] = -1
    full = balanced_weights([labels], 1.0, 1e9)
    np.testing.assert_allclose([full[0], full[50], full[110]], [94 / 6, 1.0, 1.0])
    assert balanced_weights([labels], 1.0, 4.0)[0] == 4.0
    assert (balanced_weights([labels], 0.0, 9.0) == 1.0).all()
    counts = np.zeros(120)
    for epoch in range(40):
        order = weighted_order(manifest, 1, epoch, full)
        assert len(order) == 120
        starts = np.cumsum([0, *(shard.num_samples for shard in manifest.shards)])
        one = np.bincount(starts[order[:, 0]] + order[:, 1], minlength=120)
        expected = 120 * full / full.sum()
        assert (np.abs(one - expected) < 1 + 1e-9).all()  # systematic: never a whole draw off
        counts += one
    np.testing.assert_allclose(counts[:6].mean() / 40, 120 * full[0] / full.sum(), rtol=0.05)


def test_weighted_epochs_resume_and_leave_out_what_is_not_eligible(folder: Path) -> None:
    weights = np.ones(COUNT)
    weights[::3] = 0.0
    options = {"weights": weights, "micro_batch": 2}
    whole = [key for step in stream(folder, **options).epoch(1) for key in keys(step)]
    tail = [key for step in stream(folder, **options).epoch(1, samples_done=4) for key in keys(step)]
    assert whole[4:] == tail
    assert not {number_of(key) for key in whole if key} & set(range(0, COUNT, 3))


def test_the_other_breast_of_the_same_exam_comes_along(tmp_path: Path) -> None:
    spec = find_card("rsna")
    writer = ShardWriter(
        tmp_path,
        spec,
        "train",
        samples_per_shard=2,
        synthetic=True,
        preprocessing={},
    )
    sides = [(1, "l"), (2, "l"), (1, "r"), (3, "r")]
    for number, (exam, side) in enumerate(sides):
        meta = {
            "schema_version": SCHEMA_VERSION,
            "dataset": "rsna",
            "split": "train",
            "key": f"rsna-{number:016x}-{side}",
            "group": f"{exam:016x}",
            "exam": f"{exam:016x}",
            "side": side,
            "labels": {},
            "modalities": ["ffdm_cc"],
            "geometry": {},
            "screening": None,
            "vendor": "other",
        }
        writer.write(meta, {"ffdm_cc.b2": codecs.encode(pixels(number, 0))})
    writer.close({})
    (batch,) = stream(tmp_path / "train", micro_batch=4, contralateral=True, normalise={}).evaluation()
    there = batch.extras["contralateral_present"]
    assert there.tolist() == [[True, False], [False, False], [True, False], [False, False]]
    other = batch.extras["contralateral.ffdm_cc"]
    assert torch.equal(other[0], batch.views["ffdm_cc"][2])
    assert torch.equal(other[2], batch.views["ffdm_cc"][0])
    assert other[1].abs().sum() == 0
