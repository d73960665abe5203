"""Records what every kind of model of ``m4oe compare``'s presets costs into ``m4oe_ds/compare/costs.json``.

Run it after a change of a preset or of a model: ``python tools/compare_costs.py [--preset paper]``. What is there and
unchanged is not recorded again. Some minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

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
    name = parser.parse_args().preset
    plan = CellPlan(Path(), name, JSONS.get(name, "zero2"), 1, 0.0)
    content = deepspeed_json.read(plan.ds_config)
    precision = "bf16" if content.get("bf16", {}).get("enabled") else "fp32"
    preset = presets()[name]
    methods = list(METHODS) if "all" in preset.methods else list(preset.methods)
    cells = {cost.shape_of(cell): cell for cell in reversed(enumerate_cells(preset.datasets, methods, [0]))}
    table = json.loads(cost.TABLE.read_text("utf-8")) if cost.TABLE.is_file() else {}
    for shape, cell in track(list(cells.items()), "recorded", "kinds of model"):
        config = config_loader.load(plan.config(cell.dataset), cell.overrides)
        key = cost.digest(config, precision, content["train_batch_size"])
        if key not in table:
            embedder = replace(config.model.embedder, weights="")
            small = replace(config, model=replace(config.model, embedder=embedder))
            found = cost.record(small, precision, content["train_batch_size"], cost.known_devices())
            table[key] = {"of": shape, **found}
            cost.TABLE.write_text(
                "{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v)}" for k, v in sorted(table.items())) + "\n}\n",
                encoding="utf-8",
            )
    print(f"{len(table)} models: {cost.TABLE}")


if __name__ == "__main__":
    main()
