"""Damage becomes padding and is counted; whatever ends an epoch, every sample is read once."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m4oe_ds.data.batch import Batch
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.errors import DataError
from tests.unit.data.stream_cases import (
    COUNT,
    GLOBAL,
    stream,
    write,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("shards"))


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
