"""The ``m4oe`` command: sub-commands that import their work when they run, so that ``--help`` is instant."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import shtab

from m4oe_ds import __version__
from m4oe_ds.command_line import guarded


def parser() -> argparse.ArgumentParser:
    """All sub-commands and their options."""
    top = argparse.ArgumentParser(prog="m4oe", description="Multi-modal multi-task mixture of experts for imaging.")
    top.add_argument("--debug", action="store_true", help="show tracebacks of user errors")
    top.add_argument("--version", action="version", version=f"m4oe_ds {__version__}")
    shtab.add_argument_to(top, ["--print-completion"], help="print the completion script of a shell")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    from m4oe_ds import start

    train = commands.add_parser("train", help="train, on the GPUs of this machine or as a rank that srun started")
    start.add_arguments(train)
    train.set_defaults(work=start.main)
    from m4oe_ds.doctor import command as checkup

    doctor = commands.add_parser("doctor", help="whether this machine, or every node of a job, is fit for training")
    checkup.add_arguments(doctor)
    doctor.set_defaults(work=checkup.main)

    init = commands.add_parser("init", help="copy the shipped configurations and SLURM scripts, to edit them")
    init.add_argument("folder", nargs="?", default=".", metavar="DIR", help="folder to copy to (default: this one)")
    init.set_defaults(work=_init)

    evaluate = commands.add_parser("evaluate", help="evaluate a finished run on a split, at any number of ranks")
    evaluate.add_argument("run", metavar="RUN", help="run folder, e.g. runs/demo")
    evaluate.add_argument("--split", default="test", help="split to evaluate (default: test)")
    evaluate.add_argument(
        "--data", default="", metavar="DIR", help="folder of shards (default: the one the run was trained on)"
    )
    evaluate.set_defaults(work=_evaluate)

    _add_data(commands)
    from m4oe_ds.predict import command as prediction

    predict = commands.add_parser("predict", help="predict on new DICOM files with a finished run")
    prediction.add_arguments(predict)
    predict.set_defaults(work=prediction.main)

    report = commands.add_parser("report", help="write report.html from a run folder")
    report.add_argument("run", metavar="RUN", help="run folder, e.g. runs/demo")
    report.set_defaults(work=_report)

    from m4oe_ds.analysis import command as analysis

    analyze = commands.add_parser(
        "analyze", help="what routing, gradients and representations of a run say about modalities and tasks"
    )
    analysis.add_arguments(analyze)
    analyze.set_defaults(work=analysis.main)

    from m4oe_ds.planning import command as planning

    plan = commands.add_parser(
        "plan", help="memory, step time and a DeepSpeed configuration before anything is submitted"
    )
    planning.add_arguments(plan)
    plan.set_defaults(work=planning.main)

    from m4oe_ds.scaling import command as scaling

    scale = commands.add_parser("scale", help="scaling studies on expert count, measured or simulated")
    scaling.add_arguments(scale)
    scale.set_defaults(work=scaling.main)

    from m4oe_ds.compare import command as comparison

    compare = commands.add_parser(
        "compare", help="train and evaluate the compared systems, and make the paper's tables"
    )
    comparison.add_arguments(compare)
    compare.set_defaults(work=comparison.main)

    _add_figures(commands)
    _add_export_models_config(commands)
    return top


def _add_data(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from data_tools import inspect
    from data_tools.cards import command as cards
    from data_tools.convert import options as conversion
    from data_tools.phantom import archive as phantom

    convert = commands.add_parser("convert", help="make shards of an archive, or of your own data with their card")
    conversion.add_arguments(convert)
    convert.set_defaults(work=_convert)
    look = commands.add_parser("inspect", help="say what a folder of shards holds, and check it")
    inspect.add_arguments(look)
    look.set_defaults(work=inspect.run)
    made = commands.add_parser("phantom", help="make a synthetic archive in the layout of a real one")
    phantom.add_arguments(made)
    made.set_defaults(work=phantom.run)
    cards.add_commands(commands.add_parser("card", help="check a card against its data, or propose one from a table"))


def _add_figures(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from m4oe_ds.figures import command as figures

    drawn = commands.add_parser("figures", help="make the paper's Table 1 and 2 and Fig. 3 to 7 again, all in one")
    figures.add_arguments(drawn)
    drawn.set_defaults(work=figures.main)


def _add_export_models_config(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    export = commands.add_parser("export", help="consolidate a checkpoint into safetensors, every expert included")
    export.add_argument("run", metavar="RUN", help="run folder, or one of its step-* checkpoints")
    export.add_argument(
        "--checkpoint", default="best", metavar="best|latest|TAG", help="checkpoint to export (default: best)"
    )
    export.add_argument(
        "--out",
        default="",
        metavar="FILE|DIR",
        help="file, or folder that opens as a run elsewhere (default: RUN/weights/model.safetensors)",
    )
    export.add_argument(
        "--dtype", default="fp32", choices=("fp32", "bf16", "fp16"), help="type of the weights (default: fp32)"
    )
    export.add_argument(
        "--max-file-gb",
        type=float,
        default=0.0,
        metavar="GB",
        help="largest size of a file, 10^9 bytes (default: one file)",
    )
    export.set_defaults(work=_export)

    models = commands.add_parser("models", help="list the registered models, and which of them fit a data set")
    models.add_argument("--card", default="", metavar="CARD", help="a card (shipped name or path): which fit, why not")
    models.add_argument("--config", default="", metavar="YAML", help="a configuration: which fit its data, why not")
    models.set_defaults(work=_models)

    config = commands.add_parser("config", help="check a configuration and print it with all defaults")
    config.add_argument("config", metavar="YAML", help="configuration file")
    config.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key; repeatable")
    config.add_argument(
        "--count", action="store_true", help="also count the model's parameters, without allocating them"
    )
    config.set_defaults(work=_config)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one sub-command; a user error becomes one line on standard error and its exit code."""
    options = parser().parse_args(arguments)
    return guarded(lambda: options.work(options), debug=options.debug)


