# ruff: noqa: T201
"""``m4oe compare``: trains and evaluates every cell of a comparison, and prints the paper's tables of the results."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from m4oe_ds.arguments import MOST_PROCESSES, number, whole
from m4oe_ds.compare import estimate

if TYPE_CHECKING:
    from m4oe_ds.compare.cells import Cell, Subject
    from m4oe_ds.compare.results import Figure
    from m4oe_ds.compare.run import CellPlan

_TABLE1_TEXT = """Accuracy in percent (Dice of masks, mean absolute error of numbers, concordance of times to an event),
test split, mean ± standard deviation over seeds.
In parentheses: difference to Ours in the same setting and its two-sided p, groups resampled together for both:
uncorrected for the number of comparisons, and blind to how trainings with other seeds would differ. The row without a
setting is what answers that look at nothing reach: the most frequent class of the test split, the median, a coin."""
_PUBLISHED_TEXT = """"paper, real data" is Table 1 of {source}, for the multi-task rows w/o MSoE and w/o MI its
Table 2, on the real data sets at full size: a reference, not a target. {note}"""
_EXPLAIN_TEXT = """Spearman rank correlation of an explanation with the planted share of the evidence (truth) and with
the effect of leaving a modality out (ablation), mean ± standard deviation over seeds.
sample: over all samples and modalities, after subtracting uniform weights; within: over the modalities of one sample;
population: over the mean shares of all tasks and modalities. "uniform" is what equal weights for all tokens say: a
floor. +1 would be full agreement, 0 none."""
_SWEEP_TEXT = "Ablation sweep in the manner of Fig. 7: mean and standard deviation over seeds, test split."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the sub-command."""
    add = parser.add_argument
    add("--preset", default="", choices=("smoke", "small", "paper"), help="size of the runs (default: smoke)")
    add("--datasets", default="", metavar="A,B,..", help="data sets of the preset (default: all of its)")
    add("--config", default="", metavar="YAML", help="a configuration of your own, in place of a preset: any card")
    add(
        "--methods",
        default="",
        metavar="A,B,..",
        help="`all`, `table1`, `table2`, names as in --list, or package.module:Class of your own (default: the "
        "preset's; with --sweep: `ours`, which is M4oE)",
    )
    add("--seeds", default="", metavar="N,N,..", help="seeds, one run for each (default: the preset's)")
    add(
        "--settings", default="", metavar="single,multi", help="single-task, multi-task or both (default: the preset's)"
    )
    add("--regime", default="vit", choices=("vit", "native"), help="encoders of the compared systems (default: vit)")
    add(
        "--sweep",
        action="append",
        default=[],
        metavar="experts=N,..|alpha=X,..",
        help="ablation sweep of Fig. 7; repeatable",
    )
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key of every cell; repeatable")
    add("--ds_config", default="", metavar="JSON", help="DeepSpeed JSON (default: zero2.json; paper: bf16.json)")
    add("--output", default="", metavar="DIR", help="folder of the comparison (default: runs/compare-<preset or card>)")
    add_running(parser, "cell")
    add("--cell", type=whole(), default=None, metavar="N", help="run only cell N, counted from 0 (for array jobs)")
    add("--explain", action="store_true", help="also score the explanations of every multi-task cell (m4oe analyze)")
    add("--collect", action="store_true", help="run nothing, only make the tables of finished cells")
    add("--dry-run", action="store_true", help="only list the cells, and what they would cost")
    estimate.add_arguments(parser)
    add("--list", action="store_true", help="only list the methods")


def add_running(parser: argparse.ArgumentParser, noun: str) -> None:
    """Adds how many trainings run at a time, on how many ranks, for how long.

    Args:
        parser: of a command that trains the cells of a comparison.
        noun: what one of them is called.
    """
    add, count = parser.add_argument, whole(1, MOST_PROCESSES)
    text = f"{noun}s at a time, each on GPUs of its own (default: one per core of a CPU machine, else 1)"
    add("--workers", type=count, default=0, metavar="N", help=text)
    text = f"processes per {noun}, under the deepspeed launcher (default: 1)"
    add("--ranks", type=count, default=1, metavar="N", help=text)
    text = f"longest time for a {noun}, hours (default: 24)"
    add("--timeout", type=number(above=0), default=24.0, metavar="H", help=text)


