"""Error texts that docs/guide/troubleshooting.md quotes are those of the source."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guide" / "troubleshooting.md"


def texts() -> str:
    """All strings of the source, those in parts of f-strings included, one a line."""
    found = []
    for folder in ("m4oe_ds", "data_tools"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found)


def quoted() -> list[str]:
    page = PAGE.read_text(encoding="utf-8").split("## Texts of libraries")[0]
    return re.findall(r"^\| `([^`]+)` \|", page, re.M)


def test_every_quoted_text_is_in_the_source() -> None:
    source, rows = texts(), quoted()
    assert len(rows) >= 25
    missing = [(row, part) for row in rows for part in row.split("...") if part.strip() and part.strip() not in source]
    assert not missing, "quote the text as it is in the source, with ... for what differs"


def test_every_row_quotes_one() -> None:
    page = PAGE.read_text(encoding="utf-8").split("## Texts of libraries")[0]
    assert len(quoted()) == len(re.findall(r"^\| (?!text )", page, re.M))
