# ruff: noqa: T201
"""``m4oe scale``: run a study on this machine, measure one point in a job, simulate larger clusters, collect."""

from __future__ import annotations

import argparse
from typing import Any

from m4oe_ds.arguments import add_command, number, whole

DEVICES = "A100-80,L40S,A100-80+L40S"
WORLDS = "8,16,32,64,128,256,512,1024,2048,4096"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the sub-commands."""
    commands = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    run = add_command(
        commands,
        "run",
        "measure a grid on this machine, then collect",
        "m4oe scale run --output runs/scaling --experts 8,16 --ep 1,2 --world 1,2",
    )
    _common(run)
    run.add_argument(
        "--experts", default="16,32,64,128", metavar="N,N,..", help="experts of the MToE (default: 16,32,64,128)"
    )
    run.add_argument("--ep", default="1,2", metavar="N,N,..", help="ranks that share the experts (default: 1,2)")
    run.add_argument("--world", default="1,2", metavar="N,N,..", help="numbers of ranks (default: 1,2)")
    run.add_argument(
        "--mode",
        default="weak",
        metavar="weak,strong",
        help="what stays fixed: samples per rank (weak) or per step (strong); default: weak",
    )
    run.add_argument(
        "--timeout",
        type=number(above=0),
        default=1800.0,
        metavar="S",
        help="longest time for one point in seconds (default: 1800)",
    )
    run.add_argument(
        "--dry-run", action="store_true", help="list the points, and those that are impossible with the reason"
    )
    _add_point(commands)
    _add_simulate(commands)
    collect = add_command(
        commands,
        "collect",
        "make tables and plots of the points and simulations in a folder",
        "m4oe scale collect runs/scaling",
    )
    collect.add_argument("output", metavar="DIR", help="folder of the study")


def _add_point(commands: argparse._SubParsersAction[Any]) -> None:
    point = add_command(
        commands,
        "point",
        "measure one point in this job (srun, deepspeed launcher, or one process)",
        "srun m4oe scale point --experts 128 --output runs/scaling --config my.yaml --ds_config bf16",
    )
    _common(point)
    point.add_argument("--experts", type=whole(1), required=True, metavar="N", help="experts of the MToE")
    point.add_argument(
        "--ep", type=whole(), default=0, metavar="N", help="ranks that share the experts (default: 0 = as many as fit)"
    )
    point.add_argument(
        "--mode",
        default="weak",
        choices=("weak", "strong"),
        help="what stays fixed: samples per rank (weak) or per step (strong); default: weak",
    )


def _add_simulate(commands: argparse._SubParsersAction[Any]) -> None:
    simulate = add_command(
        commands,
        "simulate",
        "predict the same study for other clusters; marked as simulated",
        "m4oe scale simulate --output runs/scaling --gpu A100-80,A100-80+L40S --worlds 8,64,512",
    )
    _common(simulate)
    simulate.add_argument(
        "--experts", default="16,32,64,128", metavar="N,N,..", help="experts of the MToE (default: 16,32,64,128)"
    )
    simulate.add_argument(
        "--mode",
        default="weak",
        metavar="weak,strong",
        help="what stays fixed: samples per rank (weak) or per step (strong); default: weak",
    )
    simulate.add_argument(
        "--gpu",
        default=DEVICES,
        metavar="KIND,KIND+KIND,..",
        help=f"devices; + mixes kinds (default: {DEVICES})",
    )
    simulate.add_argument("--worlds", default=WORLDS, metavar="N,N,..", help="numbers of devices (default: 8 to 4096)")
    simulate.add_argument("--zero", type=int, default=2, choices=(1, 2, 3), help="ZeRO stage (default: 2)")
    simulate.add_argument(
        "--precision",
        default="bf16",
        choices=("fp32", "bf16", "fp16"),
        help="type of weights and activations (default: bf16)",
    )


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        default="demo",
        metavar="YAML",
        help="configuration: a path, or the name of a shipped one (default: demo)",
    )
    parser.add_argument(
        "--ds_config",
        default="zero2",
        metavar="JSON",
        help="DeepSpeed configuration: a path, or the name of a shipped one (default: zero2)",
    )
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key; repeatable")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of the study")
    parser.add_argument(
        "--micro", type=whole(1), default=4, metavar="N", help="weak scaling: samples per rank (default: 4)"
    )
    parser.add_argument(
        "--batch", type=whole(1), default=16, metavar="N", help="strong scaling: samples per step (default: 16)"
    )
    parser.add_argument("--steps", type=whole(1), default=10, metavar="N", help="timed steps (default: 10)")
    parser.add_argument(
        "--warm-up", type=whole(), default=3, metavar="N", help="steps before the timed ones (default: 3)"
    )
    parser.add_argument(
        "--profiled",
        type=whole(),
        default=4,
        metavar="N",
        help="profiled steps after the timed ones, for the split of a step; 0 = none (default: 4)",
    )


def main(options: argparse.Namespace) -> int:
    """Does one of the sub-commands; 1 if a point failed.

    Raises:
        UserError: options, configuration or folder contradict each other.
    """
    return {"run": _run, "point": _point, "simulate": _simulate, "collect": _collect}[options.what](options)


def _run(options: argparse.Namespace) -> int:
    from pathlib import Path

    from m4oe_ds import config_loader
    from m4oe_ds.command_line import check_output
    from m4oe_ds.errors import ConfigError
    from m4oe_ds.runs.apart import check_apart
    from m4oe_ds.scaling import study
    from m4oe_ds.scaling.rows import write_left_out

    check_output(Path(options.output), "--output")
    check_apart(Path(options.output), "--output")
    config = config_loader.load(options.config, options.set)
    _check_json(options.ds_config)
    digest = study.digest(options.config, options.ds_config, options.set)
    cells, impossible = study.grid(
        config,
        numbers(options.experts, "--experts"),
        numbers(options.ep, "--ep"),
        numbers(options.world, "--world"),
        _modes(options.mode),
        options.batch,
    )
    for cell, reason in impossible:
        print(f"left out: {cell}: {reason}")
    print(f"{len(cells)} points to measure, {len(impossible)} left out")
    if not cells:
        raise ConfigError(
            "no point is possible", "--experts, --ep, --world", "change one of them; the reasons are above"
        )
    if options.dry_run:
        print("\n".join(f"  {cell}" for cell in cells))
        return 0
    folder = Path(options.output)
    write_left_out([(str(cell), reason) for cell, reason in impossible], folder / "left-out-run.json")
    more = ["--config", options.config, "--ds_config", options.ds_config, "--output", options.output]
    more += ["--micro", str(options.micro), "--batch", str(options.batch), "--steps", str(options.steps)]
    more += [
        "--warm-up",
        str(options.warm_up),
        "--profiled",
        str(options.profiled),
        *(item for key in options.set for item in ("--set", key)),
    ]
    failures = study.run(
        cells,
        lambda cell: study.path_of(folder, cell, options.micro, options.batch, digest).is_file(),
        more,
        options.timeout,
        lambda text: print(text, flush=True),
    )
    if len(failures) < len(cells):
        _collect(options)
    for cell, problem in failures:
        print(f"failed: {cell}: {problem.splitlines()[-1]}")
    return 1 if failures else 0


def _check_json(name: str) -> None:
    """Refuses a DeepSpeed JSON that no point could be measured with.

    Raises:
        ConfigError: none there, or its mistakes.
    """
    from m4oe_ds import deepspeed_json

    deepspeed_json.check(deepspeed_json.read(name), name, {}, "")


def _modes(text: str) -> list[str]:
    from m4oe_ds.option_lists import comma_list

    advice = "write weak, strong or weak,strong"
    return comma_list(text, "--mode", str, ("weak", "strong"), required=True, noun="mode", advice=advice)


def numbers(text: str, option: str) -> list[int]:
    """``16,32`` as whole numbers from 1.

    Raises:
        ConfigError: a text of another form.
    """
    from m4oe_ds.option_lists import comma_list

    advice = "write whole numbers from 1, e.g. 16,32,64"
    return comma_list(text, option, int, least=1, required=True, once=True, advice=advice)


def _point(options: argparse.Namespace) -> int:
    from pathlib import Path

    from m4oe_ds import config_loader
    from m4oe_ds.command_line import check_output
    from m4oe_ds.runs.apart import check_apart

    check_output(Path(options.output), "--output")
    check_apart(Path(options.output), "--output")
    config_loader.load(options.config, options.set)
    _check_json(options.ds_config)

    from m4oe_ds.scaling.point import PointRequest, measure  # torch: only once the files are known to be good
    from m4oe_ds.scaling.rows import write_point

    row = measure(
        PointRequest(
            options.config,
            options.ds_config,
            tuple(options.set),
            options.experts,
            options.ep,
            options.mode,
            options.micro,
            options.batch,
            options.steps,
            options.warm_up,
            options.profiled,
        )
    )
    if row is not None:
        path = write_point(row, Path(options.output))
        print(f"{row.experts} experts, {row.world} ranks, ep {row.ep}: {row.step_ms:.1f} ms per step -> {path}")
    return 0


def _simulate(options: argparse.Namespace) -> int:
    from pathlib import Path

    from m4oe_ds import config_loader
    from m4oe_ds.command_line import check_output
    from m4oe_ds.option_lists import comma_list
    from m4oe_ds.planning.hardware import accelerator
    from m4oe_ds.runs.apart import check_apart
    from m4oe_ds.scaling.rows import write_csv, write_left_out

    check_output(Path(options.output), "--output")
    check_apart(Path(options.output), "--output")
    mixtures = comma_list(options.gpu, "--gpu", str, required=True, advice="write kinds, e.g. A100-80,A100-80+L40S")
    clusters = [[kind.strip() for kind in mixed.split("+")] for mixed in mixtures]
    for kind in {kind for kinds in clusters for kind in kinds}:
        accelerator(kind, option="--gpu")
    experts, worlds, modes = (
        numbers(options.experts, "--experts"),
        numbers(options.worlds, "--worlds"),
        _modes(options.mode),
    )
    config_loader.load(options.config, options.set)

    from m4oe_ds.scaling.simulate import Simulation, simulate  # torch: only once the options are known to be good

    study = Simulation(
        config=options.config,
        overrides=options.set,
        experts=experts,
        clusters=clusters,
        worlds=worlds,
        modes=modes,
        micro=options.micro,
        batch=options.batch,
        stage=options.zero,
        precision=options.precision,
    )
    rows, left_out = simulate(study)
    folder = Path(options.output)
    write_left_out(left_out, folder / "left-out-simulate.json")
    write_csv(rows, folder / "simulated.csv")
    for point, reason in left_out:
        print(f"left out: {point}: {reason}")
    print(f"{len(rows)} simulated points, {len(left_out)} left out")
    return _collect(options)


def _collect(options: argparse.Namespace) -> int:
    from pathlib import Path

    from m4oe_ds.errors import DataError
    from m4oe_ds.scaling.figures import draw
    from m4oe_ds.scaling.rows import read_csv, read_left_out, read_points, table, write_csv

    folder = Path(options.output)
    simulated = read_csv(folder / "simulated.csv") if (folder / "simulated.csv").is_file() else []
    try:
        measured = read_points(folder)
    except DataError:
        if not simulated:
            raise
        measured = []
    rows = [*measured, *simulated]
    write_csv(rows, folder / "scaling.csv")
    text = table(rows)
    notes = [f"- left out: {point}: {reason}" for point, reason in read_left_out(folder)]
    if simulated:
        from m4oe_ds.scaling.simulate import ASSUMED

        notes += [f"- simulated rows assume: {line}" for line in ASSUMED]
    (folder / "scaling.md").write_text("\n".join([text, "", *notes, ""]) if notes else text + "\n", encoding="utf-8")
    draw(rows, folder / "figures")
    print(text)
    print(
        f"{len(measured)} measured and {len(simulated)} simulated points: {folder / 'scaling.csv'}, "
        "scaling.md, figures/"
    )
    return 0
