"""Searches devices, ep, ZeRO stage and micro-batch for a cluster, and says why it chose what it chose.

All times are simulated (:mod:`m4oe_ds.planning.step_time`); memory follows :mod:`m4oe_ds.planning.memory`.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from m4oe_ds.config import Config
from m4oe_ds.errors import ConfigError
from m4oe_ds.models.registry import expert_counts
from m4oe_ds.planning.hardware import Cluster, Pool
from m4oe_ds.planning.memory import Layout, RankMemory, rank_memory
from m4oe_ds.planning.model_cost import MicroStep, Precision, micro_step
from m4oe_ds.planning.step_time import StepTime, step_time

_logger = logging.getLogger(__name__)
# times closer than this are equal as far as the model can tell; the simpler or smaller layout then wins
TIE = 0.03
LARGEST_MICRO = 64


@dataclass(frozen=True)
class Wishes:
    """What the user fixed; None leaves a choice to the search.

    Attributes:
        batch: samples per optimizer step, over all ranks. precision: fp32, bf16 or fp16.
        ep, stage, micro: see :class:`Layout`. offload: optimizer in host memory; None = only where nothing fits else.
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
        """On every device used."""
        return all(self.memory.fits(pool.device) for pool in self.cluster.pools)

    @property
    def samples_per_second(self) -> float:
        """Global throughput."""
        return self.layout.batch / self.time.total


@dataclass(frozen=True)
class Plan:
    """The recommendation.

    Attributes:
        chosen: the fastest that fits, or the one nearest to fitting. fits: yes or no.
        reasons: (choice, reason) pairs. candidates: everything compared. ds_config: DeepSpeed JSON for ``chosen``.
        overrides: ``--set`` options that belong to it.
    """

    chosen: Candidate
    fits: bool
    reasons: tuple[tuple[str, str], ...]
    candidates: tuple[Candidate, ...]
    ds_config: dict[str, Any]
    overrides: tuple[str, ...]


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
    height, width = costs.config.data.image_size
    image_bytes = 4.0 * layout.micro * height * width * len(_modalities(costs.config))
    time = step_time(cost, layout, cluster, image_bytes)
    return Candidate(cluster, layout, recompute, cost, rank_memory(cost, layout), time)


def _modalities(config: Config) -> tuple[str, ...]:
    from m4oe_ds.data.schema import DATASETS

    return config.data.modalities or DATASETS[config.data.dataset].modalities


def recommend(config: Config, cluster: Cluster, wishes: Wishes | None = None, costs: Costs | None = None) -> Plan:
    """The fastest layout that fits ``cluster``, with its reasons.

    Raises:
        ConfigError: the wishes contradict the cluster, the batch or the expert counts.
    """
    wishes, costs = wishes or Wishes(), costs or Costs(config)
    recompute = config.model.activation_checkpointing
    candidates = _search(config, cluster, wishes, costs, recompute, bool(wishes.offload))
    if not any(item.fits for item in candidates) and not recompute:
        candidates += _search(config, cluster, wishes, costs, True, bool(wishes.offload))
    if not any(item.fits for item in candidates) and wishes.offload is None:
        candidates += _search(config, cluster, wishes, costs, True, True)
    fitting = [item for item in candidates if item.fits]
    if fitting:
        fastest = min(item.time.total for item in fitting)
        equal = [item for item in fitting if item.time.total <= fastest * (1 + TIE)]
        # among equals: the lower stage is simpler, then the smaller memory
        chosen = min(equal, key=lambda item: (item.layout.stage == 3, item.memory.peak))
    else:
        chosen = min(candidates, key=lambda item: item.memory.peak / min(p.device.usable for p in item.cluster.pools))
    overrides = [f"parallel.ep_size={chosen.layout.ep}"]
    overrides += ["model.activation_checkpointing=true"] if chosen.recompute and not recompute else []
    return Plan(
        chosen=chosen,
        fits=bool(fitting),
        reasons=tuple(_reasons(chosen, candidates, cluster, wishes, costs)),
        candidates=tuple(candidates),
        ds_config=ds_config(config, chosen.layout),
        overrides=tuple(overrides),
    )


