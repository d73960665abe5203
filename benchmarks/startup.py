"""Start-up: importing the package, every ``--help``, and the time until the first training step is done.

    python benchmarks/startup.py [--rounds 5] [--out FILE]

Each figure is the median over fresh processes, next to that of an empty interpreter in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def seconds(command: list[str]) -> float:
    """Seconds of one run of a command.

    Raises:
        RuntimeError: the command failed.
    """
    started = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
    return time.perf_counter() - started


def main() -> int:
    """Prints the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--out", help="also write the table to this file")
    arguments = options.parse_args()
    python = sys.executable
    with tempfile.TemporaryDirectory() as folder:
        commands = {
            "empty interpreter": [python, "-c", "pass"],
            "import torch": [python, "-c", "import torch"],
            "import torch, deepspeed": [python, "-c", "import torch, deepspeed"],
            "import m4oe_ds": [python, "-c", "import m4oe_ds"],
            "m4oe --help": [python, "-m", "m4oe_ds", "--help"],
            "m4oe plan --help": [python, "-m", "m4oe_ds", "plan", "--help"],
            "train.py --help": [python, "train.py", "--help"],
            "data_tools.convert --help": [python, "-m", "data_tools.convert", "--help"],
            "one training step of the demo model, process included": [
                python,
                "-m",
                "m4oe_ds",
                "scale",
                "point",
                "--experts",
                "16",
                "--steps",
                "1",
                "--warm-up",
                "0",
                "--profiled",
                "0",
                "--output",
                folder,
            ],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(arguments.rounds):
            for name, command in commands.items():
                times[name].append(seconds(command))
    lines = [
        f"{date.today()}, median of {arguments.rounds} fresh processes: `python benchmarks/startup.py`",
        "",
        "| what | seconds |",
        "|---|---|",
    ]
    lines += [f"| {name} | {statistics.median(values):.2f} |" for name, values in times.items()]
    text = "\n".join(lines)
    print(text)
    if arguments.out:
        Path(arguments.out).write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
