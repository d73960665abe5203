"""Plans and small conversions of an archive, and what stands in its shards."""

from __future__ import annotations

import csv
import importlib
from pathlib import Path
from typing import Any

from data_tools.archives.plan import ArchiveOptions, ArchivePlan
from data_tools.convert import ConvertOptions, convert
from m4oe_ds.data.manifest import Manifest
from m4oe_ds.data.schema import SPLITS
from m4oe_ds.data.shard_reader import read_sample

Key = tuple[str, str, str]


def run(layout: str, root: Path, out: Path, **more: Any) -> dict[str, Any]:
    small: dict[str, Any] = {"workers": 0, "rows": 48, "cols": 40, "samples_per_shard": 7}
    return convert(ConvertOptions(dataset=layout, root=root, out=out, **{**small, **more}))


def plan_of(layout: str, root: Path, **options: Any) -> ArchivePlan:
    plan: ArchivePlan = importlib.import_module(f"data_tools.archives.{layout}").plan_archive(
        root, ArchiveOptions(**options)
    )
    return plan


def converted(out: Path) -> dict[Key, tuple[str, dict[str, bytes]]]:
    """Split and members of every sample by (patient, exam, side), through the private mapping."""
    with out.with_name(f"{out.name}.mapping.csv").open(newline="") as stream:
        names = {row["key"]: (row["patient"], row["exam"], row["side"]) for row in csv.DictReader(stream)}
    found = {}
    for split in SPLITS:
        for shard in Manifest.load(out / split).shards:
            for start, stop in zip(shard.offsets, shard.offsets[1:], strict=False):
                members = read_sample(out / split / shard.name, start, stop)
                key: Any = members.pop("__key__")
                found[names[key if isinstance(key, str) else key.decode()]] = (split, members)
    return found
