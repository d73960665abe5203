# ruff: noqa: T201
"""``m4oe compare``: trains and evaluates every cell of a comparison, and prints the paper's tables of the results."""

from __future__ import annotations

import argparse
from typing import Any

TABLE1_TEXT = """Accuracy in percent (Dice for the cup), test split, mean ± standard deviation over seeds. In parentheses: difference to Ours
in the same setting and its two-sided p, patients resampled together for both. "paper, real data" is Table 1 of Wu et al. (ICLR
2025) on the real data sets at full size: a reference, not a target."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the sub-command."""
    add = parser.add_argument
    add("--datasets", default="embed,rsna,vindr,gamma", metavar="A,B,..", help="default: all four")
    add("--methods", default="all", metavar="A,B,..", help="`all`, `table1`, `table2`, or names; see --list")
    add("--seeds", default="0", metavar="N,N,..", help="one run each (default: 0)")
    add("--settings", default="single,multi", metavar="single,multi", help="default: both")
    add(
        "--preset",
        default="smoke",
        choices=("smoke", "small", "paper"),
        help="sizes: configs/compare, or configs/*.yaml",
    )
    add("--regime", default="vit", choices=("vit", "native"), help="encoders of the compared systems (default: vit)")
    add("--sweep", action="append", default=[], metavar="experts=N,..|alpha=X,..", help="the ablation sweeps of Fig. 7")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key of every cell; repeatable")
    add("--ds_config", default="", metavar="JSON", help="default: zero2.json, for the paper preset bf16.json")
    add("--output", default="", metavar="DIR", help="default: runs/compare-<preset>")
    add("--workers", type=int, default=0, help="cells at a time (default: the cores of a CPU machine, else 1)")
    add("--ranks", type=int, default=1, help="processes of a cell, under the deepspeed launcher (default: 1)")
    add("--timeout", type=float, default=24.0, metavar="H", help="hours for one cell (default: 24)")
    add("--cell", type=int, default=None, metavar="N", help="run only the n-th cell, from 0 (an array job)")
    add("--collect", action="store_true", help="run nothing, make the tables of what is there")
    add("--dry-run", action="store_true", help="list the cells")
    add("--list", action="store_true", help="list the methods")


def work(options: argparse.Namespace) -> int:
    """Runs and collects; 1 if a cell failed or is missing.

    Raises:
        UserError: options contradict each other, or a folder holds other settings.
    """
    import os
    from pathlib import Path

    from m4oe_ds.compare import cells as grid
    from m4oe_ds.compare import run
    from m4oe_ds.errors import ConfigError

    if options.list:
        for name, method in grid.METHODS.items():
            print(f"{name:22} {method.label:28} {', '.join(method.datasets)}")
        return 0
    cells = grid.enumerate_cells(
        _names(options.datasets), _methods(options.methods), _seeds(options.seeds), _names(options.settings),
        options.regime, options.set, options.sweep,
    )  # fmt: skip
    output = options.output or f"runs/compare-{options.preset}"
    default_json = "ds_configs/bf16.json" if options.preset == "paper" else "ds_configs/zero2.json"
    plan = run.Plan(
        Path(output), options.preset, options.ds_config or default_json, options.ranks, 3600 * options.timeout
    )
    for dataset in sorted({cell.dataset for cell in cells}):
        plan.config(dataset)
    if options.dry_run:
        for number, cell in enumerate(cells):
            print(f"{number:4} {run.state(cell, plan):8} {cell.name}")
        print(f"{len(cells)} cells")
        return 0
    failures: list[Any] = []
    if not options.collect:
        chosen = cells
        if options.cell is not None:
            if not 0 <= options.cell < len(cells):
                raise ConfigError(f"no cell {options.cell}", "--cell", f"there are {len(cells)}, numbered from 0")
            chosen = [cells[options.cell]]
        _prepare(plan, sorted({cell.dataset for cell in chosen}))
        workers = options.workers or (1 if _has_gpu() else max(1, (os.cpu_count() or 1) // options.ranks))
        failures = run.run(chosen, plan, workers, lambda text: print(text, flush=True))
    if options.cell is None:
        _tables(cells, plan, options)
    for cell, problem in failures:
        print(f"failed: {cell.name}: {problem.splitlines()[-1]}")
    missing = [cell for cell in cells if run.state(cell, plan) != "done"] if options.cell is None else failures
    return 1 if missing else 0


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _methods(text: str) -> list[str]:
    from m4oe_ds.compare.cells import ABLATIONS, METHODS

    if text == "all":
        return list(METHODS)
    if text == "table1":
        return [name for name, method in METHODS.items() if method.paper or method.single]
    return list(ABLATIONS) if text == "table2" else _names(text)


def _seeds(text: str) -> list[int]:
    from m4oe_ds.errors import ConfigError

    try:
        return [int(part) for part in _names(text)]
    except ValueError:
        raise ConfigError(f"cannot read {text!r}", "--seeds", "write whole numbers, e.g. 0,1,2") from None


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _prepare(plan: Any, datasets: list[str]) -> None:
    """Makes the phantom shards of the presets before cells that share them start."""
    from pathlib import Path

    from data_tools.demo import ensure_phantom_shards
    from m4oe_ds import config_loader

    for dataset in datasets:
        config = config_loader.load(plan.config(dataset))
        made = config.data.phantom
        if "://" not in config.data.root:
            ensure_phantom_shards(
                Path(config.data.root), dataset, patients=made.patients, seed=made.seed,
                risk_prevalence=made.risk_prevalence, image_size=made.image_size,
            )  # fmt: skip


def _tables(cells: Any, plan: Any, options: argparse.Namespace) -> None:
    from m4oe_ds.compare import results, tables

    figures, missing = results.collect(cells, plan.folder)
    facts = {
        "preset": options.preset,
        "seeds": _seeds(options.seeds),
        "regime": options.regime,
        "synthetic": options.preset != "paper",
    }
    if not figures:
        print("no finished cell yet")
        return
    path = results.write(figures, missing, plan.folder, facts)
    note = "SYNTHETIC phantoms. " if facts["synthetic"] else ""
    if options.sweep:
        print(tables.write("sweep", tables.sweep_rows(figures), plan.folder))
    else:
        print(f"\nTable 1. {note}{TABLE1_TEXT}\n\n" + tables.write("table1", tables.table1(figures), plan.folder))
        print(
            f"\nAUROC x 100 beside it. {note}\n\n"
            + tables.write("table1_auroc", tables.table1(figures, "auroc"), plan.folder)
        )
        if any(figure.dataset == "embed" and figure.setting == "multi" for figure in figures):
            print(f"\nTable 2. {note}Ablation on EMBED, multi-task, accuracy as above.\n\n"
                  + tables.write("table2", tables.table2(figures), plan.folder))  # fmt: skip
    for cell in missing:
        print(f"missing: {cell.name}")
    print(f"\n{len(cells) - len(missing)} of {len(cells)} cells: {path}, tables beside it")
