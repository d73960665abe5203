"""Plots of a study: throughput, efficiency, memory and the split of a step; dashed is simulated, dotted is ideal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

from m4oe_ds.report.figures import COLOURS, STYLE, panels, save
from m4oe_ds.scaling.quantities import EFFICIENCY, MEMORY, THROUGHPUT, Quantity
from m4oe_ds.scaling.rows import StudyRow, efficiency

PARTS = (
    ("compute_ms", "compute"),
    ("all_to_all_ms", "all-to-all"),
    ("reduction_ms", "reduction and gathering"),
    ("optimizer_ms", "optimizer"),
    ("data_ms", "data"),
)
LARGEST = 48  # bars of the split


def draw(rows: Sequence[StudyRow], folder: Path) -> list[Path]:
    """Writes ``throughput``, ``efficiency``, ``memory`` and ``split`` as PNG and SVG; returns the PNG paths."""
    made = {
        "throughput": _lines(rows, THROUGHPUT, lambda row: row.samples_per_s),
        "efficiency": _lines(rows, EFFICIENCY, lambda row: efficiency(row, rows)),
        "memory": _lines(rows, MEMORY, lambda row: row.memory_bytes / 1e9),
        "split": _split(rows),
    }
    for name, figure in made.items():
        save(figure, folder, name)
    return [folder / f"{name}.png" for name in made]


@dataclass(frozen=True)
class _Line:
    """What the points of a line share.

    Attributes:
        experts: experts of the MToE.
        ep: ranks that share them; 0 = simulated, as many as a node allows.
        measured: or simulated.
        digest: hash of the setting.
    """

    experts: int
    ep: int
    measured: bool
    digest: str

    def label(self, several: bool) -> str:
        """What the legend calls it; with its setting where measured points have several."""
        how = f", ep {self.ep}" if self.measured else " (simulated)"
        return f"{self.experts} experts{how}{f', {self.digest}' if self.measured and several else ''}"


def _lines(rows: Sequence[StudyRow], quantity: Quantity, value: Callable[[StudyRow], float | None]) -> Any:
    """One panel per mode and device, one line per number of experts, with what an ideal machine would show."""
    places = sorted({(row.mode, row.device) for row in rows})
    lines = sorted({_line(row) for row in rows}, key=astuple)
    several = len({line.digest for line in lines if line.measured}) > 1
    with mpl.rc_context(STYLE):
        figure, axes = panels(len(places), ({1: 6.4, 2: 4.6}.get(len(places), 3.6), 3.5), most=3)
        known: dict[str, Any] = {}
        for axis, (mode, device) in zip(axes, places, strict=True):
            here = [row for row in rows if (row.mode, row.device) == (mode, device)]
            found: dict[_Line, list[tuple[int, float]]] = {}
            for row in sorted(here, key=lambda row: (row.world, row.ep)):
                amount = value(row)
                if amount is not None:
                    found.setdefault(_line(row), []).append((row.world, amount))
            for line, points in found.items():
                (known[line.label(several)],) = axis.plot(*zip(*points, strict=True), **_look(line, lines))
            ideal = quantity.ideal(device, list(found.values()))
            if ideal:
                (known[quantity.ideal_name],) = axis.plot(*zip(*ideal, strict=True), ":", color="#555555", lw=1.6)
            _ranks(axis, sorted({row.world for row in here}))
            axis.set_title(f"{device}: {mode} scaling\n{_fixed(here)}", fontsize=9)
            axis.set_ylabel(quantity.label)
            everywhere = [value(row) for row in rows if row.mode == mode]  # devices can be compared along a line
            quantity.scale(axis, [amount for amount in everywhere if amount is not None])
        named = [line.label(several) for line in lines] + [quantity.ideal_name]
        shown = [name for name in dict.fromkeys(named) if name in known]
        columns = int(figure.get_figwidth() / 2.4)
        figure.legend([known[name] for name in shown], shown, fontsize=8, loc="outside lower center", ncols=columns)
        figure.suptitle(f"{quantity.title}: {_setting(rows)}", fontsize=11)
        return figure


def _line(row: StudyRow) -> _Line:
    return _Line(row.experts, row.ep if row.measured else 0, row.measured, row.digest if row.measured else "")


def _look(line: _Line, lines: Sequence[_Line]) -> dict[str, Any]:
    """Colour and mark by the number of experts, so that lines on each other can be told; hollow where experts are
    shared."""
    place = sorted({one.experts for one in lines}).index(line.experts)
    return {
        "ls": "-" if line.measured else "--",
        "lw": 1.2,
        "marker": "osv^Dx"[place % 6],
        "ms": 8 - 1.5 * (place % 4),  # the later and smaller ones stay visible on the earlier
        "color": COLOURS[place % len(COLOURS)],
        "mfc": "white" if line.ep > 1 else None,
    }


def _fixed(rows: Sequence[StudyRow]) -> str:
    """What stays the same along the lines of a panel."""
    weak = rows[0].mode == "weak"
    counts = sorted({row.micro if weak else row.batch for row in rows})
    return f"{' or '.join(map(str, counts))} samples per {'rank' if weak else 'step'}"


def _setting(rows: Sequence[StudyRow]) -> str:
    """Configuration, ZeRO stage and precision, and whether anything was measured."""
    names = sorted({Path(row.setting.split(" ")[0]).stem for row in rows if row.setting})
    how = sorted({f"ZeRO-{row.stage}, {row.precision}" for row in rows})
    kinds = {True: "measured", False: "simulated"}
    origin = " and ".join(kinds[one] for one in sorted({row.measured for row in rows}, reverse=True))
    named = f"configuration {', '.join(names)}" if names else "M4oE"
    return f"{named}, {'; '.join(how)}, {origin}"


def _ranks(axis: Any, worlds: Sequence[int]) -> None:
    """An axis of ranks with their very numbers."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(worlds, [str(world) for world in worlds], rotation=45 if len(worlds) > 6 else 0, fontsize=8)
    axis.set_xticks([], minor=True)
    axis.set_xlim(worlds[0] / 1.3, worlds[-1] * 1.3)
    axis.set_xlabel("ranks")


