"""Expert-parallel overhead on this machine: ep = 1, 2, 4 over 2 to 4 local processes, in turn, round by round.

    python benchmarks/parallel.py [--config configs/demo.yaml] [--worlds 2 4] [--rounds 3] [--device cpu|cuda]
        [--out FILE]

Every point is one run of ``m4oe scale point``; rounds are interleaved and the figure is the median over the rounds, so
that a machine that slows down slows all of them down. Bytes are counted by the exchange and compared with the minimum:
slots to their experts and outputs back, forward and backward, of which a rank's own experts get (1/ep) without a wire.
Memory is compared with what `m4oe plan` predicts for tensors; on the CPU it is the growth of the resident set,
libraries included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from m4oe_ds import config_loader, deepspeed_json
from m4oe_ds.config import Config
from m4oe_ds.planning.memory import Layout, rank_memory
from m4oe_ds.planning.model_cost import micro_step
from m4oe_ds.scaling import study

Points = dict[study.GridPoint, list[dict[str, Any]]]  # of every round


def parse() -> argparse.Namespace:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--config", default="configs/demo.yaml")
    options.add_argument("--ds_config", default="ds_configs/zero2.json")
    options.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options.add_argument("--worlds", type=int, nargs="+", default=[2, 4])
    options.add_argument("--micro", type=int, default=4, help="samples per rank")
    options.add_argument("--steps", type=int, default=10)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="cuda: one GPU per rank, over NCCL")
    options.add_argument("--out", help="also write the table to this file")
    return options.parse_args()


def main() -> int:
    """Runs all points and prints the table."""
    options = parse()
    problem = missing_devices(options.device, max(options.worlds))
    if problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    config = config_loader.load(options.config, options.set)
    cells, impossible = study.grid(config, [config.model.mtoe.num_experts], [1, 2, 4], options.worlds, ["weak"], 0)
    for cell, reason in impossible:
        print(f"left out: {cell}: {reason}", file=sys.stderr)
    try:
        found = measure(options, cells)
    except ChildProcessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    text = "\n".join([*head(options, found[cells[0]][0]), *(line(options, config, cell, found) for cell in cells)])
    print(text)
    if options.out:
        Path(options.out).write_text(text + "\n", encoding="utf-8")
    return 0


def measure(options: argparse.Namespace, cells: list[study.GridPoint]) -> Points:
    """The points of all cells, round by round.

    Raises:
        ChildProcessError: a run wrote no point.
    """
    # hidden GPUs leave the CPU and gloo, here as in the processes started below
    hidden = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"} if options.device == "cpu" else {}
    digest = study.digest(options.config, options.ds_config, options.set)
    found: Points = {cell: [] for cell in cells}
    more = ["--config", options.config, "--ds_config", options.ds_config, "--micro", str(options.micro)]
    more += ["--steps", str(options.steps), *(item for key in options.set for item in ("--set", key))]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            for cell in cells:
                print(f"round {number + 1}: {cell}", file=sys.stderr)
                target = Path(folder) / str(number)
                problem = study.run_cell(cell, [*more, "--output", str(target)], 1800, more=hidden)
                path = study.path_of(target, cell, options.micro, 0, digest)
                if not path.is_file():  # gloo can abort while it ends, when the point is written
                    raise ChildProcessError(f"{cell}: {problem or study.NO_POINT}")
                found[cell].append(json.loads(path.read_text()))
    return found


def head(options: argparse.Namespace, first: dict[str, Any]) -> list[str]:
    """What was measured, and the head of the table."""
    return [
        f"{first['source']}, {first['device']}, {first['precision']}, ZeRO-{first['stage']}, {first['data']}; "
        f"{options.rounds} rounds of {options.steps} steps, {options.micro} samples per rank: "
        f"`python benchmarks/parallel.py {' '.join(sys.argv[1:])}`",
        "",
        "| ranks | ep | step ms (rounds) | against ep 1 | all-to-all ms | reduction ms | MB sent per rank and step "
        "| minimum MB | GB per rank | plan GB | of the plan's |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]


def line(options: argparse.Namespace, config: Config, cell: study.GridPoint, found: Points) -> str:
    """The table's line of a cell."""
    rounds = found[cell]
    first = rounds[0]
    times = [row["step_ms"] for row in rounds]
    step = statistics.median(times)
    base = statistics.median(row["step_ms"] for row in found[study.GridPoint(cell.experts, 1, cell.world, "weak")])
    sent = {row["all_to_all_bytes"] for row in rounds}
    cost = micro_step(config, first["precision"], options.micro, cell.ep)
    # the elements of forward, once more in backward
    minimum = 2 * cost.width * sum(cost.exchanges) * (cell.ep - 1) / cell.ep
    zero = deepspeed_json.read(options.ds_config)["zero_optimization"]
    layout = Layout(
        cell.world,
        cell.ep,
        first["stage"],
        options.micro,
        precision=first["precision"],
        bucket=int(zero.get("reduce_bucket_size", 500_000_000)),
        adam_temporaries=1 if options.device == "cuda" else 2,
    )
    plan = rank_memory(cost, layout).peak
    memory = statistics.median(row["memory_bytes"] for row in rounds)
    return (
        f"| {cell.world} | {cell.ep} | {step:.1f} ({min(times):.0f}-{max(times):.0f}) | {step / base:.2f} | "
        f"{statistics.median(row['all_to_all_ms'] for row in rounds):.1f} | "
        f"{statistics.median(row['reduction_ms'] for row in rounds):.1f} | "
        f"{', '.join(f'{value / 1e6:.6f}' for value in sorted(sent))} | {minimum / 1e6:.6f} | "
        f"{memory / 1e9:.3f} | {plan / 1e9:.3f} | {memory / plan:.0%} |"
    )


def missing_devices(device: str, world: int) -> str:
    """Why ``world`` ranks cannot run on ``device`` here; empty if they can."""
    if device == "cpu":
        return ""
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count >= world:
        return ""
    return f"--device cuda: {world} ranks need {world} GPUs, {count} here; use --worlds or --device cpu"


if __name__ == "__main__":
    sys.exit(main())
