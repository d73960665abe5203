"""``m4oe compare --dry-run``: what the cells would cost, in device hours and disk, as lines of text."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m4oe_ds.compare.cells import Cell
    from m4oe_ds.compare.run import CellPlan
    from m4oe_ds.config import Config
    from m4oe_ds.planning.hardware import Cluster

_ASSUMED_SAMPLES = 10_000  # training samples of a data set that is not here
_SECONDS_TO_RECORD = 20.0  # for models that the table of costs lacks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the estimate."""
    add = parser.add_argument
    add(
        "--cluster",
        default="",
        metavar="TEXT",
        help="devices of the estimate of --dry-run, e.g. 8xA100-80 (default: 1xA100-80 for the preset paper)",
    )
    add(
        "--samples",
        default="",
        metavar="NAME=N,..",
        help=f"training samples of data sets that are not here, likewise (default: {_ASSUMED_SAMPLES:,} each)",
    )


def asked_cluster(options: argparse.Namespace, plan: CellPlan) -> Cluster | None:
    """Devices of the estimate; None where none is asked for.

    Raises:
        ConfigError: not the text of a cluster, or an estimate without --dry-run.
    """
    from m4oe_ds.errors import ConfigError
    from m4oe_ds.planning.hardware import parse_cluster

    if (options.cluster or options.samples) and not options.dry_run:
        raise ConfigError("are for the estimate of --dry-run", "--cluster, --samples", "add --dry-run")
    text = options.cluster or ("1xA100-80" if options.dry_run and plan.preset == "paper" else "")
    if options.samples and not text:
        raise ConfigError("is for an estimate", "--samples", "say of which devices: --cluster, e.g. 8xA100-80")
    return parse_cluster(text) if text else None


def lines_of(cells: Sequence[Cell], plan: CellPlan, cluster: Cluster, samples: str) -> list[str]:
    """Hours and disk of the cells as lines of text.

    Raises:
        ConfigError: sizes of data sets that cannot be read, or batch sizes that do not fit the ranks.
    """
    from m4oe_ds import deepspeed_json
    from m4oe_ds.compare import cost
    from m4oe_ds.data import sources
    from m4oe_ds.data.manifest import Manifest
    from m4oe_ds.errors import DataError

    assumed: dict[str, int] = {}
    given = _sizes(samples, {cell.dataset for cell in cells})

    @functools.cache
    def stored(root: str) -> int:
        try:
            return Manifest.load(sources.join(root, "train")).num_samples
        except DataError:
            return 0

    def samples_of(config: Config) -> int:
        found = stored(config.data.root)
        if not found:
            found = assumed[config.data.dataset] = given.get(config.data.dataset, _ASSUMED_SAMPLES)
        return found

    job = cost.Job.of(deepspeed_json.read(plan.ds_config), plan.ranks, plan.ds_config)
    device, _ = cost.device_of(cluster)
    found, left = cost.estimate(cells, plan, job, device, samples_of, _SECONDS_TO_RECORD)
    lines = cost.describe(found, left, cluster, job)
    if assumed:
        named = ", ".join(f"{name} {number:,}" for name, number in assumed.items())
        lines.append(f"assumed training samples, as the shards are not here: {named} (--samples); hours follow them")
    return lines


def _sizes(text: str, datasets: set[str]) -> dict[str, int]:
    """Training samples by data set from ``NAME=N,..``."""
    from m4oe_ds.errors import ConfigError
    from m4oe_ds.option_lists import comma_list

    found = {}
    for item in comma_list(text, "--samples", str):
        name, _, number = item.partition("=")
        if name not in datasets or not number.isdigit() or int(number) < 1:
            raise ConfigError(f"cannot use {item!r}", "--samples", f"write NAME=N with {', '.join(sorted(datasets))}")
        found[name] = int(number)
    return found
