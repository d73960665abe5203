# ruff: noqa: T201
"""``m4oe doctor``: every check in turn, a line each, and what to mend."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

from m4oe_ds import config_loader, deepspeed_json
from m4oe_ds.arguments import add_gpus, number
from m4oe_ds.config import Config
from m4oe_ds.coordinates import resolve
from m4oe_ds.doctor.finding import Check, Finding, bad, note, run
from m4oe_ds.launcher import launch_environment, launcher, visible_devices
from m4oe_ds.progress import Progress

_LONGEST = 300.0  # seconds that ranks have beside the exchange


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``m4oe doctor``."""
    parser.add_argument("--config", default="demo", metavar="YAML", help="configuration to look at (default: demo)")
    parser.add_argument(
        "--ds_config", default="zero2", metavar="JSON", help="DeepSpeed JSON of the step (default: zero2)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key; repeatable")
    parser.add_argument("--output", default="runs", metavar="DIR", help="folder the runs will be in (default: runs)")
    add_gpus(parser, "ranks of this machine (default: all GPUs, or 2)")
    parser.add_argument(
        "--seconds",
        type=number(above=0, at_most=3600),
        default=30.0,
        metavar="S",
        help="seconds of all-to-all between the ranks, at most 3600 (default: 30)",
    )
    parser.add_argument("--quick", action="store_true", help="look at this machine only: no ranks, no training step")


def main(options: argparse.Namespace) -> int:
    """Prints what was found; 1 if something must be mended.

    Raises:
        UserError: the configuration itself is wrong.
    """
    config = config_loader.load(options.config, options.set)
    content = deepspeed_json.read(options.ds_config)
    deepspeed_json.check(content, options.ds_config, {}, options.config)
    place = resolve(os.environ)
    started = place.source == "launcher" or place.world > 1
    ranks = options.ranks or (place.local_size if started else _default_ranks())
    micro = deepspeed_json.batch_sizes(content, place.world if started else ranks, options.ds_config).micro
    found: list[Finding] = []
    if place.local_rank == 0:
        if place.world > place.local_size:
            print(f"machine {socket.gethostname()}, {place.local_size} of {place.world} ranks")
        for topic, check in _machine(config, Path(options.output), ranks, micro):
            found += _shown(run(topic, check))
    broken = any(finding.topic in ("packages", "GPUs") and finding.state == "bad" for finding in found)
    if broken and not started:
        found += _shown([note("ranks", "not started", "mend the packages and GPUs first")])
    elif not options.quick:
        found += _shown(_ranks(options, ranks, started))
    if place.rank == 0:
        wrong = sum(finding.state == "bad" for finding in found)
        notes = sum(finding.state == "note" for finding in found)
        print(f"\n{wrong} to mend, {notes} to note" if wrong or notes else "\nthis machine is fit for training")
    return int(any(finding.state == "bad" for finding in found))


def _shown(findings: list[Finding]) -> list[Finding]:
    for finding in findings:
        print(finding.line(), flush=True)
    return findings


def _machine(config: Config, output: Path, ranks: int, micro: int) -> Iterable[tuple[str, Check]]:
    from m4oe_ds.data.sources import is_remote
    from m4oe_ds.doctor import machine
    from m4oe_ds.doctor.need import training_bytes
    from m4oe_ds.runs.reader_memory import shared_memory_need

    need = shared_memory_need(config, ranks, micro)
    yield "packages", machine.packages
    yield "GPUs", machine.devices
    yield "compiler", machine.compilers
    yield "DICOM", machine.decoders
    yield "host memory", lambda: machine.memory(training_bytes(config, ranks))
    yield "shared memory", lambda: machine.shared_memory(need)
    yield "disk", lambda: machine.disk(output)
    if not is_remote(config.data.root) and Path(config.data.root).is_dir():
        yield "shards", lambda: machine.reading(Path(config.data.root))
    yield "clock", machine.clock
    yield "network", machine.network


def _default_ranks() -> int:
    try:
        import torch
    except ImportError:  # a finding of its own
        return 1
    return torch.cuda.device_count() if torch.cuda.is_available() else min(2, os.cpu_count() or 1)


def _ranks(options: argparse.Namespace, ranks: int, started: bool) -> list[Finding]:
    from m4oe_ds.doctor.ranks import check_ranks

    if started:  # srun or a launcher started one of these per rank
        return check_ranks(options.config, options.ds_config, options.set, options.seconds)
    with tempfile.TemporaryDirectory() as folder:
        path, output = Path(folder) / "findings.json", Path(folder) / "output.txt"
        arguments = ["--config", options.config, "--ds_config", options.ds_config, "--seconds", str(options.seconds)]
        arguments += ["--findings", str(path), *(item for text in options.set for item in ("--set", text))]
        with output.open("w") as stream:
            running = subprocess.Popen(
                [*launcher(ranks, visible_devices(os.environ)), "--module", "m4oe_ds.doctor.ranks", *arguments],
                env={**os.environ, **launch_environment(ranks)},
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        status = _wait(running, options.seconds)
        if path.is_file() and status == 0:
            return [Finding(**entry) for entry in json.loads(path.read_text())]
        lines = output.read_text(errors="replace").splitlines()
    if status is None:
        text = f"{ranks} ranks did not end within {_LONGEST:.0f} s: they wait for each other"
        return [bad("ranks", text, "see NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME, and a firewall between the ranks")]
    error = next((line for line in lines if line.startswith("error: ")), "".join(lines[-1:]))
    return [bad("ranks", f"{ranks} ranks ended with status {status}: {error}", "see the message")]


def _wait(running: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Exit status of the ranks; None if they had to be ended."""
    with Progress("ranks meet, exchange and make a training step", None, "") as progress:
        progress.start()
        try:
            return running.wait(timeout=_LONGEST + seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
            running.wait()
