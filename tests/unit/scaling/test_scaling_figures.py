"""Plots of a study that a person can read: a panel per device, plain numbers, the ideal, a legend beside the data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from matplotlib import pyplot as plt

from m4oe_ds.scaling import figures
from m4oe_ds.scaling.quantities import EFFICIENCY, MEMORY, THROUGHPUT
from m4oe_ds.scaling.rows import StudyRow, efficiency
from tests.unit.scaling.test_scaling_rows import other

WORLDS = (1, 2, 4, 8)


def study() -> list[StudyRow]:
    """Two devices, two modes, two numbers of experts; throughput grows with the 0.9th power of the ranks."""
    return [
        other(
            experts=experts,
            world=world,
            mode=mode,
            device=device,
            batch=4 * world if mode == "weak" else 64,
            samples_per_s=speed * world**0.9 / experts,
            memory_bytes=30e9,
            measured=False,
        )
        for experts in (16, 32)
        for mode in ("strong", "weak")
        for device, speed in (("A100-80", 900.0), ("L40S", 500.0))
        for world in WORLDS
    ]


def drawn(quantity: Any, value: Any, rows: list[StudyRow]) -> tuple[Any, dict[str, Any]]:
    figure = figures._lines(rows, quantity, value)
    figure.canvas.draw()
    axes = [axis for axis in figure.axes if axis.axison]
    return figure, {axis.get_title().split("\n")[0]: axis for axis in axes}


def dotted(axis: Any) -> list[Any]:
    return [line for line in axis.lines if line.get_linestyle() == ":"]


@pytest.fixture(autouse=True)
def _no_figure_is_left() -> Any:
    yield
    plt.close("all")


def test_one_panel_for_each_device_with_its_ranks_as_plain_numbers() -> None:
    figure, panels = drawn(THROUGHPUT, lambda row: row.samples_per_s, study())
    assert set(panels) == {f"{device}: {mode} scaling" for device in ("A100-80", "L40S") for mode in ("weak", "strong")}
    for title, axis in panels.items():
        assert [label.get_text() for label in axis.get_xticklabels()] == ["1", "2", "4", "8"]
        written = [label.get_text() for label in axis.get_yticklabels() if label.get_text()]
        assert written
        assert not any("$" in text or "e" in text for text in written)
        assert len(axis.lines) == 3  # two numbers of experts and the ideal
        assert f"{4 if 'weak' in title else 64} samples per {'rank' if 'weak' in title else 'step'}" in axis.get_title()
    assert figure.get_suptitle() == "Throughput: configuration c, ZeRO-2, fp32, simulated"


def test_the_ideal_is_drawn() -> None:
    _, panels = drawn(THROUGHPUT, lambda row: row.samples_per_s, study())
    (ideal,) = dotted(panels["A100-80: weak scaling"])
    assert ideal.get_ydata() == pytest.approx([900 / 16 * world for world in WORLDS])  # from the faster line
    rows = study()
    _, panels = drawn(EFFICIENCY, lambda row: efficiency(row, rows), rows)
    for axis in panels.values():
        (ideal,) = dotted(axis)
        assert list(ideal.get_ydata()) == [1.0] * 4
        assert axis.get_ylim() == (0.0, 1.1)
        assert axis.lines[0].get_ydata()[-1] == pytest.approx(8**-0.1)


def test_memory_shows_that_of_the_device_where_it_is_near_and_known() -> None:
    _, panels = drawn(MEMORY, lambda row: row.memory_bytes / 1e9, study())
    assert [np.unique(line.get_ydata()).item() > 40 for line in dotted(panels["L40S: weak scaling"])] == [True]
    _, panels = drawn(MEMORY, lambda row: row.memory_bytes / 1e11, study())
    assert not any(dotted(axis) for axis in panels.values())
    unknown = [other(device="Xeon")]
    _, panels = drawn(MEMORY, lambda row: row.memory_bytes / 1e9, unknown)
    assert not dotted(panels["Xeon: weak scaling"])


def test_legend_and_title_cover_no_data_and_leave_no_room() -> None:
    for rows in (study(), study()[:4], [*study(), *(other(ep=ep, world=4, batch=16) for ep in (1, 2, 4))]):
        figure, panels = drawn(THROUGHPUT, lambda row: row.samples_per_s, rows)
        (legend,) = figure.legends
        box = legend.get_window_extent()
        assert not any(box.overlaps(axis.get_window_extent()) for axis in panels.values())
        width = figure.bbox.width
        for artist in (legend, figure._suptitle):
            extent = artist.get_window_extent()
            assert extent.x0 >= 0
            assert extent.x1 <= width
        assert {text.get_text() for text in legend.get_texts()} >= {"16 experts (simulated)"}


def test_of_many_points_the_split_shows_the_ends_and_says_so() -> None:
    many = [row for row in study() for _ in range(2)]
    shown, note = figures._ends(many)
    assert len(many) > figures.LARGEST
    assert {row.world for row in shown} == {1, 8}
    assert f"{len(shown)} of {len(many)} points" in note
    assert figures._ends(many[:9]) == (many[:9], "")
