"""What ``m4oe analyze`` refuses before torch is imported and before any sample is read."""

from __future__ import annotations

from pathlib import Path

from m4oe_ds.analysis.inputs import analysed, sweep_rows, twin_folders
from m4oe_ds.analysis.options import NEEDS_TRAINING_SPLIT, SECTIONS, AnalysisOptions
from m4oe_ds.analysis.truth import read_files, truth_of
from m4oe_ds.command_line import check_output
from m4oe_ds.config import Config
from m4oe_ds.data.cards import find_card
from m4oe_ds.errors import ConfigError, DataError
from m4oe_ds.option_lists import check_known
from m4oe_ds.runs.opening import check_run


def refuse(options: AnalysisOptions) -> None:
    """Looks at the options, and whether the files that they name are there.

    Raises:
        ConfigError: unknown section, task or modality, or runs that cannot be compared.
        DataError: no such run, split or file.
        CheckpointError: no weights, or damaged ones.
        EnvironmentProblem: the run folder cannot be written to.
    """
    sections = chosen(options)
    train = ("train",) if NEEDS_TRAINING_SPLIT & set(sections) else ()
    config = check_run(options.run, tuple(dict.fromkeys((options.split, *train))), options.data)
    check_output(options.run, "RUN")
    for option, path in (("--truth", options.truth), ("--mapping", options.mapping)):
        if path is not None and not path.is_file():
            what = "is a folder, not a file" if path.is_dir() else "no such file"
            raise DataError(f"{path}: {what}", option, "name the file, or leave the option out")
    modalities, tasks = names(config)
    check_known(options.tasks, "--tasks", tasks, noun="classification task")
    for folder in twin_folders(options.unimodal, modalities).values():
        check_run(folder)
    if options.baseline is not None:
        if options.baseline.absolute() == options.run.absolute():
            raise ConfigError("is the run itself", f"--baseline {options.baseline}", "name another run")
        baseline = analysed(options.baseline)
        if list(modalities) != baseline["modalities"]:
            fix = f"name a run over {', '.join(modalities)}"
            raise ConfigError("has other modalities", f"--baseline {options.baseline}", fix)
    if "interpretability" in sections and len(modalities) > 1:
        files = truth_of(config.data.root, options.truth, options.mapping)
        if files is not None:
            read_files(*files)
    if options.sweep is not None:
        sweep_rows(options.sweep, options.metric)


def chosen(options: AnalysisOptions) -> list[str]:
    """The sections to make, in their usual order.

    Raises:
        ConfigError: an unknown one.
    """
    check_known(options.only, "--only", SECTIONS, noun="analysis")
    return [name for name in SECTIONS if name in (options.only or SECTIONS)]


def names(config: Config) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Modalities of a run and its tasks of classes, in the order of the card."""
    card = find_card(config.data.dataset)
    modalities = tuple(name for name in card.modalities if name in (config.data.modalities or card.modalities))
    coded = [task.name for task in card.tasks if task.coded]
    return modalities, tuple(name for name in coded if name in (config.data.tasks or coded))


def not_made(options: AnalysisOptions, skipped: dict[str, str]) -> list[str]:
    """A line for every section that was asked for by name and could not be made."""
    return [f"not made: {name}: {reason}" for name, reason in skipped.items() if name in options.only]


def path_or_none(text: str) -> Path | None:
    """The path that an option names; None where it was left out."""
    return Path(text) if text else None
