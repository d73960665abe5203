"""The commands printed in README and docs, each with its page and line, and what a test does with it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (  # in this order: a dry run comes before the folder is made
    "docs/guide/archives/embed.md",
    "README.md",
    "docs/guide/your-own-data.md",
    *sorted(
        str(page.relative_to(ROOT))
        for page in (ROOT / "docs").rglob("*.md")
        if page.name not in ("embed.md", "your-own-data.md")
    ),
    *("slurm/README.md", "configs/README.md", "ds_configs/README.md"),
)
LEFT_OUT = {"docs/reports/real-data.md": "two public data sets are cloned, and trained on for an hour"}
SHELL = ("", "sh", "bash", "console")  # languages of blocks of commands; what a command prints is a block of text
STARTERS = ("m4oe", "deepspeed", "python", "sbatch")  # after srun, a container and its options

# What is done with a command, the first rule that fits it. `run`: as it is printed, in the prepared folder.
# `dry`: as printed, with --dry-run. `start`: everything that training checks before it imports torch; then an untrained
# run of that configuration stands where the trained one would, if it is small. `parse`: options and the files they
# name. `skip`: nothing. The text is the reason.
RULES = (
    (r"make (demo|test|docs)", "skip", "a target of the Makefile, run by CI"),
    (r"python3 -m venv|pip install|git clone|docker |apptainer build|\. \.venv", "skip", "network"),
    (r"kaggle |wget |unzip ", "skip", "network"),
    (r"mkdir |ln -s", "skip", "stands for where the reader's archive is"),
    (r"\.venv/bin/", "skip", "a test of its own"),
    (r"sbatch |salloc ", "parse", "SLURM: tests/slurm submits every script"),
    (r"(.* )?srun ", "parse", "SLURM"),
    (r"apptainer |singularity ", "parse", "no container runtime"),
    (r"m4oe train --ds_config zero2$", "run", ""),
    (r".*(m4oe train|train\.py) ", "start", "one training is enough, tests/integration/test_run.py has others"),
    (r"m4oe compare .*--(list|dry-run|collect)", "run", ""),
    (r"m4oe compare |m4oe scale run |m4oe figures ", "dry", "minutes to days"),
    (r"m4oe scale collect ", "parse", "collects what a cluster has run"),
    (
        r"m4oe (evaluate|analyze|report|export|predict) runs/(?!demo|my|small|gated)",
        "parse",
        "needs a run of that size",
    ),
    (r"m4oe convert .*--root (s3|gs|https)://", "parse", "network"),
    (r"m4oe diff runs/first ", "parse", "needs two runs"),
    (r"m4oe doctor --seconds", "parse", "half a minute of exchange; tests of its own"),
    (r"(m4oe|python -m data_tools\.\w+) ", "run", ""),
    (r"python (configs|tools|benchmarks)/", "parse", "needs what the page before it brings"),
)
SETTING = re.compile(r"[A-Z][A-Z0-9_]*=(\"[^\"]*\"|\S*)|'[A-Z][A-Z0-9_]*=[^']*'")


@dataclass(frozen=True)
class Command:
    """A printed command.

    Attributes:
        page: relative to the repository.
        line: where it starts, from 1.
        text: without comments, continuation lines joined.
        how: what is done with it, see RULES; empty if no rule fits.
        reason: why no more is done.
        prints: lines that it prints in this order, where the page shows them ("prints:" and a block of text).
    """

    page: str
    line: int
    text: str
    how: str = ""
    reason: str = ""
    prints: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """Words of the command itself: without settings before it, srun, a container."""
        words = shlex.split(self.text)
        return words[next((i for i, word in enumerate(words) if word in STARTERS), 0) :]


def blocks(page: str) -> Iterator[tuple[int, str, tuple[str, ...]]]:
    """Line number and content of every block of commands of a page, and the lines that its last command prints."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M):
        if found[1] in SHELL:
            shown = re.match(r"\s+[^`]*?prints:\s+```text\n(.*?)^```$", text[found.end() :], re.S | re.M)
            yield text[: found.start(2)].count("\n") + 1, found[2], tuple(shown[1].splitlines()) if shown else ()


def indented(page: str) -> list[int]:
    """Lines of commands that stand in a block by indentation, where no rule reads them."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    return [
        number for number, line in enumerate(lines, 1) if re.match(r" {4}(m4oe|python|deepspeed|srun|sbatch) ", line)
    ]


def commands_of(page: str) -> Iterator[Command]:
    """The commands of a page in order; a line joined by && is several."""
    for first, block, prints in blocks(page):
        pending, started, found = "", first, []
        for offset, line in enumerate(block.splitlines()):
            started = started if pending else first + offset
            if line.rstrip().endswith("\\"):
                pending += line.rstrip()[:-1]
                continue
            words, pending = shlex.split(pending + line, comments=True), ""
            for text in " ".join(map(quoted, words)).split(" && "):
                if text and not SETTING.fullmatch(shlex.join(shlex.split(text))):
                    found.append(Command(page, started, text))
        yield from map(ruled, [*found[:-1], *(replace(last, prints=prints) for last in found[-1:])])


def settings_of(page: str) -> Iterator[str]:
    """Names of the variables that a page sets on lines of their own."""
    for _, block, _ in blocks(page):
        for line in block.splitlines():
            if SETTING.fullmatch(text := line.split("  #")[0].strip()):
                yield text.split("=")[0]


def quoted(word: str) -> str:
    """A word as a shell takes it; && stays what it is."""
    return word if word == "&&" else shlex.quote(word)


def ruled(command: Command) -> Command:
    """The command with the first rule that fits."""
    text = re.sub(r"^([A-Z][A-Z0-9_]*=\S+ )+", "", command.text)  # settings in front of it
    for pattern, how, reason in RULES:
        if re.match(pattern, text):
            return replace(command, how=how, reason=reason)
    return command


def every_command() -> list[Command]:
    """All of them, each text once, in the order in which a reader types them."""
    found: dict[str, Command] = {}
    for page in PAGES:
        if page not in LEFT_OUT:
            for command in commands_of(page):
                found.setdefault(command.text, command)
    return list(found.values())


def summary() -> list[str]:
    """Lines of a report: every command that is not run as it is printed, what is done with it, and why no more."""
    words = {"dry": "with --dry-run", "start": "up to torch", "parse": "options and files", "skip": "not at all"}
    commands = [
        one for one in every_command() if one.how in words and not (one.how == "dry" and "--dry-run" in one.text)
    ]
    return [
        f"{words[how]}: {one.text} ({one.reason}; {one.page}:{one.line})"
        for how in words
        for one in commands
        if one.how == how
    ]