def main(options: argparse.Namespace) -> int:
    """Runs and collects; 1 if a cell failed or is missing, 75 if a signal stopped the work.

    Raises:
        UserError: options contradict each other, or a folder holds other settings.
    """
    import os

    from m4oe_ds.compare import run
    from m4oe_ds.errors import ConfigError, DataError
    from m4oe_ds.launcher import shares, visible_devices

    if options.explain and options.sweep:
        raise ConfigError("explanations of a sweep are not scored", "--explain", "leave out --sweep")
    if options.collect and (options.dry_run or options.cell is not None):
        other = "--dry-run" if options.dry_run else "--cell"
        raise ConfigError("runs nothing, and makes tables of all cells", "--collect", f"leave it out, or {other}")
    subject = _own(options)
    if options.list:
        _list(subject)
        return 0
    cells, plan, refused = planned(options)
    if options.collect and not plan.folder.is_dir():
        raise DataError("no such comparison", str(plan.folder), "name its folder as --output, or leave out --collect")
    cluster = estimate.asked_cluster(options, plan)
    if options.dry_run:
        for number, cell in enumerate(cells):
            print(f"{number:4} {run.state(cell, plan):8} {cell.name}")
        print("\n".join([*refused, f"{len(cells)} cells"]), flush=True)
        if cluster is not None:
            print("\n".join(estimate.lines_of(cells, plan, cluster, options.samples)))
        return 0
    if options.cell is not None:
        return _one(cells, options.cell, plan)
    if not options.collect:
        _refuse_step(run.step_tasks(os.environ)[0])
        for cell in cells:
            run.state(cell, plan)  # contradictions of any cell come before the first one starts
        devices = visible_devices(os.environ)
        shares(devices, options.workers or 1, options.ranks)
        print("\n".join(refused), end="\n" if refused else "", flush=True)
        _prepare(plan, cells)
        workers = options.workers or (1 if devices else max(1, (os.cpu_count() or 1) // options.ranks))
        _, stopped = run.run(cells, plan, workers, lambda text: print(text, flush=True), devices)
        if stopped:
            print(f"{run.STOPPED} in {plan.folder}")
            return 75
    status = _tables(cells, plan, options)
    return max(status, _explanations(cells, plan, options)) if options.explain else status


def planned(options: argparse.Namespace) -> tuple[list[Cell], CellPlan, list[str]]:
    """The cells, how they are run, and a line for every system that makes no sense.

    Args:
        options: the command's.

    Raises:
        ConfigError: options that contradict each other.
    """
    from pathlib import Path

    from m4oe_ds import shipped
    from m4oe_ds.command_line import check_output
    from m4oe_ds.compare import cells as grid
    from m4oe_ds.compare import run
    from m4oe_ds.compare.published import Preset, presets
    from m4oe_ds.compare.run import CellPlan
    from m4oe_ds.option_lists import comma_list
    from m4oe_ds.runs.apart import check_apart

    subject = _own(options)
    name = "own" if subject else options.preset or "smoke"
    check_output(Path(options.output or "runs"), "--output")
    if options.output:
        check_apart(Path(options.output), "--output")
    preset = Preset((), ("all",), (0,)) if subject else presets()[name]
    named = comma_list(options.methods, "--methods", str) or (["ours"] if options.sweep else preset.methods)
    methods = [method for text in named for method in _methods(text)]
    datasets = [subject] if subject else comma_list(options.datasets, "--datasets", str) or preset.datasets
    cells = grid.enumerate_cells(
        datasets,
        methods,
        comma_list(options.seeds, "--seeds", int, least=0, required=True, once=True) if options.seeds else preset.seeds,
        comma_list(options.settings, "--settings", str) or preset.settings,
        options.regime,
        options.set,
        options.sweep,
    )
    plan = CellPlan(
        Path(options.output or f"runs/compare-{subject.name if subject else name}").absolute(),
        name,
        _ds_config(options),
        options.ranks,
        3600 * options.timeout,
        str(shipped.find(shipped.CONFIG, options.config).absolute()) if subject else "",
    )
    run.check(cells, plan)
    return cells, plan, grid.left_out(datasets, methods, options.regime)


def _own(options: argparse.Namespace) -> Subject | None:
    """The data set of one's own configuration; None without one.

    Raises:
        ConfigError: a preset or its data sets are asked for too.
    """
    from m4oe_ds import config_loader
    from m4oe_ds.compare.cells import Subject
    from m4oe_ds.data.cards import find_card
    from m4oe_ds.errors import ConfigError

    if not options.config:
        return None
    if options.preset or options.datasets:
        raise ConfigError("it stands for a preset and its data sets", "--config", "leave out --preset and --datasets")
    data = config_loader.load(options.config, options.set).data
    return Subject.of(find_card(data.dataset), data.modalities, data.tasks)


def _list(subject: Subject | None) -> None:
    """Prints every method and the data sets that it makes sense for, or why not for one's own."""
    from m4oe_ds.compare.cells import METHODS, subjects_of
    from m4oe_ds.data.cards import shipped

    subjects = [subject] if subject else subjects_of(shipped())
    for name, method in METHODS.items():
        fitting = [one.name for one in subjects if not method.refusal(one.question)]
        reason = method.refusal(subject.question) if subject else ""
        print(f"{name:22} {method.label:28} {', '.join(fitting) or f'no: {reason}'}")


def _explanations(cells: Sequence[Cell], plan: CellPlan, options: argparse.Namespace) -> int:
    """Analyses the cells, writes and prints how well their explanations agree; 1 if an analysis failed."""
    import os

    from m4oe_ds.compare import explain, tables
    from m4oe_ds.launcher import visible_devices

    failures = {}
    if not options.collect:
        devices = visible_devices(os.environ)
        workers = options.workers or (1 if devices else max(1, os.cpu_count() or 1))
        failures = explain.analyse(cells, plan, workers, lambda text: print(text, flush=True), devices)
    found = explain.collect(cells, plan)
    note = "SYNTHETIC phantoms. " if _synthetic(cells, plan) else ""
    data = "synthetic" if note else "real"
    for name, caption, rows in (
        ("explanations", _EXPLAIN_TEXT, explain.table(found)),
        ("explanations_tasks", "Ours, agreement within a sample by task.", explain.task_table(found)),
        ("explanations_shares", "Ours, mean share of each modality.", explain.share_table(cells, plan)),
        ("explanations_information", "Routing of the trained models.", explain.information(cells, plan)),
    ):
        if len(rows) > 1:
            print("\n" + tables.write(name, rows, plan.folder, note + caption, data))
    if found:
        print(f"\nexplanations: {explain.write(found, plan.folder / 'explanations.json')}, tables next to it")
    for cell, why in failures.items():
        print(f"not analysed: {cell}: {why}")
    return 1 if failures or not found else 0


def _one(cells: Sequence[Cell], number: int, plan: CellPlan) -> int:
    """One task of an array job."""
    from m4oe_ds.compare import run
    from m4oe_ds.compare.processes import Children
    from m4oe_ds.errors import ConfigError

    if not 0 <= number < len(cells):
        raise ConfigError(f"no cell {number}", "--cell", f"there are {len(cells)}, numbered from 0")
    cell = cells[number]
    run.state(cell, plan)
    _prepare(plan, [cell])
    with Children() as children:
        problem = run.run_cell(cell, plan, children)
    print(f"{cell.name}: {problem or 'done'}: {plan.of(cell)}")
    return 0 if not problem else 75 if problem == run.STOPPED else 1


def _refuse_step(tasks: int) -> None:
    from m4oe_ds.errors import EnvironmentProblem

    if tasks > 1:
        raise EnvironmentProblem(
            f"{tasks} tasks of a SLURM step would all run every cell", fix="use --cell N, or start one task"
        )


def _methods(text: str) -> list[str]:
    from m4oe_ds.compare.cells import ABLATIONS, METHODS

    groups = {
        "all": list(METHODS),
        "table1": [name for name, method in METHODS.items() if method.paper or method.single],
        "table2": list(ABLATIONS),
    }
    return groups.get(text, [text])


def _ds_config(options: argparse.Namespace) -> str:
    from m4oe_ds import shipped

    if not options.ds_config:
        return "bf16" if options.preset == "paper" else "zero2"
    return str(shipped.find(shipped.DS_CONFIG, options.ds_config).absolute())


def _prepare(plan: CellPlan, cells: Sequence[Cell]) -> None:
    """Makes the phantom shards of the presets before cells that share them start."""
    from pathlib import Path

    from data_tools.demo import make_phantom_shards
    from m4oe_ds import config_loader
    from m4oe_ds.compare import run
    from m4oe_ds.runs.request import has_phantoms, makes_phantoms

    datas = {}
    for cell in cells:
        config = config_loader.load(plan.config(cell.dataset), cell.overrides)
        datas[config.data.root] = config
    for root, config in datas.items():
        if has_phantoms(config):
            with run.locked(Path(root).absolute().with_name(f".{Path(root).name}.lock")):
                if makes_phantoms(config):
                    make_phantom_shards(config.data.dataset, config.data.phantom)


def _synthetic(cells: Sequence[Cell], plan: CellPlan) -> bool:
    """Whether any of the runs learns from phantoms."""
    from m4oe_ds import config_loader

    if not plan.own:
        return plan.preset != "paper"
    return any(config_loader.load(plan.own, cell.overrides).data.phantom.patients > 0 for cell in cells)


def _tables(cells: Sequence[Cell], plan: CellPlan, options: argparse.Namespace) -> int:
    """Writes and prints the tables; 1 if they have holes."""
    from m4oe_ds.compare import results, run, tables

    figures, missing = results.collect(cells, plan.folder)
    holes = {cell.name: run.reason(cell, plan) for cell in missing}
    ending = "_native" if options.regime == "native" else ""
    if figures:
        facts = {
            "preset": plan.preset,
            "seeds": sorted({cell.seed for cell in cells}),
            "regime": options.regime,
            "synthetic": _synthetic(cells, plan),
        }
        name = "sweep" if options.sweep else "results"
        path = results.write(figures, holes, plan.folder / f"{name}{ending}.json", facts)
        made = {"sweep": (_SWEEP_TEXT, tables.sweep_rows(figures))} if options.sweep else _paper_tables(figures)
        note = "SYNTHETIC phantoms. " if facts["synthetic"] else ""
        note += f"Encoders of the compared systems: {'their own' if ending else 'those of our model'}. "
        data = "synthetic" if facts["synthetic"] else "real"
        for table, (caption, rows) in made.items():
            print("\n" + tables.write(f"{table}{ending}", rows, plan.folder, note + caption, data))
        print(f"\n{len(cells) - len(missing)} of {len(cells)} cells: {path}, tables next to it")
    else:
        print(f"no finished cell of {len(cells)} in {plan.folder}")
    for cell, why in holes.items():
        print(f"missing: {cell}: {why}")
    return 1 if missing else 0


def _paper_tables(figures: Sequence[Figure]) -> dict[str, tuple[str, list[list[str]]]]:
    """Caption and rows of each table, by the name of its file."""
    from m4oe_ds.compare import tables
    from m4oe_ds.compare.cells import ABLATIONS
    from m4oe_ds.compare.published import published

    known, named = published(), {figure.dataset for figure in figures}
    text = f"Table 1. {_TABLE1_TEXT}"
    if named & known.columns.keys():
        text += " " + _PUBLISHED_TEXT.format(source=known.source, note=known.note)
    made = {
        "table1": (text, tables.table1(figures)),
        "table1_auroc": (
            "AUROC x 100 of classes (other kinds of task as in Table 1) in the layout of Table 1, read as that.",
            tables.table1(figures, "auroc"),
        ),
    }
    for dataset in sorted(named):
        parts = {f.method for f in figures if f.dataset == dataset and f.setting == "multi"} & ABLATIONS.keys()
        if dataset == known.ablation or (dataset not in known.columns and len(parts) > 1):
            caption = f"Table 2. Ablation on {dataset}, multi-task, read as Table 1."
            if parts:
                made["table2"] = (caption, tables.table2(figures, dataset))
    return made
