"""Expert-parallel overhead on this machine: ep = 1, 2, 4 over 2 to 4 local processes, in turn, round by round.

    python benchmarks/parallel.py [--config configs/demo.yaml] [--worlds 2 4] [--rounds 3] [--out FILE]

Every point is one run of ``m4oe scale point``; rounds are interleaved and the figure is the median over the rounds, so that
a machine that slows down slows all of them down. Bytes are counted by the exchange and compared with the minimum: slots to
their experts and outputs back, forward and backward, of which a rank's own experts get (1/ep) without a wire.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from datetime import date
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from m4oe_ds import config_loader
from m4oe_ds.planning.model_cost import micro_step
from m4oe_ds.scaling import study


def main() -> int:
    """Runs all points and prints the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--config", default="configs/demo.yaml")
    options.add_argument("--ds_config", default="ds_configs/zero2.json")
    options.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options.add_argument("--worlds", type=int, nargs="+", default=[2, 4])
    options.add_argument("--micro", type=int, default=4, help="samples per rank")
    options.add_argument("--steps", type=int, default=10)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--out", help="also write the table to this file")
    arguments = options.parse_args()
    config = config_loader.load(arguments.config, arguments.set)
    experts = config.model.mtoe.num_experts
    cells = [study.Cell(experts, ep, world, "weak") for world in arguments.worlds for ep in (1, 2, 4) if ep <= world]
    found: dict[study.Cell, list[dict[str, float]]] = {cell: [] for cell in cells}
    more = ["--config", arguments.config, "--ds_config", arguments.ds_config, "--micro", str(arguments.micro)]
    more += ["--steps", str(arguments.steps), *(item for key in arguments.set for item in ("--set", key))]
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.rounds):
            for cell in cells:
                print(f"round {number + 1}: {cell}", file=sys.stderr)
                target = Path(folder) / str(number)
                problem = study.run_cell(cell, [*more, "--output", str(target)], 1800)
                if problem:
                    print(f"error: {cell}: {problem}", file=sys.stderr)
                    return 1
                path = study.path_of(target, cell, arguments.micro, 0)
                found[cell].append(json.loads(path.read_text()))
    lines = [
        f"{date.today()}, {os.cpu_count()} cores, {arguments.rounds} rounds of {arguments.steps} steps, "
        f"{arguments.micro} samples per rank: `python benchmarks/parallel.py {' '.join(sys.argv[1:])}`",
        "",
        "| ranks | ep | step ms | against ep 1 | all-to-all ms | reduction ms | MB sent per rank and step | minimum MB | GB per rank |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for cell in cells:
        step = statistics.median(row["step_ms"] for row in found[cell])
        base = statistics.median(row["step_ms"] for row in found[study.Cell(experts, 1, cell.world, "weak")])
        sent = {row["all_to_all_bytes"] for row in found[cell]}
        exchanges = micro_step(config, "fp32", arguments.micro, cell.ep).exchanges  # elements of each, forward
        minimum = 2 * 4 * sum(exchanges) * (cell.ep - 1) / cell.ep
        lines.append(
            f"| {cell.world} | {cell.ep} | {step:.1f} | {step / base:.2f} | "
            f"{statistics.median(row['all_to_all_ms'] for row in found[cell]):.1f} | "
            f"{statistics.median(row['reduction_ms'] for row in found[cell]):.1f} | "
            f"{', '.join(f'{value / 1e6:.3f}' for value in sent)} | {minimum / 1e6:.3f} | "
            f"{statistics.median(row['memory_bytes'] for row in found[cell]) / 1e9:.2f} |"
        )
    text = "\n".join(lines)
    print(text)
    if arguments.out:
        Path(arguments.out).write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
