"""What a check found, and how it is shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

State = Literal["good", "note", "bad"]
_MARKS: dict[State, str] = {"good": "ok  ", "note": "note", "bad": "BAD "}


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        topic: what was looked at, a word or two.
        state: ``good``; ``note``, training works but slower or less safely; ``bad``, it will fail.
        text: what was seen, with the figures.
        fix: what to do; empty for ``good``.
    """

    topic: str
    state: State
    text: str
    fix: str = ""

    def line(self) -> str:
        """The finding, and below it what to do."""
        line = f"{_MARKS[self.state]}  {self.topic:<18} {self.text}"
        return f"{line}\n{'':24} -> {self.fix}" if self.fix else line


Check = Callable[[], Iterable[Finding]]


def good(topic: str, text: str) -> Finding:
    """Nothing to do."""
    return Finding(topic, "good", text)


def note(topic: str, text: str, fix: str) -> Finding:
    """Worth mending."""
    return Finding(topic, "note", text, fix)


def bad(topic: str, text: str, fix: str) -> Finding:
    """Must be mended."""
    return Finding(topic, "bad", text, fix)


def run(topic: str, check: Check) -> list[Finding]:
    """What a check finds; one that breaks is a finding too: the machine is not what the check expects."""
    try:
        return list(check())
    except Exception as error:  # a doctor that ends in a traceback has told nothing of the rest
        text = " ".join(str(error).split()) or type(error).__name__
        return [bad(topic, f"could not be looked at: {type(error).__name__}: {text}", "see the message")]