def most_sharers(counts: Sequence[int], *divided: int) -> int:
    """Most ranks that can share the experts of every layer; 1 where there are none to share.

    Args:
        counts: experts of every kind of layer.
        divided: what the number has to divide besides, e.g. the ranks.
    """
    return math.gcd(*divided, *counts) if counts else 1


def _search(
    config: Config, cluster: Cluster, wishes: Wishes, costs: Costs, recompute: bool, offload: bool
) -> list[Candidate]:
    candidates: list[Candidate] = []
    problems: list[str] = []
    for part in _parts(cluster, wishes.all_devices):
        world = part.world
        if wishes.batch % world:
            problems.append(f"batch {wishes.batch} is not a multiple of {world} ranks ({part})")
            continue
        largest = most_sharers(expert_counts(config), world)
        sizes = [size for size in range(1, largest + 1) if largest % size == 0]
        if wishes.ep:
            if wishes.ep not in sizes:
                problems.append(f"ep {wishes.ep} does not fit {world} ranks ({part}): choose among {sizes}")
                continue
            sizes = [wishes.ep]
        for ep, stage in itertools.product(sizes, [wishes.stage] if wishes.stage else [1, 2, 3]):
            found = _largest_micro(costs, part, wishes, ep, stage, recompute, offload)
            if found is not None:
                candidates.append(found)
    if not candidates:
        text = "; ".join(problems) or f"micro-batch {wishes.micro} does not divide batch {wishes.batch} over the ranks"
        raise ConfigError(text, "plan", "change --batch, --micro, --ep or the cluster")
    return candidates


def _parts(cluster: Cluster, all_devices: bool) -> list[Cluster]:
    """The whole cluster and each kind of device on its own."""
    parts = [cluster]
    if cluster.mixed and not all_devices:
        for name in dict.fromkeys(pool.device.name for pool in cluster.pools):
            parts.append(Cluster(tuple(pool for pool in cluster.pools if pool.device.name == name)))
    return parts


def _largest_micro(
    costs: Costs, part: Cluster, wishes: Wishes, ep: int, stage: int, recompute: bool, offload: bool
) -> Candidate | None:
    """The largest micro-batch that fits: every further micro-step reads all weights again. None if none divides."""
    per_rank = wishes.batch // part.world
    sizes = [size for size in range(min(per_rank, LARGEST_MICRO), 0, -1) if per_rank % size == 0]
    if wishes.micro is not None:
        sizes = [size for size in sizes if size == wishes.micro]
    found = None
    for micro in sizes:
        layout = Layout(part.world, ep, stage, micro, per_rank // micro, wishes.precision, offload)
        found = evaluate(costs, part, layout, recompute)
        if found.fits:
            break
    return found


def _gb(value: float) -> str:
    return f"{value / 1e9:.1f} GB"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.0f} ms"


def _reasons(
    chosen: Candidate, candidates: list[Candidate], cluster: Cluster, wishes: Wishes, costs: Costs
) -> list[tuple[str, str]]:
    """One (choice, reason) pair per decision, each backed by the alternative's figures."""
    reasons = [_device_reason(chosen, candidates, cluster, wishes)]
    reasons.append(_ep_reason(chosen, candidates, wishes))
    reasons.append(_stage_reason(chosen, candidates, wishes))
    reasons.append(_micro_reason(chosen, costs, wishes))
    reasons.append(_precision_reason(chosen, costs))
    layout, time = chosen.layout, chosen.time
    hidden = min(time.reduction, time.compute * 0.6)
    reasons.append(
        (
            "overlap_comm false",
            f"overlapping would hide at most {_ms(hidden)} of {_ms(time.total)}, and runs a second stream of collectives "
            "beside the expert exchange",
        )
    )
    if layout.offload:
        reasons.append(
            ("optimizer offload", f"without it no layout fits; {_gb(chosen.memory.host)} of host memory per rank")
        )
    else:
        reasons.append(("no offload", "optimizer state fits on the devices; moving it costs time every step"))
    if chosen.recompute:
        reasons.append(
            ("activation checkpointing", "asked for, or nothing fits without; costs about a third more arithmetic")
        )
    else:
        reasons.append(
            (
                "no activation checkpointing",
                f"activations take {_gb(chosen.memory.activations)} and fit; recomputing costs time",
            )
        )
    return reasons


