"""Published figures and presets of the comparison, from the data files next to this module; nothing else names a data
set.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

_HERE = Path(__file__).parent
SETTINGS = ("single", "multi")


@dataclass(frozen=True)
class Published:
    """Figures of the paper, percent.

    Attributes:
        source: whose they are.
        note: what a reader must know of them.
        columns: scored tasks of each data set, in the paper's order.
        figures: by ``(single or multi, method)`` and data set one number per column.
        ablation: data set of the paper's Table 2.
    """

    source: str
    note: str
    columns: Mapping[str, tuple[str, ...]]
    figures: Mapping[tuple[str, str], Mapping[str, tuple[float, ...]]]
    ablation: str


@dataclass(frozen=True)
class Preset:
    """What is run where the command line does not say; sizes are in ``configs/compare/<preset>``.

    Attributes:
        datasets: names of cards.
        methods: names or groups of methods.
        seeds: one run each.
        settings: ``single``, ``multi``.
    """

    datasets: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: tuple[str, ...] = SETTINGS


@cache
def published() -> Published:
    """The paper's Table 1 and Table 2."""
    content = _read("published.yaml")
    figures = {
        (setting, method): {name: tuple(map(float, values)) for name, values in row.items()}
        for setting in SETTINGS
        for method, row in content[setting].items()
    }
    columns = {name: tuple(tasks) for name, tasks in content["columns"].items()}
    return Published(content["source"], content["note"], columns, figures, content["ablation"])


@cache
def presets() -> dict[str, Preset]:
    """Presets by name."""
    return {
        name: Preset(*(tuple(entry[key]) for key in ("datasets", "methods", "seeds", "settings")))
        for name, entry in _read("presets.yaml").items()
    }


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((_HERE / name).read_text(encoding="utf-8"))
    return content
