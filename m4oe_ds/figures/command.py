# ruff: noqa: T201
"""``m4oe figures``: makes Table 1, Table 2 and Fig. 3 to 7 of the paper again, from trainings to an index of files."""

from __future__ import annotations

import argparse

from m4oe_ds.arguments import MOST_DRAWS, whole
from m4oe_ds.compare.command import add_running

PRESETS = ("smoke", "small", "paper")
ALL = ("table1", "table2", "fig3", "fig4", "fig5", "fig6", "fig7")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the sub-command."""
    add = parser.add_argument
    add("--preset", default="smoke", choices=PRESETS, help="size of the runs, as of m4oe compare (default: smoke)")
    add("--output", default="", metavar="DIR", help="folder of all of it (default: runs/figures-<preset>)")
    add("--only", default="", metavar="A,B,..", help=f"make only some of {', '.join(ALL)}")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="override one key of every training")
    add_running(parser, "training")
    add(
        "--permutations",
        type=whole(1, MOST_DRAWS),
        default=10,
        metavar="N",
        help="permutations behind Fig. 4 (default: 10)",
    )
    add("--limit", type=whole(1), default=0, metavar="N", help="analyse at most N samples of a split (default: all)")
    add("--dry-run", action="store_true", help="print every command and how many models it trains, and do nothing")


def main(options: argparse.Namespace) -> int:
    """Makes what is not there; 1 if something is missing at the end, 75 if a signal stopped the work.

    Raises:
        UserError: options contradict each other, or a folder holds other runs.
    """
    from pathlib import Path

    from m4oe_ds.command_line import check_output
    from m4oe_ds.figures import index, work
    from m4oe_ds.figures.plan import Plan, Wanted
    from m4oe_ds.option_lists import check_known, comma_list
    from m4oe_ds.runs.apart import check_apart

    chosen = comma_list(options.only, "--only", str, required=bool(options.only), once=True)
    check_known(chosen, "--only", ALL, noun="table or figure")
    output = Path(options.output or f"runs/figures-{options.preset}")
    check_output(output, "--output")
    check_apart(output, "--output")
    plain = argparse.ArgumentParser()
    add_arguments(plain)

    def given(*names: str) -> tuple[str, ...]:
        """Options that are not at their defaults, for the commands of the steps."""
        return tuple(
            f"--{name}={getattr(options, name)}" for name in names if getattr(options, name) != plain.get_default(name)
        )

    plan = Plan(
        Wanted(
            options.preset,
            tuple(name for name in ALL if name in (chosen or ALL)),
            output,
            tuple(options.set),
            given("workers", "ranks", "timeout"),
            given("permutations", "limit"),
        )
    )
    state = work.State(output)
    if options.dry_run:
        print("\n".join(work.describe(plan, state)))
        return 0
    outcome = work.do(plan, state, lambda text: print(text, flush=True))
    if outcome.stopped:
        print(f"stopped by a signal; the same command continues in {output}")
        return work.STOPPED
    print("\n" + "\n".join(index.write(plan, outcome)))
    print(f"{len(plan.wanted.only)} tables and figures: {output / 'index.html'}")
    return 1 if outcome.problems else 0
