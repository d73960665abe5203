"""Who holds which expert: sizes, groups and the stamp that every checkpoint carries."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import deepspeed.comm as dist
from deepspeed.utils import groups

from m4oe_ds.errors import ConfigError


@dataclass(frozen=True)
class Topology:
    """Placement of this process.

    Attributes:
        world: data-parallel world size (all processes).
        rank: rank of this process in it.
        ep_size: ranks that share one set of experts.
        ep_rank: place of this rank among them. Expert e of n lives on expert-parallel rank ``e // (n / ep_size)``.
        group_name: name of DeepSpeed's expert-parallel group.
    """

    world: int
    rank: int
    ep_size: int
    ep_rank: int
    group_name: str

    def local_experts(self, num_experts: int) -> range:
        """Global ids of the experts held by this rank."""
        count = num_experts // self.ep_size
        return range(self.ep_rank * count, (self.ep_rank + 1) * count)

    def stamp(self) -> dict[str, Any]:
        """What must be equal for a native load: a changed ``ep_size`` would silently permute the experts."""
        return {"world": self.world, "ep_size": self.ep_size, "order": "expert-before-data"}


def choose_ep_size(requested: int, world: int, expert_counts: Sequence[int], where: str = "parallel.ep_size") -> int:
    """The requested size after checking it, or (for 0) the largest that divides the world and every expert count.

    It is 1 for a model without experts.

    Raises:
        ConfigError: the size does not divide the world or an expert count; lists the sizes that do.
    """
    if not expert_counts:
        return 1
    largest = math.gcd(world, *expert_counts)
    if requested == 0:
        return largest
    allowed = [size for size in range(1, largest + 1) if largest % size == 0]
    choices = f"choose {' or '.join(map(str, allowed))}"
    if requested < 0 or world % requested:
        raise ConfigError(f"ep_size={requested} does not divide the world size {world}", where, choices)
    for count in sorted(set(expert_counts)):
        if count % requested:
            raise ConfigError(f"ep_size={requested} does not divide {count} experts", where, choices)
    return requested


def create(ep_size: int) -> Topology:
    """Creates DeepSpeed's expert groups for ``ep_size`` (once per size) and returns this process's place.

    Collectives: every rank must call this with the same size, in the same order.
    """
    name = f"ep_size_{ep_size}"
    if name not in groups._get_expert_parallel_group_dict():
        groups._create_expert_and_data_parallel(ep_size)
    # from the group, not rank % ep_size: the two differ under other group orders
    return Topology(dist.get_world_size(), dist.get_rank(), ep_size, groups._get_expert_parallel_rank(name), name)
