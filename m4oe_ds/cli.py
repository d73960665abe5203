"""The ``m4oe`` command: sub-commands that import their work when they run, so that ``--help`` is instant."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

import shtab

from m4oe_ds import __version__
from m4oe_ds.arguments import Parser, add_command
from m4oe_ds.command_line import guarded


def parser() -> Parser:
    """All sub-commands and their options."""
    top = Parser(
        prog="m4oe",
        description="Multi-modal multi-task mixture of experts for imaging.",
        epilog="`m4oe COMMAND --help` shows the options of a command, and an example.",
    )
    top.add_argument("--debug", action="store_true", help="show tracebacks of user errors")
    top.add_argument("--version", action="version", version=f"m4oe_ds {__version__}")
    shtab.add_argument_to(top, ["--print-completion"], help="print the completion script of a shell")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    _add_training(commands)
    _add_data(commands)
    _add_results(commands)
    _add_diff(commands)
    _add_studies(commands)
    _add_export_models_config(commands)
    for command in commands.choices.values():  # also behind the command
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return top


def _add_training(commands: argparse._SubParsersAction[Parser]) -> None:
    from m4oe_ds import start
    from m4oe_ds.doctor import command as checkup

    add_command(
        commands,
        "train",
        "train, on the GPUs of this machine or as a rank that srun started",
        "m4oe train --ds_config zero2",
        "m4oe train --config my.yaml --ds_config bf16 --gpus 4 --set run.num_epochs=30 --output runs/first",
        more="Without --config it runs the demo on synthetic data. An interrupted run continues with the same command.",
        options=start.add_arguments,
        work=start.main,
    )

    add_command(
        commands,
        "doctor",
        "say whether this machine, or every node of a job, is fit for training",
        "m4oe doctor --quick",
        "srun m4oe doctor --config my.yaml --ds_config bf16",
        more="Ends with status 1 if something must be mended.",
        options=checkup.add_arguments,
        work=checkup.main,
    )

    init = add_command(
        commands, "init", "copy the shipped configurations and SLURM scripts, to edit them", "m4oe init my-study"
    )
    init.add_argument("folder", nargs="?", default=".", metavar="DIR", help="folder to copy to (default: this one)")
    init.set_defaults(work=_init)


def _add_data(commands: argparse._SubParsersAction[Parser]) -> None:
    from data_tools import inspect
    from data_tools.cards import command as cards
    from data_tools.convert import options as conversion
    from data_tools.phantom import archive as phantom

    add_command(
        commands,
        "convert",
        "make shards of an archive, or of your own data with their card",
        "m4oe convert --card my.yaml --out data/my",
        "m4oe convert --dataset NAME --root /archives/NAME --out data/NAME --workers 16",
        more="A conversion that was interrupted continues with the same command, from DIR.partial.",
        options=conversion.add_arguments,
        work=_convert,
    )
    add_command(
        commands,
        "inspect",
        "say what a folder of shards holds, and check it",
        "m4oe inspect data/demo --contact-sheet sheet.png --phi",
        more="Ends with status 1 if there is a problem.",
        options=inspect.add_arguments,
        work=inspect.run,
    )
    add_command(
        commands,
        "phantom",
        "make a synthetic archive in the layout of a real one",
        "m4oe phantom --layout NAME --out phantom --patients 48 --seed 0",
        options=phantom.add_arguments,
        work=phantom.run,
    )
    card = add_command(
        commands,
        "card",
        "check a card against its data, or propose one from a table",
        "m4oe card new --table cases.csv --out my.yaml",
        "m4oe card check my.yaml",
    )
    cards.add_commands(card)


def _add_results(commands: argparse._SubParsersAction[Parser]) -> None:
    from m4oe_ds.analysis import command as analysis
    from m4oe_ds.predict import command as prediction

    evaluate = add_command(
        commands,
        "evaluate",
        "evaluate a finished run on a split, at any number of ranks",
        "m4oe evaluate runs/demo --split test",
        "m4oe evaluate runs/demo --data data/other-hospital",
        more="Writes metrics.json and predictions/ in the run folder. Results on other shards than the run's own "
        "stand beside those on its own, as test@other-hospital.",
    )
    evaluate.add_argument("run", metavar="RUN", help="run folder, e.g. runs/demo")
    evaluate.add_argument(
        "--split",
        default="test",
        metavar="NAME",
        help="split to evaluate: train, val or test (default: test)",
    )
    evaluate.add_argument(
        "--data", default="", metavar="DIR", help="folder of shards (default: the one the run was trained on)"
    )
    evaluate.set_defaults(work=_evaluate)

    add_command(
        commands,
        "predict",
        "predict on new samples with a finished run, from DICOM files or a table",
        "m4oe predict runs/demo --dicom new-exams --out predicted",
        "m4oe predict runs/my --table new.csv --out predicted",
        options=prediction.add_arguments,
        work=prediction.main,
    )

    report = add_command(commands, "report", "write report.html from a run folder", "m4oe report runs/demo")
    report.add_argument("run", metavar="RUN", help="run folder, e.g. runs/demo")
    report.set_defaults(work=_report)

    add_command(
        commands,
        "analyze",
        "say what routing, gradients and representations of a run tell about modalities and tasks",
        "m4oe analyze runs/demo --only utilisation,contribution",
        more="Writes analysis.json, analysis/ and figures/ in the run folder.",
        options=analysis.add_arguments,
        work=analysis.main,
    )


def _add_diff(commands: argparse._SubParsersAction[Parser]) -> None:
    from m4oe_ds.diff import command as comparison

    add_command(
        commands,
        "diff",
        "show how two runs differ: configuration, curves, answers to the same samples",
        "m4oe diff runs/first runs/second --output runs/first-and-second",
        more="Ends with status 1 if no answer could be compared.",
        options=comparison.add_arguments,
        work=comparison.main,
    )


def _add_studies(commands: argparse._SubParsersAction[Parser]) -> None:
    from m4oe_ds.compare import command as comparison
    from m4oe_ds.figures import command as drawing
    from m4oe_ds.planning import command as planning
    from m4oe_ds.scaling import command as scaling

    add_command(
        commands,
        "plan",
        "say memory, step time and a DeepSpeed configuration before anything is submitted",
        "m4oe plan --config my.yaml --cluster 4xA100-80+4xL40S --out ds.json",
        more="Ends with status 1 if the job does not fit.",
        options=planning.add_arguments,
        work=planning.main,
    )

    add_command(
        commands,
        "scale",
        "study scaling on expert count, measured or simulated",
        "m4oe scale run --output runs/scaling --experts 8,16 --ep 1,2 --world 1,2",
        options=scaling.add_arguments,
        work=scaling.main,
    )

    add_command(
        commands,
        "compare",
        "train and evaluate the compared systems, and make the paper's tables",
        "m4oe compare --preset smoke --dry-run",
        "m4oe compare --config my.yaml --methods ours,soft_moe --seeds 0,1,2",
        more="Finished cells are not run again. Ends with status 1 if a cell failed or is missing.",
        options=comparison.add_arguments,
        work=comparison.main,
    )

    add_command(
        commands,
        "figures",
        "make the paper's Table 1 and 2 and Fig. 3 to 7 again, from trainings to an index of files",
        "m4oe figures --preset smoke --dry-run",
        "m4oe figures --preset small --only table1,fig4",
        more="What is finished is not made again. Ends with status 1 if something is missing.",
        options=drawing.add_arguments,
        work=drawing.main,
    )


def _add_export_models_config(commands: argparse._SubParsersAction[Parser]) -> None:
    from m4oe_ds.runs import export as exporting

    add_command(
        commands,
        "export",
        "consolidate a checkpoint into safetensors, every expert included",
        "m4oe export runs/demo --out exported --dtype bf16",
        options=exporting.add_arguments,
        work=exporting.main,
    )

    models = add_command(
        commands,
        "models",
        "list the registered models, and which of them fit a data set",
        "m4oe models --card my.yaml",
    )
    models.add_argument("--card", default="", metavar="CARD", help="a card (shipped name or path): which fit, why not")
    models.add_argument("--config", default="", metavar="YAML", help="a configuration: which fit its data, why not")
    models.set_defaults(work=_models)

    config = add_command(
        commands,
        "config",
        "check a configuration and print it with all defaults",
        "m4oe config my.yaml --set model.dim=384 --count",
    )
    config.add_argument(
        "config",
        metavar="YAML",
        help="configuration: a path, or the name of a shipped one such as demo",
    )
    config.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key; repeatable")
    config.add_argument(
        "--count", action="store_true", help="also count the model's parameters, without allocating them"
    )
    config.set_defaults(work=_config)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one sub-command; a user error becomes one line on standard error and its exit code."""
    parsed: list[argparse.Namespace] = []
    # guarded, too: it prints (--help, --print-completion), maybe to a reader that leaves early
    status = guarded(lambda: parsed.append(_parsed(arguments)))
    return guarded(lambda: parsed[0].work(parsed[0]), debug=parsed[0].debug) if parsed else status


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    top = parser()
    options = top.parse_args(arguments)
    if options.command is None:
        top.print_help(sys.stderr)
        top.error("COMMAND is needed: one of those above")
    return options


