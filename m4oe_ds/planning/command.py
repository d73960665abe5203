# ruff: noqa: T201
"""``m4oe plan``: prints what a job needs and a recommended layout, before anything is submitted."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from m4oe_ds.arguments import whole

if TYPE_CHECKING:
    from m4oe_ds.config import Config
    from m4oe_ds.planning.candidates import Candidate
    from m4oe_ds.planning.recommend import Plan


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the sub-command."""
    parser.add_argument("--config", required=True, metavar="YAML", help="configuration of the run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key; repeatable")
    parser.add_argument(
        "--cluster", default="8xA100-80", metavar="TEXT", help="devices, e.g. 4xA100-80+4xL40S (default: 8xA100-80)"
    )
    parser.add_argument(
        "--ds_config", metavar="JSON", help="take batch, precision, ZeRO stage and offload from this file"
    )
    parser.add_argument(
        "--batch", type=whole(1), metavar="N", help="samples per optimizer step (default: the recipe's, else 32)"
    )
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), help="type of weights and activations (default: bf16)"
    )
    parser.add_argument("--ep", type=whole(1), metavar="N", help="ranks that share the experts (default: searched)")
    parser.add_argument("--zero", type=int, choices=(1, 2, 3), help="ZeRO stage (default: searched)")
    parser.add_argument("--micro", type=whole(1), metavar="N", help="samples per forward and rank (default: searched)")
    parser.add_argument("--offload", action="store_true", help="optimizer in host memory (default: only if needed)")
    parser.add_argument("--all-devices", action="store_true", help="leave no kind of device of a mixed cluster idle")
    parser.add_argument(
        "--scale", default="", metavar="N,N,..", help="also simulate the layout on N devices of the same mix"
    )
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    parser.add_argument("--out", metavar="FILE", help="write the recommended DeepSpeed JSON to this file")


def main(options: argparse.Namespace) -> int:
    """Plans and prints; returns 0 if the job fits, else 1.

    Raises:
        ConfigError: configuration, cluster or options contradict each other.
    """
    from m4oe_ds import config_loader
    from m4oe_ds.command_line import check_file
    from m4oe_ds.errors import ConfigError
    from m4oe_ds.option_lists import comma_list
    from m4oe_ds.planning.hardware import parse_cluster

    if options.out:
        check_file(Path(options.out), "--out", ".json")
        if options.ds_config and Path(options.out).absolute() == Path(options.ds_config).absolute():
            raise ConfigError("is the file of --ds_config", f"--out {options.out}", "name another file")
    config = config_loader.load(options.config, options.set)
    sizes = comma_list(options.scale, "--scale", int, least=1, advice="write numbers of devices, e.g. 8,64,512,4096")
    cluster = parse_cluster(options.cluster, config.model.dim)
    wishes = _wishes(options, config, cluster.world)

    from m4oe_ds.planning.candidates import Costs, Wishes  # torch: only once the options are known to be good
    from m4oe_ds.planning.recommend import recommend, scaling

    costs = Costs(config)
    plan = recommend(config, cluster, Wishes(**wishes), costs)
    rows = scaling(costs, plan.chosen, sizes) if sizes else []
    if options.json:
        print(json.dumps(as_dict(plan, rows), indent=2))
    else:
        print("\n".join(describe(plan, options.config, str(cluster), rows, options.out)))
    if options.out:
        Path(options.out).write_text(json.dumps(plan.ds_config, indent=2) + "\n", encoding="utf-8")
        if not options.json:
            print(f"\nwritten: {options.out}")
    return 0 if plan.fits else 1


def _wishes(options: argparse.Namespace, config: Config, world: int) -> dict[str, Any]:
    """What the options fix, as :class:`m4oe_ds.planning.candidates.Wishes` takes it."""
    from m4oe_ds import deepspeed_json
    from m4oe_ds.errors import ConfigError
    from m4oe_ds.models.registry import expert_counts

    batch = config.run.expects.get("train_batch_size", 32)
    if not isinstance(batch, int) or batch < 1:
        raise ConfigError(f"train_batch_size={batch!r}", "run.expects", "write a whole number from 1, or give --batch")
    precision: Any = "bf16"
    stage, micro, offload = None, None, None
    if options.ds_config:
        content = deepspeed_json.read(options.ds_config)
        sizes = deepspeed_json.batch_sizes(content, world, options.ds_config)
        batch, micro = sizes.train, sizes.micro
        zero = content.get("zero_optimization", {})
        stage = zero.get("stage")
        moved = zero.get("offload_optimizer") or {}
        offload = moved.get("device", "none") != "none"
        if stage not in (1, 2, 3):
            raise ConfigError(f"zero_optimization.stage is {stage!r}", options.ds_config, "use 1, 2 or 3")
        precision = deepspeed_json.precision(content)
    return {
        "batch": options.batch or batch,
        "precision": options.precision or precision,
        "ep": options.ep or (config.parallel.ep_size if expert_counts(config) else 0) or None,
        "stage": options.zero or stage,
        "micro": options.micro or micro,
        "offload": True if options.offload else offload,
        "all_devices": options.all_devices or bool(options.ds_config),
    }


