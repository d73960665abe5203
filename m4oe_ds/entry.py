"""Training as a process of its own: what ``train.py`` and every rank that ``m4oe train`` starts run."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from typing import NoReturn

from m4oe_ds.arguments import Parser, whole
from m4oe_ds.command_line import guarded
from m4oe_ds.coordinates import check_accelerator
from m4oe_ds.errors import UserError
from m4oe_ds.runs.request import Prepared, Request, makes_phantoms, prepare

STOPPED = 75  # EX_TEMPFAIL: a signal stopped training, a checkpoint was saved, the same command continues


def add_arguments(options: argparse.ArgumentParser) -> None:
    """Command-line options; everything else is configuration."""
    options.add_argument(
        "--ds_config",
        required=True,
        metavar="JSON",
        help="DeepSpeed configuration: a path, or the name of a shipped one such as zero2",
    )
    options.add_argument(
        "--config",
        default="demo",
        metavar="YAML",
        help="configuration of the run: a path, or the name of a shipped one such as small (default: demo)",
    )
    options.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key; repeatable")
    options.add_argument(
        "--resume",
        default="auto",
        metavar="auto|never|PATH",
        help="auto: continue from the newest checkpoint, if there is one (default); never: refuse to touch an old run; "
        "PATH: start from this checkpoint",
    )
    options.add_argument("--output", default="", metavar="DIR", help="run folder (default: runs/<run.name>)")
    options.add_argument(
        "--profile",
        nargs="?",
        type=whole(1),
        const=3,
        default=0,
        metavar="STEPS",
        help="record STEPS steps (default 3) with the torch profiler, after two of warm-up, into <output>/profile",
    )
    options.add_argument(
        "--dry-run",
        action="store_true",
        help="one batch through everything (data, a step on every rank, validation, a checkpoint written and read, "
        "metrics, report), then stop; nothing stays in the run folder, and status 0 means that all of it worked",
    )


def request_of(options: argparse.Namespace) -> Request:
    """What the options ask for."""
    return Request(
        options.ds_config,
        options.config,
        tuple(options.set),
        options.resume,
        options.output,
        options.profile,
        options.dry_run,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """One rank from its command line to its exit status; a user error becomes one line on standard error."""
    parser = Parser(prog="train.py", description="Trains M4oE.")
    add_arguments(parser)
    parser.add_argument("--debug", action="store_true", help="show tracebacks of user errors")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    options = parser.parse_args(arguments)
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    return run_rank(request_of(options), rank, options.debug)


def run_rank(request: Request, rank: str, debug: bool) -> int:
    """One rank to its exit status; a user error becomes one line on standard error, with the number of the rank.

    Args:
        request: what the options ask for.
        rank: of this process, as the environment has it: whether it is a number is found with the other variables.
        debug: let user errors end in a traceback, too.
    """
    first = rank == "0"
    prefix = "" if first else f"[rank {rank}] "
    return guarded(lambda: _as_rank(request, first), debug=debug, prefix=prefix)


def _as_rank(request: Request, first: bool) -> int:
    try:
        return train(prepare(request), first)
    except (UserError, OSError):
        if not first:
            # Usually rank 0 failed the same way and the launcher ends this process first; if not, only this rank knows.
            time.sleep(3)
        raise


def train(prepared: Prepared, first: bool) -> int:
    """Prepares phantom data if the configuration asks for it, and runs.

    Args:
        prepared: what to run.
        first: whether this is rank 0.

    Returns:
        Exit status, 0 or :data:`STOPPED`.

    Raises:
        UserError: bad input of any kind.
    """
    check_accelerator(os.environ)
    from m4oe_ds.analysis.validation_figures import ValidationFigures
    from m4oe_ds.training import app

    app.check(prepared)
    if first:
        make_phantoms(prepared)
    return 0 if app.run(prepared, ValidationFigures) else STOPPED


def make_phantoms(prepared: Prepared) -> None:
    """Makes the synthetic shards of a configuration that asks for some and does not have them yet."""
    if makes_phantoms(prepared.config):
        from data_tools.demo import make_phantom_shards

        make_phantom_shards(prepared.config.data.dataset, prepared.config.data.phantom)


def leave(status: int) -> NoReturn:
    """Ends the process: a rank that failed alone must not wait in a destructor for the collectives of the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    if status:
        os._exit(status)
    sys.exit(0)


if __name__ == "__main__":
    leave(main())
