"""``m4oe figures`` as a user runs it: a training, an analysis, an index, and a second call that does nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration import commands, shards

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]


def figures(output: Path, data: Path) -> subprocess.CompletedProcess[str]:
    settings = [f"data.root={data}", "data.phantom.patients=0", "run.num_epochs=1", "schedule.warmup_steps=0"]
    return subprocess.run(
        [
            *(sys.executable, "-m", "m4oe_ds", "figures", "--only", "fig5", "--output", str(output)),
            *(f"--set={item}" for item in (*shards.SMALL, *settings)),
        ],
        env=commands.environment(PYTHONPATH=str(commands.ROOT)),
        cwd=output.parent,
        capture_output=True,
        text=True,
        timeout=900,
    )


def test_a_figure_is_made_from_nothing_and_then_left_alone(tmp_path: Path) -> None:
    data, output = shards.write(tmp_path / "shards"), tmp_path / "figures"
    done = figures(output, data)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Figure 5: compare/cells/embed-multi-ours-seed0/figures/fig5_contribution.png" in done.stdout
    run = output / "compare" / "cells" / "embed-multi-ours-seed0"
    made = {name: (run / "figures" / f"fig5_contribution.{name}").stat().st_mtime_ns for name in ("png", "svg", "csv")}
    page = (output / "index.html").read_text()
    assert 'src="compare/cells/embed-multi-ours-seed0/figures/fig5_contribution.png"' in page
    assert "Synthetic data" in page
    again = figures(output, data)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "2 steps, 2 done already" in again.stdout
    for name, time in made.items():
        assert (run / "figures" / f"fig5_contribution.{name}").stat().st_mtime_ns == time
