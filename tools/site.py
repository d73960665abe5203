"""Renders the pages to a site: ``make docs``, or ``python tools/site.py`` where mkdocs-material is installed.

The pages link to each other as files of the repository, inside and outside of ``docs/``. They are copied side by side
to ``build/pages``, where the same links hold; a link to a file that is no page becomes plain text. Sections and order
are those of ``docs/README.md``. A broken link fails.
"""

from __future__ import annotations

import logging
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build"
INDEX = Path("docs/README.md")
OUTSIDE = ("README.md", "CONTRIBUTING.md", "slurm/README.md", "configs/README.md", "ds_configs/README.md")
# as they are printed: a link with its text; code and blocks of code, in which brackets are none
LINK = re.compile(r"^```.*?^```$|`[^`\n]*`|(?<!!)\[([^\]\[]*)\]\(([^()\s]+)\)", re.S | re.M)


def pages() -> list[Path]:
    """Every page, relative to the repository."""
    inside = (path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*.md"))
    return [*map(Path, OUTSIDE), *sorted(inside)]


def assemble(target: Path) -> None:
    """Copies pages and pictures below a folder, links to what is no page made plain.

    Raises:
        SystemExit: a link leads to nothing.
    """
    known = {(ROOT / page).resolve() for page in pages()}
    for page in pages():
        source, copied = ROOT / page, target / page
        broken: list[str] = []

        def plain(found: re.Match[str], source: Path = source, broken: list[str] = broken) -> str:
            link = found[2]
            if link is None or re.match(r"\w+:|#", link):
                return found[0]
            linked = (source.parent / link.partition("#")[0]).resolve()
            if not linked.exists():
                broken.append(link)
            return found[0] if linked in known else found[1]

        text = LINK.sub(plain, source.read_text(encoding="utf-8"))
        if broken:
            raise SystemExit(f"error: {page} links to {', '.join(broken)}, which is not there")
        copied.parent.mkdir(parents=True, exist_ok=True)
        copied.write_text(text, encoding="utf-8")
    pictures = ROOT / "docs" / "pictures"
    shutil.copytree(pictures, target / "docs" / "pictures", dirs_exist_ok=True)


def navigation() -> list[dict[str, object]]:
    """Sections of ``docs/README.md`` and the pages that their tables name first in a row."""
    sections: list[dict[str, object]] = [{"m4oe_ds": "README.md"}, {"Documentation": str(INDEX)}]
    text = (ROOT / INDEX).read_text(encoding="utf-8")
    for title, body in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.S | re.M):
        rows = re.findall(r"^\| \[([^\]]+)\]\(([^()#]+\.md)\)", body, re.M)
        entries = [{name: str((ROOT / INDEX.parent / link).resolve().relative_to(ROOT))} for name, link in rows]
        sections.append({title: entries})
    sections.append({"Contributing": "CONTRIBUTING.md"})
    return sections


def main() -> int:
    """Writes ``build/site``; 1 if a page or link is wrong."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config
    from mkdocs.exceptions import MkDocsException

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    shutil.rmtree(BUILD / "pages", ignore_errors=True)
    assemble(BUILD / "pages")
    try:
        config = load_config(str(ROOT / "tools" / "site.yml"), nav=navigation())
        build(config)
    except MkDocsException as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    print(f"site: {BUILD / 'site' / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