def describe(
    plan: Plan, config_name: str, cluster: str, rows: Sequence[Candidate] = (), written: str | None = None
) -> list[str]:
    """The plan as lines of text; ``written`` is the file that the DeepSpeed JSON goes to."""
    chosen = plan.chosen
    cost, layout, time = chosen.cost, chosen.layout, chosen.time
    lines = [f"plan for {config_name} on {cluster}", ""]
    lines.append(f"fits: {'YES' if plan.fits else 'NO'}")
    for pool in chosen.cluster.pools:
        share = chosen.memory.peak / pool.device.usable
        lines.append(
            f"  {pool.device.name:8} {chosen.memory.peak / 1e9:6.1f} GB of {pool.device.usable / 1e9:.1f} GB "
            f"usable ({share:.0%}), worst at {chosen.memory.worst}"
        )
    lines += ["", "parameters (millions)"]
    lines += [f"  {name:28} {count / 1e6:10.1f}" for name, count in cost.parameters.items()]
    lines.append(f"  {'total':28} {cost.total / 1e6:10.1f}   ({cost.expert_total / 1e6:.1f} in experts)")
    held = (cost.dense + cost.expert + cost.frozen) / 1e6
    lines.append(f"  {'held per rank':28} {held:10.1f}")
    lines += ["", "memory per rank (GB)"]
    for name in ("weights", "gradients", "optimizer", "activations", "buffers", "step", "host"):
        label = {"buffers": "communication buffers", "step": "temporaries of the step", "host": "host memory"}.get(name)
        lines.append(f"  {label or name:28} {getattr(chosen.memory, name) / 1e9:10.2f}")
    lines += ["", f"arithmetic per rank and micro-batch of {layout.micro} (GFLOP, 2 per multiply-add)"]
    lines += [f"  forward, {name:19} {flops / 1e9:10.1f}" for name, flops in cost.flops_by_part().items() if flops]
    lines.append(f"  {'forward':28} {cost.flops('forward') / 1e9:10.1f}")
    lines.append(f"  {'backward':28} {cost.flops('backward') / 1e9:10.1f}")
    lines.append(f"  {'memory traffic (GB)':28} {cost.traffic() / 1e9:10.1f}")
    lines += ["", "one optimizer step (SIMULATED, slowest rank, nothing overlapped; ms)"]
    for name in ("compute", "exchange", "reduction", "gather", "optimizer", "other"):
        lines.append(f"  {name:28} {1e3 * getattr(time, name):10.1f}")
    lines.append(
        f"  {'total':28} {1e3 * time.total:10.1f}   {chosen.samples_per_second:.1f} samples/s, "
        f"{time.arithmetic_share:.0%} of compute bound by arithmetic"
    )
    lines.append(
        f"  leaving a rank: {time.bytes_exchanged / 1e9:.2f} GB exchanged, "
        f"{time.bytes_reduced / 1e9:.2f} GB reduced and gathered"
    )
    lines += ["", "choices and reasons"]
    lines += [f"  {choice}\n      {reason}" for choice, reason in plan.reasons]
    lines += ["", "to use it" if written else "to use it, with --out FILE to write the DeepSpeed JSON"]
    command = ["m4oe train --config", config_name, "--ds_config", written or "FILE"]
    lines.append("  " + " ".join([*command, *(f"--set {item}" for item in plan.overrides)]))
    if rows:
        lines += _scaling_lines(rows)
    lines += _notes(chosen)
    return lines


def _scaling_lines(rows: Sequence[Candidate]) -> list[str]:
    lines = ["", "weak scaling (SIMULATED, not measured)"]
    lines.append("  devices   ep     batch   step ms  samples/s  per device  exchange  reduction   GB/rank  fits")
    base = rows[0].samples_per_second / rows[0].layout.world
    for row in rows:
        share = row.samples_per_second / row.layout.world / base
        lines.append(
            f"  {row.layout.world:7} {row.layout.ep:4} {row.layout.batch:9} {1e3 * row.time.total:9.1f} "
            f"{row.samples_per_second:10.1f} {share:11.0%} {1e3 * row.time.exchange:9.1f} "
            f"{1e3 * (row.time.reduction + row.time.gather):10.1f} {row.memory.peak / 1e9:9.1f}  "
            f"{'yes' if row.fits else 'no'}"
        )
    return lines


def _notes(chosen: Candidate) -> list[str]:
    from m4oe_ds.planning.hardware import ASSUMPTIONS

    lines = ["", "what this rests on"]
    for device in {pool.device.name: pool.device for pool in chosen.cluster.pools}.values():
        lines.append(
            f"  {device.name}: {device.source}; {device.arithmetic:.0%} of peak, {device.streaming:.0%} of bandwidth; "
            f"{device.link.name}; {device.port.name}"
        )
    return lines + [f"  assumed: {text}" for text in ASSUMPTIONS]


def as_dict(plan: Plan, rows: Sequence[Candidate] = ()) -> dict[str, Any]:
    """The plan as plain data."""

    def one(item: Candidate) -> dict[str, Any]:
        from dataclasses import asdict

        return {
            "cluster": str(item.cluster),
            "layout": asdict(item.layout) | {"batch": item.layout.batch},
            "activation_checkpointing": item.recompute,
            "fits": item.fits,
            "memory_bytes": asdict(item.memory),
            "simulated_seconds": asdict(item.time) | {"total": item.time.total},
            "samples_per_second": item.samples_per_second,
        }

    cost = plan.chosen.cost
    return {
        "fits": plan.fits,
        "parameters": cost.parameters | {"total": cost.total, "experts": cost.expert_total},
        "flops": {phase: cost.flops(phase) for phase in ("forward", "loss", "backward")},
        "traffic_bytes": cost.traffic(),
        "chosen": one(plan.chosen),
        "reasons": [{"choice": choice, "reason": reason} for choice, reason in plan.reasons],
        "candidates": [one(item) for item in plan.candidates],
        "scaling_simulated": [one(item) for item in rows],
        "overrides": list(plan.overrides),
        "ds_config": plan.ds_config,
    }