def _convert(options: argparse.Namespace) -> None:
    from data_tools.convert import ConvertOptions, convert

    convert(ConvertOptions.of(options))


def _init(options: argparse.Namespace) -> None:
    from pathlib import Path

    from m4oe_ds import shipped

    copied = shipped.copy(Path(options.folder))
    print(f"{len(copied)} files in {', '.join(str(Path(options.folder) / name) for name in shipped.FOLDERS)}")
    print("train with one of them:  m4oe train --config configs/embed.yaml --ds_config ds_configs/bf16.json")


def _evaluate(options: argparse.Namespace) -> None:
    from pathlib import Path

    from m4oe_ds.evaluation.metrics_text import format_table
    from m4oe_ds.evaluation.missing_modalities import format_observed
    from m4oe_ds.runs.evaluate import evaluate_run
    from m4oe_ds.runs.folder import RunFolder

    metrics = evaluate_run(Path(options.run), options.split, options.data)
    if metrics is not None:
        print(format_table(metrics))
        if "by_modalities_present" in metrics:
            print("\nby the number of modalities that samples have")
            print(format_observed(metrics["by_modalities_present"]))
        print(f"metrics of {options.split}: {RunFolder(Path(options.run)).metrics}")


def _report(options: argparse.Namespace) -> None:
    from pathlib import Path

    from m4oe_ds.report.html import render

    print(f"report: {render(Path(options.run))}")


def _export(options: argparse.Namespace) -> None:
    from pathlib import Path

    from m4oe_ds.errors import CheckpointError
    from m4oe_ds.runs.folder import BEST, LATEST, CheckpointFolder, RunFolder
    from m4oe_ds.runs.weights import consolidate, describe, describe_file

    run = Path(options.run)
    files = RunFolder(run)
    wanted = Path(options.out) if options.out else None
    if wanted is not None and wanted.suffix != ".safetensors":
        wanted = RunFolder(wanted).weights
    checkpoint, out = run, wanted or RunFolder(run.parent.parent).weights
    if not CheckpointFolder(run).manifest.is_file():
        pointer = {"best": BEST, "latest": LATEST}.get(options.checkpoint)
        path = files.checkpoints / (pointer or options.checkpoint)
        if pointer and not path.is_file():
            raise CheckpointError(
                f"no {options.checkpoint} checkpoint", str(run), "name one with --checkpoint step-..."
            )
        checkpoint = files.checkpoints / path.read_text().strip() if pointer else path
        out = wanted or files.weights
    origin = RunFolder(checkpoint.parent.parent)
    folder = describe(origin, out)
    if folder is not None:
        print(f"configuration, card and statistics of the data -> {folder}")
    for path in consolidate(checkpoint, out, options.dtype, options.max_file_gb):
        print(f"{checkpoint.name} -> {path} ({path.stat().st_size / 1e6:.1f} MB)")
    config = describe_file(origin, out) if folder is None else None
    if config is not None:
        print(f"its configuration -> {config} (another run starts from it with model.init_from)")


def _models(options: argparse.Namespace) -> None:
    from m4oe_ds.models.systems import MODELS, unfit

    question, given = _question(options)
    for name, entry in sorted(MODELS.items()):
        if question is None:
            print(f"{name:12} {entry.fidelity:16} {entry.paper}")
            continue
        reason = unfit(name, question, given.get(name))
        sense = "" if reason else unfit(name, question, given.get(name), compared=True)
        print(f"{name:12} " + (f"no: {reason}" if reason else f"fits, not compared: {sense}" if sense else "fits"))


def _question(options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """Modalities and tasks that are asked about, None without any; options of the configuration's own model."""
    from m4oe_ds import config_loader
    from m4oe_ds.data.cards import find_card
    from m4oe_ds.errors import ConfigError
    from m4oe_ds.models.fit import Question
    from m4oe_ds.models.systems import settings_of

    if options.card and options.config:
        raise ConfigError("--card and --config exclude each other", fix="give one of them")
    if options.config:
        config = config_loader.load(options.config)
        question = Question.of(find_card(config.data.dataset), config.data.modalities, config.data.tasks)
        return question, {config.model.name: settings_of(config)}
    return (Question.of(find_card(options.card)), {}) if options.card else (None, {})


def _config(options: argparse.Namespace) -> None:
    import yaml

    from m4oe_ds import config_loader
    from m4oe_ds.config import to_dict

    config = config_loader.load(options.config, options.set)
    print(yaml.safe_dump(to_dict(config), sort_keys=False, default_flow_style=None), end="")
    if options.count:
        import torch

        from m4oe_ds.models import build

        shapes = config_loader.load(options.config, [*options.set, "model.embedder.weights="])  # nothing is fetched
        with torch.device("meta"):
            model = build(shapes)
        parts: dict[str, int] = {}
        for name, parameter in model.named_parameters():
            part = name.split(".", 1)[0]
            parts[part] = parts.get(part, 0) + parameter.numel()
        for part, count in parts.items():
            print(f"# {part:18} {count:>15,}")
        print(f"# {'total':18} {sum(parts.values()):>15,}")