def _convert(options: argparse.Namespace) -> None:
    from data_tools.convert import ConvertOptions, convert

    convert(ConvertOptions.of(options))


def _init(options: argparse.Namespace) -> None:
    from pathlib import Path

    from m4oe_ds import shipped
    from m4oe_ds.command_line import check_output

    check_output(Path(options.folder), "DIR")
    copied = shipped.copy(Path(options.folder))
    print(f"{len(copied)} files in {', '.join(str(Path(options.folder) / name) for name in shipped.FOLDERS)}")
    config, content = (Path(options.folder) / name for name in ("configs/demo.yaml", "ds_configs/zero2.json"))
    print(f"train with one of them:  m4oe train --config {config} --ds_config {content}")


def _evaluate(options: argparse.Namespace) -> None:
    from pathlib import Path

    from m4oe_ds.runs.opening import check_run

    check_run(Path(options.run), [options.split], options.data)  # before torch is imported: refusals are instant

    from m4oe_ds.evaluation.metrics_text import format_table
    from m4oe_ds.evaluation.missing_modalities import format_observed
    from m4oe_ds.runs.evaluate import evaluate_run
    from m4oe_ds.runs.folder import RunFolder
    from m4oe_ds.runs.result_name import title_of

    found = evaluate_run(Path(options.run), options.split, options.data)
    if found is not None:
        name, metrics = found
        print(format_table(metrics))
        if "by_modalities_present" in metrics:
            print("\nby the number of modalities that samples have")
            print(format_observed(metrics["by_modalities_present"]))
        print(f"metrics of {title_of(name, metrics)}: {RunFolder(Path(options.run)).metrics}")


def _report(options: argparse.Namespace) -> None:
    from pathlib import Path

    from m4oe_ds.report.html import render

    print(f"report: {render(Path(options.run))}")


def _models(options: argparse.Namespace) -> None:
    from m4oe_ds.models.systems import MODELS, find_system, unfit

    question, given = _question(options)
    own = [name for name in given if name not in MODELS]  # from outside the package
    for name, entry in sorted([*MODELS.items(), *((name, find_system(name)) for name in own)]):
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
