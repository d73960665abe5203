"""Choice of the number of ranks that share the experts."""

from __future__ import annotations

import pytest

from m4oe_ds.errors import ConfigError
from m4oe_ds.parallel.topology import Topology, choose_ep_size


def divides_all(size: int, numbers: list[int]) -> bool:
    return all(number % size == 0 for number in numbers)


@pytest.mark.parametrize("world", range(1, 13))
@pytest.mark.parametrize("counts", [[32, 128, 16], [4, 8], [6, 9], [5], [1, 128], [12, 24, 36]])
def test_automatic_takes_the_largest_size_that_divides_everything(world: int, counts: list[int]) -> None:
    best = max(size for size in range(1, world + 1) if divides_all(size, [world, *counts]))
    assert choose_ep_size(0, world, counts) == best


@pytest.mark.parametrize("requested", [1, 2, 4])
def test_a_size_that_fits_is_kept(requested: int) -> None:
    assert choose_ep_size(requested, 4, [32, 128, 16]) == requested


@pytest.mark.parametrize("requested", [3, 5, 8, 16, -1])
def test_a_size_that_does_not_divide_the_world_lists_the_choices(requested: int) -> None:
    with pytest.raises(ConfigError) as caught:
        choose_ep_size(requested, 4, [32, 128, 16])
    assert f"ep_size={requested} does not divide the world size 4" in str(caught.value)
    assert "choose 1 or 2 or 4" in str(caught.value)
    assert str(caught.value).startswith("parallel.ep_size: ")


def test_a_size_that_does_not_divide_an_expert_count_names_the_count() -> None:
    with pytest.raises(ConfigError) as caught:
        choose_ep_size(4, 8, [32, 6, 128])
    assert "ep_size=4 does not divide 6 experts" in str(caught.value)
    assert str(caught.value).endswith("choose 1 or 2")


@pytest.mark.parametrize("ep_size", [1, 2, 4, 8])
def test_the_ranks_of_a_group_hold_every_expert_once_in_order(ep_size: int) -> None:
    held = [
        expert for ep_rank in range(ep_size) for expert in Topology(8, ep_rank, ep_size, ep_rank, "g").local_experts(16)
    ]
    assert held == list(range(16))


def test_the_stamp_tells_sizes_apart() -> None:
    stamps = [Topology(8, 0, ep_size, 0, "g").stamp() for ep_size in (2, 4)]
    assert stamps[0] != stamps[1]
    assert Topology(8, 3, 2, 1, "g").stamp() == stamps[0]  # the same on every rank
