"""Plots of a study: throughput, efficiency, memory and the split of a step; dashed is simulated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

from m4oe_ds.report.figures import COLOURS, STYLE, save
from m4oe_ds.scaling.rows import StudyRow, efficiency

PARTS = (
    ("compute_ms", "compute"),
    ("all_to_all_ms", "all-to-all"),
    ("reduction_ms", "reduction and gathering"),
    ("optimizer_ms", "optimizer"),
    ("data_ms", "data"),
)
LARGEST = 40  # bars of the split


def draw(rows: Sequence[StudyRow], folder: Path) -> list[Path]:
    """Writes ``throughput``, ``efficiency``, ``memory`` and ``split`` as PNG and SVG; returns the PNG paths."""
    made = {
        "throughput": _lines(rows, lambda row: row.samples_per_s, "samples per second", both=True),
        "efficiency": _lines(
            rows, lambda row: efficiency(row, rows), "throughput per rank, relative to the smallest", both=False
        ),
        "memory": _lines(rows, lambda row: row.memory_bytes / 1e9, "GB per rank", both=False),
        "split": _split(rows),
    }
    for name, figure in made.items():
        save(figure, folder, name)
    return [folder / f"{name}.png" for name in made]


def _lines(rows: Sequence[StudyRow], value: Callable[[StudyRow], float | None], label: str, *, both: bool) -> Any:
    """One panel per mode, one line per study over the ranks; measured points also one per ep, hollow from 2."""
    modes = sorted({row.mode for row in rows})
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(1, len(modes), figsize=(6.2 * len(modes), 4), squeeze=False)
        for axis, mode in zip(axes.flat, modes, strict=True):
            lines: dict[tuple[int, str, bool, int, str], list[StudyRow]] = {}
            for row in rows:
                if row.mode == mode:
                    ep = row.ep if row.measured else 0  # simulated: whatever a node allows
                    lines.setdefault((row.experts, row.device, row.measured, ep, row.digest), []).append(row)
            counts = sorted({key[0] for key in lines})
            devices = sorted({key[1] for key in lines})
            several = len({key[4] for key in lines if key[2]}) > 1
            for (experts, device, measured, ep, digest), points in sorted(lines.items()):
                drawn = [(row.world, value(row)) for row in sorted(points, key=lambda row: (row.world, row.ep))]
                drawn = [(x, y) for x, y in drawn if y is not None]
                axis.plot(
                    [x for x, _ in drawn],
                    [y for _, y in drawn],
                    "-" if measured else "--",
                    marker="osv^Dx"[devices.index(device) % 6],
                    ms=4,
                    lw=1,
                    color=COLOURS[counts.index(experts) % len(COLOURS)],
                    mfc="white" if ep > 1 else None,
                    label=f"{experts} experts{f', ep {ep}' if measured else ''}, {device}"
                    f"{'' if measured else ' (simulated)'}"
                    f"{f', {digest}' if measured and several else ''}",
                )
            axis.set(title=f"{mode} scaling", xlabel="ranks", ylabel=label, xscale="log")
            axis.set_xscale("log", base=2)
            if both:
                axis.set_yscale("log")
            axis.legend(fontsize=7)
        return figure


def _split(rows: Sequence[StudyRow]) -> Any:
    """Milliseconds of every part, one bar per point."""
    known = [row for row in rows if row.compute_ms is not None]
    known.sort(key=lambda row: (not row.measured, row.mode, row.device, row.experts, row.world, row.ep))
    shown = known[:LARGEST]
    with mpl.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(8, 0.32 * max(len(shown), 3) + 1.2))
        left = [0.0] * len(shown)
        for number, (name, label) in enumerate(PARTS):
            widths = [getattr(row, name) or 0.0 for row in shown]
            axis.barh(range(len(shown)), widths, left=left, color=COLOURS[number], label=label, height=0.75)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        names = [
            f"{row.experts} e, {row.world} ranks, ep {row.ep}, {row.mode}"
            f"{'' if row.measured else ', ' + row.device + ' (simulated)'}"
            for row in shown
        ]
        axis.set(yticks=range(len(shown)), yticklabels=names, xlabel="ms per step, one part after the other")
        axis.tick_params(axis="y", labelsize=7)
        axis.invert_yaxis()
        if len(shown) < len(known):
            axis.set_title(f"the first {len(shown)} of {len(known)} points; all are in scaling.csv", fontsize=8)
        axis.legend(
            fontsize=7, ncols=len(PARTS), loc="upper center", bbox_to_anchor=(0.5, -0.6 / figure.get_figheight())
        )
        return figure
