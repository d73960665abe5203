"""Documentation that can go stale is checked: the generated page, the commands and files it names."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")),
         ROOT / "configs" / "README.md", ROOT / "ds_configs" / "README.md"]  # fmt: skip


def test_configuration_page_is_current() -> None:
    spec = importlib.util.spec_from_file_location("configuration_page", ROOT / "tools" / "configuration_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text() == module.text(), "run: python tools/configuration_page.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_named_files_exist(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
    for name in re.findall(r"`((?:configs|ds_configs|docs|tests|tools|m4oe_ds)/[\w./-]+\.\w+)`", text):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


def test_readme_commands_parse() -> None:
    import train
    from m4oe_ds import cli

    text = (ROOT / "README.md").read_text()
    lines = [
        line.split("#")[0].strip() for block in re.findall(r"```\n(.*?)```", text, re.S) for line in block.splitlines()
    ]
    trained = [
        line.split("train.py", 1)[1].split() for line in lines if "train.py" in line and not line.startswith("==")
    ]
    assert len(trained) >= 4
    for arguments in trained:
        options = train.parser().parse_args(arguments)
        assert (ROOT / options.ds_config).is_file()
        assert Path(ROOT / options.config).is_file()
    commands = [line.split()[1:] for line in lines if line.startswith("m4oe ")]
    assert commands
    for arguments in commands:
        assert cli.parser().parse_args(arguments).work is not None
