"""The ablation sweeps of Fig. 7: experts of the MToE and the weight of the mutual-information term."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from m4oe_ds.errors import ConfigError
from m4oe_ds.option_lists import comma_list

_OPTIONS = {"experts": "model.mtoe.num_experts", "alpha": "loss.alpha"}


@dataclass(frozen=True)
class Point:
    """One value of a swept option.

    Attributes:
        label: ``experts=32``.
        override: override of the configuration, e.g. ``model.mtoe.num_experts=32``.
    """

    label: str
    override: str


def parse_sweep(text: str) -> list[Point]:
    """Points of ``experts=16,32`` or ``alpha=0,0.1,...,0.5`` (an ellipsis continues with the step before it).

    Raises:
        ConfigError: another option, no numbers, experts that are not whole and positive, a negative alpha, or an
            ellipsis that the numbers around it do not define.
    """
    name, _, values = text.partition("=")
    parts = comma_list(values, "--sweep", str)
    if name not in _OPTIONS or not parts:
        raise _unreadable(text)
    try:
        numbers = _filled(parts)
    except (ValueError, IndexError):
        raise _unreadable(text) from None
    if name == "experts" and any(number < 1 or number != int(number) for number in numbers):
        raise ConfigError(f"experts are counted, got {values}", "--sweep", "write e.g. experts=16,32,64,128")
    if any(number < 0 or not math.isfinite(number) for number in numbers):
        raise ConfigError(f"alpha cannot be {values}", "--sweep", "write e.g. alpha=0,0.05,0.1")
    # the same value written twice, or 0.10 for 0.1, is one point
    return [Point(f"{name}={value}", f"{_OPTIONS[name]}={value}") for value in dict.fromkeys(f"{n:g}" for n in numbers)]


def _unreadable(text: str) -> ConfigError:
    return ConfigError(f"cannot read {text!r}", "--sweep", "write experts=16,32,64,128 or alpha=0,0.1,...,0.5")


def _filled(parts: Sequence[str]) -> list[float]:
    numbers: list[float] = []
    for position, part in enumerate(parts):
        if part != "...":
            numbers.append(float(part))
            continue
        step, end = numbers[-1] - numbers[-2], float(parts[position + 1])
        count = round((end - numbers[-1]) / step) if step else 0
        if count < 1 or abs(numbers[-1] + count * step - end) > 1e-9 * max(1.0, abs(end)):
            raise ValueError(part)
        numbers += [numbers[-1] + k * step for k in range(1, count)]
    return numbers


def option_and_value(label: str) -> tuple[str, float]:
    """``("experts", 32.0)`` of ``experts=32``."""
    option, _, value = label.partition("=")
    return option, float(value)


SWEEP_COLUMNS = ("option", "value", "data set", "method", "task", "metric", "mean", "spread", "seeds")


@dataclass(frozen=True)
class SweepRow:
    """A row of ``sweep.csv``, fields in the order of SWEEP_COLUMNS.

    Attributes:
        option: the swept option, ``experts`` or ``alpha``.
        value: value of the swept option.
        dataset: data set evaluated on.
        method: trained method.
        task: evaluated task.
        metric: metric of the task.
        mean: over the seeds.
        spread: standard deviation over the seeds; None for one seed.
        seeds: number of seeds.
    """

    option: str
    value: float
    dataset: str
    method: str
    task: str
    metric: str
    mean: float
    spread: float | None
    seeds: int

    def cells(self) -> list[str]:
        """The row as text."""
        spread = "" if self.spread is None else f"{self.spread:.4f}"
        numbers = (f"{self.mean:.4f}", spread, str(self.seeds))
        return [self.option, f"{self.value:g}", self.dataset, self.method, self.task, self.metric, *numbers]

    @classmethod
    def parsed(cls, row: Mapping[str, str]) -> SweepRow:
        """The row that was written as :meth:`cells`, by column.

        Raises:
            ValueError: a value that is not a number.
        """
        option, value, dataset, method, task, metric, mean, spread, seeds = (row[name] for name in SWEEP_COLUMNS)
        deviation = float(spread) if spread else None
        return cls(option, float(value), dataset, method, task, metric, float(mean), deviation, int(seeds))
