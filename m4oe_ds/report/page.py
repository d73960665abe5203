"""A page of headed parts in the look of the report: for what is not about one run."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from m4oe_ds.report.html import environment


@dataclass
class Part:
    """What stands under a heading, in this order.

    Attributes:
        title: the heading.
        lines: sentences.
        notes: sentences that something is wrong or missing.
        rows: a table, the first row being its heading; empty = none.
        images: addresses of pictures by what they show.
        blocks: text as it is.
        links: addresses of files by their names.
        name: of the part in addresses.
    """

    title: str
    lines: Sequence[str] = ()
    notes: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    images: dict[str, str] = field(default_factory=dict)
    blocks: Sequence[str] = ()
    links: dict[str, str] = field(default_factory=dict)
    name: str = ""


def write(path: Path, title: str, synthetic: bool, lines: Sequence[str], parts: Sequence[Part]) -> None:
    """Writes the page.

    Args:
        path: of the file.
        title: its heading.
        synthetic: whether any of it comes from synthetic data.
        lines: sentences before the parts.
        parts: the parts.
    """
    content = {"title": title, "synthetic": synthetic, "lines": lines, "parts": parts}
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(environment().get_template("page.html.j2").render(**content), encoding="utf-8")
    temporary.replace(path)


def embedded(path: Path) -> str:
    """An SVG file as an address that holds it."""
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
