"""The method of docs/guide/add-a-method.md, outside the package: trained, evaluated, analysed, planned, compared."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from m4oe_ds.cli import main
from tests.integration import commands, shards

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

PAGE = commands.ROOT / "docs" / "guide" / "add-a-method.md"
SETTINGS = (*shards.SMALL, "data.phantom.patients=0", "schedule.warmup_steps=0", "run.max_steps=2")


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """From another folder than the repository's and than that of the method, which PYTHONPATH names."""
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        env=commands.environment(PYTHONPATH=f"{commands.ROOT}:{folder / 'methods'}"),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("outside")
    (made / "methods").mkdir()
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.S | re.M)
    assert len(blocks) == 1
    (made / "methods" / "gated.py").write_text(blocks[0])
    shards.write(made / "shards")
    return made


@pytest.fixture(scope="module")
def finished(folder: Path) -> Path:
    options = [f"--set={item}" for item in (*SETTINGS, f"data.root={folder / 'shards'}", "model.name=gated:Gated")]
    done = python(folder, "m4oe_ds", "train", "--ds_config", "zero2", "--output", str(folder / "run"), *options)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run"


def test_it_trains_and_is_found_again(
    folder: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metrics = json.loads((finished / "metrics.json").read_text())["test"]
    assert {"density", "risk1"} <= set(metrics["tasks"])
    monkeypatch.delitem(sys.modules, "gated", raising=False)
    assert main(["evaluate", str(finished)]) == 3
    said = capsys.readouterr().err
    assert "no module 'gated'" in said
    assert "PYTHONPATH" in said
    monkeypatch.syspath_prepend(folder / "methods")
    assert main(["evaluate", str(finished)]) == 0
    again = json.loads((finished / "metrics.json").read_text())["test"]
    assert again["tasks"]["density"] == metrics["tasks"]["density"]
    assert main(["analyze", str(finished), "--only", "competition,missing"]) == 0
    assert (finished / "analysis.json").is_file()


def test_it_is_listed_planned_and_compared(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(folder / "methods")
    monkeypatch.chdir(folder)
    overrides = [f"--set={item}" for item in (*SETTINGS, f"data.root={folder / 'shards'}")]
    assert main(["plan", "--config", "demo", "--set=model.name=gated:Gated", *overrides, "--cluster", "2xA100-80"]) == 0
    assert "plan for demo on 2xA100-80" in capsys.readouterr().out
    arguments = ["--datasets", "embed", "--methods", "ours,gated:Gated", "--settings", "multi", "--output", "compared"]
    assert main(["compare", *arguments, *overrides, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["1", "new", "embed-multi-gated.Gated-seed0"]
    done = python(folder, "m4oe_ds", "compare", *arguments, *overrides, "--cell", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert main(["compare", *arguments, *overrides, "--collect"]) == 1  # M4oE itself was not run
    assert "| multi-task | Gated |" in capsys.readouterr().out
