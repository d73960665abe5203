"""Does a model of EMBED help on RSNA? The same short training from scratch and with ``model.init_from``, on phantoms.

    python benchmarks/transfer.py [--seeds 0,1,2] [--steps 60] [--work DIR] [--out FILE]

Per seed: the demo's model on EMBED's phantoms (with --one-source that of the first seed serves all), then twice RSNA's
phantoms with few women in training and equal steps.
Both arms of a seed have the same order, augmentation and fresh values. Differences are paired: by seed, and in one
bootstrap that resamples patients for both arms and all seeds together. Everything is synthetic.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from m4oe_ds.evaluation.intervals import Bootstrap
from m4oe_ds.evaluation.metrics import statistic_named
from m4oe_ds.option_lists import comma_list
from m4oe_ds.runs.folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]
TASKS = ("density", "birads")
METRICS = ("auroc", "accuracy", "brier")
ARMS = ("scratch", "init_from")
BOOTSTRAP = Bootstrap(resamples=2000)
PATIENTS = {"embed": 240, "rsna": 120}
SHARES = {"embed": "70/10/20", "rsna": "25/10/65"}  # RSNA: few women to learn from, many to be judged on
COMMON = (
    "run.tensorboard=false",
    "run.conflict_every_steps=0",
    "run.log_every_steps=10",
    "evaluation.splits=[test]",
    "evaluation.resamples=200",
    "evaluation.num_examples=0",
)


def command(arguments: Sequence[str], output: Path) -> None:
    """Runs Python on one core, its output in a file.

    Raises:
        RuntimeError: it failed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    with output.open("w") as stream:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment,
            stdout=stream,
            stderr=subprocess.STDOUT,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"{' '.join(arguments)}:\n{output.read_text()[-3000:]}")


def shards(work: Path, dataset: str) -> Path:
    """Phantom shards of a data set, made once."""
    out = work / dataset
    if not out.is_dir():
        archive = work / f"{dataset}-archive"
        made = ["--layout", dataset, "--out", str(archive), "--patients", str(PATIENTS[dataset])]
        command(["-m", "data_tools.phantom", *made, "--risk-prevalence", "0.5"], work / f"{dataset}-archive.txt")
        size = ["--rows", "128", "--cols", "104", "--split", SHARES[dataset]]
        command(
            ["-m", "data_tools.convert", "--dataset", dataset, "--root", str(archive), "--out", str(out), *size],
            work / f"{dataset}.txt",
        )
    return out


def train(work: Path, name: str, overrides: Sequence[str]) -> RunFolder:
    """A finished run of the demo's model with these options."""
    run = RunFolder(work / name)
    if not run.metrics.is_file():
        options = [f"--set={item}" for item in (*COMMON, *overrides)]
        json_file = ["--ds_config", str(ROOT / "ds_configs" / "zero2.json")]
        command(["train.py", *json_file, "--output", str(run.path), *options], work / f"{name}.txt")
        print(f"{name} done", file=sys.stderr, flush=True)
    return run


