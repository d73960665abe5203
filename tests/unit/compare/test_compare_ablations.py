"""Sweeps as they are written become points; what cannot be swept is refused."""

from __future__ import annotations

import pytest

from m4oe_ds.compare.ablations import SWEEP_COLUMNS, SweepRow, option_and_value, parse_sweep
from m4oe_ds.compare.cells import enumerate_cells
from m4oe_ds.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "overrides"),
    [
        ("experts=16,32", ["model.mtoe.num_experts=16", "model.mtoe.num_experts=32"]),
        ("alpha=0,0.10, 0.1", ["loss.alpha=0", "loss.alpha=0.1"]),
        ("alpha=0,0.1,...,0.5", [f"loss.alpha={value}" for value in ("0", "0.1", "0.2", "0.3", "0.4", "0.5")]),
        ("experts=16,32,...,64,128", [f"model.mtoe.num_experts={value}" for value in (16, 32, 48, 64, 128)]),
    ],
)
def test_points(text: str, overrides: list[str]) -> None:
    points = parse_sweep(text)
    assert [point.override for point in points] == overrides
    assert [option_and_value(point.label)[1] for point in points] == [float(item.split("=")[1]) for item in overrides]


@pytest.mark.parametrize(
    "text",
    [
        "experts",
        "experts=",
        "depth=1",
        "alpha=x",
        "alpha=...,1",
        "alpha=0,...,1",
        "alpha=0,0.1,...",
        "alpha=0,0.3,...,1",
        "alpha=1,1,...,2",
        "experts=0",
        "experts=1.5",
        "alpha=-0.1",
        "alpha=nan",
        "alpha=0,inf",
    ],
)
def test_unreadable_sweeps(text: str) -> None:
    with pytest.raises(ConfigError, match="--sweep"):
        parse_sweep(text)


def test_only_what_has_an_mtoe_is_swept() -> None:
    for method in ("ours_no_mtoe", "aide", "soft_moe"):
        with pytest.raises(ConfigError, match=f"changes nothing in {method}"):
            enumerate_cells(["embed"], [method], [0], sweeps=["experts=16"])
    with pytest.raises(ConfigError, match="changes nothing in ours_no_mi"):
        enumerate_cells(["embed"], ["ours_no_mi"], [0], sweeps=["alpha=0.1"])
    names = {cell.name for cell in enumerate_cells(["embed"], ["ours", "mirai_mtoe"], [0], sweeps=["experts=16"])}
    assert names == {"embed-multi-ours-experts16-seed0", "embed-multi-mirai_mtoe-experts16-seed0"}


def test_a_row_of_the_table_is_read_as_it_was_written() -> None:
    rows = [
        SweepRow("experts", 32.0, "embed", "ours", "density", "accuracy", 0.8125, 0.0125, 3),
        SweepRow("alpha", 0.05, "rsna", "ours", "risk1", "auroc", 0.75, None, 1),
    ]
    assert [SweepRow.parsed(dict(zip(SWEEP_COLUMNS, row.cells(), strict=True))) for row in rows] == rows
