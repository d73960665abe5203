"""Rows survive writing and reading, efficiency has its definition, impossible points are named, simulations marked."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from m4oe_ds import config_loader
from m4oe_ds.cli import main
from m4oe_ds.errors import ConfigError, DataError
from m4oe_ds.models.registry import expert_counts
from m4oe_ds.scaling import rows, simulate, study
from m4oe_ds.scaling.command import numbers

ROW = rows.StudyRow(
    experts=16,
    ep=1,
    world=1,
    mode="weak",
    batch=4,
    micro=4,
    stage=2,
    precision="fp32",
    device="CPU",
    parameters=100,
    step_ms=100.0,
    step_ms_low=90.0,
    step_ms_high=110.0,
    samples_per_s=40.0,
    memory_bytes=1e9,
    compute_ms=80.0,
    all_to_all_ms=0.0,
    reduction_ms=0.0,
    optimizer_ms=10.0,
    data_ms=None,
    all_to_all_bytes=0.0,
    measured=True,
    source="today",
    setting="c.yaml d.json",
    digest="0123abcd",
    data="random tensors",
)
TINY = (
    "data.image_size=[32,24]",
    "model.dim=32",
    "model.embedder.backbone=vit_tiny_patch16_224",
    "model.embedder.options={patch_size: 8, embed_dim: 32, depth: 1, num_heads: 4}",
    "model.msoe={num_experts: 16, depth: 1, num_heads: 4}",
    "model.fusion={num_experts: 16, depth: 1, num_heads: 4}",
)


def other(**changes: object) -> rows.StudyRow:
    return dataclasses.replace(ROW, **changes)  # type: ignore[arg-type]


def test_points_and_tables_are_read_back(tmp_path: Path) -> None:
    second = other(world=2, batch=8, ep=2, samples_per_s=60.0, data_ms=1.5, measured=False)
    rows.write_point(second, tmp_path)
    rows.write_point(ROW, tmp_path)
    assert rows.read_points(tmp_path) == [ROW, second]
    rows.write_csv([ROW, second], tmp_path / "x.csv")
    assert rows.read_csv(tmp_path / "x.csv") == [ROW, second]
    text = rows.table([ROW, second])
    assert "SIMULATED" in text.splitlines()[3]
    assert "measured" in text.splitlines()[2]


def test_damaged_points_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no points"):
        rows.read_points(tmp_path)
    path = rows.write_point(ROW, tmp_path)
    path.write_text("{}")
    with pytest.raises(DataError, match=path.name):
        rows.read_points(tmp_path)
    (tmp_path / "x.csv").write_text("experts\n1\n")
    with pytest.raises(DataError, match="not a table"):
        rows.read_csv(tmp_path / "x.csv")


def test_efficiency_is_throughput_per_rank_over_that_of_the_smallest_world() -> None:
    two, four = other(world=2, batch=8, samples_per_s=60.0), other(world=4, batch=16, samples_per_s=100.0)
    simulated = other(world=2, samples_per_s=1.0, measured=False)
    table = [ROW, two, four, simulated]
    assert [rows.efficiency(row, table) for row in table] == pytest.approx([1.0, 0.75, 0.625, 1.0])
    strong = [
        other(mode="strong"),
        other(mode="strong", world=2, samples_per_s=80.0),
        other(mode="strong", batch=64, world=2),
    ]
    assert rows.efficiency(strong[1], strong) == pytest.approx(1.0)
    assert rows.efficiency(strong[2], strong) == pytest.approx(1.0)  # nothing smaller with this batch


def test_efficiency_compares_nothing_of_another_study() -> None:
    changes: list[dict[str, object]] = [
        {"digest": "f"},
        {"micro": 8},
        {"stage": 1},
        {"precision": "bf16"},
        {"device": "GPU"},
    ]
    for change in changes:
        alone = other(world=2, batch=8, samples_per_s=10.0, **change)
        assert rows.efficiency(alone, [ROW, alone]) == pytest.approx(1.0), change
    sharded = other(ep=2, samples_per_s=60.0)
    assert rows.efficiency(sharded, [ROW, sharded]) is None


def test_settings_are_named_where_there_are_several() -> None:
    assert "setting" not in rows.table([ROW])
    assert "c.yaml d.json (f)" in rows.table([ROW, other(digest="f")])


def test_digests_follow_what_a_setting_says(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("{}\n")
    (tmp_path / "d.json").write_text("{}")
    (tmp_path / "same.json").write_text("{ }")
    (tmp_path / "other.json").write_text('{"gradient_clipping": 1.0}')

    def of(name: str, *overrides: str) -> str:
        return study.digest(str(tmp_path / "c.yaml"), str(tmp_path / name), overrides)

    assert of("d.json") == of("same.json")
    assert len({of("d.json"), of("other.json"), of("d.json", "model.dim=32")}) == 3


def test_impossible_points_are_left_out_with_the_reason() -> None:
    config = config_loader.load(None, [*TINY, "model.msoe.num_experts=6"])
    possible, impossible = study.grid(config, [16, 18], [1, 2, 4], [1, 4], ["weak", "strong"], 6)
    assert {(c.experts, c.ep, c.world) for c in possible if c.mode == "weak"} == {
        (16, 1, 1),
        (18, 1, 1),
        (16, 1, 4),
        (16, 2, 4),
        (18, 1, 4),
        (18, 2, 4),
    }
    assert {c.world for c in possible if c.mode == "strong"} == {1}
    reasons = {(c.experts, c.ep, c.world, c.mode): reason for c, reason in impossible}
    assert reasons[16, 2, 1, "weak"] == "ep 2 does not divide 1 ranks"
    assert "experts of every layer" in reasons[16, 4, 4, "weak"]
    assert "batch of 6" in reasons[16, 1, 4, "strong"]
    assert len(possible) + len(impossible) == 2 * 3 * 2 * 2


def test_layers_with_as_many_experts_as_the_mtoe_count_too() -> None:
    config = config_loader.load(None, [*TINY, "model.mtoe.num_experts=16"])  # as in the fusion and the MSoE
    possible, impossible = study.grid(config, [48], [3], [3], ["weak"], 1)
    assert not possible
    assert impossible[0][1] == "ep 3 does not divide the experts of every layer (16, 16, 48)"


def test_a_model_without_experts_has_none_to_share() -> None:
    config = config_loader.load(None, [*TINY, "model.name=mirai"])
    possible, impossible = study.grid(config, [16], [1, 2], [2], ["weak"], 1)
    assert [cell.ep for cell in possible] == [1]
    assert impossible[0][1] == "ep 2, but mirai has no experts to share"
    cluster = simulate.cluster_of(["A100-80"], 8)
    assert cluster is not None
    assert simulate.largest_ep(cluster, expert_counts(config)) == 1


def test_a_point_that_fails_or_hangs_is_reported(tmp_path: Path) -> None:
    import sys

    cell = study.GridPoint(4, 1, 2, "weak")
    fails = [sys.executable, "-c", "import os, sys; print('error: out of luck', os.environ['RANK']); sys.exit(3)"]
    assert "out of luck" in study.run_cell(cell, [], 900, fails)
    hangs = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert "not finished after" in study.run_cell(cell, [], 1, hangs)
    # rank 0 waits for a rank that is gone: what that one said counts, long before the timeout
    one_dies = "import os, sys, time\nif os.environ['RANK'] == '1': sys.exit('error: gone')\ntime.sleep(600)"
    assert study.run_cell(cell, [], 500, [sys.executable, "-c", one_dies]) == "error: gone"
    # more output than a pipe holds, from a rank that nobody reads yet
    loud = "import os\nif os.environ['RANK'] == '1': print('x' * 2_000_000)"
    assert study.run_cell(cell, [], 900, [sys.executable, "-c", loud]) == ""
    given = [
        sys.executable,
        "-c",
        "import os, sys; sys.exit(sys.argv[1:] != '--experts 4 --ep 1 --mode weak --x'.split()"
        " or os.environ['SEEN'] != 'yes' or os.environ['WORLD_SIZE'] != '2')",
    ]
    assert study.run_cell(cell, ["--x"], 900, given, more={"SEEN": "yes"}) == ""


def test_points_that_are_there_are_kept_and_failures_with_a_point_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [study.GridPoint(4, 1, world, "weak") for world in (1, 2, 4, 8)]
    there, said, started = {cells[0]}, list[str](), list[study.GridPoint]()

    def run_cell(cell: study.GridPoint, options: object, timeout_s: float) -> str:
        started.append(cell)
        if cell == cells[1]:
            there.add(cell)  # written, then aborted at exit
        return "" if cell.world == 8 else "terminate called"

    monkeypatch.setattr(study, "run_cell", run_cell)
    failures = study.run(cells, lambda cell: cell in there, [], 1.0, said.append)
    assert started == cells[1:]
    assert failures == [(cells[2], "terminate called"), (cells[3], study.NO_POINT)]  # success is a point, not a status
    assert "measured already" in said[0]


def test_numbers_and_paths() -> None:
    assert numbers("16, 32", "--experts") == [16, 32]
    for text in ("", "a", "0", "4,-1"):
        with pytest.raises(ConfigError, match="--experts"):
            numbers(text, "--experts")
    cell = study.GridPoint(16, 1, 1, "weak")
    assert study.path_of(Path("x"), cell, 4, 99, ROW.digest) == Path("x/points") / f"{ROW.name}.json"


def test_simulated_points_follow_the_slowest_device_and_are_marked(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("{}\n")
    options = simulate.Simulation(
        config=str(tmp_path / "c.yaml"),
        overrides=TINY,
        experts=[16],
        clusters=[["A100-80"], ["L40"], ["A100-80", "L40"]],
        worlds=[8, 16, 25],
        modes=["weak", "strong"],
        micro=4,
        batch=64,
        stage=2,
        precision="bf16",
    )
    made, left_out = simulate.simulate(options)
    assert len(made) == 14
    # 3 clusters, 3 worlds, 2 modes: nothing is left out without a word
    assert len(made) + len(left_out) == 18
    reasons = dict(left_out)
    assert reasons["16 experts, 25 x A100-80, strong"] == "a batch of 64 cannot be shared by 25 ranks"
    assert reasons["16 experts, 25 x A100-80+L40, weak"] == "25 devices cannot be shared equally by 2 kinds"
    assert {row.ep for row in made if row.world == 8} == {8}
    assert not any(row.measured for row in made)
    by = {(row.device, row.world, row.mode): row for row in made}
    fast, slow, mixed = (by[name, 16, "weak"] for name in ("A100-80", "L40", "A100-80+L40"))
    assert fast.step_ms < slow.step_ms
    assert mixed.compute_ms == pytest.approx(max(fast.compute_ms or 0, slow.compute_ms or 0))
    assert "pace of L40" in mixed.source
    assert by["A100-80", 8, "weak"].batch == 32
    assert by["A100-80", 16, "strong"].batch == by["A100-80", 8, "strong"].batch == 64
    assert simulate.cluster_of(["A100-80", "L40S"], 9) is None
    with pytest.raises(ConfigError, match="A100"):
        simulate.cluster_of(["A100-88"], 8)


def test_experts_are_shared_by_a_node_of_ranks_at_most() -> None:
    for kinds, world, counts, ep in (
        (["A100-80"], 64, [32, 16], 8),
        (["A100-80"], 64, [32, 12], 4),
        (["A100-80", "L40S"], 8, [32], 8),
        (["A100-80", "L40S"], 4, [32, 16], 4),
        (["A100-80"], 12, [32], 4),
        (["A100-80"], 4, [32], 4),
    ):
        cluster = simulate.cluster_of(kinds, world)
        assert cluster is not None
        assert simulate.largest_ep(cluster, counts) == ep


def test_collect_writes_tables_and_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows.write_point(ROW, tmp_path)
    rows.write_csv(
        [other(world=8, batch=32, measured=False, samples_per_s=200.0, device="A100-80")], tmp_path / "simulated.csv"
    )
    rows.write_left_out([("16 experts, ep 3", "no")], tmp_path / "left-out-run.json")
    assert main(["scale", "collect", str(tmp_path)]) == 0
    assert "1 measured and 1 simulated points" in capsys.readouterr().out
    assert len((tmp_path / "scaling.csv").read_text().splitlines()) == 3
    written = (tmp_path / "scaling.md").read_text()
    assert "- left out: 16 experts, ep 3: no" in written
    assert written.count("- simulated rows assume: ") == len(simulate.ASSUMED) > 1
    for name in ("throughput", "efficiency", "memory", "split"):
        assert (tmp_path / "figures" / f"{name}.png").stat().st_size > 1000
        assert (tmp_path / "figures" / f"{name}.svg").is_file()
    assert main(["scale", "collect", str(tmp_path / "absent")]) != 0
