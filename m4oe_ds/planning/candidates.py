"""What a layout on a cluster costs: the model recorded once per layout, its memory and its simulated time."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from m4oe_ds.config import Config
from m4oe_ds.models.registry import spec_for
from m4oe_ds.planning.hardware import Cluster
from m4oe_ds.planning.memory import Layout, RankMemory, rank_memory
from m4oe_ds.planning.model_cost import MicroStep, Precision, micro_step
from m4oe_ds.planning.step_time import StepTime, step_time

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wishes:
    """What the user fixed; None leaves a choice to the search.

    Attributes:
        batch: samples per optimizer step, over all ranks.
        precision: fp32, bf16 or fp16.
        ep: see :class:`Layout`.
        stage: see :class:`Layout`.
        micro: see :class:`Layout`.
        offload: optimizer in host memory; None = only where nothing else fits.
        all_devices: do not consider leaving a pool of the cluster idle.
    """

    batch: int = 32
    precision: Precision = "bf16"
    ep: int | None = None
    stage: int | None = None
    micro: int | None = None
    offload: bool | None = None
    all_devices: bool = False


@dataclass(frozen=True)
class Candidate:
    """A layout on some of the cluster's devices with what it costs."""

    cluster: Cluster
    layout: Layout
    recompute: bool
    cost: MicroStep = field(repr=False)
    memory: RankMemory
    time: StepTime

    @property
    def fits(self) -> bool:
        """Whether it fits on every device used."""
        return all(self.memory.fits(pool.device) for pool in self.cluster.pools)

    @property
    def samples_per_second(self) -> float:
        """Global throughput."""
        return self.layout.batch / self.time.total


class Costs:
    """Records of the model by layout, made once each."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._known: dict[tuple[Any, ...], MicroStep] = {}

    def get(self, precision: Precision, micro: int, ep: int, recompute: bool) -> MicroStep:
        """The record of :func:`micro_step`."""
        key = (precision, micro, ep, recompute)
        if key not in self._known:
            model = dataclasses.replace(self.config.model, activation_checkpointing=recompute)
            _logger.info("recording the model: micro-batch %d, ep %d, %s", micro, ep, precision)
            self._known[key] = micro_step(dataclasses.replace(self.config, model=model), precision, micro, ep)
        return self._known[key]


def evaluate(costs: Costs, cluster: Cluster, layout: Layout, recompute: bool = False) -> Candidate:
    """Memory and time of one layout on all devices of ``cluster``."""
    precision: Any = layout.precision
    cost = costs.get(precision, layout.micro, layout.ep, recompute)
    spec = spec_for(costs.config)
    view_bytes = 4.0 * layout.micro * sum(math.prod(spec.shape(name)) for name in spec.modalities)
    time = step_time(cost, layout, cluster, view_bytes)
    return Candidate(cluster, layout, recompute, cost, rank_memory(cost, layout), time)


def most_sharers(counts: Sequence[int], *divided: int) -> int:
    """Most ranks that can share the experts of every layer; 1 where there are none to share.

    Args:
        counts: experts of every kind of layer.
        *divided: other numbers that it has to divide, e.g. the ranks.
    """
    return math.gcd(*divided, *counts) if counts else 1
