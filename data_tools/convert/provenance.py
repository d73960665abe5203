"""How shards were made: the command as it may be shared, and as it was, with its time, for whoever made them."""

from __future__ import annotations

import shlex
import time
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from data_tools.convert.options import ARCHIVES_ONLY, ConvertOptions
from data_tools.outputs import next_to, write_private
from m4oe_ds import __version__

PATHS = {"card_path": "CARD", "root": "ARCHIVE", "out": "SHARDS"}  # by field, what stands for them
# change nothing in the shards, or differ between the processes that made them
NOT_SHARED = ("workers", "part", "dry_run", "salt_file")


class Clock:
    """When a conversion began."""

    def __init__(self) -> None:
        self._began, self._start = datetime.now(UTC), time.monotonic()

    def rows(self) -> list[tuple[str, str]]:
        """Beginning, end and duration up to now, of this process."""
        end, seconds = datetime.now(UTC), time.monotonic() - self._start
        form = "%Y-%m-%d %H:%M:%S UTC"
        return [
            ("began", self._began.strftime(form)),
            ("ended", end.strftime(form)),
            ("seconds of this process", f"{seconds:.1f}"),
        ]


def command(options: ConvertOptions, shared: bool) -> str:
    """The command line that makes these shards.

    Args:
        options: those of the conversion.
        shared: with placeholders for paths, and without what does not change the shards.
    """
    parts = ["m4oe", "convert"]
    for one in fields(options):
        value = getattr(options, one.name)
        if value == one.default or (shared and one.name in NOT_SHARED):
            continue
        flag = f"--{one.name.removesuffix('_path').replace('_', '-')}"
        if value is True:
            parts.append(flag)
        elif value is not None and value != "":
            parts += [flag, PATHS[one.name] if shared and one.name in PATHS else str(value)]
    return shlex.join(parts)


def settings(options: ConvertOptions) -> dict[str, str]:
    """Every option that shapes the shards, completed with what it means where it was not given."""
    rows, cols = options.size
    source = options.card.source
    unused = () if source is not None and source.reader else ARCHIVES_ONLY
    found: dict[str, Any] = {
        one.name: getattr(options, one.name)
        for one in fields(options)
        if one.name not in (*PATHS, *NOT_SHARED, *unused, "dataset", "rows", "cols", "split", "limit")
    }
    found |= {"rows": rows, "cols": cols, "split": options.shares, "limit": options.limit or "none"}
    return {name.replace("_", " "): str(value) for name, value in sorted(found.items())}


def shown(options: ConvertOptions) -> dict[str, Any]:
    """What the page of a conversion says of how it was made: nothing that differs when it is done again."""
    return {"command": command(options, shared=True), "settings": settings(options), "version": __version__}


def write(options: ConvertOptions, clock: Clock) -> Path:
    """Writes ``<out>.conversion.csv`` next to the shards: command with its paths, version, times. It stays with its
    maker, like the mapping.
    """
    path = next_to(options.out, "conversion.csv")
    rows = [("command", command(options, shared=False)), ("version", f"m4oe_ds {__version__}"), *clock.rows()]
    write_private(path, ("what", "value"), [{"what": what, "value": value} for what, value in rows])
    return path
