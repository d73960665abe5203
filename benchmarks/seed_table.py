"""One table from several runs of one configuration that differ in their seed: mean and spread over the seeds.

    python benchmarks/seed_table.py runs/my-0 runs/my-1 runs/my-2 [--split test]

A figure is the mean over the runs and, after the sign, their standard deviation (n - 1); in brackets stands what a
trivial answer reaches. The interval is that of the first run: it resamples groups of samples, not seeds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

SHOWN = {
    "classification": ("accuracy", "balanced_accuracy", "auroc"),
    "number": ("mae", "spearman"),
    "survival": ("uno_c",),
    "segmentation": ("dice",),
}


def rows(entries: list[dict[str, Any]]) -> list[list[str]]:
    """Rows of one task: metric, mean and spread, interval of the first run, trivial answer."""
    first = entries[0]
    names = [name for name in SHOWN[first["kind"]] if name in first["metrics"]]
    names += [name for name in first["metrics"] if name.startswith("dice_")]
    found = []
    for name in names:
        values = [entry["metrics"][name]["value"] for entry in entries]
        known = [value for value in values if value is not None]
        mean = f"{statistics.mean(known):.3f}" if known else "-"
        spread = f" ± {statistics.stdev(known):.3f}" if len(known) > 1 else ""
        one = first["metrics"][name]
        interval = f"[{one['low']:.3f}, {one['high']:.3f}]" if one.get("low") is not None else ""
        trivial = first.get("prior") if name == "accuracy" else (first.get("baseline") or {}).get(name)
        found.append([name, mean + spread, interval, "" if trivial is None else f"{trivial:.3f}", str(first["n"])])
    return found


def main(arguments: list[str] | None = None) -> int:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders")
    parser.add_argument("--split", default="test", help="split to show; default test")
    options = parser.parse_args(arguments)
    found = [json.loads((run / "metrics.json").read_text())[options.split]["tasks"] for run in options.runs]
    print(f"| task | metric | {len(found)} seeds | interval of the first | trivial answer | n |")
    print("|---|---|---|---|---|---|")
    for task in found[0]:
        for row in rows([tasks[task] for tasks in found]):
            print("| " + " | ".join([task, *row]) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
