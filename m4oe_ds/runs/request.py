"""What a training run was asked for, and everything about it that can be refused before torch is imported."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from m4oe_ds import config_loader, deepspeed_json
from m4oe_ds.command_line import check_output
from m4oe_ds.config import TRACKERS, Config
from m4oe_ds.data.roots import root_of
from m4oe_ds.data.sources import is_remote
from m4oe_ds.errors import CheckpointError, ConfigError, DataError, EnvironmentProblem
from m4oe_ds.models import outside
from m4oe_ds.runs.apart import check_apart
from m4oe_ds.runs.folder import CheckpointFolder, RunFolder, checkpoint_tags
from m4oe_ds.runs.source_files import OPTION as INIT_FROM
from m4oe_ds.runs.source_files import find_source
from m4oe_ds.runs.weight_files import find_weights, read_manifest


@dataclass(frozen=True)
class Request:
    """The options of training.

    Attributes:
        ds_config: the DeepSpeed JSON, a path or the name of a shipped one.
        config: our YAML, a path or the name of a shipped one.
        overrides: ``--set`` options.
        resume: ``auto``, ``never`` or a checkpoint folder.
        output: run folder; empty = ``runs/<run.name>``.
        profile_steps: steps to record with the profiler.
        dry_run: try everything out with one batch and leave nothing behind.
    """

    ds_config: str
    config: str
    overrides: tuple[str, ...] = ()
    resume: str = "auto"
    output: str = ""
    profile_steps: int = 0
    dry_run: bool = False


@dataclass(frozen=True)
class Prepared:
    """A request whose files were read and checked.

    Attributes:
        request: the options.
        config: the resolved tree.
        ds_config: content of the DeepSpeed JSON.
        folder: run folder.
        starts: whether the run begins; False = it continues from a checkpoint.
    """

    request: Request
    config: Config
    ds_config: dict[str, Any]
    folder: Path
    starts: bool


def prepare(request: Request) -> Prepared:
    """Reads the two files, and looks whether what they name is there. Imports no torch.

    Raises:
        ConfigError: an option that is wrong, alone or beside another.
        DataError: no shards where they should be.
        CheckpointError: no checkpoint, or no trained model, where the run should start from one.
        EnvironmentProblem: the run folder cannot be written to.
    """
    config = config_loader.load(request.config, request.overrides)
    ds_config = deepspeed_json.read(request.ds_config)
    deepspeed_json.check(ds_config, request.ds_config, config.run.expects, request.config)
    folder = Path(request.output or f"runs/{config.run.name}")
    if request.profile_steps < 0:
        raise ConfigError(f"{request.profile_steps} steps", "--profile", "write a whole number from 1")
    starts = _starts(request, folder)
    check_output(folder, "--output")
    check_apart(folder, "--output", run=True)
    _check_data(config)
    _check_trackers(config)
    if starts:
        _check_weights(config)
    return Prepared(request, config, ds_config, folder, starts)


def _starts(request: Request, folder: Path) -> bool:
    """Whether the run begins.

    Raises:
        CheckpointError: it is to continue from what is no checkpoint.
        ConfigError: it is to begin in a folder that holds a run.
    """
    if request.resume == "auto":
        return not checkpoint_tags(RunFolder(folder).checkpoints)
    if request.resume == "never":
        if RunFolder(folder).log.is_file():
            fix = "choose another --output, or --resume auto to continue"
            raise ConfigError("already holds a run", str(folder), fix)
        return True
    path = Path(request.resume)
    if not CheckpointFolder(path).manifest.is_file():
        near = [*checkpoint_tags(path), *checkpoint_tags(path.parent), *checkpoint_tags(RunFolder(path).checkpoints)]
        there = f" (there: {', '.join(dict.fromkeys(near))})" if near else ""
        what = "not a checkpoint of this trainer (no manifest.json)"
        raise CheckpointError(what, str(path), f"name a step-* folder{there}")
    read_manifest(path)
    return False


def _check_data(config: Config) -> None:
    """Shards must be where ``data.root`` says, unless they are the phantoms that are made there.

    Raises:
        DataError: there is no such folder, or a split is not in it.
    """
    root = config.data.root
    if not root:
        raise DataError("is empty", "data.root", "name the folder of your shards; `m4oe convert` makes them")
    if is_remote(root, "data.root"):
        root_of(root, "data.root")
        if config.data.cache_dir:
            check_output(Path(config.data.cache_dir), "data.cache_dir")
        check_cache(config)
        return
    if has_phantoms(config) and not Path(root).exists():
        check_output(Path(root), "data.root")
        return  # perhaps another rank is making them now: they come into their place whole
    if not Path(root).is_dir():
        what = f"{root!r} is a file, not a folder of shards" if Path(root).exists() else f"no shard folder {root!r}"
        raise DataError(what, "data.root", "make shards with `m4oe convert`")
    for split in needed_splits(config):
        if not (Path(root) / split / "manifest.json").is_file():
            there = sorted(path.parent.name for path in Path(root).glob("*/manifest.json"))
            found = f"it has {', '.join(there)}" if there else "it has no split at all"
            raise DataError(f"no {split} split in {root!r}; {found}", "data.root", "make shards with `m4oe convert`")


def check_cache(config: Config) -> None:
    """Remote shards can only be verified where they are fetched to.

    Raises:
        ConfigError: they are to be verified, and there is no such folder.
    """
    if not config.data.cache_dir and config.data.verify == "full":
        raise ConfigError(
            "is empty, and remote shards can only be verified when they are fetched whole",
            "data.cache_dir",
            "name a local folder, or set data.verify=size to read parts of shards unverified",
        )


def makes_phantoms(config: Config) -> bool:
    """Whether the synthetic shards of the configuration are still to be made.

    Only in the folder that the configuration itself names for them: a misspelt ``data.root``, or a folder of one's own
    that lacks a split, is never filled with phantoms.
    """
    return has_phantoms(config) and not (Path(config.data.root) / "train" / "manifest.json").is_file()


def has_phantoms(config: Config) -> bool:
    """Whether the configuration reads synthetic shards that it can make itself."""
    made, root = config.data.phantom, config.data.root
    here = bool(made.patients and made.root) and not is_remote(root)
    return here and Path(made.root).absolute() == Path(root).absolute()


def needed_splits(config: Config) -> tuple[str, ...]:
    """Splits that training and its final evaluation read."""
    validates = ("val",) if config.run.eval_every_epochs else ()
    return tuple(dict.fromkeys(("train", *validates, *config.evaluation.splits)))


def _check_trackers(config: Config) -> None:
    """Packages of the trackers must be installed, and those of one's own be there.

    Raises:
        EnvironmentProblem: a package is not installed.
        ConfigError: a module is not there, or has no such class.
    """
    for name in config.run.trackers:
        if name not in TRACKERS:
            outside.check(name, "run.trackers")
        elif importlib.util.find_spec(name) is None:
            fix = f"pip install 'm4oe_ds[{name}]', or leave it out"
            raise EnvironmentProblem(f"{name} is not installed", "run.trackers", fix)


def _check_weights(config: Config) -> None:
    """Files that the model starts from.

    Raises:
        CheckpointError: one is not there, or is something else.
    """
    for option, name in _named_files(config):
        if not Path(name).exists():
            raise CheckpointError(f"no such file or folder {name!r}", option, "name one that exists, or leave it empty")
        if option == INIT_FROM:
            find_weights(find_source(Path(name))[2])
        elif what := _no_weights(Path(name)):
            raise CheckpointError(f"{name!r} {what}", option, "give a safetensors file, or a .pth of tensors")


def _named_files(config: Config) -> Iterator[tuple[str, str]]:
    weights = config.model.embedder.weights
    if weights and weights != "hub":
        yield "model.embedder.weights", weights
    if config.model.init_from:
        yield INIT_FROM, config.model.init_from


def _no_weights(path: Path) -> str:
    """What to say of a file that no reader of weights takes; its first bytes tell. Empty if one might."""
    if path.is_dir():
        return "is a folder, not a file of weights"
    if path.suffix == ".safetensors":
        return ""  # judged with its header, when it is read
    with path.open("rb") as stream:
        begin = stream.read(2)
    return "" if begin == b"PK" or begin[:1] == b"\x80" else "is no file of weights"  # a zip file, or an older pickle
