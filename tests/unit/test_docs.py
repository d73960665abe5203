"""Documentation that can go stale is checked: generated pages, links, named files, the site, the blocks of Python.

Commands: tests/integration/test_printed_commands.py.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("docs", "configs", "ds_configs", "slurm", "benchmarks", "tests", "tools", "m4oe_ds", "data_tools")
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))]
LINK = re.compile(r"\[[^\]\[]*\]\(([^()\s]+)\)")


def tool(name: str) -> ModuleType:
    """A script of ``tools/`` as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prose(page: Path) -> str:
    """A page without its blocks of code and code spans, in which brackets are not links and hashes not headings."""
    return re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    found: list[str] = []
    for heading in re.findall(r"^#{1,6} +(.*?)\s*$", text, re.M):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.append(slug if slug not in found else f"{slug}-{sum(a == slug for a in found)}")
    return set(found)


@pytest.mark.parametrize("name", ["configuration_page", "repository_map"])
def test_generated_page_is_current(name: str) -> None:
    module = tool(name)
    assert module.PAGE.read_text() == module.text(), f"run: python tools/{name}.py"


def test_repository_map_check_option(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    module = tool("repository_map")
    assert module.main(["--check"]) == 0
    monkeypatch.setattr(module, "HEAD", "another page\n")
    assert module.main(["--check"]) == 1
    assert "docs/reference/repository.md is out of date" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("One thing. Another.", "One thing."),
        ("Three letters,\nI(M;E|T). More.", r"Three letters, I(M;E\|T)."),
        ("Reads ``a.b`` for :mod:`m4oe_ds.data`", "Reads `a.b` for `m4oe_ds.data`"),
        ("VinDr-Mammo 1.0.0: one exam per patient.\n\nMore.", "VinDr-Mammo 1.0.0: one exam per patient."),
    ],
)
def test_first_sentence_of_a_docstring(docstring: str, sentence: str) -> None:
    assert tool("repository_map").first_sentence(docstring) == sentence


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_named_files_exist(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        if re.match(r"\w+:", target):  # another site
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(linked), f"{page.name} links to {target}: no such heading"
    for name in re.findall(r"`((?:configs|ds_configs|docs|tests|tools|m4oe_ds)/[\w./-]+\.\w+)`", page.read_text()):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_links_are_found_as_a_reader_sees_them(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One [a](b.md), `c`\n## Same\n## Same\n`[x](no.md)`\n```\n# [y](no.md)\n```\n[`z`](yes.md#one)\n")
    assert LINK.findall(prose(page)) == ["b.md", "yes.md#one"]
    assert anchors(page) == {"one-a-c", "same", "same-1"}


def test_index_names_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / target.partition("#")[0]).resolve() for target in LINK.findall(prose(index))}
    missing = [page.name for page in (ROOT / "docs").rglob("*.md") if page != index and page not in linked]
    assert not missing


def test_code_names_pages_that_exist() -> None:
    for folder in ("m4oe_ds", "data_tools", "tools", "configs", "slurm"):
        for path in (ROOT / folder).rglob("*.*"):
            if path.suffix in {".py", ".yaml", ".sbatch", ".sh", ".j2"}:
                for name in re.findall(r"docs/[\w/-]*\w(?:\.md)?", path.read_text(encoding="utf-8")):
                    found = (ROOT / name).exists() or list(ROOT.glob(f"{name}-*.md"))  # docs/decisions/0001
                    assert found, f"{path.relative_to(ROOT)} names {name}"


def test_the_site_holds_every_page_and_no_link_out_of_it(tmp_path: Path) -> None:
    site = tool("site")
    site.assemble(tmp_path)
    pages = {page.relative_to(tmp_path) for page in tmp_path.rglob("*.md")}
    assert pages == set(site.pages())
    for page in pages:
        for target in LINK.findall(prose(tmp_path / page)):
            name = target.partition("#")[0]
            assert re.match(r"\w+:", target) or (tmp_path / page.parent / name).exists(), f"{page} links to {target}"
    named = [
        entry
        for section in site.navigation()
        for value in section.values()
        if isinstance(value, list)
        for entry in value
    ]
    listed = {Path(path) for entry in named for path in entry.values()}
    assert listed >= {page for page in pages if page.parts[0] == "docs"} - {site.INDEX}


def test_a_broken_link_ends_the_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = tool("site")
    (tmp_path / "docs" / "pictures").mkdir(parents=True)
    (tmp_path / "page.md").write_text("[a](absent.md)\n`[b](no.md)`\n")
    monkeypatch.setattr(site, "ROOT", tmp_path)
    monkeypatch.setattr(site, "pages", lambda: [Path("page.md")])
    with pytest.raises(SystemExit, match=r"page\.md links to absent\.md, which"):
        site.assemble(tmp_path / "made")


def test_the_site_is_rendered_strictly() -> None:
    pytest.importorskip("mkdocs", reason="make docs installs it")
    pytest.importorskip("material", reason="make docs installs it")
    assert tool("site").main() == 0


def test_pictures_are_small_and_shown() -> None:
    text = (ROOT / "README.md").read_text()
    pictures = sorted((ROOT / "docs" / "pictures").iterdir())
    assert len(pictures) == 3
    for path in pictures:
        assert path.stat().st_size < 100_000
        assert f"docs/pictures/{path.name}" in text


@pytest.fixture(scope="module")
def demo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with ``configs`` and a ``runs/demo`` of random weights over a few random samples."""
    from safetensors.torch import save_file

    from m4oe_ds import config_loader
    from m4oe_ds.config import to_dict
    from m4oe_ds.models import build
    from m4oe_ds.runs.folder import write_yaml
    from tests.integration import shards

    folder = tmp_path_factory.mktemp("page")
    (folder / "configs").symlink_to(ROOT / "configs")
    shards.write(folder / "data", {"train": 3, "test": 10})
    config = config_loader.load(None, (*shards.SMALL, f"data.root={folder / 'data'}"))
    (folder / "runs" / "demo" / "weights").mkdir(parents=True)
    write_yaml(folder / "runs" / "demo" / "config.yaml", to_dict(config))
    state = {name: value.contiguous() for name, value in build(config).state_dict().items()}
    save_file(state, str(folder / "runs" / "demo" / "weights" / "model.safetensors"))
    return folder


def test_python_page_runs(demo_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of the page, one after the other, as a reader would paste them."""
    text = (ROOT / "docs" / "guide" / "python.md").read_text()
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.S | re.M))
    assert len(blocks) == text.count("```python")
    monkeypatch.chdir(demo_run)
    names: dict[str, object] = {}
    for block in blocks:
        line = text[: block.start(1)].count("\n")
        source = "\n" * line + block.group(1)  # a failure names the line of the page
        exec(compile(source, "docs/guide/python.md", "exec"), names)
    assert "run" in names
