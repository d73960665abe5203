"""``m4oe train``: checks what was asked for, then starts the ranks, or is one where a launcher has started it."""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn

from m4oe_ds import entry
from m4oe_ds.arguments import add_gpus
from m4oe_ds.coordinates import check_accelerator, resolve
from m4oe_ds.deepspeed_json import batch_sizes
from m4oe_ds.errors import ConfigError
from m4oe_ds.launcher import launch_environment, launcher, visible_devices
from m4oe_ds.runs.request import Prepared, makes_phantoms, needed_splits, prepare


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``m4oe train``."""
    entry.add_arguments(parser)
    add_gpus(
        parser, "ranks on this machine, one per GPU; on a machine without GPUs N processes (default: all GPUs, or 1)"
    )


def main(options: argparse.Namespace) -> int:
    """Trains; the exit status of the rank, or of the launcher.

    Raises:
        UserError: bad input of any kind, found before any rank is started.
    """
    place = resolve(os.environ)
    # one task of SLURM, as in `srun --pty bash`, is a place to work at: it may have several GPUs
    if place.source not in ("single", "slurm") or place.world > 1:
        if options.ranks:
            fix = "leave --gpus away under srun or another launcher"
            raise ConfigError(f"{place.world} ranks were started already", "--gpus", fix)
        entry.leave(entry.run_rank(entry.request_of(options), str(place.rank), options.debug))
    prepared = prepare(entry.request_of(options))
    if not makes_phantoms(prepared.config):
        from m4oe_ds.runs.opening import check_splits  # numpy, which `--help` of any command does without

        check_splits(prepared.config, needed_splits(prepared.config), "data.root")
    check_accelerator(os.environ)
    if options.ranks:
        batch_sizes(prepared.ds_config, options.ranks, prepared.request.ds_config)  # before torch is imported
    ranks = _ranks(options.ranks)
    batch_sizes(prepared.ds_config, ranks, prepared.request.ds_config)
    if ranks == 1:
        entry.leave(entry.train(prepared, first=True))
    _exec_launcher(prepared, ranks, options.debug)


def _ranks(wanted: int) -> int:
    import torch

    if wanted < 0:
        raise ConfigError(f"{wanted} ranks", "--gpus", "write a whole number from 1")
    if not torch.cuda.is_available():
        return wanted or 1
    visible = torch.cuda.device_count()
    if wanted > visible:
        raise ConfigError(f"{wanted} ranks, {visible} GPUs are visible", "--gpus", f"write at most {visible}")
    return wanted or visible


def _exec_launcher(prepared: Prepared, ranks: int, debug: bool) -> NoReturn:
    """Becomes DeepSpeed's launcher, so that signals and the exit status are its own."""
    entry.make_phantoms(prepared)
    request = prepared.request
    arguments = ["--ds_config", request.ds_config, "--config", request.config, "--resume", request.resume]
    arguments += [item for text in request.overrides for item in ("--set", text)]
    if request.output:
        arguments += ["--output", request.output]
    if request.profile_steps:
        arguments += ["--profile", str(request.profile_steps)]
    if request.dry_run:
        arguments.append("--dry-run")
    if debug:
        arguments.append("--debug")
    sys.stdout.flush()
    sys.stderr.flush()
    os.environ.update(launch_environment(ranks))
    os.execv(sys.executable, [*launcher(ranks, visible_devices(os.environ)), "--module", "m4oe_ds.entry", *arguments])
