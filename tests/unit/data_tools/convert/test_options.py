"""The options of a conversion: the command line and Python say the same, and help is quick."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from data_tools.convert import ConvertOptions
from data_tools.convert.options import Part, Shares
from data_tools.outputs import next_to
from m4oe_ds.cli import main
from m4oe_ds.errors import DataError

LEAST = ["--dataset", "rsna", "--root", "in", "--out", "out"]


@pytest.fixture
def options(tmp_path: Path) -> ConvertOptions:
    return ConvertOptions(dataset="gamma", root=tmp_path, out=tmp_path / "out")


def test_the_command_line_has_the_defaults_of_the_options() -> None:
    assert ConvertOptions.from_arguments(LEAST) == ConvertOptions(dataset="rsna", root=Path("in"), out=Path("out"))


def test_split_and_part_are_parsed() -> None:
    options = ConvertOptions.from_arguments([*LEAST, "--split", "50/20/30", "--part", "3/16"])
    assert options.split == Shares(50, 20, 30)
    assert options.part == Part(3, 16)
    assert (str(options.split), str(options.part)) == ("50/20/30", "3/16")
    assert [place for place in range(40) if options.part.has(place)] == [2, 18, 34]


@pytest.mark.parametrize(("dataset", "size"), [("gamma", (512, 512)), ("embed", (1024, 832))])
def test_the_size_depends_on_the_data_set(dataset: str, size: tuple[int, int], options: ConvertOptions) -> None:
    assert replace(options, dataset=dataset).size == size
    assert replace(options, dataset=dataset, rows=7).size == (7, size[1])


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"dataset": "mnist"}, "--dataset"), ({"birads_scheme": "mine"}, "--birads-scheme"), ({"fold": 5}, "--fold"),
        ({"split": Shares(70, 20, 20)}, "--split"), ({"part": Part(3, 2)}, "--part"), ({"rows": 0}, "--rows"),
        ({"limit": -1}, "--limit"), ({"workers": -1}, "--workers"), ({"max_quarantine": 1.5}, "--max-quarantine"),
        ({"out": Path()}, "exists already"), ({"out": Path("no/such/out")}, "parent folder"),
        ({"root": Path("absent")}, "not a folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(change: dict[str, Any], match: str, options: ConvertOptions) -> None:
    options.check()
    with pytest.raises(DataError, match=match):
        replace(options, **change).check()


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom data_tools.convert import command\n"
        "try:\n    command.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'numpy', 'pydicom', 'torch', 'scipy', 'pandas'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_help_says_where_an_interrupted_conversion_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    """Not only that the folder must not exist, which would contradict that the same command continues."""
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "continues with the same command, from DIR.partial" in text
    assert "must not exist yet: what an interrupted conversion has done is in DIR.partial" in text
    assert next_to(Path("DIR"), "partial") == Path("DIR.partial")
