"""The order of an epoch: a permutation, a pure function of seed and epoch, local in shards; who reads what."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m4oe_ds.data.cards import Card
from m4oe_ds.data.manifest import Manifest, Shard
from m4oe_ds.data.order import WINDOW_SAMPLES, Share, epoch_order, generator, shuffle_quality
from m4oe_ds.data.schema import ModalitySpec


def manifest(sizes: list[int]) -> Manifest:
    """A manifest of shards of the given sizes; files do not matter for the order."""
    shards = tuple(
        Shard(
            f"x-train-{i:06d}.tar",
            0,
            "",
            size,
            list(range(size + 1)),
            {},
            [1] * size,
            ["g"] * size,
            [f"e{n}-l" for n in range(size)],
        )
        for i, size in enumerate(sizes)
    )
    return Manifest("x", "train", True, Card("x", (ModalitySpec("a"),), ()), sum(sizes), 1, shards, {}, {}, {}, {})


def pairs(order: np.ndarray) -> list[tuple[int, int]]:
    return [(int(shard), int(index)) for shard, index in order]


sizes = st.lists(st.integers(1, 40), min_size=1, max_size=25)


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(0, 2**31), st.integers(0, 200), st.integers(1, 300))
def test_an_epoch_is_a_permutation(sizes: list[int], seed: int, epoch: int, window: int) -> None:
    split = manifest(sizes)
    found = epoch_order(split, seed, epoch, window_samples=window)
    assert found.shape == (sum(sizes), 2)
    assert sorted(pairs(found)) == split.samples()


@settings(max_examples=40, deadline=None)
@given(sizes, st.integers(0, 1000), st.integers(1, 100))
def test_only_eligible_samples_are_used(sizes: list[int], seed: int, window: int) -> None:
    split = manifest(sizes)
    eligible = np.random.default_rng(seed).random(sum(sizes)) < 0.5
    found = epoch_order(split, seed, 0, eligible, window)
    assert sorted(pairs(found)) == [pair for pair, keep in zip(split.samples(), eligible, strict=True) if keep]


@settings(max_examples=40, deadline=None)
@given(sizes, st.integers(0, 1000), st.integers(1, 120))
def test_few_shards_are_read_at_a_time(sizes: list[int], seed: int, window: int) -> None:
    """The epoch falls into stretches without a common shard, each at most a window and one shard long."""
    order = pairs(epoch_order(manifest(sizes), seed, 1, window_samples=window))
    last = {shard: place for place, (shard, _) in enumerate(order)}
    start, reach = 0, -1
    for place, (shard, _) in enumerate(order):
        reach = max(reach, last[shard])
        if place == reach:  # every shard met so far is finished
            assert place + 1 - start < window + max(sizes)
            start = place + 1


def test_no_sample_at_all() -> None:
    assert epoch_order(manifest([]), 0, 0).shape == (0, 2)
    assert epoch_order(manifest([3, 4]), 0, 0, np.zeros(7, dtype=bool)).shape == (0, 2)


def test_equal_arguments_give_equal_orders_whatever_happened_before() -> None:
    split = manifest([7, 9, 3])
    first = epoch_order(split, 5, 2)
    np.random.default_rng().random(10)
    epoch_order(split, 5, 3)
    assert (epoch_order(split, 5, 2) == first).all()


def test_epochs_and_seeds_differ() -> None:
    split = manifest([20] * 10)
    orders = {tuple(pairs(epoch_order(split, seed, epoch))) for seed in range(5) for epoch in range(8)}
    assert len(orders) == 40


def test_the_global_generator_is_not_touched() -> None:
    before = np.random.get_state()[1].tolist()  # noqa: NPY002
    epoch_order(manifest([20] * 4), 0, 0)
    assert np.random.get_state()[1].tolist() == before  # noqa: NPY002


def test_samples_are_mixed_within_a_window_and_shards_are_permuted() -> None:
    split = manifest([50] * 20)
    order = epoch_order(split, 0, 0)  # all in one window
    assert split.num_samples < WINDOW_SAMPLES
    neighbours = (order[1:, 0] == order[:-1, 0]).mean()
    assert neighbours < 0.12  # 0.05 expected of a full shuffle of 20 shards, 1 of none
    stretches = epoch_order(split, 0, 0, window_samples=500)  # two windows of ten shards
    neighbours = (stretches[1:, 0] == stretches[:-1, 0]).reshape(-1)
    assert max(neighbours[:500].mean(), neighbours[500:].mean()) < 0.2  # 0.1 expected
    one_by_one = epoch_order(split, 0, 0, window_samples=1)[:, 0]
    visited = [shard for shard, _ in itertools.groupby(one_by_one)]
    assert sorted(visited) == list(range(20))
    assert visited != list(range(20))


@pytest.mark.parametrize(("sizes", "window"), [([5] * 40, 4096), ([64] * 50, 4096), ([64] * 200, 4096), ([3], 4096)])
def test_the_shuffle_is_measured_by_correlation_and_spread(sizes: list[int], window: int) -> None:
    """Against scipy's rank correlation and the positions read off the order, shard by shard."""
    from scipy.stats import spearmanr

    split = manifest(sizes)
    found = shuffle_quality(split, seed=2, epochs=4, window_samples=window)
    orders = [pairs(epoch_order(split, 2, epoch, window_samples=window)) for epoch in range(4)]
    places = [[order.index(pair) for pair in split.samples()] for order in orders] if sum(sizes) < 4000 else None
    if places is not None:
        expected = max(abs(spearmanr(a, b).statistic) for a, b in itertools.combinations(places, 2))
        assert found.correlation == pytest.approx(expected, abs=1e-9)
    spreads = []
    for order in orders:
        by_shard: dict[int, list[int]] = {}
        for place, (shard, _) in enumerate(order):
            by_shard.setdefault(shard, []).append(place)
        spreads += [(max(mine) - min(mine)) / (len(order) - 1) for mine in by_shard.values()]
    assert found.spread == pytest.approx(np.median(spreads))
    assert found.least_spread == pytest.approx(min(spreads))
    if sum(sizes) > 100:
        assert found.correlation < 1.5 * found.chance
    if (
        sum(sizes) > window
    ):  # a shard stays within its window: no more than that share of the epoch, and nearly all of it
        assert 0.9 * window / sum(sizes) < found.spread < 1.2 * window / sum(sizes)


