"""Hours and disk of a comparison: the table is that of the presets, sums are right, what is not known is said."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from m4oe_ds import config_loader, deepspeed_json
from m4oe_ds.cli import main
from m4oe_ds.compare import cost
from m4oe_ds.compare.cells import ABLATIONS, METHODS, Cell, enumerate_cells
from m4oe_ds.compare.published import presets
from m4oe_ds.compare.run import CellPlan
from m4oe_ds.errors import ConfigError
from m4oe_ds.planning.hardware import accelerator, parse_cluster

PLAN = CellPlan(Path("nowhere"), "paper", "bf16", 1, 0.0)
JOB = cost.Job(ranks=1, micro=32, accumulation=1, precision="bf16", stage=2, offload=False)


def paper_cells() -> list[Cell]:
    preset = presets()["paper"]
    return enumerate_cells(preset.datasets, list(METHODS), [0])


def test_the_table_holds_every_model_of_the_paper_preset() -> None:
    """A test that fails here asks for ``python tools/compare_costs.py``, and likewise with ``--ranks 4``."""
    four = replace(JOB, ranks=4, micro=8)
    assert cost.estimate(paper_cells(), PLAN, four, accelerator("A100-80"), lambda _: 3200, limit_s=0.0)[1] == []
    found, left = cost.estimate(paper_cells(), PLAN, JOB, accelerator("A100-80"), lambda _: 3200, limit_s=0.0)
    assert left == []
    assert len(found) == 97
    by_name = {one.cell.name: one for one in found}
    ours = by_name["embed-multi-ours-seed0"]
    assert ours.model.parameters == pytest.approx(2.34e9, rel=0.01)
    assert ours.steps == 100 * 100
    assert ours.hours == pytest.approx(ours.steps * ours.model.step_s / 3600)
    assert ours.model.step_s > by_name["embed-multi-ours_no_mtoe-seed0"].model.step_s


def small(name: str) -> tuple[Any, CellPlan]:
    plan = CellPlan(Path("nowhere"), "smoke", "zero2", 1, 0.0)
    (cell,) = enumerate_cells(["gamma"], [name], [0], ["multi"])
    return config_loader.load(plan.config("gamma"), cell.overrides), plan


def test_a_record_of_the_table_is_that_of_the_plan() -> None:
    """The smallest model of the paper preset, recorded again."""
    table = json.loads(cost.TABLE.read_text())
    cell = min(
        (cell for cell in paper_cells() if cell.dataset == "gamma" and cell.setting == "multi"),
        key=lambda cell: table[_key(cell)]["parameters"],
    )
    config = config_loader.load(PLAN.config("gamma"), [*cell.overrides, "model.embedder.weights="])
    assert cost.record(config, JOB, [accelerator("A100-80")])["devices"]["A100-80"] == pytest.approx(
        table[_key(cell)]["devices"]["A100-80"]
    )


def _key(cell: Cell) -> str:
    return cost.digest(config_loader.load(PLAN.config(cell.dataset), cell.overrides), JOB)


def test_the_digest_follows_what_changes_the_cost() -> None:
    config, _ = small("ours")
    assert cost.digest(config, JOB) == cost.digest(replace(config, run=replace(config.run, seed=7)), JOB)
    wider = replace(config, model=replace(config.model, dim=2 * config.model.dim))
    jobs = (JOB, replace(JOB, precision="fp32"), replace(JOB, micro=8, accumulation=4), replace(JOB, ranks=4, micro=8))
    keys = {cost.digest(one, job) for one in (config, wider) for job in jobs}
    assert len(keys) == 8


def test_what_the_table_lacks_is_recorded_or_named() -> None:
    (cell,) = enumerate_cells(["gamma"], ["ours"], [0], ["multi"])
    _, plan = small("ours")
    job = replace(JOB, precision="fp32")
    found, left = cost.estimate([cell], plan, job, accelerator("L40S"), lambda _: 64, limit_s=0.0)
    assert (found, left) == ([], ["gamma-multi-ours--vit"])
    found, left = cost.estimate([cell], plan, job, accelerator("L40S"), lambda _: 64, limit_s=60.0)
    assert left == []
    assert found[0].model.fits
    assert 0 < found[0].model.step_s < 1


def test_a_cell_costs_what_the_json_makes_it_train() -> None:
    """The micro-batch is that of the trainer, not one that would fit."""
    job = cost.Job.of(deepspeed_json.read("bf16"), 1, "bf16")
    assert job == JOB
    assert cost.Job.of(deepspeed_json.read("bf16"), 4, "bf16") == replace(JOB, ranks=4, micro=8)
    config, _ = small("ours")
    device = accelerator("A100-80")
    whole = cost.record(config, job, [device])["devices"]["A100-80"]
    split = cost.record(config, replace(job, micro=8, accumulation=4), [device])["devices"]["A100-80"]
    assert whole[1] > split[1]
    tight = replace(device, memory=0.5 * (whole[1] + split[1]), reserved=0.0, fragmentation=0.0)
    assert not cost.record(config, job, [tight])["devices"]["A100-80"][2]
    assert cost.record(config, replace(job, micro=8, accumulation=4), [tight])["devices"]["A100-80"][2]


def test_a_micro_batch_alone_is_the_batch() -> None:
    content = {"train_micro_batch_size_per_gpu": 4, "zero_optimization": {"stage": 1}}
    assert cost.Job.of(content, 2, "x.json").batch == 8
    assert cost.Job.of({**content, "gradient_accumulation_steps": 3}, 2, "x.json").batch == 24
    with pytest.raises(ConfigError, match="train_batch_size=32 is not a multiple of 3 ranks"):
        cost.Job.of(deepspeed_json.read("bf16"), 3, "bf16")


def test_ranks_are_devices_and_all_of_them_are_paid() -> None:
    model = cost.ModelCost(10**9, 0.36, 40e9, True)
    one, four = (cost.CellCost(paper_cells()[0], model, 1000, False, 3, ranks) for ranks in (1, 4))
    assert four.hours == pytest.approx(4 * one.hours)


def test_sums_and_what_rests_on_what() -> None:
    model = cost.ModelCost(10**9, 0.36, 40e9, True)
    costs = [cost.CellCost(cell, model, 1000, number == 0, 3, 1) for number, cell in enumerate(paper_cells()[:4])]
    lines = cost.describe(costs, ["x"], parse_cluster("2xA100-80"), JOB)
    text = "\n".join(lines)
    assert "cost of the 3 cells not done, on 2 x A100-80, 1 device a cell, micro-batch 32, bf16" in text
    assert "device hours: 0, so 0 hours with all 2 devices at work" in text  # 0.3
    assert "disk: 16.0 GB of weights that stay, up to 72.0 GB of checkpoints of the 2 largest at once" in text
    assert "no time to record them: x" in text
    assert lines[-1] == cost.ACCURACY
    assert "left out" not in text
    text = "\n".join(cost.describe(costs[1:2], [], parse_cluster("1xA100-80"), JOB))
    assert "the 1 cell not done" in text
    assert "with 1 device at work" in text
    assert "1 devices" not in text
    assert "of the largest at once" in text


def test_kinds_of_device_that_are_not_counted_on_are_named() -> None:
    cluster = parse_cluster("4xA100-80+8xL40S+2xA100-80")
    device, count = cost.device_of(cluster)
    assert (device.name, count) == ("L40S", 8)
    assert cost.device_of(parse_cluster("3xA100-80+4xL40S+2xA100-80"))[1] == 5
    text = "\n".join(cost.describe([], [], cluster, JOB))
    assert "left out of it: 6 x A100-80" in text
    text = "\n".join(cost.describe([], [], parse_cluster("2xL40S"), replace(JOB, ranks=4, micro=8)))
    assert "a cell takes 4 devices (--ranks), more than the 2 here" in text


def test_the_dry_run_of_the_paper_says_what_it_would_cost(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["compare", "--preset", "paper", "--dry-run", "--cluster", "4xA100-80", "--samples", "embed=8000"]
    assert main([*arguments, "--output", str(tmp_path / "x")]) == 0
    printed = capsys.readouterr().out
    assert "291 cells" in printed
    assert "on 4 x A100-80, 1 device a cell, micro-batch 32, bf16" in printed
    assert "ESTIMATE" in printed
    assert "assumed training samples, as the shards are not here: embed 8,000, rsna 10,000" in printed
    assert main([*arguments[:-1], "embed=many", "--output", str(tmp_path / "x")]) == ConfigError.exit_code
    assert main(["compare", "--cluster", "4xA100-80", "--output", str(tmp_path / "x")]) == ConfigError.exit_code


def test_the_page_about_the_paper_says_what_the_command_says() -> None:
    page = (Path(__file__).parents[3] / "docs" / "guide" / "reproduce.md").read_text(encoding="utf-8")
    text = re.search(r"^m4oe compare --preset paper --dry-run --samples (\S+)$", page, re.MULTILINE)
    assert text is not None
    samples = {name: int(number) for name, number in (item.split("=") for item in text[1].split(","))}
    cells = enumerate_cells(presets()["paper"].datasets, list(METHODS), presets()["paper"].seeds)
    device = accelerator("A100-80")
    found, left = cost.estimate(cells, PLAN, JOB, device, lambda config: samples[config.data.dataset], limit_s=0.0)
    assert left == []
    rows = re.findall(r"^\| .*\d+ TB \|$", page, re.MULTILINE)
    names = list(presets()["paper"].datasets)
    assert len(rows) == len(names) + 1
    for row, name in zip(rows, [*names, "all"], strict=True):
        mine = [one for one in found if name in ("all", one.cell.dataset)]
        kept = sum(cost.WEIGHT_BYTES * one.model.parameters for one in mine) / 1e12
        largest: dict[str, cost.ModelCost] = {}  # of a method, as the command prints it
        for one in mine:
            largest[one.cell.method] = max(
                one.model, largest.get(one.cell.method, one.model), key=lambda model: model.step_s
            )
        steps = [1e3 * model.step_s for model in largest.values()]
        peaks = [model.memory / 1e9 for model in largest.values()]
        ranges = [f"{min(steps):.0f} to {max(steps):.0f}", f"{min(peaks):.0f} to {max(peaks):.0f}"]
        ends = [f"{sum(one.hours for one in mine):,.0f}", f"{kept:.2f} TB"]
        middle = ["", "", ""] if name == "all" else [f"{samples[name]:,}", *ranges]
        assert [cell.strip() for cell in row.strip("|").split("|")][1:] == [f"{len(mine)}", *middle, *ends]
    ablation = sum(
        one.hours
        for one in found
        if one.cell.dataset == "embed" and one.cell.setting == "multi" and one.cell.method in ABLATIONS
    )
    assert f"is 12 cells, {ablation:.0f} device hours" in page
