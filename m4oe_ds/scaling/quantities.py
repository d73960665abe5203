"""What the plots of a study show over the ranks: how it is called, its axis, and what it would ideally be."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from m4oe_ds.planning.hardware import ACCELERATORS

_FAR = 4.0  # times the highest line
Points = list[tuple[int, float]]  # (ranks, amount), ascending


@dataclass(frozen=True)
class Quantity:
    """One plot.

    Attributes:
        title: what the plot shows.
        label: of its axis, with the unit.
        ideal_name: what the legend calls the ideal line.
        ideal: the ideal line from the device and the lines of a panel; empty where there is none.
        scale: sets the axis to its limits and ticks, from all amounts of a panel.
    """

    title: str
    label: str
    ideal_name: str
    ideal: Callable[[str, Sequence[Points]], Points]
    scale: Callable[[Any, Sequence[float]], None]


def plain(value: float, _: object = None) -> str:
    """A number as a person writes it: 0.5, 20, 4,000."""
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


def _proportional(_: str, lines: Sequence[Points]) -> Points:
    """From the best of the smallest point on, as many times as much as there are more ranks."""
    worlds = sorted({world for line in lines for world, _ in line})
    if not worlds:
        return []
    first, rate = worlds[0], max(amount for line in lines for world, amount in line if world == worlds[0])
    return [(world, rate * world / first) for world in worlds]


def _whole(_: str, lines: Sequence[Points]) -> Points:
    return [(world, 1.0) for world in sorted({world for line in lines for world, _ in line})]


def _of_the_device(device: str, lines: Sequence[Points]) -> Points:
    """Memory of the device, the smaller one of a mixture; none far above the lines, or of a device not known."""
    kinds = device.split("+")
    if not set(kinds) <= set(ACCELERATORS):
        return []
    most = min(ACCELERATORS[kind].memory for kind in kinds) / 1e9
    if most > _FAR * max((amount for line in lines for _, amount in line), default=most):
        return []  # it would press the lines flat
    return [(world, most) for world in sorted({world for line in lines for world, _ in line})]


def _log(axis: Any, amounts: Sequence[float]) -> None:
    positive = [amount for amount in amounts if amount > 0] or [1.0]
    axis.set_yscale("log")
    axis.set_ylim(min(positive) / 1.6, max(positive) * 2.5)  # the ideal line may leave the panel
    axis.yaxis.set_major_locator(_steps(amounts))
    axis.yaxis.set_major_formatter(plain)
    axis.yaxis.set_minor_formatter("")


def _steps(amounts: Sequence[float]) -> Any:
    """Ticks at 1, 10, 100, and between them where the numbers span little."""
    from matplotlib.ticker import LogLocator

    positive = [amount for amount in amounts if amount > 0] or [1.0]
    decades = math.log10(max(positive) / min(positive))
    return LogLocator(subs=(1.0,) if decades > 2.5 else (1.0, 2.0, 5.0))


def _shares(axis: Any, amounts: Sequence[float]) -> None:
    axis.set_ylim(0.0, max(1.1, 1.05 * max(amounts, default=1.0)))
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")


def _from_zero(axis: Any, amounts: Sequence[float]) -> None:
    top = max((line.get_ydata().max() for line in axis.lines), default=0.0)
    axis.set_ylim(0.0, 1.15 * max(*amounts, top))
    axis.yaxis.set_major_formatter(plain)


THROUGHPUT = Quantity("Throughput", "samples per second", "ideal: in proportion to ranks", _proportional, _log)
EFFICIENCY = Quantity(
    "Efficiency", "throughput per rank,\nrelative to the fewest ranks", "ideal: no loss", _whole, _shares
)
MEMORY = Quantity("Memory", "GB per rank, at its peak", "memory of the device", _of_the_device, _from_zero)