def test_a_bad_shuffle_is_measured_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from m4oe_ds.data import order as module

    monkeypatch.setattr(module, "epoch_order", lambda split, *_, **__: np.array(split.samples()))
    found = shuffle_quality(manifest([10] * 20))
    assert found.correlation == pytest.approx(1.0)
    assert found.spread == pytest.approx(9 / 199)
    with pytest.raises(ValueError, match="at least two"):
        shuffle_quality(manifest([1]))


def test_every_sample_is_equally_likely_to_come_first() -> None:
    split = manifest([4, 4])
    counts = np.zeros((2, 4))
    for epoch in range(800):
        shard, index = epoch_order(split, 3, epoch)[0]
        counts[shard, index] += 1
    assert abs(counts - 100).max() < 50  # 5 standard deviations of a binomial with mean 100


def test_purposes_are_independent_streams() -> None:
    drawn = {
        int(generator(*purpose).integers(2**62))
        for purpose in [
            (0, "order", 1),
            (0, "order", 2),
            (1, "order", 1),
            (0, "augment", 1),
            (0, "order", 1, "x"),
            (0, "order"),
        ]
    }
    assert len(drawn) == 6
    assert generator(0, "a", 12).integers(2**62) != generator(0, "a", 1, 2).integers(2**62)


# ----------------------------------------------------------------------------------------------------- position


@pytest.mark.parametrize(
    ("micro_batch", "world", "accumulation"), [(1, 1, 1), (3, 2, 1), (2, 3, 4), (5, 1, 2), (1, 4, 3)]
)
def test_positions_are_visited_once_and_a_step_is_a_block(micro_batch: int, world: int, accumulation: int) -> None:
    steps = 4
    block = micro_batch * world * accumulation
    by_step = [
        [
            Share(rank, world, micro_batch, accumulation).position(step, micro, row)
            for micro in range(accumulation)
            for rank in range(world)
            for row in range(micro_batch)
        ]
        for step in range(steps)
    ]
    for step, found in enumerate(by_step):
        assert sorted(found) == list(range(step * block, (step + 1) * block))


def test_rows_of_a_rank_follow_each_other() -> None:
    rows = [Share(1, 3, micro_batch=4, accumulation=2).position(2, 1, row) for row in range(4)]
    assert rows == [2 * 24 + 12 + 4 + row for row in range(4)]
