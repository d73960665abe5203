"""``m4oe compare`` as a user runs it: two systems, their tables, a second call that trains nothing, a failure that
shows.
"""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.integration import commands, shards

pytestmark = [pytest.mark.integration, pytest.mark.timeout(3600)]


def compare(output: Path, data: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """From another folder than the repository's, where relative paths would lead elsewhere."""
    settings = [f"data.root={data}", "data.phantom.patients=0", "run.num_epochs=1", "schedule.warmup_steps=0"]
    options = [f"--set={item}" for item in (*shards.SMALL, *settings)]
    return subprocess.run(
        [
            *(sys.executable, "-m", "m4oe_ds", "compare", "--datasets", "embed", "--methods", "mirai,ours"),
            *("--settings", "multi", "--workers", "2", "--output", str(output), *options, *arguments),
        ],
        env=commands.environment(PYTHONPATH=str(commands.ROOT)),
        cwd=output.parent,
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shards.write(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[Path, str]:
    output = tmp_path_factory.mktemp("compare") / "out"
    done = compare(output, data)
    assert done.returncode == 0, done.stdout + done.stderr
    return output, done.stdout


def test_tables_are_those_of_the_predictions(finished: tuple[Path, str]) -> None:
    output, printed = finished
    assert "2 of 2 cells" in printed
    assert "SYNTHETIC" in printed
    with (output / "table1.csv").open() as stream:
        rows = list(csv.reader(stream))
    by_label = {row[1]: row for row in rows[1:]}
    assert set(by_label) == {"majority class", "Mirai", "Ours"}
    column = rows[0].index("embed density")
    for label, method in (("Mirai", "mirai"), ("Ours", "ours")):
        with np.load(output / "cells" / f"embed-multi-{method}-seed0" / "predictions" / "test.npz") as arrays:
            known = arrays["label_density"] >= 0
            right = (arrays["prob_density"].argmax(1) == arrays["label_density"])[known].mean()
        assert by_label[label][column].split(" ")[0] == f"{100 * right:.1f}"
    assert by_label["Ours"][column + 1] == "84.1"  # the paper's, next to ours
    assert re.search(r"\([+-][\d.]+, p (< 0.01|[\d.]+)\)", by_label["Mirai"][column])
    assert {row[-1] for row in rows[1:]} == {"synthetic"}
    assert (output / "table1.md").read_text().startswith("SYNTHETIC phantoms.")
    assert (output / "table2.md").read_text().count("\n| ") == 5
    assert json.loads((output / "results.json").read_text())["missing"] == {}


def test_a_second_call_trains_nothing(finished: tuple[Path, str], data: Path) -> None:
    output, _ = finished
    before = {path: path.stat().st_mtime_ns for path in output.glob("cells/*/*")}
    done = compare(output, data)
    assert done.returncode == 0, done.stderr
    assert "2 cells, 2 done already" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in output.glob("cells/*/*")} == before


def test_other_settings_in_the_same_folder_are_refused(finished: tuple[Path, str], data: Path) -> None:
    done = compare(finished[0], data, "--set=loss.alpha=0.4")
    assert done.returncode == 3
    assert "holds a run of other settings" in done.stderr


def test_a_cell_that_cannot_run_is_named_with_its_error(tmp_path: Path) -> None:
    done = compare(tmp_path / "out", tmp_path / "nowhere", "--methods", "ours")
    assert done.returncode == 1
    assert "missing: embed-multi-ours-seed0: failed: error: data.root: no shard folder" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
