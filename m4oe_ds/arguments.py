"""Options of a command line: numbers with their bounds, words with their choices, one line about every mistake.

What :mod:`argparse` says of a mistake is the usage of the whole command and no advice; here it is what is wrong, which
option it is, and what to write instead.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from m4oe_ds.yaml_tree import nearest

MOST_PROCESSES = 4096  # of one machine
MOST_DRAWS = 1_000_000  # resamples, permutations
REFUSED = 2  # exit status of a command line that cannot be read
_OF_AN_OPTION = re.compile(r"argument ([^:]+): (.*)", re.S)
_ONE_OF = re.compile(r"one of the arguments (.*) is required")
_EXCLUDED = "not allowed with argument "
_MISSING = "the following arguments are required: "


class Parser(argparse.ArgumentParser):
    """A parser whose mistakes are one line, and whose help keeps the lines of its examples.

    Args:
        *given: as :class:`argparse.ArgumentParser`.
        **options: as :class:`argparse.ArgumentParser`.
    """

    def __init__(self, *given: Any, **options: Any) -> None:
        options.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*given, **options)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """As :class:`argparse.ArgumentParser`, but what it does not know ends the command, with the nearest option."""
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(self._unknown(rest))
        return found, rest

    def error(self, message: str) -> NoReturn:
        """Ends the process with one line about a mistake."""
        option = _OF_AN_OPTION.fullmatch(message)
        if message.startswith(_MISSING):
            message = self._missing(message.removeprefix(_MISSING).split(", "))
        elif (group := _ONE_OF.fullmatch(message)) is not None:
            message = f"{' or '.join(group[1].split())} is needed"
        elif option is not None:
            message = f"{option[1]}: {_advised(*option.groups())}"
        self.exit(REFUSED, f"error: {message}; see `{self.prog} --help`\n")

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """Refuses a value without a character: an empty path would be the folder that one is in."""
        if not isinstance(action, argparse._SubParsersAction) and any(not text.strip() for text in arg_strings):
            raise argparse.ArgumentError(action, "is empty; write a value, or leave it out")
        return super()._get_values(action, arg_strings)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuses a word that is none of the choices, with the nearest one."""
        if action.choices is not None and value not in action.choices:
            raise argparse.ArgumentError(action, f"{value!r} is not known{_nearest(str(value), action.choices)}")

    def _unknown(self, rest: Sequence[str]) -> str:
        known = [text for action in self._actions for text in action.option_strings if text.startswith("--")]
        name = rest[0].partition("=")[0]
        if not name.startswith("-"):
            return f"{rest[0]!r} is one word too many"
        return f"no option {name}{nearest(name, known) if known else ''}"

    def _missing(self, names: Sequence[str]) -> str:
        """``--config is needed (configuration of the run)``."""
        lines = []
        for name in names:
            action = next((one for one in self._actions if name in (*one.option_strings, one.metavar, one.dest)), None)
            commands = isinstance(action, argparse._SubParsersAction)
            if action is not None and commands:
                lines.append(f"{name} is needed: one of {', '.join(action.choices or ())}")
            else:
                lines.append(f"{name} is needed" + (f" ({action.help})" if action is not None and action.help else ""))
        return "; ".join(lines)


def add_command(
    commands: argparse._SubParsersAction[Any],
    name: str,
    sentence: str,
    *examples: str,
    more: str = "",
    options: Callable[[argparse.ArgumentParser], None] | None = None,
    work: Callable[[argparse.Namespace], object] | None = None,
) -> argparse.ArgumentParser:
    """Adds a sub-command whose help says what it does, and shows how it is called.

    Args:
        commands: of the parser that it is added to.
        name: of the sub-command.
        sentence: what it does, for the list of all; begins with a small letter, no full stop.
        *examples: whole command lines.
        more: further sentences of its own help.
        options: adds its options; default: none, or the caller does.
        work: what it runs, given the options.
    """
    description = f"{sentence[:1].upper()}{sentence[1:]}." + (f"\n{more}" if more else "")
    epilog = "\n".join([f"example{'s' if len(examples) > 1 else ''}:", *(f"  {line}" for line in examples)])
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=sentence, description=description, epilog=epilog if examples else None
    )
    if options is not None:
        options(parser)
    if work is not None:
        parser.set_defaults(work=work)
    return parser


def add_gpus(parser: argparse.ArgumentParser, sentence: str) -> None:
    """Adds ``--gpus`` (``--ranks``), of commands that start the ranks of this machine; 0 where it is not given.

    Args:
        parser: of the command.
        sentence: what it means there.
    """
    counted = whole(1, MOST_PROCESSES)
    parser.add_argument("--gpus", "--ranks", dest="ranks", type=counted, default=0, metavar="N", help=sentence)


def whole(least: int = 0, most: int | None = None) -> Callable[[str], int]:
    """The type of an option that is a whole number within bounds."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = None
        if value is None or value < least or (most is not None and value > most):
            limits = f"from {least}" if most is None else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"write a whole number {limits}, got {text!r}")
        return value

    return read


def number(
    *, at_least: float | None = None, at_most: float | None = None, above: float | None = None
) -> Callable[[str], float]:
    """The type of an option that is a finite number within bounds."""
    limits = {"from": at_least, "above": above, "to": at_most}
    words = " ".join(f"{word} {limit:g}" for word, limit in limits.items() if limit is not None)

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        fits = math.isfinite(value) and (at_least is None or value >= at_least)
        if not fits or (at_most is not None and value > at_most) or (above is not None and value <= above):
            raise argparse.ArgumentTypeError(f"write a number {words}, got {text!r}")
        return value

    return read


def _advised(option: str, message: str) -> str:
    """What :mod:`argparse` says of an option, with what to do about it."""
    if message.startswith(_EXCLUDED):
        return f"excludes {message.removeprefix(_EXCLUDED)}; give one of them"
    if message == "expected one argument":
        return f"needs a value; one that begins with - is written {option.rpartition('/')[2]}=-.."
    return message


def _nearest(value: str, choices: Iterable[Any]) -> str:
    words = [str(choice) for choice in choices]
    return nearest(value, words, ordered=True)
