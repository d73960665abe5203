"""Does the steps of a plan that are not done yet, and remembers which are."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from m4oe_ds.analysis import command as analysis
from m4oe_ds.compare import command as comparison
from m4oe_ds.compare import run as cells
from m4oe_ds.errors import DataError, UserError
from m4oe_ds.figures.plan import Plan, Step
from m4oe_ds.progress import duration
from m4oe_ds.runs.folder import write_json
from m4oe_ds.stored import read_json

STOPPED = 75  # exit status: a signal stopped the work, the same command continues
_FORGET = "move this file away: finished trainings are found, the analyses are made again"
COMMANDS: Mapping[str, Any] = {"compare": comparison, "analyze": analysis}


@dataclass
class Outcome:
    """What became of the steps.

    Attributes:
        problems: why a step has no result, by name.
        stopped: whether a signal stopped the work.
    """

    problems: dict[str, str]
    stopped: bool = False


class State:
    """``figures.json``: the finished steps with their commands.

    Args:
        folder: folder of the figures.

    Raises:
        DataError: the file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "figures.json"
        content = read_json(self._path, _FORGET, ("steps",)) if self._path.is_file() else {"steps": {}}
        self._steps: dict[str, dict[str, Any]] = content["steps"]
        if not isinstance(self._steps, dict) or not all(isinstance(one, dict) for one in self._steps.values()):
            raise DataError("is damaged, or another file: its steps are no objects", str(self._path), _FORGET)

    def done(self, step: Step) -> bool:
        """Whether this very command ran to its end and what it made is still there."""
        known = self._steps.get(step.name, {})
        return known.get("arguments") == list(step.arguments) and all(path.exists() for path in step.makes)

    def finish(self, step: Step) -> None:
        """Notes that a step is done."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._steps[step.name] = {"arguments": list(step.arguments), "finished": now}
        self._write()

    def begin(self, step: Step) -> None:
        """Forgets that a step was done, as it is being done again."""
        if self._steps.pop(step.name, None) is not None:
            self._write()

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_json(self._path, {"steps": self._steps})


def command_line(step: Step) -> str:
    """The command of a step, as one would type it."""
    return shlex.join(["m4oe", *step.arguments])


def trainings(step: Step) -> dict[Path, bool]:
    """Run folders of the models that a step trains, and whether each is there.

    Raises:
        UserError: options that contradict each other, or a folder that holds other runs.
    """
    if not step.trains:
        return {}
    found, plan, _ = comparison.planned(_parsed(step))
    return {plan.of(cell): cells.state(cell, plan) == "done" for cell in found}


def describe(plan: Plan, state: State) -> list[str]:
    """The plan as lines: every step with its command, how many models it trains, and what is done.

    Raises:
        UserError: see :func:`trainings`.
    """
    lines: list[str] = []
    models: dict[Path, bool] = {}
    for number, step in enumerate(plan.steps, 1):
        mine = trainings(step)
        models |= mine
        how = f"{counted(mine)}, {sum(mine.values())} done" if step.trains else "analysis"
        lines.append(f"{number:3} {step.name}: {step.what} ({'done' if state.done(step) else how})")
        lines.append(f"    {command_line(step)}")
    analyses = sum(not step.trains for step in plan.steps)
    lines.append(f"{counted(models)} in all, {sum(models.values())} done; {analyses} analyses")
    return [*lines, f"makes {', '.join(plan.wanted.only)} in {plan.wanted.output}"]


def counted(models: Mapping[Path, bool]) -> str:
    """``1 training``, ``97 trainings``."""
    return f"{len(models)} training{'' if len(models) == 1 else 's'}"


def unfinished(plan: Plan, state: State) -> list[Step]:
    """The steps to do: those not done, and those that need one of them."""
    todo: list[Step] = []
    for step in plan.steps:
        if not state.done(step) or {other.name for other in todo} & set(step.needs):
            todo.append(step)
    return todo


def do(plan: Plan, state: State, say: Callable[[str], None]) -> Outcome:
    """Does what is not done; a step that fails holds up only those that need it.

    Args:
        plan: the steps.
        state: which of them are done.
        say: prints a line.

    Raises:
        UserError: see :func:`trainings`; nothing was done.
    """
    for step in plan.steps:
        trainings(step)  # contradictions of any step come before the first one starts
    todo = unfinished(plan, state)
    say(f"{len(plan.steps)} steps, {len(plan.steps) - len(todo)} done already")
    outcome = Outcome({})
    for number, step in enumerate(todo, 1):
        lost = [name for name in step.needs if name in outcome.problems]
        if lost:
            outcome.problems[step.name] = f"needs {', '.join(lost)}"
            say(f"[{number}/{len(todo)}] {step.name}: left out, {outcome.problems[step.name]}")
            continue
        say(f"\n[{number}/{len(todo)}] {step.name}: {step.what}\n  {command_line(step)}")
        begin = time.monotonic()
        state.begin(step)
        status, problem = _run(step)
        if status == STOPPED:
            outcome.stopped = True
            break
        if problem or status:
            outcome.problems[step.name] = problem or "some of its trainings failed, see the lines above"
            say(f"{step.name} failed: {outcome.problems[step.name]}")
        else:
            state.finish(step)
            say(f"{step.name} done in {duration(time.monotonic() - begin)}")
    return outcome


def _run(step: Step) -> tuple[int, str]:
    try:
        return int(COMMANDS[step.arguments[0]].main(_parsed(step)) or 0), ""
    except UserError as error:
        return 1, str(error)


def _parsed(step: Step) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"m4oe {step.arguments[0]}")
    COMMANDS[step.arguments[0]].add_arguments(parser)
    return parser.parse_args(list(step.arguments[1:]))
