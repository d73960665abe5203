"""Batches from shards: the same global step on any number of ranks, workers and micro-batches; resumable; exact-once
evaluation; damage becomes padding."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m4oe_ds.data import codecs
from m4oe_ds.data.augment import AugmentOptions
from m4oe_ds.data.batch import Batch
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.order import Share
from m4oe_ds.data.reading import Reading
from m4oe_ds.data.schema import DATASETS, SCHEMA_VERSION
from m4oe_ds.data.shard_writer import ShardWriter
from m4oe_ds.data.stream import Sampling, ShardStream
from m4oe_ds.errors import DataError

SPEC = DATASETS["rsna"]
COUNT, GLOBAL = 53, 24
HEIGHT, WIDTH = 8, 6
AUGMENT = AugmentOptions(10.0, 0.04, 0.08, 0.15, 0.1, 0.01, True)


def pixels(number: int, view: int) -> np.ndarray:
    return np.random.default_rng((number, view)).integers(1, 65536, (HEIGHT, WIDTH)).astype(np.uint16)


def modalities_of(number: int) -> tuple[str, ...]:
    """Every fourth sample lacks its second view."""
    return SPEC.modalities[:1] if number % 4 == 0 else SPEC.modalities


def labels_of(number: int) -> dict[str, int]:
    """Every third sample lacks its density."""
    return {"density": -1 if number % 3 == 0 else number % 4, "birads": number % 3}


def write(folder: Path, count: int = COUNT, statistics: dict[str, Any] | None = None) -> Path:
    writer = ShardWriter(
        folder,
        "rsna",
        "train",
        modalities=SPEC.modalities,
        tasks=SPEC.tasks,
        samples_per_shard=7,
        synthetic=True,
        preprocessing={},
    )
    for number in range(count):
        views = modalities_of(number)
        meta = {
            "schema_version": SCHEMA_VERSION,
            "dataset": "rsna",
            "split": "train",
            "key": f"rsna-{number:016x}-l",
            "group": f"{number:016x}",
            "exam": f"{number:016x}",
            "side": "l",
            "labels": labels_of(number),
            "modalities": list(views),
            "geometry": {},
            "screening": None,
            "vendor": "other",
        }
        writer.write(meta, {f"{name}.b2": codecs.encode(pixels(number, i)) for i, name in enumerate(views)})
    writer.close(statistics or {})
    return folder / "train"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("shards"))


def stream(folder: Path, rank: int = 0, world: int = 1, **options: Any) -> ShardStream:
    """One rank's stream of a split; options go to the object that has a field of their name."""
    manifest = Manifest.load(folder)
    settings: dict[str, Any] = {
        "modalities": SPEC.modalities,
        "tasks": SPEC.tasks,
        "image_size": (HEIGHT, WIDTH),
        "normalise": manifest.normalisation(),
        "accumulation": 1,
        "seed": 3,
        "last_batch": "drop",
        **options,
    }
    settings.setdefault("micro_batch", GLOBAL // (world * settings["accumulation"]))
    channels = dict.fromkeys(DATASETS["embed"].modalities, 1)  # grey, and of RSNA too
    settings["channels"] = tuple(channels[name] for name in settings["modalities"])

    def fields(cls: type) -> dict[str, Any]:
        return {field.name: settings[field.name] for field in dataclasses.fields(cls) if field.name in settings}

    rest = {name: settings[name] for name in ("workers", "cache", "max_bad_fraction") if name in settings}
    share = Share(rank, world, settings["micro_batch"], settings["accumulation"])
    return ShardStream(folder, manifest, Reading(**fields(Reading)), share, Sampling(**fields(Sampling)), **rest)


def number_of(key: str) -> int:
    return int(key.split("-")[1], 16)


def keys(batches: list[Batch]) -> list[str]:
    return [key for batch in batches for key in batch.keys]


def same(a: Batch, b: Batch) -> bool:
    return (
        a.keys == b.keys
        and torch.equal(a.present, b.present)
        and torch.equal(a.label_mask, b.label_mask)
        and torch.equal(a.valid, b.valid)
        and all(torch.equal(a.views[name], b.views[name]) for name in a.views)
        and all(torch.equal(a.labels[name], b.labels[name]) for name in a.labels)
    )


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
        stream(folder, modalities=["ffdm_cc", "syn_cc"], tasks=[DATASETS["embed"].task("risk1")])


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


# ------------------------------------------------------------------------------------------------------- damage


def corrupt(folder: Path, number: int) -> None:
    """Overwrites the pixels of a sample in place (the header of its first view)."""
    manifest = Manifest.load(folder)
    shard_id, index = manifest.samples()[number]
    shard = manifest.shards[shard_id]
    path = folder / shard.name
    data = bytearray(path.read_bytes())
    start = data.index(b"M4B2", shard.offsets[index], shard.offsets[index + 1])
    data[start : start + 4] = b"\0\0\0\0"
    path.write_bytes(data)


@pytest.mark.parametrize("workers", [0, 2])
def test_one_damaged_sample_becomes_padding_and_is_counted(tmp_path: Path, workers: int) -> None:
    folder = write(tmp_path, 20)
    corrupt(folder, 5)
    reading = stream(folder, micro_batch=10, workers=workers)
    batches = list(reading.evaluation())
    flags = [bool(valid) for batch in batches for valid in batch.valid]
    assert flags == [number != 5 for number in range(20)]
    assert not batches[0].label_mask[5].any()
    assert batches[0].views["ffdm_cc"][5].abs().sum() == 0
    assert len(reading.quarantine.reasons) == 1
    list(reading.evaluation())  # met again: counted once
    assert len(reading.quarantine.reasons) == 1


def test_a_second_damaged_sample_stops_the_run(tmp_path: Path) -> None:
    folder = write(tmp_path, 20)
    corrupt(folder, 5)
    corrupt(folder, 13)
    with pytest.raises(DataError, match="2 of 20 samples are unreadable"):
        list(stream(folder, micro_batch=10).evaluation())
    tolerant = stream(folder, micro_batch=10, max_bad_fraction=0.1)
    assert sum(int(batch.valid.sum()) for batch in tolerant.evaluation()) == 18


def test_messages_about_damage_hold_no_key(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = write(tmp_path, 20)
    corrupt(folder, 5)
    list(stream(folder, micro_batch=10).evaluation())
    (record,) = caplog.records
    assert "rsna-train-000000.tar[5]" in record.getMessage()
    assert f"{5:016x}" not in record.getMessage()


def test_a_shard_lost_during_the_run_is_damage_too(tmp_path: Path) -> None:
    folder = write(tmp_path, 20)
    reading = stream(folder, micro_batch=10)
    for path in folder.glob("*.tar"):
        path.unlink()
    with pytest.raises(DataError, match="unreadable"):
        list(reading.evaluation())


def test_batches_are_frozen(folder: Path) -> None:
    batch = next(stream(folder).evaluation())
    with pytest.raises(dataclasses.FrozenInstanceError):
        batch.keys = ()  # type: ignore[misc]


# ---------------------------------------------------------------------------- every sample once, whatever happens


def read_part(folder: Path, world: int, workers: int, done: int, steps: int | None, **options: Any) -> list[str]:
    """Keys that ``world`` ranks read in ``steps`` steps (None = to the end) from position ``done`` of epoch 3."""
    found: list[str] = []
    lengths = set()
    for rank in range(world):
        reading = stream(folder, rank, world, workers=workers, last_batch="pad", **options)
        taken = list(itertools.islice(reading.epoch(3, samples_done=done), steps))
        lengths.add(len(taken))
        found += [key for step in taken for batch in step for key in batch.keys if key]
    assert len(lengths) == 1  # equal steps on every rank
    return found


CASES = np.random.default_rng(11)


@pytest.mark.parametrize(
    ("world", "after", "workers", "micro", "accumulation", "kill"),
    [
        (
            int(CASES.integers(1, 6)),
            int(CASES.integers(1, 6)),
            # reader processes cost seconds: a third of the cases, with another number of them after the kill
            (int(CASES.integers(0, 3)), int(CASES.integers(0, 3))) if case % 3 == 0 else (0, 0),
            int(CASES.integers(1, 4)),
            int(CASES.integers(1, 3)),
            float(CASES.random()),
        )
        for case in range(50)
    ],
)
def test_a_killed_epoch_goes_on_at_any_world_size_with_every_sample_once(
    folder: Path, world: int, after: int, workers: tuple[int, int], micro: int, accumulation: int, kill: float
) -> None:
    """50 random (kill point, world before, world after, workers): the union of both parts is the epoch."""
    before = {"micro_batch": micro, "accumulation": accumulation}
    steps = int(kill * stream(folder, 0, world, last_batch="pad", **before).steps_per_epoch)
    first = read_part(folder, world, workers[0], 0, steps, **before)
    used = min(steps * micro * accumulation * world, COUNT)
    assert len(first) == used
    second = read_part(folder, after, workers[1], used, None, micro_batch=4 - micro, accumulation=3 - accumulation)
    assert Counter(first + second) == Counter(key for key in all_keys(folder))


def all_keys(folder: Path) -> list[str]:
    return [key for batch in stream(folder).evaluation() for key in batch.keys if key]


@pytest.mark.parametrize("workers", [0, 2])
def test_every_batch_is_pinned_where_there_is_a_gpu(
    folder: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """With reader processes in the thread that works ahead, on the GPU of this process."""
    import threading

    pinned: list[str] = []
    devices: list[tuple[int, str]] = []

    def pin(batch: Batch) -> Batch:
        pinned.append(threading.current_thread().name)
        return batch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", lambda n: devices.append((n, threading.current_thread().name)))
    monkeypatch.setattr(Batch, "pin_memory", pin)
    steps = list(stream(folder, workers=workers, micro_batch=6).epoch(0))
    assert len(pinned) == len(steps) == COUNT // 6
    assert set(pinned) == {"prefetch" if workers else "MainThread"}
    assert devices == ([(3, "prefetch")] if workers else [])


def test_an_epoch_left_early_leaves_no_thread_and_no_process(folder: Path) -> None:
    import gc
    import multiprocessing
    import threading

    for _ in range(3):
        reading = stream(folder, workers=2, micro_batch=2).epoch(0)
        next(reading)
        reading.close()  # type: ignore[attr-defined]
    gc.collect()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]
    assert not multiprocessing.active_children()


def test_more_readers_than_shards_lose_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path, 7)
    shards = len(Manifest.load(folder).shards)
    assert shards < 3 * 2
    assert Counter(read_part(folder, 3, 2, 0, None, micro_batch=2)) == Counter(all_keys(folder))


def test_padding_of_the_last_batch_carries_no_label(folder: Path) -> None:
    reading = stream(folder, micro_batch=GLOBAL, last_batch="pad")
    steps = list(reading.epoch(0))
    assert len(steps) == -(-COUNT // GLOBAL)
    (last,) = steps[-1]
    assert int(last.valid.sum()) == COUNT % GLOBAL
    assert not last.label_mask[~last.valid].any()


def test_the_shuffle_is_measured_to_be_good(tmp_path: Path) -> None:
    """Orders of two epochs are unrelated, and the samples of every shard are spread over the whole epoch."""
    from scipy.stats import spearmanr

    from m4oe_ds.data.order import epoch_order

    manifest = Manifest.load(write(tmp_path, 200))
    starts = np.cumsum([0, *(shard.num_samples for shard in manifest.shards)])
    places = []
    for epoch in range(6):
        order = epoch_order(manifest, 0, epoch)
        number = starts[order[:, 0]] + order[:, 1]
        places.append(np.argsort(number))  # place of every sample in this epoch
        for shard in range(len(manifest.shards)):
            mine = np.flatnonzero(order[:, 0] == shard) / len(order)
            assert np.ptp(mine) > 0.25  # five samples of 200 at random: spread of 0.67 on average
    correlations = [abs(spearmanr(a, b).statistic) for a, b in itertools.combinations(places, 2)]
    assert max(correlations) < 0.25  # standard error of 200 ranks: 0.07


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
    spec = DATASETS["rsna"]
    writer = ShardWriter(
        tmp_path,
        "rsna",
        "train",
        modalities=spec.modalities,
        tasks=spec.tasks,
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