def predictions(run: RunFolder) -> dict[str, np.ndarray]:
    """Labels, probabilities and patients of the test split."""
    with np.load(run.predictions("test"), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def compare(runs: dict[str, list[RunFolder]], task: str, metric: str) -> dict[str, Any]:
    """A metric of both arms by seed, and the mean difference with its interval over patients."""
    of = statistic_named(metric)
    arms = {arm: [predictions(run) for run in runs[arm]] for arm in ARMS}
    first = arms[ARMS[0]][0]
    known = first[f"label_{task}"] >= 0
    labels, groups = first[f"label_{task}"][known], first["groups"][known]
    for arm in arms.values():  # every run saw the same cases in the same order
        for one in arm:
            if not np.array_equal(one["keys"], first["keys"]):
                raise RuntimeError(f"runs differ in their test cases of {task}")
    probability = {arm: [one[f"prob_{task}"][known] for one in arms[arm]] for arm in ARMS}
    values = {arm: [of(labels, p) for p in probability[arm]] for arm in ARMS}

    def difference(index: np.ndarray) -> float:
        by_arm = [statistics.fmean(of(labels[index], p[index]) for p in probability[arm]) for arm in ARMS]
        return by_arm[1] - by_arm[0]

    return {
        "values": values,
        "differences": [b - a for a, b in zip(values[ARMS[0]], values[ARMS[1]], strict=True)],
        "estimate": BOOTSTRAP.estimate(difference, groups),
        "majority": float(np.bincount(labels).max() / len(labels)),
        "n": len(labels),
        "patients": len(np.unique(groups)),
    }


def lines(runs: dict[str, list[RunFolder]]) -> list[str]:
    """The table of results."""
    rows = [
        "| task | metric | scratch | init_from | difference by seed | mean difference [95 %] | majority |",
        "|---|---|---|---|---|---|---|",
    ]
    for task in TASKS:
        for metric in METRICS:
            found = compare(runs, task, metric)
            estimate = found["estimate"]
            cells = [
                f"{task} (n = {found['n']}, {found['patients']} women)",
                metric,
                *(_spread(found["values"][arm]) for arm in ARMS),
                ", ".join(f"{value:+.3f}" for value in found["differences"]),
                f"{estimate.value:+.3f} [{estimate.low:+.3f}, {estimate.high:+.3f}]"
                if estimate.low is not None
                else "-",
                f"{found['majority']:.3f}" if metric == "accuracy" else "",
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return rows


def _spread(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return f"{statistics.fmean(values):.3f} ± {deviation:.3f}"


def main() -> int:
    """Makes the data, trains, prints the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", default="0,1,2", help="seeds, with commas between them")
    options.add_argument("--steps", type=int, default=60, help="optimizer steps on RSNA's phantoms, in both arms")
    options.add_argument("--epochs", type=int, default=24, help="epochs on EMBED's phantoms before")
    options.add_argument("--one-source", action="store_true", help="start every seed from the first seed's EMBED model")
    options.add_argument("--work", help="folder for shards and runs, kept (default: a temporary one)")
    options.add_argument("--out", help="also write the table to this file")
    arguments = options.parse_args()
    seeds = comma_list(arguments.seeds, "--seeds", int, least=0, required=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(arguments.work or temporary)
        work.mkdir(parents=True, exist_ok=True)
        runs: dict[str, list[RunFolder]] = {arm: [] for arm in ARMS}
        embed, rsna = shards(work, "embed"), shards(work, "rsna")
        for seed in seeds:
            first = seeds[0] if arguments.one_source else seed
            before = [f"run.seed={first}", f"run.num_epochs={arguments.epochs}", f"data.root={embed}"]
            source = train(work, f"embed-{arguments.epochs}-{first}", [*before, "run.eval_every_epochs=0"])
            then = [
                f"run.seed={seed}",
                f"run.max_steps={arguments.steps}",
                "run.num_epochs=1000",
                "run.eval_every_epochs=5",
                "schedule.warmup_steps=10",
                "data.dataset=rsna",
                f"data.root={rsna}",
            ]
            length = f"rsna-{arguments.steps}"
            runs["scratch"].append(train(work, f"{length}-scratch-{seed}", then))
            runs["init_from"].append(train(work, f"{length}-init-{seed}", [*then, f"model.init_from={source.path}"]))
        manifest = json.loads((rsna / "train" / "manifest.json").read_text())
        head = (
            f"{date.today()}, {os.cpu_count()} shared cores, one rank per run, "
            f"{(time.monotonic() - started) / 60:.0f} min: `python benchmarks/transfer.py --seeds {arguments.seeds} "
            f"--steps {arguments.steps} --epochs {arguments.epochs}{' --one-source' if arguments.one_source else ''}`. "
            f"**Synthetic phantoms.** RSNA: {manifest['num_samples']} breasts of "
            f"{manifest['num_groups']} women to train on, {arguments.steps} steps of 32."
        )
        text = "\n".join([head, "", *lines(runs)])
    print(text)
    if arguments.out:
        Path(arguments.out).write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