def _alternatives(chosen: Candidate, candidates: list[Candidate], *, same: tuple[str, ...]) -> list[Candidate]:
    """Candidates that agree with the chosen one in ``same`` (cluster, ep or stage), the fastest first."""

    def keys(item: Candidate) -> dict[str, Any]:
        return {"cluster": str(item.cluster), "ep": item.layout.ep, "stage": item.layout.stage}

    own = keys(chosen)
    others = [
        item
        for item in candidates
        if item is not chosen
        and (item.recompute, item.layout.offload) == (chosen.recompute, chosen.layout.offload)
        and all(keys(item)[name] == own[name] for name in same)
    ]
    return sorted(others, key=lambda item: item.time.total)


def _device_reason(chosen: Candidate, candidates: list[Candidate], cluster: Cluster, wishes: Wishes) -> tuple[str, str]:
    choice = f"{chosen.cluster} ({chosen.layout.world} ranks)"
    if not cluster.mixed:
        return choice, "the whole cluster; one kind of device, so no rank waits for a slower kind"
    pace = ", ".join(f"{name} {_ms(seconds)}" for name, seconds in sorted(chosen.time.by_device.items()))
    text = f"own work per step: {pace}; {chosen.time.slowest} sets the pace, as all ranks take equal micro-batches"
    if wishes.all_devices:
        return choice, f"{text}; all devices were asked for"
    best: dict[str, Candidate] = {}
    for item in candidates:
        if str(item.cluster) != str(chosen.cluster) and item.fits:
            known = best.get(str(item.cluster))
            if known is None or item.time.total < known.time.total:
                best[str(item.cluster)] = item
    rest = ", ".join(
        f"{name} alone {_ms(item.time.total)}" if name != str(cluster) else f"all {_ms(item.time.total)}"
        for name, item in best.items()
    )
    return choice, f"{_ms(chosen.time.total)} per step, against {rest or 'nothing else that fits'}; {text}"


def _ep_reason(chosen: Candidate, candidates: list[Candidate], wishes: Wishes) -> tuple[str, str]:
    layout = chosen.layout
    choice = f"ep {layout.ep}"
    experts = chosen.cost.expert
    text = (
        f"{experts / 1e6:.0f} M of {chosen.cost.expert_total / 1e6:.0f} M expert parameters per rank; exchanging slots costs "
        f"{_ms(chosen.time.exchange)} and {_gb(chosen.time.bytes_exchanged)} per rank and step"
    )
    if wishes.ep:
        return choice, f"asked for; {text}"
    others = [
        f"ep {item.layout.ep}: {_ms(item.time.total)}, {_gb(item.memory.peak)}{'' if item.fits else ' (does not fit)'}"
        for item in sorted(_alternatives(chosen, candidates, same=("cluster", "stage")), key=lambda c: c.layout.ep)
    ]
    return choice, f"{text}; against {'; '.join(others)}" if others else text


def _stage_reason(chosen: Candidate, candidates: list[Candidate], wishes: Wishes) -> tuple[str, str]:
    choice = f"ZeRO-{chosen.layout.stage}"
    own = f"{_ms(chosen.time.total)}, {_gb(chosen.memory.peak)}"
    if wishes.stage:
        return choice, f"asked for; {own}"
    others = [
        f"stage {item.layout.stage}: {_ms(item.time.total)}, {_gb(item.memory.peak)}{'' if item.fits else ' (does not fit)'}"
        for item in sorted(_alternatives(chosen, candidates, same=("cluster", "ep")), key=lambda c: c.layout.stage)
    ]
    why = "stage 0 is refused (its gradient norm is wrong with sharded experts)"
    return choice, f"{own}; against {'; '.join(others)}; {why}"


