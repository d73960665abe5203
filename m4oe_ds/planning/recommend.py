"""Searches devices, ep, ZeRO stage and micro-batch for a cluster, and says why it chose what it chose.

All times are simulated (:mod:`m4oe_ds.planning.step_time`); memory follows :mod:`m4oe_ds.planning.memory`.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import Any

from m4oe_ds.config import Config
from m4oe_ds.errors import ConfigError
from m4oe_ds.models.registry import expert_counts
from m4oe_ds.planning.candidates import Candidate, Costs, Wishes, evaluate, most_sharers
from m4oe_ds.planning.hardware import Cluster, Pool
from m4oe_ds.planning.memory import Layout
from m4oe_ds.planning.reasons import reasons_for
from m4oe_ds.progress import track

# times closer than this are equal as far as the model can tell; the simpler or smaller layout then wins
TIE = 0.03
LARGEST_MICRO = 64


@dataclass(frozen=True)
class Plan:
    """The recommendation.

    Attributes:
        chosen: the fastest that fits, or the one nearest to fitting.
        fits: whether it fits.
        reasons: (choice, reason) pairs.
        candidates: all layouts that were compared.
        ds_config: DeepSpeed JSON for ``chosen``.
        overrides: ``--set`` options that belong to it.
    """

    chosen: Candidate
    fits: bool
    reasons: tuple[tuple[str, str], ...]
    candidates: tuple[Candidate, ...]
    ds_config: dict[str, Any]
    overrides: tuple[str, ...]


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
        reasons=tuple(reasons_for(chosen, candidates, cluster, wishes, costs)),
        candidates=tuple(candidates),
        ds_config=ds_config(config, chosen.layout),
        overrides=tuple(overrides),
    )


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
        pairs = list(itertools.product(sizes, [wishes.stage] if wishes.stage else [1, 2, 3]))
        for ep, stage in track(pairs, f"layouts on {part}", "layouts"):
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
    for world in track(worlds, "weak scaling", "sizes"):
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
