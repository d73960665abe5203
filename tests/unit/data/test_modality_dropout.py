"""Modality dropout: which modalities a training sample loses, and that it loses them in every respect."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from m4oe_ds.data import codecs
from m4oe_ds.data.batch import Batch
from m4oe_ds.data.cards import find_card
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.missing import Presence, dropped, presence, taken
from m4oe_ds.data.reading import Reading
from tests.unit.data.stream_cases import AUGMENT, COUNT, SPEC, modalities_of, number_of, same, stream, write

DROP = {"modality_dropout": 0.5}
GAMMA = find_card("gamma")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("shards"))


def presence_by_key(batches: list[Batch]) -> dict[str, tuple[bool, ...]]:
    return {key: tuple(batch.present[row].tolist()) for batch in batches for row, key in enumerate(batch.keys) if key}


def epoch(folder: Path, number: int, rank: int = 0, world: int = 1, **options: object) -> list[Batch]:
    reading = stream(folder, rank, world, **{"last_batch": "pad", **options})  # type: ignore[arg-type]
    return [batch for step in reading.epoch(number) for batch in step]


def test_the_draw_depends_on_seed_epoch_and_key_alone() -> None:
    names = ("a", "b", "c")
    draws = {
        (seed, turn, key): dropped(names, 0.5, seed, turn, key) for seed in (0, 1) for turn in range(20) for key in "xy"
    }
    assert draws == {place: dropped(names, 0.5, *place) for place in draws}
    for axis in range(3):  # varying one alone changes some of the draws
        by_rest: dict[tuple[object, ...], set[frozenset[str]]] = {}
        for place, gone in draws.items():
            by_rest.setdefault((*place[:axis], *place[axis + 1 :]), set()).add(gone)
        assert max(map(len, by_rest.values())) > 1


@pytest.mark.parametrize("probability", [0.3, 0.99])
def test_one_modality_always_stays_and_each_is_as_likely_to(probability: float) -> None:
    names = ("a", "b", "c")
    draws = [dropped(names, probability, 0, 0, str(key)) for key in range(3000)]
    assert max(map(len, draws)) == 2
    lost = Counter(name for gone in draws for name in gone)
    # all three are hit with p^3, and then one of them stays
    expected = probability - probability**3 / 3
    assert [lost[name] / 3000 for name in names] == pytest.approx([expected] * 3, abs=0.03)


def test_nothing_is_lost_without_dropout_or_of_a_single_modality() -> None:
    assert not any(dropped(("a", "b"), 0.0, 0, 0, str(key)) for key in range(50))
    assert not any(dropped(("a",), 0.9, 0, 0, str(key)) for key in range(50))


def test_a_lost_modality_is_absent_and_the_others_are_untouched(folder: Path) -> None:
    whole = {key: (batch, row) for batch in epoch(folder, 1) for row, key in enumerate(batch.keys)}
    lost = 0
    for batch in epoch(folder, 1, **DROP):
        for row, key in enumerate(batch.keys):
            before, place = whole[key]
            assert batch.present[row].any()
            assert not (batch.present[row] & ~before.present[place]).any()
            for i, name in enumerate(batch.modalities):
                view = batch.views[name][row]
                if batch.present[row, i]:
                    assert torch.equal(view, before.views[name][place])
                else:
                    assert not view.any()
            assert torch.equal(batch.label_mask[row], before.label_mask[place])
            lost += int(before.present[place].sum() - batch.present[row].sum())
    assert 10 < lost < COUNT


def test_ranks_and_workers_change_nothing(folder: Path) -> None:
    alone = presence_by_key(epoch(folder, 1, **DROP))
    assert len(alone) == COUNT
    ranks = [presence_by_key(epoch(folder, 1, rank, 3, **DROP)) for rank in range(3)]
    assert {key: there for mine in ranks for key, there in mine.items()} == alone
    here, there = (epoch(folder, 1, workers=workers, augment=AUGMENT, **DROP) for workers in (0, 2))
    assert all(same(a, b) for a, b in zip(here, there, strict=True))
    assert presence_by_key(epoch(folder, 2, **DROP)) != alone
    assert presence_by_key(epoch(folder, 1, seed=4, **DROP)) != alone


def test_resuming_gives_the_tail(folder: Path) -> None:
    options = {"micro_batch": 3, "accumulation": 2, "augment": AUGMENT, **DROP}
    whole = list(stream(folder, **options).epoch(2))
    tail = list(stream(folder, **options).epoch(2, samples_done=4 * 6))
    assert len(tail) == len(whole) - 4 > 0
    for expected, found in zip(whole[4:], tail, strict=True):
        assert all(same(a, b) for a, b in zip(expected, found, strict=True))


def test_evaluation_loses_nothing(folder: Path) -> None:
    there = presence_by_key(list(stream(folder, **DROP).evaluation()))
    assert there == {key: tuple(name in modalities_of(number_of(key)) for name in SPEC.modalities) for key in there}


def test_only_complete_samples_may_be_asked_for_and_then_lose_modalities(folder: Path) -> None:
    there = presence_by_key(epoch(folder, 0, complete_only=True, **DROP))
    assert len(there) == sum(len(modalities_of(number)) == 2 for number in range(COUNT))
    assert {sum(one) for one in there.values()} == {1, 2}


def test_the_other_side_loses_what_its_sample_loses(folder: Path) -> None:
    """Here the next sample is the other side of each: it keeps what it would lose, and loses what the first does."""
    reading = stream(folder, contralateral=True, last_batch="pad", **DROP)
    places = Manifest.load(folder).samples()
    reading.other_side = dict(zip(places, places[1:] + places[:1], strict=True))
    lost = 0
    for batch in (batch for step in reading.epoch(0) for batch in step):
        for row, key in enumerate(batch.keys):
            if not key:
                continue
            number = number_of(key)
            for i, name in enumerate(batch.modalities):
                gone = name in modalities_of(number) and not batch.present[row, i]
                there = bool(batch.extras["contralateral_present"][row, i])
                assert there == (name in modalities_of((number + 1) % COUNT) and not gone)
                assert there == bool(batch.extras[f"contralateral.{name}"][row].any())
                lost += gone
    assert lost > 10


def members(key: str) -> dict[str, bytes]:
    """A GAMMA sample with both modalities and a mask."""
    image = np.full((8, 6, 3), 30000, np.uint16)
    volume = np.full((GAMMA.modality("oct").planes, 8, 6), 100, np.uint8)
    meta = {"key": key, "group": "g", "labels": {"glaucoma": 1}, "modalities": ["fundus", "oct"]}
    mask = np.ones((8, 6), np.uint8)
    return {
        "meta.json": json.dumps(meta).encode(),
        "fundus.b2": codecs.encode(image, "b2"),
        "oct.b2": codecs.encode(volume, "b2"),
        "cup.b2": codecs.encode(mask, "b2"),
    }


def test_a_mask_is_not_asked_for_where_its_owner_is_lost() -> None:
    reading = Reading(GAMMA.inputs, GAMMA.tasks, (8, 6), modality_dropout=0.5)
    seen = set()
    for number in range(30):
        sample = reading.sample(members(f"gamma-{number:016x}"), 0)
        assert ("cup" in sample.masks) == ("fundus" in sample.views)
        assert sample.labels == {"glaucoma": 1}
        seen.add(frozenset(sample.views))
    assert seen == {frozenset({"fundus"}), frozenset({"oct"}), frozenset({"fundus", "oct"})}


def test_of_a_mask_whose_owner_is_not_read_the_first_modality_answers() -> None:
    reading = Reading((GAMMA.modality("oct"),), GAMMA.tasks, (8, 6))
    assert "cup" in reading.sample(members("gamma-0"), 0, lost=frozenset({"fundus"})).masks
    assert "cup" not in reading.sample(members("gamma-0"), 0, lost=frozenset({"oct"})).masks


# ------------------------------------------------------------------------------------------------- what is missing


def test_presence_counts_the_samples_that_are_read(folder: Path) -> None:
    manifest = Manifest.load(folder)
    few = sum(len(modalities_of(number)) == 1 for number in range(COUNT))
    first, second = SPEC.modalities
    assert presence(manifest, SPEC.modalities) == Presence(COUNT, {first: 0, second: few}, COUNT - few)
    assert presence(manifest, (second,)) == Presence(COUNT - few, {second: 0}, COUNT - few)
    assert presence(manifest, SPEC.modalities, complete_only=True) == Presence(
        COUNT - few, {first: 0, second: 0}, COUNT - few
    )


def test_the_line_never_rounds_some_to_none_or_to_all() -> None:
    found = Presence(1000, {"a": 999, "b": 3, "c": 0, "d": 500}, 1)
    assert found.line() == (
        "under 1 % of the training samples have every modality; missing: a in over 99 %, b in under 1 %, d in 50 %"
    )
    assert Presence(4, {"a": 0}, 4).line() == ""
    assert (found.rare(), found.never()) == (["a"], [])
    assert Presence(3, {"a": 3, "b": 0}, 0).never() == ["a"]


# ------------------------------------------------------------------------------------- taken away at evaluation


def test_successive_draws_take_every_combination_once() -> None:
    present = np.array([True, False, True, True, True])
    ways = {tuple(np.flatnonzero(taken(present, 2, draw, 0, "k")).tolist()) for draw in range(6)}
    assert len(ways) == 6
    assert all(len(way) == 2 and 1 not in way for way in ways)
    assert taken(present, 2, 6, 0, "k").tolist() == taken(present, 2, 0, 0, "k").tolist()
    assert len({taken(present, 2, 0, 0, str(key)).tobytes() for key in range(40)}) == 6


def test_the_last_modality_is_never_taken() -> None:
    assert not taken(np.array([True, False]), 1, 0, 0, "k").any()
    assert not taken(np.array([True, True]), 2, 0, 0, "k").any()
    assert not taken(np.array([False, False]), 1, 0, 0, "k").any()
    many = np.ones(20, dtype=bool)
    assert taken(many, 10, 0, 0, "k").sum() == taken(many, 10, 1, 0, "k").sum() == 10
    assert (taken(many, 10, 0, 0, "k") != taken(many, 10, 1, 0, "k")).any()