def _split(rows: Sequence[StudyRow]) -> Any:
    """Milliseconds of every part, one bar per point; of many points those of the fewest and the most ranks."""
    known = [row for row in rows if row.compute_ms is not None]
    known.sort(key=lambda row: (not row.measured, row.mode, row.device, row.experts, row.world, row.ep))
    shown, note = _ends(known)
    with mpl.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(9, 0.27 * max(len(shown), 3) + 1.6))
        left = [0.0] * len(shown)
        for number, (name, label) in enumerate(PARTS):
            widths = [getattr(row, name) or 0.0 for row in shown]
            if any(widths):
                axis.barh(range(len(shown)), widths, left=left, color=COLOURS[number], label=label, height=0.75)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        names = [
            f"{row.device}, {row.mode}: {row.experts} experts, {row.world} ranks, ep {row.ep}"
            f"{'' if row.measured else ' (simulated)'}"
            for row in shown
        ]
        axis.set(yticks=range(len(shown)), yticklabels=names, xlabel="ms per step, one part after the other")
        axis.set_ylim(len(shown) - 0.4, -0.6)
        axis.tick_params(axis="y", labelsize=8)
        axis.grid(visible=False, axis="y")
        figure.suptitle(f"Where the time of a step goes: {_setting(rows)}{note}", fontsize=11)
        if known:
            figure.legend(fontsize=8, ncols=len(PARTS), loc="outside lower center")
        return figure


def _ends(known: Sequence[StudyRow]) -> tuple[list[StudyRow], str]:
    """The points that are drawn, and what the title says where these are not all."""
    if len(known) <= LARGEST:
        return list(known), ""
    studies: dict[tuple[object, ...], list[StudyRow]] = {}
    for row in known:
        studies.setdefault((row.measured, row.mode, row.device, row.experts), []).append(row)
    worlds = [{min(row.world for row in study), max(row.world for row in study)} for study in studies.values()]
    ends = [row for study, two in zip(studies.values(), worlds, strict=True) for row in study if row.world in two]
    shown = ends[:LARGEST]
    return shown, f"\n{len(shown)} of {len(known)} points: fewest and most ranks; all are in scaling.csv"
