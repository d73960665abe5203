"""One training run from its files to its run folder. ``train.py`` is a thin shell around :func:`run`."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from m4oe_ds import deepspeed_json
from m4oe_ds.config import Config, to_dict
from m4oe_ds.config_loader import place_of
from m4oe_ds.coordinates import LaunchEnvironment, resolve
from m4oe_ds.data.cards import find_card, write_card
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.missing import Presence
from m4oe_ds.data.task_statistics import TaskStatistics
from m4oe_ds.errors import ConfigError
from m4oe_ds.models import backbones, pretrained, spec_for
from m4oe_ds.models.interface import ModelSpec
from m4oe_ds.models.registry import expert_counts
from m4oe_ds.parallel import deepspeed_options, launch, reduce
from m4oe_ds.parallel.topology import choose_ep_size
from m4oe_ds.runs import assemble
from m4oe_ds.runs.configuration import without_sources
from m4oe_ds.runs.described import describe
from m4oe_ds.runs.finished import training_data
from m4oe_ds.runs.folder import RunFolder, write_json, write_yaml
from m4oe_ds.runs.initial_source import open_source
from m4oe_ds.runs.initialise import Taken, initialise
from m4oe_ds.runs.objective import objective as build_objective
from m4oe_ds.runs.reader_memory import shortage
from m4oe_ds.runs.request import Prepared, Request, needed_splits
from m4oe_ds.runs.training_data import TrainingData
from m4oe_ds.training import engine as engines
from m4oe_ds.training import gradient_policy
from m4oe_ds.training.checkpoint import CheckpointStore
from m4oe_ds.training.closing import closing_lines, evaluate
from m4oe_ds.training.dry_run import folder_beside, small, try_out
from m4oe_ds.training.loop import Loop
from m4oe_ds.training.parameter_groups import table as parameter_table
from m4oe_ds.training.records import environment, recorded
from m4oe_ds.training.seeds import seed_everything
from m4oe_ds.training.validation import Observer

MakeObserver = Callable[[ModelSpec, str], Observer]

_logger = logging.getLogger(__name__)


def check(prepared: Prepared) -> None:
    """What can be checked without a process group, but not without torch.

    Raises:
        ConfigError: any contradiction, before anything is started.
        CheckpointError: no trained model where a run that begins is to start from one.
    """
    config, request = prepared.config, prepared.request
    world = resolve(os.environ).world
    deepspeed_json.batch_sizes(prepared.ds_config, world, request.ds_config)
    deepspeed_options.check(prepared.ds_config, request.ds_config)
    _check_backbone(config, request)
    gradient_policy.policy(config.loss.gradient_policy, **config.loss.gradient_options)
    choose_ep_size(config.parallel.ep_size, world, expert_counts(config), f"{request.config}: parallel.ep_size")
    if config.model.init_from and prepared.starts:
        open_source(Path(config.model.init_from))


def _check_backbone(config: Config, request: Request) -> None:
    """Refuses options that the network does not have, before any data is read; names the file that gives them."""
    height, width = config.data.image_size
    try:
        backbones.check_options(config.model.embedder, (height, width))
    except ConfigError as error:
        if not error.where.startswith(backbones.OPTIONS):
            raise
        place = place_of(request.config, request.overrides, error.where, backbones.OPTIONS)
        fix = f"`--set {backbones.OPTIONS}={{...}}` replaces what a file gives"
        raise ConfigError(f"{error.where}: {error.what}", place, fix) from None


def run(prepared: Prepared, observers: MakeObserver | None = None) -> bool:
    """Trains, evaluates and writes the run folder; or tries all of it out, if that was asked for.

    Args:
        prepared: the request, read and checked.
        observers: makes what looks on at every validation, given the model's specification and name.

    Returns:
        False if a signal stopped training before its end; a checkpoint was saved then.

    Raises:
        UserError: bad data, checkpoint or environment, with one line to act on.
    """
    place = resolve(os.environ)
    _share_cores(place.local_size)
    device = launch.start(place, prepared.config.parallel.timeout_minutes)
    if prepared.request.dry_run:
        with folder_beside(prepared.folder, device) as folder:
            small_one = dataclasses.replace(prepared, config=small(prepared.config))
            ready = _make_ready(small_one, folder, place, device, observers)
            _say("\n".join(try_out(ready.loop, folder, prepared.folder, ready.statistics)))
        launch.stop()
        return True
    _prepare_folder(prepared.folder, prepared.request)
    ready = _make_ready(prepared, prepared.folder, place, device, observers)
    outcome = ready.loop.run()
    if outcome.stopped_by:
        _say(f"stopped by signal {outcome.stopped_by} at step {outcome.position.step}; resume with --resume auto")
    else:
        metrics, report = evaluate(ready.loop, outcome, prepared.folder, ready.statistics)
        if reduce.rank() == 0:
            _say("\n".join(closing_lines(metrics, outcome, prepared.folder, report, ready.synthetic)))
    launch.stop()
    return not outcome.stopped_by


@dataclass(frozen=True)
class _Ready:
    """A loop that can start, and what its end needs to know.

    Attributes:
        loop: with its engine, resumed where it continues.
        statistics: what the training labels say, by task.
        synthetic: whether the data are phantoms.
    """

    loop: Loop
    statistics: Mapping[str, TaskStatistics]
    synthetic: bool


def _make_ready(
    prepared: Prepared, folder: Path, place: LaunchEnvironment, device: torch.device, observers: MakeObserver | None
) -> _Ready:
    """Data, model and engine of a run; writes into ``folder`` what it is made from.

    Args:
        prepared: the request; a checkpoint to continue from is looked for in its folder.
        folder: where the run writes.
        place: of this rank, as it was before the process group was made, which sets the variables of a launcher.
        device: of this rank.
        observers: see :func:`run`.
    """
    request, config, ds_config = prepared.request, prepared.config, prepared.ds_config
    sizes = deepspeed_json.batch_sizes(ds_config, place.world, request.ds_config)
    with _timed("data"):
        manifests = _manifests(config, device)
    spec = spec_for(config)
    data = training_data(config, spec, manifests["train"])
    statistics = data.of_tasks(spec.tasks)
    present = _presence(config, spec, manifests["train"])
    if place.local_rank == 0 and (short := shortage(config, place.local_size, sizes.micro)):
        _logger.warning(short)
    seed_everything(config.run.seed, place.rank)
    topology = engines.place(config, place.world)
    stamp = assemble.stamp(config, ds_config, topology.stamp(), manifests["train"])
    described = describe(config, spec, manifests["train"])
    start = _checkpoint(_store(config, prepared.folder, stamp, described), request)
    with _timed("engine"):
        engine, origin = _engine(config, ds_config, sizes, place.world, start)
    loop = Loop(
        config,
        engine,
        spec,
        build_objective(config, spec, statistics, device),
        manifests,
        _store(config, folder, stamp, described),
        folder,
        sizes.micro,
        sizes.accumulation,
        request.profile_steps,
        None if observers is None else lambda: observers(spec, config.model.name),
    )
    resumed = _resume(loop, start)
    facts = _facts(config, engine, topology, manifests["train"], sizes, place) | {"presence": present.as_dict()}
    if reduce.rank() == 0:
        earlier = RunFolder(prepared.folder) if resumed else None
        _record(RunFolder(folder), earlier, config, ds_config, {**facts, "resumed_from": resumed}, origin, data)
        _announce(facts, loop, prepared.folder, resumed)
    return _Ready(loop, statistics, bool(facts["synthetic"]))


def _share_cores(local_ranks: int) -> None:
    """Ranks share the cores of their machine: more threads than cores slow every rank down."""
    if not torch.cuda.is_available() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // local_ranks))


def _manifests(config: Config, device: torch.device) -> dict[str, Manifest]:
    """Manifests of all splits that training and evaluation read, checked."""
    manifests = assemble.load_manifests(config, needed_splits(config))
    for split, manifest in manifests.items():
        assemble.check_source(manifest.card, find_card(config.data.dataset), f"{config.data.root} ({split})")
    assemble.verify(config, manifests, device)
    return manifests


def _presence(config: Config, spec: ModelSpec, train: Manifest) -> Presence:
    """Which modalities the training samples have; says so if one is hardly there."""
    present, warning = assemble.training_presence(config, spec, train)
    if warning and reduce.rank() == 0:
        _logger.warning(warning)
    return present


def _store(config: Config, folder: Path, stamp: dict[str, Any], described: dict[str, Any]) -> CheckpointStore:
    return CheckpointStore(
        RunFolder(folder).checkpoints,
        stamp,
        config.run.checkpoint.keep_last,
        background=config.run.checkpoint.background,
        timeout_s=60 * config.parallel.timeout_minutes,
        described=described,
    )


def _checkpoint(store: CheckpointStore, request: Request) -> tuple[str, CheckpointStore] | None:
    """Tag and store of the checkpoint that ``--resume`` names; None for a run that starts.

    Known before the model is built: a resumed run does not look for what it was initialised from.
    """
    if request.resume == "never":
        return None
    if request.resume != "auto":
        path = Path(request.resume)
        return path.name, CheckpointStore(path.parent, store.stamp, store.keep_last, described=store.described)
    tag = store.newest_valid()
    return None if tag is None else (tag, store)


def _resume(loop: Loop, start: tuple[str, CheckpointStore] | None) -> str | None:
    """Loads the checkpoint, if there is one; returns its tag."""
    if start is None:
        return None
    loop.resume(*start)
    return start[0]


def _engine(
    config: Config, ds_config: dict[str, Any], sizes: deepspeed_json.BatchSizes, world: int, start: Any
) -> tuple[Any, dict[str, Any] | None]:
    """The engine and, if it starts from a trained model, what is recorded about that."""
    if start is not None:
        if config.model.init_from:
            _say("model.init_from is ignored: the run continues from its own checkpoint")
        return engines.create(without_sources(config), ds_config, sizes, world)[0], None
    if not config.model.init_from:
        return engines.create(config, ds_config, sizes, world)[0], None
    source = open_source(Path(config.model.init_from))
    found: list[Taken] = []
    engine, _ = engines.create(
        config,
        ds_config,
        sizes,
        world,
        lambda model: found.append(initialise(model, model.spec, source, config.model.init_map)),
    )
    _say(found[0].table())
    digest = source.digest() if reduce.rank() == 0 else ""
    return engine, {"name": source.name, "sha256": digest, **found[0].counts()}


def _record(
    files: RunFolder,
    earlier: RunFolder | None,
    config: Config,
    ds_config: dict[str, Any],
    facts: dict[str, Any],
    origin: dict[str, Any] | None,
    data: TrainingData,
) -> None:
    """Writes what the run was made from; a resumed one keeps what its first leg recorded about its initial weights."""
    if earlier is not None:
        origin = recorded(earlier.environment, "init_from")
        facts = {**facts, "pretrained": recorded(earlier.environment, "pretrained") or []}
    write_yaml(files.config, to_dict(config))
    write_card(files.card, find_card(config.data.dataset))
    data.save(files.data)
    write_json(files.ds_config, ds_config)
    write_json(files.environment, environment(**facts, init_from=origin))


def _prepare_folder(folder: Path, request: Request) -> None:
    """Makes the folder, on rank 0.

    Raises:
        ConfigError: it holds a run that is not to be touched.

    Collectives: a barrier; every rank must call it.
    """
    if reduce.rank() == 0:
        _make_folder(folder, request)
    reduce.barrier()


def _make_folder(folder: Path, request: Request) -> None:
    if request.resume == "never" and RunFolder(folder).log.is_file():
        raise ConfigError("already holds a run", str(folder), "choose another --output, or --resume auto to continue")
    folder.mkdir(parents=True, exist_ok=True)


def _facts(config: Config, engine: Any, topology: Any, manifest: Any, sizes: Any, place: Any) -> dict[str, Any]:
    total = dense = 0
    parts: dict[str, int] = {}
    for name, parameter in engine.module.named_parameters():
        count = getattr(parameter, "ds_numel", parameter.numel())
        count *= topology.ep_size if not getattr(parameter, "allreduce", True) else 1
        total += count
        dense += count if getattr(parameter, "allreduce", True) else 0
        part = name.split(".", 1)[0]
        parts[part] = parts.get(part, 0) + count
    return {
        "dataset": manifest.dataset,
        "synthetic": bool(manifest.synthetic),
        "seed": config.run.seed,
        "world": place.world,
        "ep_size": topology.ep_size,
        "launched_by": place.source,
        "device": str(engine.device.type),
        "batch": vars(sizes),
        "num_parameters": total,
        "num_expert_parameters": total - dense,
        "parameters_per_part": parts,
        "parameter_groups": [group.as_dict() for group in engine.parameter_table],
        "pretrained": pretrained.records(engine.module),
        "data_digest": manifest.digest,
    }


def _announce(facts: dict[str, Any], loop: Loop, folder: Path, resumed: str | None) -> None:
    data = f"{facts['dataset']}{' (synthetic phantoms)' if facts['synthetic'] else ''}"
    print(
        f"{facts['num_parameters']:,} parameters, {facts['num_expert_parameters']:,} of them in experts over "
        f"{facts['ep_size']} of {facts['world']} ranks on {facts['device']}\n"
        f"{data}: {loop.train.num_samples} training samples, {loop.steps_per_epoch} steps of {loop.global_batch} per "
        f"epoch, {loop.total_steps} steps in all -> {folder}"
        + (f"\n{missing}" if (missing := Presence(**facts["presence"]).line()) else "")
        + "".join(f"\npretrained {line}" for line in pretrained.lines(loop.engine.module))
        + f"\n{parameter_table(loop.engine.parameter_table)}"
        + (f"\nresuming from {resumed}" if resumed else ""),
        flush=True,
    )


def _say(text: str) -> None:
    if reduce.rank() == 0:
        print(text, flush=True)


@contextlib.contextmanager
def _timed(what: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds = time.monotonic() - started
    if math.isfinite(seconds) and seconds > 5:
        _say(f"{what} ready after {seconds:.0f} s")