def _micro_reason(chosen: Candidate, costs: Costs, wishes: Wishes) -> tuple[str, str]:
    layout = chosen.layout
    choice = f"micro-batch {layout.micro} x {layout.accumulation} accumulation"
    text = f"{layout.batch} samples per step over {layout.world} ranks"
    if wishes.micro:
        return choice, f"asked for; {text}"
    if layout.accumulation == 1:
        text += "; the largest micro-batch fits, so weights are read and gradients reduced once per step"
    else:
        text += (
            f"; twice the micro-batch does not fit {min(p.device.usable for p in chosen.cluster.pools) / 1e9:.1f} GB"
        )
    if layout.micro > 1 and layout.micro % 2 == 0:
        half = dataclasses.replace(layout, micro=layout.micro // 2, accumulation=2 * layout.accumulation)
        other = evaluate(costs, chosen.cluster, half, chosen.recompute)
        text += f"; half of it would take {_ms(other.time.total)}"
    return choice, text


def _precision_reason(chosen: Candidate, costs: Costs) -> tuple[str, str]:
    layout = chosen.layout
    if layout.precision == "fp32":
        return "fp32", "asked for; matrix products run at the fp32 rate without TF32"
    other = evaluate(costs, chosen.cluster, dataclasses.replace(layout, precision="fp32"), chosen.recompute)
    text = (
        f"fp32 would take {_ms(other.time.total)} and {_gb(other.memory.peak)}"
        f"{'' if other.fits else ' (does not fit)'}; router logits and master weights stay fp32"
    )
    return layout.precision, text


def ds_config(config: Config, layout: Layout) -> dict[str, Any]:
    """DeepSpeed JSON of a layout; learning rate and clipping from the recipe's ``run.expects`` where it states them."""
    expects = config.run.expects
    content: dict[str, Any] = {
        "train_batch_size": layout.batch,
        "train_micro_batch_size_per_gpu": layout.micro,
        "gradient_accumulation_steps": layout.accumulation,
        "gradient_clipping": float(expects.get("gradient_clipping", 0.0)),
        "steps_per_print": 1_000_000,
        "optimizer": {
            "type": "Adam",
            "params": {
                "lr": float(expects.get("optimizer.params.lr", 1e-4)),
                "betas": [0.9, 0.999],
                "eps": 1e-8,
                "weight_decay": 0.0,
                "torch_adam": True,
                "adam_w_mode": False,
            },
        },
        "zero_optimization": {
            "stage": layout.stage,
            "reduce_scatter": True,
            "contiguous_gradients": True,
            "overlap_comm": False,
            "reduce_bucket_size": layout.bucket,
            "allgather_bucket_size": layout.bucket,
        },
    }
    if layout.stage == 3:
        content["zero_optimization"] |= {
            "stage3_prefetch_bucket_size": layout.bucket,
            "stage3_param_persistence_threshold": 100_000,
        }
    if layout.offload:
        content["zero_optimization"]["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
        content["zero_force_ds_cpu_optimizer"] = False
    if layout.precision == "bf16":
        content |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    if layout.precision == "fp16":
        content["fp16"] = {
            "enabled": True,
            "loss_scale": 0,
            "initial_scale_power": 16,
            "loss_scale_window": 1000,
            "hysteresis": 2,
            "min_loss_scale": 1,
        }
    return content


def scaling(costs: Costs, chosen: Candidate, worlds: list[int]) -> list[Candidate]:
    """Weak scaling, simulated: the chosen layout's samples per rank on ``worlds`` ranks with the same mix of devices.

    ep grows with the cluster to what a node of it and the expert counts allow, but not below the chosen one.

    Raises:
        ConfigError: a size that does not keep the mix.
    """
    rows = []
    for world in worlds:
        pools = []
        for pool in chosen.cluster.pools:
            if world * pool.count % chosen.layout.world:
                raise ConfigError(f"{world} devices do not keep the mix of {chosen.cluster}", "--scale")
            pools.append(Pool(world * pool.count // chosen.layout.world, pool.device))
        node = min(pool.device.per_node for pool in pools)
        ep = most_sharers(expert_counts(costs.config), world, node)
        layout = dataclasses.replace(chosen.layout, world=world, ep=ep)
        rows.append(evaluate(costs, Cluster(tuple(pools)), layout, chosen.recompute))
    return rows
