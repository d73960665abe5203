"""Records what every kind of model of ``m4oe compare``'s presets costs into ``m4oe_ds/compare/costs.json``.

Run it after a change of a preset or of a model: ``python tools/compare_costs.py [--preset paper] [--ranks 1]``. What is
there and unchanged is not recorded again. Some minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from m4oe_ds import config_loader, deepspeed_json
from m4oe_ds.compare import cost
from m4oe_ds.compare.cells import METHODS, enumerate_cells
from m4oe_ds.compare.published import presets
from m4oe_ds.compare.run import CellPlan
from m4oe_ds.progress import track

JSONS = {"paper": "bf16"}


def main() -> None:
    """Writes the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--preset", default="paper", choices=tuple(presets()))
    parser.add_argument("--ranks", type=int, default=1, metavar="N", help="processes of a cell (default: 1)")
    options = parser.parse_args()
    name = options.preset
    plan = CellPlan(Path(), name, JSONS.get(name, "zero2"), options.ranks, 0.0)
    job = cost.Job.of(deepspeed_json.read(plan.ds_config), plan.ranks, plan.ds_config)
    preset = presets()[name]
    methods = list(METHODS) if "all" in preset.methods else list(preset.methods)
    cells = {cost.shape_of(cell): cell for cell in reversed(enumerate_cells(preset.datasets, methods, [0]))}
    table = json.loads(cost.TABLE.read_text("utf-8")) if cost.TABLE.is_file() else {}
    asked = set()
    for shape, cell in track(list(cells.items()), "recorded", "kinds of model"):
        config = config_loader.load(plan.config(cell.dataset), cell.overrides)
        key = cost.digest(config, job)
        asked.add(key)
        if key not in table:
            embedder = replace(config.model.embedder, weights="")
            small = replace(config, model=replace(config.model, embedder=embedder))
            found = cost.record(small, job, cost.known_devices())
            table[key] = {"of": shape, "preset": name, "ranks": job.ranks, **found}
            _write(table)
    stale = [key for key, entry in table.items() if key not in asked and _of(entry) in (None, (name, job.ranks))]
    _write({key: entry for key, entry in table.items() if key not in stale})
    print(f"{len(asked)} models: {cost.TABLE}")


def _of(entry: Mapping[str, Any]) -> tuple[str, int] | None:
    """Preset and ranks that an entry was recorded for; None of one of an older form."""
    return (entry["preset"], entry["ranks"]) if "preset" in entry else None


def _write(table: Mapping[str, Any]) -> None:
    rows = ",\n".join(f"{json.dumps(key)}: {json.dumps(entry)}" for key, entry in sorted(table.items()))
    cost.TABLE.write_text(f"{{\n{rows}\n}}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
