"""Trains M4oE: ``deepspeed train.py --ds_config ds_configs/zero2.json``; also under ``srun`` and plain ``python``."""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from pathlib import Path

from m4oe_ds.errors import UserError

STOPPED = 75  # EX_TEMPFAIL: a signal stopped training, a checkpoint was saved, the same command continues
DEFAULT_CONFIG = str(Path(__file__).resolve().parent / "configs" / "demo.yaml")


def parser() -> argparse.ArgumentParser:
    """Command-line options; everything else is configuration."""
    options = argparse.ArgumentParser(prog="train.py", description=__doc__)
    options.add_argument("--ds_config", required=True, metavar="JSON", help="DeepSpeed configuration (see ds_configs/)")
    options.add_argument(
        "--config", default=DEFAULT_CONFIG, metavar="YAML", help="configuration of the run (default: the demo)"
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
        type=int,
        const=3,
        default=0,
        metavar="STEPS",
        help="record STEPS steps (default 3) with the torch profiler, after two of warm-up, into <output>/profile",
    )
    options.add_argument("--debug", action="store_true", help="show tracebacks of user errors")
    options.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    return options


def main() -> int:
    """Parses, prepares phantom data if the configuration asks for it, and runs."""
    arguments = parser().parse_args()
    first = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) == "0"
    try:
        from m4oe_ds.analysis.validation_figures import ValidationFigures
        from m4oe_ds.training import app

        request = app.Request(
            arguments.ds_config,
            arguments.config,
            tuple(arguments.set),
            arguments.resume,
            arguments.output,
            arguments.profile,
        )
        config, ds_config, folder = app.prepare(request)
        if first and "://" not in config.data.root:  # remote shards are never made here
            from data_tools.demo import ensure_phantom_shards

            made = config.data.phantom
            ensure_phantom_shards(
                Path(config.data.root),
                config.data.dataset,
                patients=made.patients,
                seed=made.seed,
                risk_prevalence=made.risk_prevalence,
                image_size=made.image_size,
            )
        if not app.run(request, config, ds_config, folder, ValidationFigures):
            return STOPPED
    except UserError as error:
        if arguments.debug:
            traceback.print_exc()
        elif first:
            print(f"error: {error}", file=sys.stderr, flush=True)
        else:
            # Usually rank 0 failed the same way and the launcher ends this process first; if not, only this rank knows.
            time.sleep(3)
            print(f"[rank {os.environ.get('RANK', '?')}] error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # A rank that failed alone must not wait in a destructor for the collectives of the others.
    os._exit(code) if code else sys.exit(0)
